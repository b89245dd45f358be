//! Programs to be moved: built once, static, kept in `target/samples`.

use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};

use super::{program, top};

fn cache() -> PathBuf {
    let dir = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| top().join("target"), PathBuf::from)
        .join("samples");
    fs::create_dir_all(&dir).expect("make the directory of sample programs");
    dir
}

fn locked<T>(dir: &Path, work: impl FnOnce() -> T) -> T {
    let file = fs::File::create(dir.join("lock")).expect("open the lock of the samples");
    let lock = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, e)| e);
    let _held = lock.expect("lock the samples");
    work()
}

/// `bundles/probes/NAME.c`, compiled static.
pub fn sample(name: &str) -> PathBuf {
    let source = top().join(format!("bundles/probes/{name}.c"));
    let text =
        fs::read_to_string(&source).unwrap_or_else(|e| panic!("read {}: {e}", source.display()));
    compile(name, &text)
}

/// A C text of your own, compiled `gcc -static -pthread`; the same text is
/// compiled once.
///
/// # Panics
/// When it does not compile.
pub fn compile(name: &str, text: &str) -> PathBuf {
    let dir = cache();
    let mut hash = DefaultHasher::new();
    text.hash(&mut hash);
    let program = dir.join(format!("{name}-{:016x}", hash.finish()));
    locked(&dir, || {
        if program.exists() {
            return;
        }
        let source = program.with_extension("c");
        let fresh = program.with_extension("new");
        fs::write(&source, text).expect("write a sample's source");
        program::must(
            Command::new("gcc")
                .args(["-static", "-O1", "-g", "-Wall", "-pthread", "-o"])
                .arg(&fresh)
                .arg(&source),
        );
        fs::rename(&fresh, &program).expect("put a sample in place");
    });
    program
}

/// The sample program of `bundles/patterns`, static; see its source for what it does.
///
/// # Panics
/// When it does not build.
pub fn patterns_program() -> PathBuf {
    let dir = cache();
    locked(&dir, || {
        let outcome = program::run(
            Command::new(top().join("bundles/build-patterns")).arg(dir.join("patterns")),
            Duration::from_secs(300),
        );
        assert!(outcome.ok(), "{outcome:?}");
    });
    dir.join("patterns")
}

/// Makes a root file system in `dir`: busybox with its names in `/bin`, empty
/// directories for the mounts, and `programs` in `/bin` by their file names
/// (up to the first `-`).
///
/// # Panics
/// When busybox is not there (package busybox-static).
pub fn busybox_rootfs(dir: &Path, programs: &[&Path]) {
    for name in [
        "bin", "dev", "etc", "proc", "run", "sys", "tmp", "var", "data",
    ] {
        fs::create_dir_all(dir.join(name)).expect("make a directory of the rootfs");
    }
    let busybox = ["/bin/busybox", "/usr/bin/busybox"]
        .into_iter()
        .find(|path| Path::new(path).exists())
        .expect("no busybox: install busybox-static");
    fs::copy(busybox, dir.join("bin/busybox")).expect("copy busybox");
    for name in [
        "sh", "cat", "ls", "sleep", "echo", "ps", "kill", "true", "false", "mount", "env", "id",
        "hostname", "touch", "tail", "wc", "seq", "test", "mkdir", "rm", "top", "date", "stat",
    ] {
        let _ = symlink("busybox", dir.join("bin").join(name));
    }
    for program in programs {
        let name = program
            .file_name()
            .and_then(|n| n.to_str())
            .expect("a name");
        let name = name.split('-').next().unwrap_or(name);
        fs::copy(program, dir.join("bin").join(name)).expect("copy a program into the rootfs");
    }
}
