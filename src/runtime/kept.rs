//! A copy of what runc remembers of a container that it restores.
//!
//! runc writes it down before the container goes on. If it fails after that (its
//! criu is killed before it can say that all went well), it forgets the container
//! and leaves its tasks running, with nobody to stop, enter or delete them. What it
//! had written is as true as before: given back, runc knows the container again.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use super::runc::{Container, read, state_file};
use crate::base::{Error, Result};
use crate::sys::private;

/// Copies what runc wrote of the container `id` to `to`.
///
/// # Errors
/// runc has written nothing yet; the file cannot be written.
pub fn keep(root: &Path, id: &str, to: &Path) -> Result<()> {
    let bytes = read(&state_file(root, id)?)?;
    private::replace(to, &bytes)
}

/// Gives runc back what it has forgotten, if the container still runs. Nothing is
/// done if it has not forgotten it.
///
/// # Errors
/// The container does not run any more; `from` cannot be read, or runc's
/// directory not be written.
pub fn give_back(root: &Path, id: &str, from: &Path) -> Result<Container> {
    let path = state_file(root, id)?;
    if !path.exists() {
        let bytes = read(from)?;
        Container::parse(root, id, from, &bytes)?;
        let dir = root.join(id);
        // As runc makes it.
        let made = DirBuilder::new().mode(0o711).create(&dir);
        match made {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(Error::os(format!("make {}", dir.display()), e));
            }
            _ => {}
        }
        private::replace(&path, &bytes)?;
    }
    Container::load(root, id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    use crate::base::HostPid;
    use crate::sys::procfs;

    #[test]
    fn what_runc_has_forgotten_is_given_back_while_it_runs_and_not_after() {
        let dir = tempfile::tempdir().unwrap();
        let (root, copy) = (dir.path().join("runc"), dir.path().join("copy"));
        let me = i32::try_from(std::process::id()).unwrap();
        let start = procfs::stat(HostPid(me)).unwrap().start_time;
        let state = |start: u64| {
            format!(
                r#"{{"init_process_pid": {me}, "init_process_start": {start}, "config":
                {{"rootfs": "/r", "labels": ["bundle=/b"]}}}}"#
            )
        };
        fs::create_dir_all(root.join("c")).unwrap();
        assert!(keep(&root, "c", &copy).is_err(), "it wrote nothing yet");
        fs::write(root.join("c/state.json"), state(start)).unwrap();
        keep(&root, "c", &copy).unwrap();
        fs::remove_dir_all(root.join("c")).unwrap();
        assert_eq!(give_back(&root, "c", &copy).unwrap().init(), HostPid(me));
        assert_eq!(
            fs::read(root.join("c/state.json")).unwrap(),
            state(start).into_bytes()
        );

        fs::remove_dir_all(root.join("c")).unwrap();
        fs::write(&copy, state(start + 1)).unwrap();
        let e = give_back(&root, "c", &copy).unwrap_err().to_string();
        assert!(e.contains("not running"), "{e}");
        assert!(!root.join("c").exists());
    }
}
