//! Small calls on descriptors that neither std nor nix gives: pipe contents
//! without reading them, owners and signals, timerfd state, eventfd counters,
//! openat2(2).

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::base::{Error, Result};

fn check(ret: i32) -> io::Result<i32> {
    if ret < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(ret)
    }
}

/// Wraps a descriptor that a system call just returned.
fn own(ret: i32, what: impl FnOnce() -> String) -> Result<OwnedFd> {
    let fd = check(ret).map_err(|e| Error::os(what(), e))?;
    // SAFETY: the kernel just gave this number to us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn fcntl_int(fd: BorrowedFd<'_>, cmd: i32, arg: i32) -> io::Result<i32> {
    // SAFETY: only commands with an integer argument come here.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), cmd, arg) })
}

/// A path as C wants it.
///
/// # Errors
/// The path holds a zero byte.
pub fn c_path(path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| Error::errno(format!("path {}", path.display()), libc::EINVAL))
}

/// A pipe, both ends close-on-exec; (read end, write end). pipe(2)
///
/// # Errors
/// EMFILE, ENFILE.
pub fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    let mut ends = [-1; 2];
    // SAFETY: `ends` has room for two descriptors.
    check(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) })
        .map_err(|e| Error::os("pipe", e))?;
    // SAFETY: pipe2 succeeded, so both are new and ours.
    Ok(unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) })
}

/// Capacity of a pipe in bytes (F_GETPIPE_SZ).
///
/// # Errors
/// EBADF when it is no pipe.
pub fn pipe_size(fd: BorrowedFd<'_>) -> Result<u32> {
    let size = fcntl_int(fd, libc::F_GETPIPE_SZ, 0).map_err(|e| Error::os("F_GETPIPE_SZ", e))?;
    u32::try_from(size).map_err(|_| Error::bug("F_GETPIPE_SZ", "negative size"))
}

/// Sets the capacity of a pipe in bytes (F_SETPIPE_SZ).
///
/// # Errors
/// EPERM above /proc/sys/fs/pipe-max-size without CAP_SYS_RESOURCE, EBUSY below its content.
pub fn set_pipe_size(fd: BorrowedFd<'_>, bytes: u32) -> Result<()> {
    let bytes = i32::try_from(bytes)
        .map_err(|_| Error::errno(format!("F_SETPIPE_SZ {bytes}"), libc::EINVAL))?;
    fcntl_int(fd, libc::F_SETPIPE_SZ, bytes)
        .map(drop)
        .map_err(|e| Error::os(format!("F_SETPIPE_SZ {bytes}"), e))
}

/// Copies up to `len` bytes of one pipe into another without consuming them;
/// 0 when the source is empty. tee(2)
///
/// # Errors
/// EINVAL when one is no pipe.
pub fn tee(from: BorrowedFd<'_>, to: BorrowedFd<'_>, len: usize) -> Result<usize> {
    // SAFETY: two descriptors and a length, no memory.
    let n = unsafe {
        libc::tee(
            from.as_raw_fd(),
            to.as_raw_fd(),
            len,
            libc::SPLICE_F_NONBLOCK,
        )
    };
    match usize::try_from(n) {
        Ok(n) => Ok(n),
        Err(_) => match io::Error::last_os_error() {
            e if e.raw_os_error() == Some(libc::EAGAIN) => Ok(0),
            e => Err(Error::os("tee", e)),
        },
    }
}

/// Flags of the open file description (F_GETFL).
///
/// # Errors
/// EBADF.
pub fn status_flags(fd: BorrowedFd<'_>) -> Result<i32> {
    fcntl_int(fd, libc::F_GETFL, 0).map_err(|e| Error::os("F_GETFL", e))
}

/// Sets those flags that can change after open (F_SETFL).
///
/// # Errors
/// EPERM for O_NOATIME on a foreign file or O_APPEND on an append-only one, EINVAL.
pub fn set_status_flags(fd: BorrowedFd<'_>, flags: i32) -> Result<()> {
    fcntl_int(fd, libc::F_SETFL, flags)
        .map(drop)
        .map_err(|e| Error::os(format!("F_SETFL {flags:#o}"), e))
}

/// Who gets SIGIO (fcntl(2), F_GETOWN_EX).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Owner {
    /// F_OWNER_TID 0, F_OWNER_PID 1, F_OWNER_PGRP 2.
    pub kind: i32,
    /// In the pid namespace of the caller; 0: nobody.
    pub pid: i32,
}

const F_SETOWN_EX: i32 = 15;
const F_GETOWN_EX: i32 = 16;
const F_GETOWNER_UIDS: i32 = 17;
const F_SETSIG: i32 = 10;
const F_GETSIG: i32 = 11;

/// The command that sets an [`Owner`], for calls made in a task.
pub const SET_OWNER: i32 = F_SETOWN_EX;

/// Who gets SIGIO.
///
/// # Errors
/// EBADF (O_PATH descriptors too).
pub fn owner(fd: BorrowedFd<'_>) -> Result<Owner> {
    let mut owner = Owner::default();
    // SAFETY: the kernel writes one f_owner_ex, which Owner mirrors.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), F_GETOWN_EX, &raw mut owner) })
        .map_err(|e| Error::os("F_GETOWN_EX", e))?;
    Ok(owner)
}

/// Real and effective user of whoever set the owner (F_GETOWNER_UIDS).
///
/// # Errors
/// EBADF; EINVAL without CONFIG_CHECKPOINT_RESTORE.
pub fn owner_uids(fd: BorrowedFd<'_>) -> Result<(u32, u32)> {
    let mut uids = [0u32; 2];
    // SAFETY: the kernel writes two uid_t.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), F_GETOWNER_UIDS, uids.as_mut_ptr()) })
        .map_err(|e| Error::os("F_GETOWNER_UIDS", e))?;
    Ok((uids[0], uids[1]))
}

/// The signal sent instead of SIGIO, 0 for the default (F_GETSIG).
///
/// # Errors
/// EBADF.
pub fn io_signal(fd: BorrowedFd<'_>) -> Result<i32> {
    fcntl_int(fd, F_GETSIG, 0).map_err(|e| Error::os("F_GETSIG", e))
}

/// Sets the signal sent instead of SIGIO (F_SETSIG).
///
/// # Errors
/// EINVAL for no signal.
pub fn set_io_signal(fd: BorrowedFd<'_>, signal: i32) -> Result<()> {
    fcntl_int(fd, F_SETSIG, signal)
        .map(drop)
        .map_err(|e| Error::os(format!("F_SETSIG {signal}"), e))
}

/// Opens `path` with `root` as its root directory: no `..`, link or magic
/// link leads out of it. openat2(2), RESOLVE_IN_ROOT; always close-on-exec.
///
/// # Errors
/// Those of open(2); EXDEV for an escape, EAGAIN for a race that could be one.
pub fn open_in_root(root: BorrowedFd<'_>, path: &Path, flags: i32, mode: u32) -> Result<OwnedFd> {
    /// RESOLVE_IN_ROOT of linux/openat2.h.
    const RESOLVE_IN_ROOT: u64 = 0x10;
    let what = || format!("open {} with flags {flags:#o}", path.display());
    // An empty path and "." are not the same to openat2.
    let name = if path.as_os_str().is_empty() {
        c".".to_owned()
    } else {
        c_path(path)?
    };
    let flags64 =
        u64::try_from(flags | libc::O_CLOEXEC).map_err(|_| Error::errno(what(), libc::EINVAL))?;
    let how: [u64; 3] = [
        flags64,
        if flags & (libc::O_CREAT | libc::O_TMPFILE) & !libc::O_DIRECTORY != 0 {
            u64::from(mode)
        } else {
            0
        },
        RESOLVE_IN_ROOT,
    ];
    let ret = openat2(root, &name, &how);
    own(ret, what)
}

fn openat2(root: BorrowedFd<'_>, name: &CStr, how: &[u64; 3]) -> i32 {
    // SAFETY: `name` is a C string, `how` the 24 bytes of struct open_how
    // (flags, mode, resolve), both only read.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_openat2,
            root.as_raw_fd(),
            name.as_ptr(),
            how.as_ptr(),
            size_of_val(how),
        )
    };
    // A descriptor, or -1.
    i32::try_from(ret).unwrap_or(-1)
}

/// An eventfd whose counter is 0. eventfd(2)
///
/// # Errors
/// EMFILE, EINVAL for unknown flags.
pub fn eventfd(flags: i32) -> Result<OwnedFd> {
    // SAFETY: two integers.
    own(
        unsafe { libc::eventfd(0, flags | libc::EFD_CLOEXEC) },
        || "eventfd".into(),
    )
}

/// A signalfd for the signals in `mask` (bit N-1 for signal N). signalfd(2)
///
/// # Errors
/// EMFILE.
pub fn signalfd(mask: u64) -> Result<OwnedFd> {
    // SAFETY: the kernel reads the eight bytes of a kernel sigset; -1 makes a
    // new descriptor.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_signalfd4,
            -1,
            &raw const mask,
            size_of::<u64>(),
            libc::SFD_CLOEXEC,
        )
    };
    own(i32::try_from(ret).unwrap_or(-1), || "signalfd".into())
}

/// An empty epoll set. epoll_create(2)
///
/// # Errors
/// EMFILE.
pub fn epoll() -> Result<OwnedFd> {
    // SAFETY: one integer.
    own(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) }, || {
        "epoll_create1".into()
    })
}

/// An anonymous file that programs see as `memfd:NAME`. memfd_create(2)
///
/// # Errors
/// EMFILE, EINVAL for unknown flags or a name above 249 bytes.
pub fn memfd(name: &CStr, flags: u32) -> Result<OwnedFd> {
    // SAFETY: a C string and an integer.
    own(
        unsafe { libc::memfd_create(name.as_ptr(), flags | libc::MFD_CLOEXEC) },
        || format!("memfd_create {name:?}"),
    )
}

/// Adds seals to a memfd (F_ADD_SEALS).
///
/// # Errors
/// EPERM when sealing is sealed, EBUSY for F_SEAL_WRITE while mapped shared.
pub fn add_seals(fd: BorrowedFd<'_>, seals: i32) -> Result<()> {
    fcntl_int(fd, libc::F_ADD_SEALS, seals)
        .map(drop)
        .map_err(|e| Error::os(format!("F_ADD_SEALS {seals:#x}"), e))
}

/// Seals of a memfd (F_GET_SEALS).
///
/// # Errors
/// EINVAL when the file system knows no seals.
pub fn seals(fd: BorrowedFd<'_>) -> Result<i32> {
    fcntl_int(fd, libc::F_GET_SEALS, 0).map_err(|e| Error::os("F_GET_SEALS", e))
}

/// A timer, in nanoseconds. timerfd_settime(2)
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timer {
    /// Until the next expiry; 0: not armed.
    pub value: u64,
    /// Between expiries; 0: once.
    pub interval: u64,
}

fn timespec(ns: u64) -> libc::timespec {
    // Both fit: u64::MAX ns are 1.8e10 s.
    libc::timespec {
        tv_sec: i64::try_from(ns / 1_000_000_000).unwrap_or(i64::MAX),
        tv_nsec: i64::try_from(ns % 1_000_000_000).unwrap_or(0),
    }
}

fn nanos(t: libc::timespec) -> u64 {
    u64::try_from(t.tv_sec)
        .unwrap_or(0)
        .saturating_mul(1_000_000_000)
        .saturating_add(u64::try_from(t.tv_nsec).unwrap_or(0))
}

/// A timerfd of clock `clock`. timerfd_create(2)
///
/// # Errors
/// EINVAL for an unknown clock, EPERM for an alarm clock without CAP_WAKE_ALARM.
pub fn timerfd(clock: i32) -> Result<OwnedFd> {
    // SAFETY: two integers.
    own(
        unsafe { libc::timerfd_create(clock, libc::TFD_CLOEXEC) },
        || format!("timerfd_create of clock {clock}"),
    )
}

/// What a timerfd has left. The kernel counts missed expiries of an interval
/// timer into its ticks as it answers, just as a read would. timerfd_gettime(2)
///
/// # Errors
/// EINVAL when it is no timerfd.
pub fn timerfd_get(fd: BorrowedFd<'_>) -> Result<Timer> {
    // SAFETY: an all-zero itimerspec is valid.
    let mut spec: libc::itimerspec = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one itimerspec.
    check(unsafe { libc::timerfd_gettime(fd.as_raw_fd(), &raw mut spec) })
        .map_err(|e| Error::os("timerfd_gettime", e))?;
    Ok(Timer {
        value: nanos(spec.it_value),
        interval: nanos(spec.it_interval),
    })
}

/// Arms a timerfd; `flags` as in timerfd_settime(2).
///
/// # Errors
/// EINVAL, ECANCELED.
pub fn timerfd_set(fd: BorrowedFd<'_>, flags: i32, timer: Timer) -> Result<()> {
    let spec = libc::itimerspec {
        it_interval: timespec(timer.interval),
        it_value: timespec(timer.value),
    };
    // SAFETY: the kernel reads `spec`, and writes nothing to a null old value.
    check(unsafe {
        libc::timerfd_settime(fd.as_raw_fd(), flags, &raw const spec, std::ptr::null_mut())
    })
    .map(drop)
    .map_err(|e| Error::os("timerfd_settime", e))
}

/// Sets how many expiries a read will tell (TFD_IOC_SET_TICKS, not 0).
///
/// # Errors
/// EINVAL for 0, ENOTTY without CONFIG_CHECKPOINT_RESTORE.
pub fn timerfd_set_ticks(fd: BorrowedFd<'_>, ticks: u64) -> Result<()> {
    /// _IOW('T', 0, __u64)
    const TFD_IOC_SET_TICKS: libc::Ioctl = 0x4008_5400;
    // SAFETY: the kernel reads eight bytes.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), TFD_IOC_SET_TICKS, &raw const ticks) })
        .map(drop)
        .map_err(|e| Error::os("TFD_IOC_SET_TICKS", e))
}

/// Now, in nanoseconds of `clock`. clock_gettime(2)
///
/// # Errors
/// EINVAL for an unknown clock.
pub fn now(clock: i32) -> Result<u64> {
    let mut t = timespec(0);
    // SAFETY: the kernel writes one timespec.
    check(unsafe { libc::clock_gettime(clock, &raw mut t) })
        .map_err(|e| Error::os(format!("clock_gettime {clock}"), e))?;
    Ok(nanos(t))
}

/// A byte-range lock for F_SETLK or F_OFD_SETLK in a task.
///
/// Its bytes are `struct flock` of fcntl(2).
#[must_use]
pub fn flock_bytes(write: bool, start: i64, len: i64) -> Vec<u8> {
    // struct flock: type, whence, start, len, pid, with the padding of the ABI.
    let mut bytes = Vec::with_capacity(size_of::<libc::flock>());
    let kind: i16 = if write { 1 } else { 0 };
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&0i16.to_ne_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&start.to_ne_bytes());
    bytes.extend_from_slice(&len.to_ne_bytes());
    bytes.extend_from_slice(&[0; 8]);
    bytes
}

const _: () = assert!(size_of::<libc::flock>() == 32);
const _: () = assert!(libc::F_RDLCK == 0 && libc::F_WRLCK == 1);

/// Takes an open file description lock, without waiting (F_OFD_SETLK).
///
/// # Errors
/// EAGAIN when another holds it, EBADF when the file is not open for it.
#[cfg(test)]
pub(crate) fn set_ofd_lock(fd: BorrowedFd<'_>, write: bool, start: i64, len: i64) -> Result<()> {
    let bytes = flock_bytes(write, start, len);
    // SAFETY: the kernel reads struct flock, whose 32 bytes these are; it
    // copies them from user memory without regard to alignment.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_SETLK, bytes.as_ptr()) })
        .map(drop)
        .map_err(|e| Error::os(format!("F_OFD_SETLK {start}+{len}"), e))
}

/// Takes a whole-file lock, without waiting. flock(2)
///
/// # Errors
/// EWOULDBLOCK when another holds it.
pub fn flock(fd: BorrowedFd<'_>, operation: i32) -> Result<()> {
    // SAFETY: two integers.
    check(unsafe { libc::flock(fd.as_raw_fd(), operation | libc::LOCK_NB) })
        .map(drop)
        .map_err(|e| Error::os(format!("flock {operation:#x}"), e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;

    #[test]
    fn tee_leaves_the_bytes_where_they_are() {
        let (r, w) = pipe().unwrap();
        let (r2, w2) = pipe().unwrap();
        File::from(w.try_clone().unwrap())
            .write_all(b"abc")
            .unwrap();
        assert_eq!(tee(r.as_fd(), w2.as_fd(), 65536).unwrap(), 3);
        let mut got = [0; 3];
        File::from(r2).read_exact(&mut got).unwrap();
        assert_eq!(&got, b"abc");
        File::from(r).read_exact(&mut got).unwrap();
        assert_eq!(&got, b"abc");
    }

    #[test]
    fn tee_of_an_empty_pipe_is_zero_and_not_an_error() {
        let (r, _w) = pipe().unwrap();
        let (_r2, w2) = pipe().unwrap();
        assert_eq!(tee(r.as_fd(), w2.as_fd(), 65536).unwrap(), 0);
    }

    #[test]
    fn no_path_leads_out_of_a_root() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("link")).unwrap();
        let root = File::open(dir.path()).unwrap();
        for path in ["link", "../../../../../../etc/passwd", "/etc/passwd"] {
            let e = open_in_root(root.as_fd(), Path::new(path), libc::O_RDONLY, 0).unwrap_err();
            assert_eq!(e.raw_os_error(), Some(libc::ENOENT), "{path}");
        }
    }

    #[test]
    fn lock_bytes_are_the_kernels_struct_flock() {
        let file = tempfile::tempfile().unwrap();
        set_ofd_lock(file.as_fd(), true, 5, 7).unwrap();
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd()));
        let info = info.unwrap();
        assert!(
            info.contains("OFDLCK ADVISORY  WRITE") && info.contains(" 5 11"),
            "{info}"
        );
    }

    #[test]
    fn ticks_of_a_timerfd_can_be_set_and_read() {
        let fd = timerfd(libc::CLOCK_MONOTONIC).unwrap();
        timerfd_set_ticks(fd.as_fd(), 41).unwrap();
        let mut got = [0; 8];
        File::from(fd).read_exact(&mut got).unwrap();
        assert_eq!(u64::from_ne_bytes(got), 41);
    }
}
