//! Waiting for descriptors with a deadline: poll(2) that survives EINTR.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::base::{Result, ResultExt};

/// Waits until `fd` is readable (or has hung up or failed: the next read says
/// which); `false` when `timeout` passed before. `None` waits for ever.
///
/// # Errors
/// Those of poll(2); EINTR is retried with the time that is left.
pub fn readable(fd: BorrowedFd<'_>, timeout: Option<Duration>) -> Result<bool> {
    wait(fd, PollFlags::POLLIN, timeout)
}

/// As [`readable`], until `fd` takes more.
///
/// # Errors
/// As [`readable`].
pub fn writable(fd: BorrowedFd<'_>, timeout: Option<Duration>) -> Result<bool> {
    wait(fd, PollFlags::POLLOUT, timeout)
}

fn wait(fd: BorrowedFd<'_>, what: PollFlags, timeout: Option<Duration>) -> Result<bool> {
    let deadline = timeout.map(|t| Instant::now() + t);
    loop {
        let wait = match deadline {
            None => PollTimeout::NONE,
            Some(end) => {
                let left = end.saturating_duration_since(Instant::now());
                // Rounded up, so that a wait is never shorter than asked for.
                let millis = left.as_micros().div_ceil(1000);
                i32::try_from(millis)
                    .ok()
                    .and_then(|m| PollTimeout::try_from(m).ok())
                    .unwrap_or(PollTimeout::MAX)
            }
        };
        let mut fds = [PollFd::new(fd, what)];
        match poll(&mut fds, wait) {
            Ok(0) => {
                if deadline.is_some_and(|end| Instant::now() >= end) {
                    return Ok(false);
                }
            }
            Ok(_) => return Ok(true),
            Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(e).context(|| "poll".to_owned()),
        }
    }
}
