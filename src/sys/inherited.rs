//! Descriptors that the caller left open for us, known by their number only:
//! `criu swrk 3`, `--status-fd 5`, `--inherit-fd fd[4]:...`. See fcntl(2),
//! close(2).
//!
//! [`remember`] notes at the start of the program which numbers are open.
//! Only those can be taken, and each only once: they have no owner in this
//! process, whatever number a caller may name later.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::Mutex;

use crate::base::{Error, Result};

static NUMBERS: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// Notes which descriptors are open. To be called once, as the first act of
/// the program, before anything is opened or a thread is started.
pub fn remember() {
    let Ok(entries) = fs::read_dir("/proc/self/fd") else {
        return;
    };
    let mut numbers: BTreeSet<i32> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    // The directory's own descriptor is closed by now.
    numbers.retain(|number| is_open(*number));
    *lock() = numbers;
}

fn lock() -> std::sync::MutexGuard<'static, BTreeSet<i32>> {
    NUMBERS.lock().unwrap_or_else(|e| e.into_inner())
}

fn is_open(number: i32) -> bool {
    // SAFETY: F_GETFD touches no memory; a wrong number gives EBADF.
    unsafe { libc::fcntl(number, libc::F_GETFD) >= 0 }
}

/// A close-on-exec duplicate (never a standard stream) of inherited
/// descriptor `number`, which stays open.
///
/// # Errors
/// EBADF: it was not inherited, or was taken.
pub fn duplicate(number: i32) -> Result<OwnedFd> {
    let context = || format!("inherited descriptor {number}");
    if !lock().contains(&number) {
        return Err(Error::errno(context(), libc::EBADF));
    }
    // SAFETY: F_DUPFD_CLOEXEC touches no memory; a wrong number gives EBADF.
    let fd = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) };
    if fd < 0 {
        return Err(Error::last_os(context()));
    }
    // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Takes inherited descriptor `number` over: a duplicate as by [`duplicate`],
/// while the number itself is closed unless it is a standard stream.
///
/// # Errors
/// EBADF: it was not inherited, or was taken.
pub fn take(number: i32) -> Result<OwnedFd> {
    let fd = duplicate(number)?;
    if number > 2 {
        close(number)?;
    }
    Ok(fd)
}

/// Closes inherited descriptor `number`.
///
/// # Errors
/// EBADF: it was not inherited, or was taken.
pub fn close(number: i32) -> Result<()> {
    let context = || format!("close inherited descriptor {number}");
    if !lock().remove(&number) {
        return Err(Error::errno(context(), libc::EBADF));
    }
    // SAFETY: no memory is touched. The number was open when the program
    // started and is closed here for the first time, so that no owner inside
    // this process has it.
    if unsafe { libc::close(number) } < 0 {
        return Err(Error::last_os(context()));
    }
    Ok(())
}
