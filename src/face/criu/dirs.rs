//! The directories of a job: where the images are, and where logs, pid files
//! and statistics go.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::base::{Result, ResultExt};

/// An open directory.
#[derive(Debug)]
pub(crate) struct Dir {
    file: File,
    path: PathBuf,
}

impl Dir {
    /// Opens the directory `path`, which may be another process's descriptor
    /// (`/proc/PID/fd/N`) and need not have a name here.
    ///
    /// # Errors
    /// There is no such directory. `what` says whose it would have been.
    pub(crate) fn open(what: &str, path: &Path) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECTORY)
            .open(path)
            .context(|| format!("{what} directory {}", path.display()))?;
        let own = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        let path = named(&file, &own).unwrap_or(own);
        Ok(Self { file, path })
    }

    /// A path to it: its name where it has one here.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A path to it for children, valid while this process lives.
    pub(crate) fn path_for_children(&self) -> PathBuf {
        let fd = self.file.as_raw_fd();
        PathBuf::from(format!("/proc/{}/fd/{fd}", std::process::id()))
    }

    /// A second handle.
    ///
    /// # Errors
    /// No descriptor is free.
    pub(crate) fn share(&self) -> Result<Self> {
        let file = self
            .file
            .try_clone()
            .context(|| format!("directory {}", self.path.display()))?;
        Ok(Self {
            file,
            path: self.path.clone(),
        })
    }
}

/// The name behind `link`, if it leads to the same directory from here.
fn named(file: &File, link: &Path) -> Option<PathBuf> {
    let name = fs::read_link(link).ok()?;
    let (is, seen) = (file.metadata().ok()?, fs::metadata(&name).ok()?);
    (name.is_absolute() && (is.dev(), is.ino()) == (seen.dev(), seen.ino())).then_some(name)
}
