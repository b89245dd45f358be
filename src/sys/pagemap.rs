//! Which pages of another process exist: the PAGEMAP_SCAN ioctl where the kernel
//! has it (6.7), else the entries of /proc/PID/pagemap, proc_pid_pagemap(5).
//!
//! The ioctl walks page tables and skips what is not there, so that a scan of a
//! sparse terabyte costs nothing; the file costs eight bytes a page. Asking for
//! [`is::FILE`] makes a scan 2.5 times slower (measured): ask for it only on
//! file mappings.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use crate::base::{Error, HostPid, PAGE_SIZE, PageRange, Result};

/// Categories of a page: `PAGE_IS_*` of `<linux/fs.h>`.
pub mod is {
    /// Written since it was tracked (or never tracked).
    pub const WRITTEN: u64 = 1 << 1;
    /// Backed by a file or shared memory; on a private mapping: not changed.
    pub const FILE: u64 = 1 << 2;
    /// In memory.
    pub const PRESENT: u64 = 1 << 3;
    /// In swap (or on its way; guard pages too).
    pub const SWAPPED: u64 = 1 << 4;
    /// The shared page of zeros.
    pub const PFNZERO: u64 = 1 << 5;
    /// A guard marker (MADV_GUARD_INSTALL), no page.
    pub const GUARD: u64 = 1 << 8;
}

/// Which pages to report. A page matches when it has all of `all`, none of
/// `none`, and at least one of `any` (if that is not 0).
#[derive(Debug, Clone, Copy, Default)]
pub struct Filter {
    /// Categories that must be.
    pub all: u64,
    /// Categories that must not be.
    pub none: u64,
    /// One of these must be.
    pub any: u64,
    /// What to tell about the pages that match; pages that differ in it come in
    /// regions of their own.
    pub report: u64,
}

impl Filter {
    /// Pages of private anonymous memory that have content, and guard pages; which
    /// of both is reported.
    pub const ANONYMOUS: Self = Self {
        all: 0,
        none: is::PFNZERO,
        any: is::PRESENT | is::SWAPPED | is::GUARD,
        report: is::GUARD,
    };
    /// Pages of a private file mapping that differ from the file, and guard pages;
    /// which of both is reported.
    pub const CHANGED: Self = Self {
        all: 0,
        none: is::FILE,
        any: is::PRESENT | is::SWAPPED | is::GUARD,
        report: is::GUARD,
    };
    /// Guard pages. A kernel that does not know them has none.
    pub const GUARDS: Self = Self {
        all: is::GUARD,
        none: 0,
        any: 0,
        report: is::GUARD,
    };

    fn matches(self, categories: u64) -> bool {
        categories & self.all == self.all
            && categories & self.none == 0
            && (self.any == 0 || categories & self.any != 0)
    }
}

/// Neighbouring pages of the same kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// Where.
    pub range: PageRange,
    /// Their categories, as far as the filter asked.
    pub categories: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct AbiRegion {
    start: u64,
    end: u64,
    categories: u64,
}

#[repr(C)]
struct AbiScan {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

const PAGEMAP_SCAN: u32 = 0xc060_6610;
const _: () = assert!(size_of::<AbiScan>() == 0x60 && size_of::<AbiRegion>() == 24);

/// Regions fetched by one ioctl.
const BATCH: usize = 1024;
/// Entries read at once without the ioctl.
const ENTRIES: u64 = 8192;

/// The page table of a process, open for questions. The descriptor belongs to
/// the address space, not to the pid: it outlives an exec, and then says nothing.
#[derive(Debug)]
pub struct Pagemap {
    file: File,
    pid: HostPid,
    scan: bool,
}

impl Pagemap {
    /// Opens /proc/PID/pagemap.
    ///
    /// # Errors
    /// ENOENT, EACCES.
    pub fn open(pid: HostPid) -> Result<Self> {
        let path = format!("/proc/{pid}/pagemap");
        let file = File::open(&path).map_err(|e| Error::os(format!("open {path}"), e))?;
        Ok(Self {
            file,
            pid,
            scan: scan_categories() != 0,
        })
    }

    /// Pages of `range` that match, in order; neighbours merged.
    ///
    /// # Errors
    /// Those of the ioctl or of reading the file.
    pub fn scan(&self, range: PageRange, filter: Filter) -> Result<Vec<Region>> {
        let mut found = Vec::new();
        if self.scan {
            self.scan_ioctl(range, filter, 0, &mut found)?;
        } else {
            self.scan_entries(range, filter, &mut found)?;
        }
        Ok(found)
    }

    /// The first page of `range` that matches. The walk ends there: what lies behind
    /// costs nothing.
    ///
    /// # Errors
    /// As [`Self::scan`].
    pub fn first(&self, range: PageRange, filter: Filter) -> Result<Option<u64>> {
        let mut found = Vec::new();
        if self.scan {
            self.scan_ioctl(range, filter, 1, &mut found)?;
        } else {
            let mut at = range.start();
            while at < range.end() && found.is_empty() {
                let end = range.end().min(at + ENTRIES * PAGE_SIZE);
                if let Some(part) = PageRange::new(at, end) {
                    self.scan_entries(part, filter, &mut found)?;
                }
                at = end;
            }
        }
        Ok(found.first().map(|r| r.range.start()))
    }

    /// At most `most` pages; 0: all.
    fn scan_ioctl(
        &self,
        range: PageRange,
        filter: Filter,
        most: u64,
        out: &mut Vec<Region>,
    ) -> Result<()> {
        let known = scan_categories();
        if filter.all & !known != 0 {
            return Ok(()); // what this kernel does not know, no page is
        }
        // No more than there can be: most questions are about few pages.
        let most_regions = if most == 1 { 1 } else { range.pages() };
        let room = usize::try_from(most_regions).map_or(BATCH, |n| n.clamp(1, BATCH));
        let mut vec = vec![AbiRegion::default(); room];
        let mut arg = AbiScan {
            size: size_of::<AbiScan>() as u64,
            flags: 0,
            start: range.start(),
            end: range.end(),
            walk_end: 0,
            vec: vec.as_mut_ptr() as u64,
            vec_len: vec.len() as u64,
            max_pages: most,
            category_inverted: filter.none & known,
            category_mask: filter.all | filter.none & known,
            category_anyof_mask: filter.any & known,
            return_mask: filter.report & known,
        };
        while arg.start < arg.end {
            // SAFETY: `arg` is the struct of PAGEMAP_SCAN, and `vec` has room for
            // `vec_len` regions and lives through the call.
            let n = unsafe { ioctl(&self.file, &raw mut arg) }
                .map_err(|e| Error::os(format!("PAGEMAP_SCAN of {} {range}", self.pid), e))?;
            for r in vec.iter().take(n) {
                let bad = || Error::bug("PAGEMAP_SCAN", "the kernel gave a range with no pages");
                let range = PageRange::new(r.start, r.end).ok_or_else(bad)?;
                push(out, range, r.categories);
            }
            if arg.walk_end <= arg.start {
                return Err(Error::bug(
                    format!("PAGEMAP_SCAN of {} {range}", self.pid),
                    "the kernel does not move on",
                ));
            }
            arg.start = arg.walk_end;
            if most != 0 && n != 0 {
                return Ok(());
            }
        }
        Ok(())
    }

    fn scan_entries(&self, range: PageRange, filter: Filter, out: &mut Vec<Region>) -> Result<()> {
        let zero = zero_pfn();
        let mut buf = vec![0u8; 8 * usize::try_from(ENTRIES).unwrap_or(8192)];
        let mut at = range.start();
        while at < range.end() {
            let pages = ((range.end() - at) / PAGE_SIZE).min(ENTRIES);
            let bytes = &mut buf[..8 * usize::try_from(pages).unwrap_or(0)];
            self.file
                .read_exact_at(bytes, at / PAGE_SIZE * 8)
                .map_err(|e| Error::os(format!("read /proc/{}/pagemap", self.pid), e))?;
            for entry in bytes.chunks_exact(8) {
                let mut b = [0; 8];
                b.copy_from_slice(entry);
                let categories = categories(u64::from_ne_bytes(b), zero);
                if filter.matches(categories)
                    && let Some(page) = PageRange::with_pages(at, 1)
                {
                    push(out, page, categories & filter.report);
                }
                at += PAGE_SIZE;
            }
        }
        Ok(())
    }
}

/// One entry of the file, in the ioctl's words. Entries say nothing of write
/// tracking by userfaultfd: such a page counts as written.
fn categories(entry: u64, zero: Option<u64>) -> u64 {
    let bit = |n: u32| entry >> n & 1 == 1;
    let mut c = is::WRITTEN;
    if bit(63) {
        c |= is::PRESENT;
        if zero.is_some_and(|z| entry & ((1 << 55) - 1) == z) {
            c |= is::PFNZERO;
        }
    }
    if bit(62) {
        c |= is::SWAPPED;
    }
    if bit(61) {
        c |= is::FILE;
    }
    if bit(58) {
        c |= is::GUARD;
    }
    c
}

fn push(out: &mut Vec<Region>, range: PageRange, categories: u64) {
    if let Some(last) = out.last_mut()
        && last.categories == categories
        && last.range.end() == range.start()
        && let Some(both) = PageRange::new(last.range.start(), range.end())
    {
        last.range = both;
        return;
    }
    out.push(Region { range, categories });
}

/// # Safety
/// `arg` and the vector that it names are valid for the call.
unsafe fn ioctl(file: &File, arg: *mut AbiScan) -> io::Result<usize> {
    // SAFETY: the caller's promise.
    let n = unsafe { libc::ioctl(file.as_raw_fd(), libc::Ioctl::from(PAGEMAP_SCAN), arg) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// The categories that this kernel's ioctl knows; 0 when it has none.
pub fn scan_categories() -> u64 {
    static KNOWN: OnceLock<u64> = OnceLock::new();
    *KNOWN.get_or_init(|| {
        let Ok(file) = File::open("/proc/self/pagemap") else {
            return 0;
        };
        let old = 0xff;
        [old | is::GUARD, old]
            .into_iter()
            .find(|mask| {
                let mut vec = [AbiRegion::default(); 1];
                let mut arg = AbiScan {
                    size: size_of::<AbiScan>() as u64,
                    flags: 0,
                    start: 0,
                    end: PAGE_SIZE,
                    walk_end: 0,
                    vec: vec.as_mut_ptr() as u64,
                    vec_len: 1,
                    max_pages: 0,
                    category_inverted: 0,
                    category_mask: 0,
                    category_anyof_mask: 0,
                    return_mask: *mask,
                };
                // SAFETY: `arg` is the struct of the request, `vec` has one slot.
                unsafe { ioctl(&file, &raw mut arg) }.is_ok()
            })
            .unwrap_or(0)
    })
}

/// The frame of the page of zeros, found on a page of ours that was only read;
/// `None` without the right to see frames.
fn zero_pfn() -> Option<u64> {
    static ZERO: OnceLock<Option<u64>> = OnceLock::new();
    *ZERO.get_or_init(|| {
        let len = usize::try_from(PAGE_SIZE).ok()?;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping, at a place of the kernel's choice.
        let page = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, -1, 0) };
        if page == libc::MAP_FAILED {
            return None;
        }
        // SAFETY: the page was just mapped, readable.
        unsafe { std::ptr::read_volatile(page.cast::<u8>()) };
        let mut entry = [0; 8];
        let read = File::open("/proc/self/pagemap")
            .and_then(|f| f.read_exact_at(&mut entry, page as u64 / PAGE_SIZE * 8));
        // SAFETY: nobody else knows this mapping.
        unsafe { libc::munmap(page, len) };
        read.ok()?;
        let pfn = u64::from_ne_bytes(entry) & ((1 << 55) - 1);
        (pfn != 0).then_some(pfn)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::VAddr;
    use crate::sys::testing::Child;
    use std::os::unix::ffi::OsStrExt;

    const PAGE: u64 = PAGE_SIZE;
    const MADV_GUARD_INSTALL: u64 = 102;

    fn both_ways(child: &Child, range: PageRange, filter: Filter) -> Vec<(u64, u64, bool)> {
        let mut map = Pagemap::open(child.pid()).unwrap();
        let by_ioctl = map.scan(range, filter).unwrap();
        map.scan = false;
        assert_eq!(by_ioctl, map.scan(range, filter).unwrap());
        let at = |a: u64| (a - range.start()) / PAGE;
        by_ioctl
            .iter()
            .map(|r| {
                let guard = r.categories & is::GUARD != 0;
                (at(r.range.start()), at(r.range.end()), guard)
            })
            .collect()
    }

    #[test]
    fn of_anonymous_memory_only_content_and_guards_are_found_and_told_apart() {
        let child = Child::fork();
        let range = PageRange::with_pages(child.mmap(64 * PAGE), 64).unwrap();
        child.fill(range.start() + 3 * PAGE, 2 * PAGE, 1);
        child.fill(range.start() + 9 * PAGE, PAGE, 1);
        // Only read: the page of zeros.
        child.sum(range.start() + 20 * PAGE, PAGE);
        child.fill(range.start() + 30 * PAGE, PAGE, 1);
        child.mprotect(range.start() + 30 * PAGE, PAGE, libc::PROT_NONE);
        child.call(
            libc::SYS_madvise,
            [
                range.start() + 40 * PAGE,
                2 * PAGE,
                MADV_GUARD_INSTALL,
                0,
                0,
            ],
        );
        assert_eq!(
            both_ways(&child, range, Filter::ANONYMOUS),
            [
                (3, 5, false),
                (9, 10, false),
                (30, 31, false),
                (40, 42, true)
            ]
        );
        assert_eq!(both_ways(&child, range, Filter::GUARDS), [(40, 42, true)]);
    }

    #[test]
    fn of_a_private_file_mapping_only_changed_pages_are_found() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().write_all_at(&[7; 16 * 4096], 0).unwrap();
        let child = Child::fork();
        // The child must open it itself; the name goes through its memory.
        let name = child.mmap(PAGE);
        let mut path = file.path().as_os_str().as_bytes().to_vec();
        path.push(0);
        crate::sys::vm::write(child.pid(), VAddr(name), &path).unwrap();
        let fd = child.call(libc::SYS_open, [name, 0, 0, 0, 0]);
        assert!(fd > 0);
        let at = child.mmap_with(0, 16 * PAGE, libc::MAP_PRIVATE, i32::try_from(fd).unwrap());
        let range = PageRange::with_pages(at, 16).unwrap();
        assert_eq!(child.sum(at, 8 * PAGE), 7 * 8 * PAGE);
        child.fill(at + 5 * PAGE, PAGE, 1);
        assert_eq!(both_ways(&child, range, Filter::CHANGED), [(5, 6, false)]);
    }

    #[test]
    fn more_regions_than_one_call_holds_all_come() {
        let child = Child::fork();
        let pages = 2 * BATCH as u64 * 2 + 7;
        let range = PageRange::with_pages(child.mmap(pages * PAGE), pages).unwrap();
        for i in (0..pages).step_by(2) {
            child.fill(range.start() + i * PAGE, 1, 1);
        }
        let found = both_ways(&child, range, Filter::ANONYMOUS);
        assert_eq!(found.len() as u64, pages.div_ceil(2));
    }
}
