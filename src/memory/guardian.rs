//! What happens when the process that serves pages dies.
//!
//! The last close of a userfaultfd turns missing pages into zeros, and a process
//! that dies closes. So another process holds the same table of descriptors: the
//! guardian, made before there is any userfaultfd. It shares the table itself and
//! not a copy, so that a descriptor that came with a fork event is in it from the
//! moment that the kernel makes it. While it lives, those who fault on a missing
//! page wait.
//!
//! ```text
//!   start ---> watches its parent ---> parent dies ---> no address space needs it: ends
//!                    |                                  |
//!                    | drop (all pages came)            +--> says so in the status file,
//!                    v                                       kills the processes and the
//!                  ends                                      control group, and holds the
//!                                                            descriptors until the last
//!                                                            address space has ended
//! ```
//!
//! It does not take over serving (that comes later), so it kills: a container
//! whose memory will never come is not to be left hanging, let alone to read
//! zeros. The death of both at once is the one hole.
//!
//! Put it into another control group and out of reach of what kills the handler.

use std::fs::OpenOptions;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::base::{HostPid, Result, ResultExt};
use crate::memory::Filler;
use crate::sys::guardian;

/// A running guardian; drop it when every page is accounted for, and not before.
#[derive(Debug)]
pub struct Guardian(guardian::Guardian);

impl Guardian {
    /// Starts one, before there is any userfaultfd. What it has to say goes to the
    /// end of the file `status`.
    ///
    /// # Errors
    /// The file cannot be opened, the process not made.
    pub fn start(status: Option<&Path>) -> Result<Self> {
        let status = status
            .map(|path| {
                OpenOptions::new()
                    .append(true)
                    .create(true)
                    .mode(0o600)
                    .open(path)
                    .context(|| format!("open {}", path.display()))
            })
            .transpose()?;
        guardian::Guardian::start(status.map(OwnedFd::from)).map(Self)
    }

    /// Its pid, to be moved to another control group.
    pub fn pid(&self) -> HostPid {
        self.0.pid()
    }

    /// Readable when the guardian itself has died: start another one.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.0.pidfd()
    }

    /// Adds the processes of a job. Children that they fork are found only
    /// through [`Self::watch_cgroup`], or die with their pid namespace.
    ///
    /// # Errors
    /// Too many, or no descriptor left.
    pub fn watch(&mut self, filler: &Filler) -> Result<()> {
        for (_, pidfd) in filler.processes() {
            self.0.watch(pidfd.as_fd())?;
        }
        Ok(())
    }

    /// Names the control group (its directory) of the container.
    pub fn watch_cgroup(&mut self, dir: OwnedFd) {
        self.0.watch_cgroup(dir);
    }
}

#[cfg(test)]
#[path = "guardian/tests.rs"]
mod tests;
