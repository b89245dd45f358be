//! userfaultfd(2), ioctl_userfaultfd(2): guards memory of another process, and
//! fills it.
//!
//! The descriptor is made *inside* the task it guards (by an injected call) and
//! fetched by pidfd_getfd, so [`Uffd`] starts from an `OwnedFd`. All ioctls act
//! on the address space it was made in, whoever calls them.
//!
//! What bites (all of it measured):
//! * While an event (fork, remap, remove, unmap) is queued or its task has not
//!   gone on yet, ioctls that fill answer EAGAIN: read the events, try again.
//! * A fill may stop half-way: `copy` then says how far it came, and the errno is
//!   EAGAIN whatever the reason; the next try gives the reason.
//! * A piece must lie in one area of the target. mprotect splits areas without an
//!   event, so ENOENT on many pages only means "try smaller pieces".
//! * poll(2) on a descriptor without O_NONBLOCK gives POLLERR. The descriptor that
//!   comes with a fork event is blocking.
//! * The last close turns what is missing into zeros.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

mod abi;
mod event;

use crate::base::{Error, PageRange, Result, VAddr};
use abi::*;
pub use event::{Event, FAULT_WRITE};
use event::{MSG, parse};

/// Feature bits of UFFDIO_API.
pub mod feature {
    /// Fork is told.
    pub const EVENT_FORK: u64 = 1 << 1;
    /// mremap is told.
    pub const EVENT_REMAP: u64 = 1 << 2;
    /// madvise(DONTNEED), madvise(REMOVE) are told.
    pub const EVENT_REMOVE: u64 = 1 << 3;
    /// Missing faults on shared memory.
    pub const MISSING_SHMEM: u64 = 1 << 5;
    /// munmap is told.
    pub const EVENT_UNMAP: u64 = 1 << 6;
    /// Faults carry the thread id.
    pub const THREAD_ID: u64 = 1 << 8;
    /// Minor faults on shared memory.
    pub const MINOR_SHMEM: u64 = 1 << 10;
    /// Write protection reaches pages that do not exist yet.
    pub const WP_UNPOPULATED: u64 = 1 << 13;
    /// [`super::Uffd::poison`].
    pub const POISON: u64 = 1 << 14;
    /// Written pages are only marked; nobody waits.
    pub const WP_ASYNC: u64 = 1 << 15;
    /// UFFDIO_MOVE: pages move within an address space.
    pub const MOVE: u64 = 1 << 16;

    /// What lazy filling needs.
    pub const LAZY: u64 = EVENT_FORK | EVENT_REMAP | EVENT_REMOVE | EVENT_UNMAP | MISSING_SHMEM;
}

/// Ways to register a range.
pub mod mode {
    /// Faults on pages that do not exist.
    pub const MISSING: u64 = 1 << 0;
}

/// Bytes fetched by one read(2).
const MSG_BATCH: usize = MSG * 16;

/// Why a fill stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Events wait to be read (or a fill stopped half-way): try again.
    Again,
    /// The next page exists already: whoever waits for it must be woken.
    Exists,
    /// Not registered, not mapped, or more than one area.
    NoArea,
    /// The address space has ended (exit or exec).
    Gone,
}

/// How far a fill came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Filled {
    /// Bytes filled, from the start on.
    pub bytes: u64,
    /// Why no more; `None` when all is done.
    pub stop: Option<Stop>,
}

/// A userfaultfd.
#[derive(Debug)]
pub struct Uffd {
    fd: OwnedFd,
}

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<Uffd> for OwnedFd {
    fn from(uffd: Uffd) -> Self {
        uffd.fd
    }
}

impl Uffd {
    /// Takes a fresh descriptor and agrees on `features`.
    ///
    /// # Errors
    /// EINVAL when the kernel lacks one of them or the descriptor was in use
    /// already; EPERM for fork events without CAP_SYS_PTRACE.
    pub fn handshake(fd: OwnedFd, features: u64) -> Result<Self> {
        let uffd = Self::adopt(fd)?;
        uffd.api(features)?;
        Ok(uffd)
    }

    /// Takes a descriptor that has its handshake behind it: a fork's child, or
    /// one handed over by another process.
    ///
    /// # Errors
    /// Those of fcntl(2).
    pub fn adopt(fd: OwnedFd) -> Result<Self> {
        nonblocking(fd.as_fd())?;
        Ok(Self { fd })
    }

    /// All features of this kernel; `fd` is spent on the question.
    ///
    /// # Errors
    /// Those of UFFDIO_API.
    pub fn all_features(fd: OwnedFd) -> Result<u64> {
        Self { fd }.api(0)
    }

    fn api(&self, features: u64) -> Result<u64> {
        let mut arg = Api {
            api: API,
            features,
            ioctls: 0,
        };
        // SAFETY: `Api` is the struct of UFFDIO_API.
        unsafe { self.ioctl(UFFDIO_API, &raw mut arg) }
            .map_err(|e| Error::os(format!("userfaultfd API with features {features:#x}"), e))?;
        Ok(arg.features)
    }

    /// Guards `range` in the way of `mode`.
    ///
    /// # Errors
    /// EINVAL for an area that cannot be guarded, EBUSY when another context
    /// guards it, ESRCH when the address space has ended.
    pub fn register(&self, range: PageRange, mode: u64) -> Result<()> {
        let mut arg = Register {
            range: abi(range),
            mode,
            ioctls: 0,
        };
        // SAFETY: `Register` is the struct of UFFDIO_REGISTER.
        unsafe { self.ioctl(UFFDIO_REGISTER, &raw mut arg) }
            .map_err(|e| Error::os(format!("userfaultfd register {range}"), e))
    }

    /// Guards `range` no longer; what is missing then reads as zeros. Waiting
    /// threads wake.
    ///
    /// # Errors
    /// EINVAL for areas that cannot be guarded, ESRCH.
    pub fn unregister(&self, range: PageRange) -> Result<()> {
        let mut arg = abi(range);
        // SAFETY: `Range` is the struct of UFFDIO_UNREGISTER.
        unsafe { self.ioctl(UFFDIO_UNREGISTER, &raw mut arg) }
            .map_err(|e| Error::os(format!("userfaultfd unregister {range}"), e))
    }

    /// Lets every thread that waits in `range` try again.
    ///
    /// # Errors
    /// EINVAL for an empty range.
    pub fn wake(&self, range: PageRange) -> Result<()> {
        let mut arg = abi(range);
        // SAFETY: `Range` is the struct of UFFDIO_WAKE.
        unsafe { self.ioctl(UFFDIO_WAKE, &raw mut arg) }
            .map_err(|e| Error::os(format!("userfaultfd wake {range}"), e))
    }

    /// Makes pages from `bytes` (whole pages) at `dst` and wakes their waiters.
    ///
    /// # Errors
    /// ENOMEM, EINVAL; what a caller must handle is in [`Stop`].
    pub fn copy(&self, dst: VAddr, bytes: &[u8]) -> Result<Filled> {
        let mut arg = Transfer {
            dst: dst.0,
            src: bytes.as_ptr() as u64,
            len: bytes.len() as u64,
            mode: 0,
            done: 0,
        };
        // SAFETY: `Transfer` is the struct of UFFDIO_COPY; the kernel only reads
        // `bytes`, which is borrowed for the call.
        let r = unsafe { self.ioctl(UFFDIO_COPY, &raw mut arg) };
        filled("copy", dst, arg.len, arg.done, r)
    }

    /// Maps the zero page all over `range` and wakes its waiters.
    ///
    /// # Errors
    /// As [`Self::copy`]; EINVAL on hugetlbfs.
    pub fn zeropage(&self, range: PageRange) -> Result<Filled> {
        self.fill(UFFDIO_ZEROPAGE, "zeropage", range)
    }

    /// Lets every later access to `range` end in SIGBUS.
    ///
    /// # Errors
    /// As [`Self::copy`].
    pub fn poison(&self, range: PageRange) -> Result<Filled> {
        self.fill(UFFDIO_POISON, "poison", range)
    }

    /// Whether `range` is still one guarded area: asks for something that cannot
    /// succeed there, and looks at the refusal. `None` while events wait.
    ///
    /// # Errors
    /// An errno that says neither.
    pub fn is_guarded(&self, range: PageRange) -> Result<Option<bool>> {
        let mut arg = Fill {
            range: abi(range),
            mode: DONTWAKE,
            done: 0,
        };
        // SAFETY: `Fill` is the struct of UFFDIO_CONTINUE.
        match unsafe { self.ioctl(UFFDIO_CONTINUE, &raw mut arg) } {
            Ok(()) => Ok(Some(true)),
            Err(e) => match e.raw_os_error() {
                // The area is looked up before its kind or content.
                Some(libc::EINVAL | libc::EFAULT | libc::EEXIST) => Ok(Some(true)),
                Some(libc::EAGAIN) if arg.done > 0 => Ok(Some(true)),
                Some(libc::EAGAIN) => Ok(None),
                Some(libc::ENOENT | libc::ESRCH) => Ok(Some(false)),
                _ => Err(Error::os(format!("userfaultfd continue {range}"), e)),
            },
        }
    }

    fn fill(&self, request: u32, what: &str, range: PageRange) -> Result<Filled> {
        let mut arg = Fill {
            range: abi(range),
            mode: 0,
            done: 0,
        };
        // SAFETY: `Fill` is the struct of all three requests that come here.
        let r = unsafe { self.ioctl(request, &raw mut arg) };
        filled(what, VAddr(range.start()), range.len(), arg.done, r)
    }

    /// Appends the events that wait to `events`, at most `most` and no more than a
    /// batch; returns how many, 0 when there are none.
    ///
    /// # Errors
    /// An event of a kind or shape that we do not know, those of read(2).
    pub fn read_events(&self, events: &mut Vec<Event>, most: usize) -> Result<usize> {
        let mut buf = [0u8; MSG_BATCH];
        let buf = &mut buf[..MSG_BATCH.min(most.max(1).saturating_mul(MSG))];
        // SAFETY: `buf` has the length that is given.
        let n = unsafe { libc::read(self.fd.as_raw_fd(), buf.as_mut_ptr().cast(), buf.len()) };
        let Ok(n) = usize::try_from(n) else {
            let e = io::Error::last_os_error();
            return match e.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(0),
                _ => Err(Error::os("read userfaultfd", e)),
            };
        };
        // Take ownership of every descriptor before anything can fail.
        let mut bad = None;
        let mut count = 0;
        for msg in buf[..n].chunks_exact(MSG) {
            match parse(msg) {
                Ok(e) => {
                    events.push(e);
                    count += 1;
                }
                Err(e) => bad = Some(e),
            }
        }
        bad.map_or(Ok(count), Err)
    }

    /// # Safety
    /// `arg` points to the struct that `request` works on, and whatever memory
    /// that struct names may be read or changed as the request does.
    unsafe fn ioctl<T>(&self, request: u32, arg: *mut T) -> io::Result<()> {
        // SAFETY: the caller's promise.
        let r = unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::Ioctl::from(request), arg) };
        if r < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }
}

fn abi(range: PageRange) -> Range {
    Range {
        start: range.start(),
        len: range.len(),
    }
}

/// A fill's result: the field `done` is bytes or a negative errno, and is not
/// written at all when the kernel refuses early.
fn filled(what: &str, at: VAddr, len: u64, done: i64, r: io::Result<()>) -> Result<Filled> {
    let Err(e) = r else {
        return Ok(Filled {
            bytes: len,
            stop: None,
        });
    };
    let bytes = u64::try_from(done).unwrap_or(0);
    let stop = match e.raw_os_error() {
        Some(libc::EAGAIN) => Stop::Again,
        Some(libc::EEXIST) => Stop::Exists,
        Some(libc::ENOENT) => Stop::NoArea,
        Some(libc::ESRCH) => Stop::Gone,
        _ => {
            return Err(Error::os(
                format!("userfaultfd {what} {len} bytes at {at}"),
                e,
            ));
        }
    };
    if bytes > len {
        return Err(Error::bug(
            format!("userfaultfd {what} at {at}"),
            format!("the kernel says that {bytes} of {len} bytes are done"),
        ));
    }
    Ok(Filled {
        bytes,
        stop: Some(stop),
    })
}

fn nonblocking(fd: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: no pointers are passed.
    let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
    if flags < 0 {
        return Err(Error::last_os("fcntl F_GETFL of a userfaultfd"));
    }
    // SAFETY: no pointers are passed.
    let r = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) };
    if r < 0 {
        return Err(Error::last_os("fcntl F_SETFL of a userfaultfd"));
    }
    // SAFETY: no pointers are passed.
    let r = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) };
    if r < 0 {
        return Err(Error::last_os("fcntl F_SETFD of a userfaultfd"));
    }
    Ok(())
}

#[cfg(test)]
#[path = "uffd/tests.rs"]
mod tests;
