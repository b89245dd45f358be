//! Processes by descriptor: pidfd_open(2), pidfd_getfd(2),
//! pidfd_send_signal(2). A pid may be recycled, a pidfd never is: whoever keeps
//! a process in mind for longer than one call keeps its pidfd.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use crate::base::{Error, HostPid, Result};
use crate::sys::poll::readable;

/// A descriptor of the thread group `pid` (close-on-exec).
///
/// # Errors
/// ESRCH when there is none, EINVAL when `pid` is a thread but no leader.
pub fn open(pid: HostPid) -> Result<OwnedFd> {
    // SAFETY: no pointers are passed.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.0, 0) };
    owned(fd).map_err(|e| Error::os(format!("pidfd_open {pid}"), e))
}

/// A duplicate (close-on-exec) of the process's descriptor number `fd`.
///
/// # Errors
/// EBADF when it has none of that number, EPERM without PTRACE_MODE_ATTACH,
/// ESRCH when it is dead.
pub fn getfd(pidfd: BorrowedFd<'_>, fd: RawFd) -> Result<OwnedFd> {
    // SAFETY: no pointers are passed.
    let new = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0) };
    owned(new).map_err(|e| Error::os(format!("pidfd_getfd of descriptor {fd}"), e))
}

/// Sends a signal to the process.
///
/// # Errors
/// ESRCH when it is dead, EPERM, EINVAL.
pub fn send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> Result<()> {
    // SAFETY: the siginfo pointer is null, which the call allows.
    let r = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if r == 0 {
        Ok(())
    } else {
        Err(Error::last_os(format!("pidfd_send_signal {signal}")))
    }
}

/// Waits until the process has ended (it may still be a zombie); `false` when
/// `timeout` passed before. `None` waits for ever.
///
/// # Errors
/// Those of poll(2).
pub fn wait_exit(pidfd: BorrowedFd<'_>, timeout: Option<Duration>) -> Result<bool> {
    readable(pidfd, timeout)
}

/// Whether the process has ended (it may still be a zombie).
///
/// # Errors
/// Those of poll(2).
pub fn has_exited(pidfd: BorrowedFd<'_>) -> Result<bool> {
    readable(pidfd, Some(Duration::ZERO))
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    match RawFd::try_from(fd) {
        // SAFETY: the kernel has just made this descriptor, and for us alone.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::process::{Command, Stdio};

    #[test]
    fn a_child_is_signalled_waited_for_and_its_descriptors_fetched() {
        let mut child = Command::new("sh")
            .args(["-c", "echo ready; exec sleep 1000"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = HostPid(i32::try_from(child.id()).unwrap());
        let fd = open(pid).unwrap();
        let mut said = [0; 6];
        child.stdout.take().unwrap().read_exact(&mut said).unwrap();
        assert!(!has_exited(fd.as_fd()).unwrap());
        let null = getfd(fd.as_fd(), 0).unwrap();
        let link = std::fs::read_link(format!("/proc/self/fd/{}", null.as_raw_fd())).unwrap();
        assert_eq!(link.to_str(), Some("/dev/null"));
        let missing = getfd(fd.as_fd(), 9999).unwrap_err();
        assert_eq!(missing.raw_os_error(), Some(libc::EBADF));
        send_signal(fd.as_fd(), libc::SIGKILL).unwrap();
        assert!(wait_exit(fd.as_fd(), None).unwrap());
        child.wait().unwrap();
        let gone = send_signal(fd.as_fd(), libc::SIGKILL).unwrap_err();
        assert_eq!(gone.raw_os_error(), Some(libc::ESRCH));
    }

    #[test]
    fn a_process_that_never_was_is_esrch() {
        let e = open(HostPid(i32::MAX)).unwrap_err();
        assert_eq!(e.raw_os_error(), Some(libc::ESRCH));
    }
}
