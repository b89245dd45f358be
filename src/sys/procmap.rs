//! What /proc tells of single areas of a process. Which one an address lies in: the
//! PROCMAP_QUERY ioctl where the kernel has it (6.11), else the whole of /proc/PID/maps.
//! How its file was opened: /proc/PID/map_files (proc_pid_map_files(5)).

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;

use super::procfs;
use crate::base::{Error, HostPid, PageRange, Result};

/// `struct procmap_query` of `<linux/fs.h>`.
#[repr(C)]
#[derive(Default)]
struct AbiQuery {
    size: u64,
    query_flags: u64,
    query_addr: u64,
    vma_start: u64,
    vma_end: u64,
    vma_flags: u64,
    vma_page_size: u64,
    vma_offset: u64,
    inode: u64,
    dev_major: u32,
    dev_minor: u32,
    vma_name_size: u32,
    build_id_size: u32,
    vma_name_addr: u64,
    build_id_addr: u64,
}

const PROCMAP_QUERY: u32 = 0xc068_6611;
const _: () = assert!(size_of::<AbiQuery>() == 0x68);

/// Whether the file behind the area at exactly `range` was opened for writing. If it
/// was not, a shared mapping of it cannot be written to, and mprotect(2) cannot
/// change that.
///
/// # Errors
/// ENOENT when no file is mapped there (any more).
pub fn opened_for_writing(pid: HostPid, range: PageRange) -> Result<bool> {
    let path = format!(
        "/proc/{pid}/map_files/{:x}-{:x}",
        range.start(),
        range.end()
    );
    // the bits of the link itself, not of the file, are those of the open file
    let link = fs::symlink_metadata(&path).map_err(|e| Error::os(format!("lstat {path}"), e))?;
    Ok(link.permissions().mode() & 0o200 != 0)
}

/// The areas of a process, open for questions.
#[derive(Debug)]
pub struct Areas {
    file: File,
    pid: HostPid,
}

impl Areas {
    /// Opens /proc/PID/maps.
    ///
    /// # Errors
    /// ENOENT, EACCES.
    pub fn open(pid: HostPid) -> Result<Self> {
        let path = format!("/proc/{pid}/maps");
        let file = File::open(&path).map_err(|e| Error::os(format!("open {path}"), e))?;
        Ok(Self { file, pid })
    }

    /// The area that holds `addr`, if any.
    ///
    /// # Errors
    /// The process is gone; /proc cannot be read.
    pub fn at(&self, addr: u64) -> Result<Option<PageRange>> {
        match self.ask(addr) {
            Err(e) if e.raw_os_error() == Some(libc::ENOTTY) => self.read(addr),
            other => other,
        }
    }

    fn ask(&self, addr: u64) -> Result<Option<PageRange>> {
        let mut query = AbiQuery {
            size: size_of::<AbiQuery>() as u64,
            query_addr: addr,
            ..AbiQuery::default()
        };
        // SAFETY: `query` is the struct of the request; it asks for no name and no
        // build id, so nothing else is written.
        let r = unsafe {
            libc::ioctl(
                self.file.as_raw_fd(),
                libc::Ioctl::from(PROCMAP_QUERY),
                &raw mut query,
            )
        };
        if r == 0 {
            return Ok(PageRange::new(query.vma_start, query.vma_end));
        }
        match io::Error::last_os_error() {
            e if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            e => Err(Error::os(
                format!("PROCMAP_QUERY of {} at {addr:#x}", self.pid),
                e,
            )),
        }
    }

    fn read(&self, addr: u64) -> Result<Option<PageRange>> {
        let maps = procfs::maps(self.pid)?;
        let mut all = maps.into_iter().map(|m| m.range);
        Ok(all.find(|r| r.contains(addr)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::testing::Child;

    #[test]
    fn the_area_of_an_address_is_found_by_both_ways() {
        let child = Child::fork();
        let at = child.mmap(4 * 4096);
        child.munmap(at + 3 * 4096, 4096);
        // A border, so that no neighbour is alike.
        child.mprotect(at, 3 * 4096, libc::PROT_NONE);
        let areas = Areas::open(child.pid()).unwrap();
        let found = areas.at(at + 4096).unwrap().unwrap();
        assert!(found.contains(at) && found.end() == at + 3 * 4096);
        assert_eq!(areas.read(at + 4096).unwrap(), Some(found));
        assert_eq!(areas.at(1 << 46).unwrap(), None);
        assert_eq!(areas.read(1 << 46).unwrap(), None);
    }
}
