//! Directories of /proc without an allocation: the guardian is a copy of a process
//! with threads, one of which may have held the allocator's lock.

use std::fmt::{self, Write};
use std::mem::size_of_val;
use std::os::fd::RawFd;

/// A path on the stack, ended by a zero byte. What is too long is an error.
pub(super) struct Path {
    bytes: [u8; 64],
    len: usize,
}

impl Path {
    /// Formats one; `None` if it has no room.
    pub(super) fn of(args: fmt::Arguments<'_>) -> Option<Self> {
        let mut path = Self {
            bytes: [0; 64],
            len: 0,
        };
        path.write_fmt(args).ok()?;
        Some(path)
    }

    /// Opens it for reading.
    pub(super) fn open(&self, flags: i32) -> Option<RawFd> {
        // SAFETY: the bytes end with at least one zero.
        let fd = unsafe {
            libc::open(
                self.bytes.as_ptr().cast(),
                libc::O_RDONLY | libc::O_CLOEXEC | flags,
            )
        };
        (fd >= 0).then_some(fd)
    }

    /// What it links to, if that has room.
    pub(super) fn read_link<'a>(&self, to: &'a mut [u8]) -> Option<&'a [u8]> {
        // SAFETY: the path ends with a zero byte; `to` has the length that is given.
        let n =
            unsafe { libc::readlink(self.bytes.as_ptr().cast(), to.as_mut_ptr().cast(), to.len()) };
        to.get(..usize::try_from(n).ok()?)
    }
}

impl Write for Path {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        let end = self.len + s.len();
        // One byte stays zero.
        let room = self.bytes.len() - 1;
        let part = self
            .bytes
            .get_mut(self.len..end)
            .filter(|_| end <= room)
            .ok_or(fmt::Error)?;
        part.copy_from_slice(s.as_bytes());
        self.len = end;
        Ok(())
    }
}

/// Gives each number that is a name in an open directory to `take`, and closes it.
/// `false` if it could not be read.
pub(super) fn each_number(dir: RawFd, mut take: impl FnMut(i32)) -> bool {
    let mut buf = [0u64; 512];
    let read = loop {
        // SAFETY: `buf` has the length that is given.
        let n = unsafe {
            libc::syscall(
                libc::SYS_getdents64,
                dir,
                buf.as_mut_ptr(),
                size_of_val(&buf),
            )
        };
        let n = match usize::try_from(n) {
            Ok(0) => break true,
            Ok(n) => n,
            Err(_) => break false,
        };
        // SAFETY: the kernel filled `n` bytes of the buffer.
        let bytes = unsafe { std::slice::from_raw_parts(buf.as_ptr().cast::<u8>(), n) };
        let mut at = 0;
        // struct linux_dirent64: ino 8, off 8, reclen 2, type 1, name.
        while at + 19 < n {
            let len = usize::from(u16::from_ne_bytes([bytes[at + 16], bytes[at + 17]]));
            if len == 0 || at + len > n {
                break;
            }
            if let Some(number) = number(&bytes[at + 19..at + len]) {
                take(number);
            }
            at += len;
        }
    };
    // SAFETY: nobody uses it any more.
    unsafe { libc::close(dir) };
    read
}

/// Digits, ended by a zero byte or a blank.
pub(super) fn number(name: &[u8]) -> Option<i32> {
    let digits = name.split(|b| *b == 0 || *b == b' ').next()?;
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0i32, |n, b| {
        let digit = b.is_ascii_digit().then(|| i32::from(b - b'0'))?;
        n.checked_mul(10)?.checked_add(digit)
    })
}
