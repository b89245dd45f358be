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
//!                    v                                       kills the processes, and holds
//!                  ends                                      the descriptors until the last
//!                                                            address space has ended
//! ```
//!
//! It does not take over serving (that comes later), so it kills: a container
//! whose memory will never come is not to be left hanging, let alone to read
//! zeros. One that dies is replaced at once. If both die together, nobody kills, but
//! still no zeros are read: [`super::anchor`]. It leaves our control groups, where it
//! may: who kills one of those kills us, but not it.
//!
//! Children that a task forks after the resume die with their pid namespace, or by
//! descent. One without either (its parent has ended) gets SIGBUS at the first page
//! that it lacks: each fault that it tells is answered with poison, in whatever
//! address space it is. No zeros are read there either.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use tracing::{error, warn};

use crate::base::{HostPid, Result, ResultExt};
use crate::memory::Filler;
use crate::sys::{cgroup, guardian, private};

/// A running guardian; drop it when every page is accounted for, and not before.
#[derive(Debug)]
pub struct Guardian {
    shared: Arc<Shared>,
    keeper: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    now: Mutex<guardian::Guardian>,
    /// Written to when no guardian is needed any more.
    over: EventFd,
}

impl Guardian {
    /// Starts one, before there is any userfaultfd. What it has to say, and when
    /// it came to that, goes to the end of the file `status`.
    ///
    /// # Errors
    /// The file cannot be opened, process or thread not made.
    pub fn start(status: Option<&Path>) -> Result<Self> {
        let status = status.map(private::append).transpose()?.map(OwnedFd::from);
        let first = guardian::Guardian::start(status)?;
        cgroup::leave(first.pid());
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let over = EventFd::from_value_and_flags(0, flags).context(|| "eventfd".to_owned())?;
        let shared = Arc::new(Shared {
            now: Mutex::new(first),
            over,
        });
        let kept = Arc::clone(&shared);
        let keeper = std::thread::Builder::new()
            .name("guardian".to_owned())
            .spawn(move || kept.keep())
            .context(|| "start the guardian's thread".to_owned())?;
        Ok(Self {
            shared,
            keeper: Some(keeper),
        })
    }

    /// The pid of the one that lives now.
    pub fn pid(&self) -> HostPid {
        self.shared.now().pid()
    }

    /// Names the file to which it writes when it has to act.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn say_in(&mut self, status: &Path) -> Result<()> {
        self.shared.now().say_to(private::append(status)?.into());
        Ok(())
    }

    /// Adds the processes of a job.
    ///
    /// # Errors
    /// Too many, or no descriptor left.
    pub fn watch(&mut self, filler: &Filler) -> Result<()> {
        for (pid, pidfd) in filler.processes() {
            self.shared.now().watch(pid, pidfd.as_fd())?;
        }
        Ok(())
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        // The counter cannot overflow.
        let _ = self.shared.over.write(1);
        if let Some(k) = self.keeper.take() {
            // It does not panic; and if it did, there is nothing left to keep.
            let _ = k.join();
        }
    }
}

impl Shared {
    fn now(&self) -> MutexGuard<'_, guardian::Guardian> {
        // Whole between any two statements that could panic.
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces whoever dies, until all is over.
    fn keep(&self) {
        loop {
            let pidfd = match self.now().pidfd().try_clone_to_owned() {
                Ok(fd) => fd,
                Err(e) => return error!("the guardian is not watched: {e}"),
            };
            let flags = PollFlags::POLLIN;
            let mut set = [
                PollFd::new(self.over.as_fd(), flags),
                PollFd::new(pidfd.as_fd(), flags),
            ];
            match poll(&mut set, PollTimeout::NONE) {
                Err(nix::errno::Errno::EINTR) => continue,
                Err(e) => return error!("the guardian is not watched: {e}"),
                Ok(_) if set[0].any() == Some(true) => return,
                Ok(_) => {}
            }
            let mut now = self.now();
            if let Err(e) = now.again() {
                return error!("the guardian died, and there is no other: {e}");
            }
            cgroup::leave(now.pid());
            warn!("the guardian died; {} has taken its place", now.pid());
        }
    }
}

#[cfg(test)]
#[path = "guardian/tests.rs"]
mod tests;
