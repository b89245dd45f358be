//! What integration tests share. Include it in a test file with
//!
//! ```ignore
//! #[path = "harness/mod.rs"]
//! mod harness;
//! use harness::*;
//! ```
//!
//! and declare the file in `Cargo.toml` (`[[test]] name = "x"  path = "integration/x.rs"`).
//!
//! | need | use |
//! |---|---|
//! | privileges, tools | first line of a test: `needs!(root, runc);` (`root`, `runc`, `gcc`, `redis`, `nginx`, `node`, `java`, `crossed`) |
//! | something else is missing | `skip!("why")`: says `skipped: why`, and fails in CI unless `integration/allowed-skips.txt` lists the test |
//! | our binary | [`dunlin()`], and [`criu_dir()`]: a directory in which it is called `criu` |
//! | the CRIU to compare with | [`criu()`]: `$CRIU`, if given |
//! | a directory | [`Scratch::new`] |
//! | the whole machine for a while | `let _alone = whole_machine();` |
//! | a sample program, static | [`sample("spin")`](sample) (`bundles/probes/spin.c`), [`patterns_program()`], [`compile`] for a C text of your own |
//! | a bare process | [`Program::start`]: its lines, signals, death; killed with its whole session when dropped |
//! | a bare program that comes back | [`Held::start`], [`Held::is_asked`]; [`adopt_orphans`] first |
//! | a bare tree that is dumped and comes back | [`Bare::start`], [`Bare::dump`], [`Bare::restore`]; killed when dropped |
//! | a container | [`Bundle::new`], [`Bundle::edit`], then [`Container::run`], [`Container::checkpoint`], [`Container::restore`]; removed when dropped |
//! | a command that must not hang | [`run`], [`must`] |
//! | waiting | [`Lines::expect`] for output, [`Proc::wait_gone`] for an end, [`wait_file`] and [`wait_dir`] for files: never a sleep |
//! | before and after | [`snapshot`] of `/proc/PID`, made comparable |
//!
//! Names carry the test process's pid and a counter, so that tests can run side
//! by side; what is made is unmade when its guard is dropped, also in a panic.

// Each test file uses its part of this module.
#![allow(dead_code, unused_imports, unused_macros, unreachable_pub)]
#![allow(missing_docs)]

mod bare;
mod container;
mod held;
mod proc;
mod program;
mod samples;
mod scratch;
mod skip;
mod wait;

pub use bare::Bare;
pub use container::{Bundle, Container, Runc, remove_cgroups};
pub use held::{Held, adopt_orphans};
pub use proc::{Snapshot, descendants, fds, maps, read_memory, snapshot, status_field};
pub use program::{Outcome, Program, must, run};
pub use samples::{busybox_rootfs, compile, patterns_program, sample};
pub use scratch::{Alone, Scratch, whole_machine};
pub use skip::{Need, missing, skipped, tool};
pub use wait::{Deadline, Lines, Proc, wait_dir, wait_file};

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// How long anything may take before a test gives up on it.
pub const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

/// The binary under test.
pub fn dunlin() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_dunlin"))
}

/// A directory that holds the binary under test by the name `criu`
/// (for `PATH`, or `runc --criu DIR/criu`).
pub fn criu_dir(scratch: &Scratch) -> PathBuf {
    criu_dir_at(scratch.join("bin"))
}

/// As [`criu_dir`], in a directory that all tests of a build may share: it stays.
pub fn shared_criu_dir() -> PathBuf {
    criu_dir_at(dunlin().with_file_name("called-criu"))
}

fn criu_dir_at(dir: PathBuf) -> PathBuf {
    std::fs::create_dir_all(&dir).expect("make the directory of the criu link");
    let link = dir.join("criu");
    // another test may have made it; one of another build, in a copied directory,
    // would have tests run the wrong program
    if std::fs::read_link(&link).ok() != Some(dunlin()) {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let fresh = dir.join(format!("criu.{}.{number}", std::process::id()));
        std::os::unix::fs::symlink(dunlin(), &fresh).expect("link criu to dunlin");
        std::fs::rename(&fresh, &link).expect("put the link in place");
    }
    dir
}

/// The CRIU that `$CRIU` names, for crossed tests.
pub fn criu() -> Option<PathBuf> {
    let path = PathBuf::from(std::env::var_os("CRIU")?);
    path.is_file().then_some(path)
}

/// The top of the source tree.
pub fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
