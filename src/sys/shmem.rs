//! Shared anonymous memory by descriptor: mmap(2) `MAP_SHARED | MAP_ANONYMOUS`,
//! and its inode through /proc/self/map_files, proc(5).
//!
//! A memfd would do nearly the same, but shows another name in /proc/PID/maps;
//! a program that is saved again must look as it did before.

use std::fs::File;
use std::ptr;

use crate::base::{Error, PAGE_SIZE, Result, ResultExt};

/// Makes shared anonymous memory of `len` bytes (whole pages) that exists as
/// long as the file, or somebody's mapping of it, does. Reads and writes like
/// a file. Needs CAP_CHECKPOINT_RESTORE in the first user namespace.
///
/// # Errors
/// ENOMEM, EPERM; EINVAL for a length that is not whole pages.
pub fn anonymous(len: u64) -> Result<File> {
    let what = || format!("make {len} bytes of shared memory");
    let size = usize::try_from(len)
        .ok()
        .filter(|_| len > 0 && len.is_multiple_of(PAGE_SIZE))
        .ok_or_else(|| Error::errno(what(), libc::EINVAL))?;
    // SAFETY: a fresh mapping at an address that the kernel picks; nothing of
    // ours refers to it.
    let at = unsafe {
        libc::mmap(
            ptr::null_mut(),
            size,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if at == libc::MAP_FAILED {
        return Err(Error::last_os(what()));
    }
    let start = at as usize;
    let file = File::options()
        .read(true)
        .write(true)
        .open(format!("/proc/self/map_files/{start:x}-{:x}", start + size))
        .context(what);
    // SAFETY: the mapping was made above and is known to nobody else.
    unsafe { libc::munmap(at, size) };
    file
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn what_is_written_is_there_for_whoever_maps_it() {
        let f = anonymous(8192).unwrap();
        f.write_all_at(b"abc", 4096).unwrap();
        let mut buf = [0u8; 4];
        f.read_exact_at(&mut buf, 4095).unwrap();
        assert_eq!(&buf, b"\0abc");
        assert!(anonymous(100).is_err());
        assert!(anonymous(0).is_err());
    }
}
