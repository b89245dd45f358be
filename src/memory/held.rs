//! Pages of tasks that are stopped or frozen, read in place.
//!
//! Nothing is copied, piped or pinned first, so a freeze does not grow with
//! memory. A space is held by pidfd and start time: a recycled pid is an error.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use crate::base::{Error, HostPid, PAGE_SIZE, PageRange, Result, VAddr};
use crate::memory::{Object, PageReader, SpaceId};
use crate::sys::pagemap::{Filter, Pagemap, is};
use crate::sys::{pidfd, procfs, seek, vm};

/// So many pages of a shared object are looked at one by one.
const FEW: u64 = 256;

/// What decides which pages of an area have content of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Private anonymous memory: every page that is not the page of zeros.
    Anonymous,
    /// A private file mapping: pages that differ from the file.
    Changed,
    /// Shared memory: its pages belong to an object, not to the area.
    Elsewhere,
}

/// What one area holds, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Existing {
    /// Pages with content of their own.
    pub content: Vec<PageRange>,
    /// Guard pages (MADV_GUARD_INSTALL).
    pub guards: Vec<PageRange>,
}

/// The address space of one process, which does not run meanwhile.
#[derive(Debug)]
pub struct Space {
    id: SpaceId,
    pid: HostPid,
    start_time: u64,
    pidfd: OwnedFd,
    pagemap: Pagemap,
}

impl Space {
    /// Takes hold of the address space of `pid`; `id` is its number in images.
    ///
    /// # Errors
    /// ESRCH, EACCES.
    pub fn open(id: SpaceId, pid: HostPid) -> Result<Self> {
        let pidfd = pidfd::open(pid)?;
        let space = Self {
            id,
            pid,
            start_time: procfs::stat(pid)?.start_time,
            pidfd,
            pagemap: Pagemap::open(pid)?,
        };
        // Whatever was opened by number belonged to the process of the pidfd,
        // if that still lives.
        space.check()?;
        Ok(space)
    }

    /// As [`Self::open`], for a process that was held before: `start_time` as
    /// [`Self::start_time`] gave it then.
    ///
    /// # Errors
    /// ESRCH also when the pid belongs to another process now.
    pub fn reopen(id: SpaceId, pid: HostPid, start_time: u64) -> Result<Self> {
        let space = Self::open(id, pid)?;
        if space.start_time == start_time {
            Ok(space)
        } else {
            Err(Error::errno(
                format!("process {pid}: another one has this pid now"),
                libc::ESRCH,
            ))
        }
    }

    /// Its number in images.
    pub fn id(&self) -> SpaceId {
        self.id
    }

    /// Its process.
    pub fn pid(&self) -> HostPid {
        self.pid
    }

    /// Clock ticks since boot at which it was started, proc_pid_stat(5).
    pub fn start_time(&self) -> u64 {
        self.start_time
    }

    /// Its pidfd.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// The pages of `area` that have content, and its guard pages, in one walk of
    /// the page table.
    ///
    /// # Errors
    /// Those of the scan; ESRCH when the process is gone.
    pub fn existing(&self, area: PageRange, content: Content) -> Result<Existing> {
        let filter = match content {
            Content::Anonymous => Filter::ANONYMOUS,
            Content::Changed => Filter::CHANGED,
            Content::Elsewhere => Filter::GUARDS,
        };
        let found = self.pagemap.scan(area, filter)?;
        self.check()?;
        let (guards, content): (Vec<_>, Vec<_>) = found
            .into_iter()
            .partition(|r| r.categories & is::GUARD != 0);
        Ok(Existing {
            content: content.into_iter().map(|r| r.range).collect(),
            guards: guards.into_iter().map(|r| r.range).collect(),
        })
    }

    /// The guard pages of `range`.
    ///
    /// # Errors
    /// As [`Self::existing`].
    pub fn guards(&self, range: PageRange) -> Result<Vec<PageRange>> {
        Ok(self.existing(range, Content::Elsewhere)?.guards)
    }

    /// Where the first page of private anonymous memory lies that may have content,
    /// without a look at what is behind it.
    ///
    /// # Errors
    /// As [`Self::existing`].
    pub fn first(&self, area: PageRange) -> Result<Option<u64>> {
        let found = self.pagemap.first(area, Filter::ANONYMOUS)?;
        self.check()?;
        Ok(found)
    }

    /// Fills `buf` from `at`, PROT_NONE pages too.
    ///
    /// # Errors
    /// EFAULT or EIO for what cannot be read, ESRCH when the process is gone.
    pub fn read(&self, at: VAddr, buf: &mut [u8]) -> Result<()> {
        vm::read(self.pid, at, buf)?;
        self.check()
    }

    /// What was just done by number was done to the right process: it is there
    /// still, so nobody else had its number.
    fn check(&self) -> Result<()> {
        if pidfd::has_exited(self.pidfd.as_fd())? {
            return Err(Error::errno(format!("process {}", self.pid), libc::ESRCH));
        }
        Ok(())
    }
}

/// A shared anonymous memory object, held by a descriptor of its inode. What one
/// page table shows is not all that the object holds, so the inode is asked.
#[derive(Debug)]
pub struct Shared {
    id: u32,
    file: File,
    size: u64,
    whole: PageRange,
}

impl Shared {
    /// The object that `space` maps in exactly the area `area`, through
    /// /proc/PID/map_files.
    ///
    /// # Errors
    /// EPERM without CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE, ENOENT when the
    /// area is none.
    pub fn open(id: u32, space: &Space, area: PageRange) -> Result<Self> {
        let path = format!(
            "/proc/{}/map_files/{:x}-{:x}",
            space.pid,
            area.start(),
            area.end()
        );
        let file = File::open(&path).map_err(|e| Error::os(format!("open {path}"), e))?;
        space.check()?;
        Self::from_file(id, file)
    }

    /// The object behind a descriptor (a memfd).
    ///
    /// # Errors
    /// Those of fstat(2).
    pub fn from_file(id: u32, file: File) -> Result<Self> {
        let size = file
            .metadata()
            .map_err(|e| Error::os(format!("fstat shared memory {id}"), e))?
            .len();
        let whole = PageRange::with_pages(0, size.div_ceil(PAGE_SIZE))
            .ok_or_else(|| Error::bug(format!("shared memory {id}"), "is too long"))?;
        let object = Self {
            id,
            file,
            size,
            whole,
        };
        Ok(object)
    }

    /// Its number in images.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The pages of `range` that exist in it, by byte offset, in order; lseek(2)
    /// SEEK_DATA.
    ///
    /// # Errors
    /// Those of lseek(2).
    pub fn existing(&self, range: PageRange) -> Result<Vec<PageRange>> {
        let context = |e: io::Error| Error::os(format!("seek in shared memory {}", self.id), e);
        // SEEK_HOLE goes through all pages up to the hole, wherever that is: 20 ms a
        // GiB. A few pages are looked at one by one.
        let few = range.pages() <= FEW;
        let mut found: Vec<PageRange> = Vec::new();
        let mut at = range.start();
        let to = self.size.min(range.end());
        while at < to {
            let start = seek::data(&self.file, at).map_err(context)?;
            let Some(start) = start.filter(|s| *s < to).map(|s| s & !(PAGE_SIZE - 1)) else {
                break;
            };
            let end = match few {
                true => start + PAGE_SIZE,
                false => seek::hole(&self.file, start)
                    .map_err(context)?
                    .next_multiple_of(PAGE_SIZE),
            };
            if end <= at {
                break;
            }
            at = end;
            let run = PageRange::new(start, end).and_then(|r| r.intersect(range));
            match (run, found.last_mut()) {
                (Some(run), Some(last)) if last.end() == run.start() => {
                    *last = PageRange::new(last.start(), run.end()).unwrap_or(*last);
                }
                (run, _) => found.extend(run),
            }
        }
        Ok(found)
    }

    /// All of it, in whole pages.
    pub fn whole(&self) -> PageRange {
        self.whole
    }

    /// Fills `buf` from byte offset `at`. What lies behind the end but in its
    /// last page reads as zeros, as in a mapping.
    ///
    /// # Errors
    /// Those of pread(2); a read beyond the last page.
    pub fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let inside = usize::try_from(self.size.saturating_sub(at)).unwrap_or(usize::MAX);
        let last_page = self.size.next_multiple_of(PAGE_SIZE).saturating_sub(at);
        let padded = u64::try_from(buf.len()).is_ok_and(|len| len <= last_page);
        let (there, behind) = if padded {
            buf.split_at_mut(inside.min(buf.len()))
        } else {
            buf.split_at_mut(buf.len())
        };
        behind.fill(0);
        self.file
            .read_exact_at(there, at)
            .map_err(|e| Error::os(format!("read shared memory {} at {at:#x}", self.id), e))
    }
}

/// All that is held of one tree: a reader for several threads.
#[derive(Debug, Default)]
pub struct HeldPages {
    spaces: HashMap<SpaceId, Space>,
    shared: HashMap<u32, Shared>,
}

impl HeldPages {
    /// Puts them together.
    pub fn new(
        spaces: impl IntoIterator<Item = Space>,
        shared: impl IntoIterator<Item = Shared>,
    ) -> Self {
        Self {
            spaces: spaces.into_iter().map(|s| (s.id, s)).collect(),
            shared: shared.into_iter().map(|s| (s.id, s)).collect(),
        }
    }

    /// The address spaces.
    pub fn spaces(&self) -> impl Iterator<Item = &Space> {
        self.spaces.values()
    }

    /// One address space.
    pub fn space(&self, id: SpaceId) -> Option<&Space> {
        self.spaces.get(&id)
    }

    /// What of `range` of an object exists. Guard pages belong to address spaces.
    ///
    /// # Errors
    /// Those of the scan; an object that is not held.
    pub fn existing(&self, object: Object, range: PageRange) -> Result<Existing> {
        let none = || Error::errno(format!("look at {object}: not held"), libc::ENOENT);
        match object {
            Object::Private(id) => {
                let space = self.spaces.get(&id).ok_or_else(none)?;
                space.existing(range, Content::Anonymous)
            }
            Object::Shared(id) => Ok(Existing {
                content: self.shared.get(&id).ok_or_else(none)?.existing(range)?,
                guards: Vec::new(),
            }),
        }
    }

    /// The shared objects.
    pub fn shared(&self) -> impl Iterator<Item = &Shared> {
        self.shared.values()
    }
}

impl PageReader for HeldPages {
    fn read(&self, object: Object, at: u64, buf: &mut [u8]) -> Result<()> {
        let none = || Error::errno(format!("read {object}: not held"), libc::ENOENT);
        match object {
            Object::Private(id) => self.spaces.get(&id).ok_or_else(none)?.read(VAddr(at), buf),
            Object::Shared(id) => self.shared.get(&id).ok_or_else(none)?.read(at, buf),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::testing::Child;

    const PAGE: u64 = PAGE_SIZE;

    #[test]
    fn pages_of_a_stopped_process_are_found_and_read_by_several_threads() {
        let child = Child::fork();
        let range = PageRange::with_pages(child.mmap(64 * PAGE), 64).unwrap();
        for page in (1..64).step_by(3) {
            child.fill(
                range.start() + page * PAGE,
                PAGE,
                u8::try_from(page).unwrap(),
            );
        }
        pidfd::send_signal(child.pidfd().as_fd(), libc::SIGSTOP).unwrap();
        let space = Space::open(SpaceId(7), child.pid()).unwrap();
        let runs = space.existing(range, Content::Anonymous).unwrap().content;
        assert_eq!(runs.iter().map(|r| r.pages()).sum::<u64>(), 21);
        let held = HeldPages::new([space], []);
        std::thread::scope(|s| {
            for part in runs.chunks(8) {
                let held = &held;
                s.spawn(move || {
                    for run in part {
                        let mut buf = vec![0; usize::try_from(run.len()).unwrap()];
                        held.read(Object::Private(SpaceId(7)), run.start(), &mut buf)
                            .unwrap();
                        let page = (run.start() - range.start()) / PAGE;
                        assert!(buf.iter().all(|b| u64::from(*b) == page));
                    }
                });
            }
        });
    }

    /// A shared object whose first `pages` pages have content, the next ones not.
    fn object(pages: usize) -> Shared {
        let name = c"object";
        let fd = nix::sys::memfd::memfd_create(name, nix::sys::memfd::MFdFlags::empty()).unwrap();
        let file = File::from(fd);
        file.set_len(2 * pages as u64 * PAGE).unwrap();
        file.write_all_at(&vec![1; pages * 4096], 0).unwrap();
        Shared::from_file(1, file).unwrap()
    }

    #[test]
    fn a_look_at_a_page_of_shared_memory_takes_no_longer_for_what_lies_around_it() {
        // The shortest of many: the others wait for a processor.
        let look = |of: &Shared| {
            let looks = (0..2000).map(|n| {
                let page = PageRange::with_pages(n % 16 * PAGE, 1).unwrap();
                let begun = std::time::Instant::now();
                assert_eq!(of.existing(page).unwrap(), [page]);
                begun.elapsed()
            });
            looks.min().unwrap()
        };
        let (small, large) = (object(16), object(16 << 10));
        assert!(look(&large) < 20 * look(&small));
        let end = PageRange::with_pages(14 * PAGE, 4).unwrap();
        let there = PageRange::with_pages(14 * PAGE, 2).unwrap();
        assert_eq!(small.existing(end).unwrap(), [there]);
        let behind = PageRange::with_pages(16 * PAGE, 4).unwrap();
        assert_eq!(small.existing(behind).unwrap(), []);
    }

    #[test]
    fn shared_memory_that_nobody_has_in_its_page_table_is_found() {
        let child = Child::fork();
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        let at = child.mmap_with(0, 32 * PAGE, flags, -1);
        child.fill(at + 4 * PAGE, 2 * PAGE, 5);
        let dontneed = libc::MADV_DONTNEED as u64;
        child.call(libc::SYS_madvise, [at, 32 * PAGE, dontneed, 0, 0]);
        let area = PageRange::with_pages(at, 32).unwrap();
        let space = Space::open(SpaceId(1), child.pid()).unwrap();
        assert_eq!(
            space.existing(area, Content::Anonymous).unwrap(),
            Existing::default()
        );
        let shared = Shared::open(3, &space, area).unwrap();
        let runs = shared.existing(shared.whole()).unwrap();
        let part = PageRange::with_pages(5 * PAGE, 9).unwrap();
        let behind = PageRange::with_pages(5 * PAGE, 1).unwrap();
        assert_eq!(shared.existing(part).unwrap(), [behind]);
        assert_eq!(runs, [PageRange::with_pages(4 * PAGE, 2).unwrap()]);
        let mut buf = vec![0; 8192];
        shared.read(4 * PAGE, &mut buf).unwrap();
        assert!(buf.iter().all(|b| *b == 5));
    }

    #[test]
    fn a_process_that_died_or_is_another_one_is_an_error() {
        let child = Child::fork();
        let range = PageRange::with_pages(child.mmap(PAGE), 1).unwrap();
        let space = Space::open(SpaceId(1), child.pid()).unwrap();
        let wrong = Space::reopen(SpaceId(1), child.pid(), space.start_time() + 1).unwrap_err();
        assert_eq!(wrong.raw_os_error(), Some(libc::ESRCH));
        drop(child);
        let e = space
            .read(VAddr(range.start()), &mut [0; 4096])
            .unwrap_err();
        assert_eq!(e.raw_os_error(), Some(libc::ESRCH));
    }
}
