//! What only a process itself can do to its memory, while it runs: it is stopped for a
//! moment and makes the calls.

use std::time::Duration;

use super::freeze::borrow;
use crate::base::{HostPid, PageRange, Result};
use crate::memory::RangeSet;
use crate::objects::mm::rebuild::MADV_GUARD_INSTALL;
use crate::sys::{procfs, steer};

/// How long a thread may take to stop.
const PATIENCE: Duration = Duration::from_millis(50);
/// How often a process is tried that does not stop, where nothing depends on it.
const TRIES: usize = 20;

/// Makes `ranges` guard pages in the running process `pid`; what is in the pages is
/// lost. `false` when no thread of it stops: all wait in the kernel for somebody.
///
/// # Errors
/// ESRCH if the process is gone; the errno of the first call that fails.
pub fn make_guards(pid: HostPid, ranges: &[PageRange]) -> Result<bool> {
    let advice = u64::from(MADV_GUARD_INSTALL.cast_unsigned());
    each(pid, ranges, |range, call| {
        let ret = call(libc::SYS_madvise, &[range.start(), range.len(), advice])?;
        let what = format!("madvise {range} of task {pid} as guard pages");
        steer::done(what, ret)
    })
}

/// Locks what the memory of a restored tree has to lock when all of it is there:
/// see [`crate::memory::handler::Outcome`]. What cannot be had is only said: its
/// pages are locked, and those that it gets anew will be when they are touched.
pub fn lock(all: &[(HostPid, Vec<PageRange>)]) {
    for (pid, ranges) in all {
        let mut tried = (0..TRIES).map(|_| lock_in(*pid, ranges));
        match tried.find(|r| !matches!(r, Ok(false))) {
            Some(Ok(_)) => {}
            Some(Err(e)) if e.raw_os_error() == Some(libc::ESRCH) => {}
            Some(Err(e)) => tracing::warn!("lock memory as it was: {e}"),
            None => tracing::warn!("lock memory of task {pid} as it was: it does not stop"),
        }
    }
}

fn lock_in(pid: HostPid, ranges: &[PageRange]) -> Result<bool> {
    let all: RangeSet = ranges.iter().copied().collect();
    let maps = procfs::smaps(pid)?;
    // What it has unlocked meanwhile stays so.
    let locked = maps.iter().filter(|m| m.has("lo"));
    let still: Vec<_> = locked.flat_map(|m| all.within(m.range)).collect();
    if still.is_empty() {
        return Ok(true);
    }
    each(pid, &still, |range, call| {
        match call(libc::SYS_mlock, &[range.start(), range.len()])? {
            // It is locked by then; nobody may read what it has tried to read.
            ret if ret == -i64::from(libc::ENOMEM) => Ok(()),
            ret => steer::done(format!("mlock {range} of task {pid}"), ret),
        }
    })
}

/// Lets a thread of the process make the calls of `act` for each range, in one stop.
fn each(
    pid: HostPid,
    ranges: &[PageRange],
    act: impl Fn(&PageRange, &mut dyn FnMut(i64, &[u64]) -> Result<i64>) -> Result<()> + Sync,
) -> Result<bool> {
    let vdso = procfs::vdso(pid, &procfs::maps(pid)?)?;
    let insn = steer::find_syscall(pid, vdso)?;
    let done = borrow(pid, PATIENCE, |task| {
        let mut call = |nr, args: &[u64]| steer::once(task, insn, nr, args);
        ranges.iter().try_for_each(|range| act(range, &mut call))
    })?;
    Ok(done.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use crate::base::VAddr;
    use crate::memory::held::Space;
    use crate::memory::testing::lazy;
    use crate::memory::{
        Filler, Handler, Job, Object, OnLoss, PageSink, PageSource, SpaceId, Want,
    };
    use crate::sys::ptrace::{self, Options, Waited};
    use crate::sys::testing::Child;
    use crate::sys::vm;

    const PAGE: u64 = 4096;

    /// Where nothing is mapped.
    fn child_free(child: &Child) -> u64 {
        let maps = procfs::maps(child.pid()).unwrap();
        let ends = maps
            .windows(2)
            .find(|w| w[0].range.end() < w[1].range.start());
        ends.unwrap()[0].range.end()
    }

    /// Hears what is wanted, and sends nothing.
    struct Silent;

    impl PageSource for Silent {
        fn want(&self, _: Want, _: &dyn PageSink) -> Result<()> {
            Ok(())
        }
    }

    /// `pages` pages of which nobody knows which exist, with their handler.
    fn unlisted(child: &Child, pages: u64) -> (Handler, PageRange) {
        let (space, range) = lazy(child, SpaceId(1), pages);
        let filler = Filler::new(Job {
            spaces: vec![space],
            shared: Vec::new(),
            anchor: None,
        })
        .unwrap();
        filler.make_guards_by(Box::new(make_guards));
        let handler = Handler::start(filler, Arc::new(Silent), Box::new(|_| OnLoss::Kill));
        (handler.unwrap(), range)
    }

    fn guards(child: &Child, area: PageRange) -> Vec<PageRange> {
        let space = Space::open(SpaceId(1), child.pid()).unwrap();
        space.guards(area).unwrap()
    }

    #[test]
    fn who_waits_in_the_kernel_for_what_is_a_guard_page_is_told_so() {
        let child = Child::fork();
        let (handler, range) = unlisted(&child, 8);
        let page = |n| PageRange::with_pages(range.start() + n * PAGE, 1).unwrap();
        child.start_call(libc::SYS_getrandom, [page(5).start(), 8, 0, 0, 0]);
        // Its only thread waits for one of the pages, and cannot be stopped meanwhile.
        let sink = handler.sink();
        sink.guards(SpaceId(1), &[page(1), page(3), page(5)])
            .unwrap();
        let efault = u64::from_ne_bytes((-i64::from(libc::EFAULT)).to_ne_bytes());
        assert_eq!(child.finish(), efault);
        assert_eq!(guards(&child, range), [page(1), page(3), page(5)]);
        sink.never_were(Object::Private(SpaceId(1)), range).unwrap();
        let count = handler.wait().unwrap().count;
        assert_eq!((count.needed, count.present), (0, 0));
    }

    #[test]
    fn what_cannot_be_a_guard_page_keeps_no_other_from_being_one() {
        let child = Child::fork();
        let (handler, range) = unlisted(&child, 8);
        let page = |n| PageRange::with_pages(range.start() + n * PAGE, 1).unwrap();
        // Locked memory cannot: madvise says EINVAL.
        let locked = [page(3).start(), PAGE, u64::from(libc::MLOCK_ONFAULT), 0, 0];
        assert_eq!(child.call(libc::SYS_mlock2, locked), 0);
        let sink = handler.sink();
        sink.guards(SpaceId(1), &[page(1), page(3), page(5)])
            .unwrap();
        assert_eq!(guards(&child, range), [page(1), page(5)]);
    }

    #[test]
    fn a_guard_page_that_is_told_twice_is_made_once() {
        let child = Child::fork();
        let (handler, range) = unlisted(&child, 8);
        let page = PageRange::with_pages(range.start() + PAGE, 2).unwrap();
        let sink = handler.sink();
        sink.guards(SpaceId(1), &[page]).unwrap();
        let remove = 103;
        child.call(libc::SYS_madvise, [page.start(), PAGE, remove, 0, 0]);
        sink.guards(SpaceId(1), &[page]).unwrap();
        let left = PageRange::with_pages(page.start() + PAGE, 1).unwrap();
        assert_eq!(guards(&child, range), [left]);
    }

    #[test]
    fn who_waits_for_a_page_that_does_not_exist_reads_zeros() {
        let child = Child::fork();
        let (handler, range) = unlisted(&child, 1 << 20);
        child.start_sum(range.start() + 5 * PAGE, 2 * PAGE);
        let object = Object::Private(SpaceId(1));
        handler.sink().never_were(object, range).unwrap();
        assert_eq!(child.finish(), 0);
        let out = handler.wait().unwrap();
        assert_eq!(out.count.needed, 0);
        // Nothing was placed that nobody touched.
        let space = Space::open(SpaceId(1), child.pid()).unwrap();
        assert_eq!(space.first(range).unwrap(), None);
    }

    #[test]
    fn a_process_that_runs_gets_guard_pages_and_notices_nothing() {
        let child = Child::fork();
        let at = child.mmap(8 * 4096);
        child.fill(at, 8 * 4096, 7);
        let range = PageRange::with_pages(at + 4096, 2).unwrap();
        assert!(make_guards(child.pid(), &[range]).unwrap());
        let area = PageRange::with_pages(at, 8).unwrap();
        let guards = Space::open(SpaceId(1), child.pid()).unwrap().guards(area);
        assert_eq!(guards.unwrap(), [range]);
        assert_eq!(child.sum(at + 3 * 4096, 5 * 4096), 7 * 5 * 4096);
    }

    #[test]
    fn a_thread_in_a_section_whose_description_has_not_come_is_not_waited_for() {
        let child = Child::fork();
        let (_handler, range) = unlisted(&child, 8);
        // The registration of this thread, which the child has inherited.
        let area = {
            let seized = ptrace::seize(child.pid(), Options::default()).unwrap();
            seized.interrupt().unwrap();
            let Waited::Stopped(task, _) = seized.wait().unwrap() else {
                panic!("it died")
            };
            let area = task.rseq().unwrap().abi_pointer;
            task.detach(0).unwrap();
            area
        };
        assert_ne!(area, 0, "the C library registers none");
        // On its way back into its call the kernel looks at the section, too.
        while procfs::stat(child.pid()).unwrap().state != b'S' {
            std::thread::yield_now();
        }
        let cs = range.start().to_le_bytes();
        vm::write(child.pid(), VAddr(area + 8), &cs).unwrap();
        let spare = PageRange::with_pages(child_free(&child), 1).unwrap();
        let e = make_guards(child.pid(), &[spare]).unwrap_err();
        assert_eq!(e.raw_os_error(), Some(libc::EIO), "{e}");
    }

    #[test]
    fn memory_that_is_not_there_is_no_guard_page() {
        let child = Child::fork();
        let at = child.mmap(4096);
        child.call(libc::SYS_munmap, [at, 4096, 0, 0, 0]);
        let e = make_guards(child.pid(), &[PageRange::with_pages(at, 1).unwrap()]).unwrap_err();
        assert_eq!(e.raw_os_error(), Some(libc::ENOMEM));
    }
}
