//! lseek(2) SEEK_DATA and SEEK_HOLE: which parts of a file exist.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// The first byte at or behind `from` that has data; `None` when there is none.
///
/// # Errors
/// Those of lseek(2).
pub fn data(file: &File, from: u64) -> io::Result<Option<u64>> {
    match seek(file, from, libc::SEEK_DATA) {
        Err(e) if e.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        r => r.map(Some),
    }
}

/// The first byte at or behind `from` that lies in a hole; the end is one.
///
/// # Errors
/// Those of lseek(2).
pub fn hole(file: &File, from: u64) -> io::Result<u64> {
    seek(file, from, libc::SEEK_HOLE)
}

fn seek(file: &File, from: u64, whence: i32) -> io::Result<u64> {
    let from = i64::try_from(from).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    // SAFETY: no pointers are passed.
    let at = unsafe { libc::lseek(file.as_raw_fd(), from, whence) };
    u64::try_from(at).map_err(|_| io::Error::last_os_error())
}
