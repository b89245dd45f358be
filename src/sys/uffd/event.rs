//! The messages that read(2) gives.

use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};

use super::nonblocking;
use crate::base::{Blame, Error, PAGE_SIZE, PageRange, Result, VAddr};

/// Bytes of one `uffd_msg`.
pub(super) const MSG: usize = 32;
const EVENT_PAGEFAULT: u8 = 0x12;
const EVENT_FORK: u8 = 0x13;
const EVENT_REMAP: u8 = 0x14;
const EVENT_REMOVE: u8 = 0x15;
const EVENT_UNMAP: u8 = 0x16;
/// Fault flag: it was a write.
pub const FAULT_WRITE: u64 = 1 << 0;

/// What the kernel tells about the guarded address space.
#[derive(Debug)]
pub enum Event {
    /// A thread waits for the page at `addr`.
    PageFault {
        /// The address (page-aligned unless asked otherwise).
        addr: VAddr,
        /// UFFD_PAGEFAULT_FLAG_*, such as [`FAULT_WRITE`].
        flags: u64,
        /// The thread, with [`feature::THREAD_ID`]; else 0.
        tid: u32,
    },
    /// The process forked; this descriptor guards the child.
    Fork {
        /// Already set to O_NONBLOCK.
        child: OwnedFd,
    },
    /// Pages moved.
    Remap {
        /// Old start.
        from: VAddr,
        /// New start.
        to: VAddr,
        /// Old length; 0 when mremap duplicated a shared mapping.
        len: u64,
    },
    /// Content was thrown away; the mapping stays.
    Remove {
        /// What.
        range: PageRange,
    },
    /// The mapping went away.
    Unmap {
        /// What.
        range: PageRange,
    },
}

pub(super) fn parse(msg: &[u8]) -> Result<Event> {
    let word = |i: usize| -> u64 {
        let mut b = [0; 8];
        b.copy_from_slice(&msg[8 + i * 8..16 + i * 8]);
        u64::from_ne_bytes(b)
    };
    let low = |w: u64| {
        let b = w.to_ne_bytes();
        u32::from_ne_bytes([b[0], b[1], b[2], b[3]])
    };
    let range = || {
        PageRange::new(word(0), word(1)).ok_or_else(|| {
            Error::new(
                Blame::Kernel,
                "read userfaultfd",
                format!(
                    "event {:#x} with range {:#x}-{:#x}",
                    msg[0],
                    word(0),
                    word(1)
                ),
            )
        })
    };
    Ok(match msg[0] {
        EVENT_PAGEFAULT => Event::PageFault {
            flags: word(0),
            addr: VAddr(word(1) & !(PAGE_SIZE - 1)),
            tid: low(word(2)),
        },
        EVENT_FORK => {
            let fd = RawFd::try_from(low(word(0)))
                .map_err(|_| Error::errno("userfaultfd fork event", libc::EBADF))?;
            // SAFETY: the kernel has just installed it in our table, for us.
            let child = unsafe { OwnedFd::from_raw_fd(fd) };
            nonblocking(child.as_fd())?;
            Event::Fork { child }
        }
        EVENT_REMAP => Event::Remap {
            from: VAddr(word(0)),
            to: VAddr(word(1)),
            len: word(2),
        },
        EVENT_REMOVE => Event::Remove { range: range()? },
        EVENT_UNMAP => Event::Unmap { range: range()? },
        other => {
            return Err(Error::new(
                Blame::Kernel,
                "read userfaultfd",
                format!("unknown event {other:#x}"),
            ));
        }
    })
}
