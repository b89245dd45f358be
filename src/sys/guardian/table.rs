//! The userfaultfds in our table of descriptors, found by looking at it, since a
//! fork may have put one there of which nobody knew yet.

use std::io;
use std::mem::size_of_val;
use std::os::fd::RawFd;

use super::raw::{Path, each_number};
use crate::base::PAGE_SIZE;

const UFFDIO_WAKE: u32 = 0x8010_aa02;
const UFFDIO_CONTINUE: u32 = 0xc020_aa07;
const UFFDIO_POISON: u32 = 0xc020_aa08;
const EVENT_PAGEFAULT: u64 = 0x12;

/// Where the memory of a process may begin (vm.mmap_min_addr, as a rule), and where
/// it ends with page tables of four levels.
const MEMORY: (u64, u64) = (0x10000, 0x7fff_ffff_f000);

/// What else is done about the address spaces that live.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    Nothing,
    /// Whoever touches a missing page gets SIGBUS in place of it.
    Poison,
}

/// Whether some userfaultfd in our table guards an address space that lives.
pub(super) fn any_alive(then: Then) -> bool {
    let dir = Path::of(format_args!("/proc/self/fd")).and_then(|p| p.open(libc::O_DIRECTORY));
    let Some(dir) = dir else {
        // Better to go on guarding than to let go.
        return true;
    };
    let mut alive = false;
    each_number(dir, |fd| {
        if is_userfaultfd(fd) && lives(fd) {
            alive = true;
            if then == Then::Poison {
                poison(fd);
            }
        }
    });
    alive
}

fn is_userfaultfd(fd: RawFd) -> bool {
    const KIND: &[u8] = b"anon_inode:[userfaultfd]";
    let Some(path) = Path::of(format_args!("/proc/self/fd/{fd}")) else {
        return false;
    };
    let mut link = [0u8; 64];
    path.read_link(&mut link) == Some(KIND)
}

fn lives(fd: RawFd) -> bool {
    // A question that no address space answers with success; one that has ended
    // says so.
    let mut arg = [0x10000u64, 4096, 0, 0];
    // SAFETY: `arg` is laid out as struct uffdio_continue, 32 bytes.
    let r = unsafe { libc::ioctl(fd, libc::Ioctl::from(UFFDIO_CONTINUE), arg.as_mut_ptr()) };
    let errno = io::Error::last_os_error().raw_os_error();
    r == 0 || errno != Some(libc::ESRCH)
}

/// Poisons the pages of which faults are told, and lets those who wait for one whose
/// fault was told to the dead tell it again: that is heard the next time. What else
/// is told is only taken note of, so that nobody waits for that; a child that
/// comes with it is in our table from then on.
fn poison(fd: RawFd) {
    // One that came with a fork and that nobody has looked at would block us.
    // SAFETY: plain values.
    unsafe { libc::fcntl(fd, libc::F_SETFL, libc::O_RDWR | libc::O_NONBLOCK) };
    // struct uffd_msg: 32 bytes; of a fault: flags, address.
    let mut told = [[0u64; 4]; 16];
    loop {
        // SAFETY: `told` has the length that is given.
        let n = unsafe { libc::read(fd, told.as_mut_ptr().cast(), size_of_val(&told)) };
        let Some(n) = usize::try_from(n).ok().filter(|n| *n > 0) else {
            break;
        };
        for message in told.iter().take(n / 32) {
            if message[0] & 0xff == EVENT_PAGEFAULT {
                let mut arg = [message[2] & !(PAGE_SIZE - 1), PAGE_SIZE, 0, 0];
                // SAFETY: `arg` is laid out as struct uffdio_poison, 32 bytes.
                unsafe { libc::ioctl(fd, libc::Ioctl::from(UFFDIO_POISON), arg.as_mut_ptr()) };
            }
        }
    }
    let mut all = [MEMORY.0, MEMORY.1 - MEMORY.0];
    // SAFETY: `all` is laid out as struct uffdio_range, 16 bytes.
    unsafe { libc::ioctl(fd, libc::Ioctl::from(UFFDIO_WAKE), all.as_mut_ptr()) };
}
