//! Directories, names and locks.

use std::fs::File;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::fcntl::{Flock, FlockArg};

/// A directory of this test's own; removed when dropped (kept if
/// `DUNLIN_KEEP` is set, or if the test panics with `DUNLIN_KEEP_FAILED`).
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    name: String,
}

impl Scratch {
    /// Makes `dunlin-test-PREFIX-PID-N` in the directory for temporary files.
    pub fn new(prefix: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("dt-{prefix}-{}-{n}", std::process::id());
        let path = std::env::temp_dir().join(&name);
        std::fs::create_dir(&path).expect("make a scratch directory");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o711))
            .expect("open the scratch directory to containers");
        Self { path, name }
    }

    /// A name that no other test uses: for container ids, cgroups, namespaces.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn join(&self, below: impl AsRef<Path>) -> PathBuf {
        self.path.join(below)
    }

    /// Makes a directory below.
    pub fn dir(&self, below: impl AsRef<Path>) -> PathBuf {
        let dir = self.path.join(below);
        std::fs::create_dir_all(&dir).expect("make a directory in scratch");
        dir
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let failed = std::thread::panicking() && std::env::var_os("DUNLIN_KEEP_FAILED").is_some();
        if std::env::var_os("DUNLIN_KEEP").is_some() || failed {
            eprintln!("kept {}", self.path.display());
            return;
        }
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// Holds the lock on the machine while it lives.
#[derive(Debug)]
pub struct Alone(#[allow(dead_code)] Flock<File>);

/// Waits until no other test, in this or another test binary, needs the machine
/// as a whole (host network namespaces, global cgroup settings, timing).
pub fn whole_machine() -> Alone {
    let path = std::env::temp_dir().join("dunlin-tests.lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .expect("open the lock of the whole machine");
    match Flock::lock(file, FlockArg::LockExclusive) {
        Ok(lock) => Alone(lock),
        Err((_, errno)) => panic!("lock the whole machine: {errno}"),
    }
}
