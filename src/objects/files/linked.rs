//! Files that were opened by a name which is gone, and have others. sem_open(3)
//! makes such: it links a semaphore that it has made under a passing name.

use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::sys::stat::FileStat;

use super::capture::Capture;
use super::path::same;
use crate::base::{Error, Result};
use crate::sys::fdops;

impl Capture {
    /// Another name of the file with this `stat`, in the directory of the one that
    /// it has lost. (Elsewhere it is not looked for: the tasks stand meanwhile.)
    ///
    /// # Errors
    /// It has none there; the directory cannot be read.
    pub(super) fn other_name(&self, lost: &Path, stat: &FileStat) -> Result<String> {
        for path in self.names_beside(lost, stat.st_ino)? {
            let Some(path) = path.to_str() else { continue };
            // What is mounted there, or another file system, may use the number too.
            if let Some((found, _)) = self.lookup(path)?
                && same(&found, stat)
            {
                return Ok(path.to_owned());
            }
        }
        Err(Error::refused(
            format!("file {}", lost.display()),
            "has lost this name, and its others are not in that directory",
        ))
    }

    /// What has the inode number in the directory of `path`; nothing if that is gone.
    fn names_beside(&self, path: &Path, inode: u64) -> Result<Vec<PathBuf>> {
        let parent = path.parent().unwrap_or(Path::new("/"));
        let what = || format!("read directory {}", parent.display());
        let flags = libc::O_RDONLY | libc::O_DIRECTORY;
        let dir = match fdops::open_in_root(self.root.as_fd(), parent, flags, 0) {
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => return Ok(Vec::new()),
            other => other?,
        };
        let failed = |e: nix::errno::Errno| Error::errno(what(), e as i32);
        let mut dir = Dir::from_fd(dir).map_err(failed)?;
        let mut found = Vec::new();
        for entry in dir.iter() {
            let entry = entry.map_err(failed)?;
            if entry.ino() == inode {
                let name = std::ffi::OsStr::from_bytes(entry.file_name().to_bytes());
                found.push(parent.join(name));
            }
        }
        Ok(found)
    }
}
