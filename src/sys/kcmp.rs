//! kcmp(2): are two kernel objects the same.
//!
//! The kernel answers with an order that stays the same until the next boot,
//! so objects can be kept in a sorted list and found without comparing each
//! with each. It says nothing else about them.

use std::cmp::Ordering;
use std::io;
use std::os::fd::RawFd;

use crate::base::{Error, HostPid, Result};

const KCMP_FILE: i32 = 0;
const KCMP_VM: i32 = 1;
const KCMP_FILES: i32 = 2;
const KCMP_FS: i32 = 3;
const KCMP_SIGHAND: i32 = 4;
const KCMP_IO: i32 = 5;
const KCMP_SYSVSEM: i32 = 6;
const KCMP_EPOLL_TFD: i32 = 7;

/// What two tasks may share (linux/kcmp.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shared {
    /// The address space (CLONE_VM).
    Vm,
    /// The descriptor table (CLONE_FILES).
    Files,
    /// Root, working directory and umask (CLONE_FS).
    Fs,
    /// Signal actions (CLONE_SIGHAND).
    Sighand,
    /// The I/O context (CLONE_IO).
    Io,
    /// System V semaphore undo lists (CLONE_SYSVSEM).
    SysvSem,
}

/// One target of an epoll set, as its fdinfo names it.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct EpollSlot {
    /// The epoll descriptor in the task.
    pub efd: u32,
    /// The number under which the target was added.
    pub tfd: u32,
    /// Which one, when several files were added under that number.
    pub toff: u32,
}

const _: () = assert!(size_of::<EpollSlot>() == 12);

fn kcmp(a: HostPid, b: HostPid, kind: i32, x: u64, y: u64) -> io::Result<Ordering> {
    // SAFETY: kcmp reads two integers, or for KCMP_EPOLL_TFD an EpollSlot that
    // `y` points to and that the caller keeps alive; it writes nothing.
    let ret = unsafe { libc::syscall(libc::SYS_kcmp, a.0, b.0, kind, x, y) };
    match ret {
        0 => Ok(Ordering::Equal),
        1 => Ok(Ordering::Less),
        2 => Ok(Ordering::Greater),
        -1 => Err(io::Error::last_os_error()),
        // 3: not equal, and no order; only for a kernel that hides its order.
        _ => Err(io::Error::from_raw_os_error(libc::ENODATA)),
    }
}

fn index(fd: RawFd) -> Result<u64> {
    u64::try_from(fd).map_err(|_| Error::errno(format!("kcmp of descriptor {fd}"), libc::EBADF))
}

/// The order of the open file descriptions behind `a`'s and `b`'s descriptors.
///
/// # Errors
/// EBADF for a descriptor that is not open, ESRCH for a dead task, EPERM
/// without PTRACE_MODE_READ, ENODATA when the kernel keeps no order.
pub fn file((a, fd_a): (HostPid, RawFd), (b, fd_b): (HostPid, RawFd)) -> Result<Ordering> {
    kcmp(a, b, KCMP_FILE, index(fd_a)?, index(fd_b)?).map_err(|e| {
        Error::os(
            format!("kcmp of task {a} fd {fd_a} and task {b} fd {fd_b}"),
            e,
        )
    })
}

/// The order of an object that tasks may share; `Equal` means shared.
///
/// # Errors
/// ESRCH for a dead task, EPERM without PTRACE_MODE_READ.
pub fn shared(a: HostPid, b: HostPid, what: Shared) -> Result<Ordering> {
    let kind = match what {
        Shared::Vm => KCMP_VM,
        Shared::Files => KCMP_FILES,
        Shared::Fs => KCMP_FS,
        Shared::Sighand => KCMP_SIGHAND,
        Shared::Io => KCMP_IO,
        Shared::SysvSem => KCMP_SYSVSEM,
    };
    kcmp(a, b, kind, 0, 0).map_err(|e| Error::os(format!("kcmp {what:?} of tasks {a} and {b}"), e))
}

/// Whether `a`'s descriptor is the file that the epoll set of `b` has in `slot`.
///
/// # Errors
/// As [`file`]; ENOENT when the set has no such slot.
pub fn epoll_target((a, fd): (HostPid, RawFd), b: HostPid, slot: &EpollSlot) -> Result<bool> {
    let at = std::ptr::from_ref(slot).expose_provenance() as u64;
    kcmp(a, b, KCMP_EPOLL_TFD, index(fd)?, at)
        .map(|o| o == Ordering::Equal)
        .map_err(|e| {
            Error::os(
                format!("kcmp of task {a} fd {fd} and an epoll slot of {b}"),
                e,
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsRawFd;

    fn me() -> HostPid {
        HostPid(i32::try_from(std::process::id()).unwrap())
    }

    #[test]
    fn a_duplicate_is_the_same_file_and_a_second_open_is_not() {
        let a = File::open("/dev/null").unwrap();
        let b = a.try_clone().unwrap();
        let c = File::open("/dev/null").unwrap();
        let with = |x: &File, y: &File| file((me(), x.as_raw_fd()), (me(), y.as_raw_fd())).unwrap();
        assert_eq!(with(&a, &b), Ordering::Equal);
        assert_ne!(with(&a, &c), Ordering::Equal);
        assert_eq!(with(&a, &c), with(&c, &a).reverse());
    }

    #[test]
    fn a_process_shares_everything_with_itself() {
        for what in [Shared::Vm, Shared::Files, Shared::Fs, Shared::Sighand] {
            assert_eq!(shared(me(), me(), what).unwrap(), Ordering::Equal);
        }
    }
}
