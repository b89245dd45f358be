//! What only a process itself can do to its memory, while it runs: it is stopped for a
//! moment and makes the calls.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::freeze::{borrow, pass};
use crate::base::{HostPid, PageRange, Result};
use crate::memory::{Filler, RangeSet};
use crate::objects::mm::rebuild::MADV_GUARD_INSTALL;
use crate::sys::{procfs, steer};

/// How long a thread may take to stop.
const PATIENCE: Duration = Duration::from_millis(50);
/// How often a process is tried that does not stop, where nothing depends on it.
const TRIES: usize = 20;

/// Two at once would meet on one thread, which only one can trace.
static ONE_TRACER: Mutex<()> = Mutex::new(());
/// How long a thread may take to leave a call in which nothing but time is missing.
const LEAVE: Duration = Duration::from_secs(2);

/// Does for a filler what only a tracer can.
pub fn help(filler: &Filler) {
    filler.make_guards_by(Box::new(make_guards));
    filler.past_calls_by(Box::new(past_calls));
}

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
    let _one = ONE_TRACER.lock().unwrap_or_else(PoisonError::into_inner);
    let done = borrow(pid, PATIENCE, |task| {
        let mut call = |nr, args: &[u64]| steer::once(task, insn, nr, args);
        ranges.iter().try_for_each(|range| act(range, &mut call))
    })?;
    Ok(done.is_some())
}

/// Waits until no thread of these processes, and of those below them, is in a call
/// that throws memory away, but for those that wait until somebody reads of it.
/// `false`: one did not leave in two seconds. See [`crate::memory::PastCalls`].
///
/// # Errors
/// A thread that cannot be traced, since somebody else does.
pub fn past_calls(pids: &[HostPid]) -> Result<bool> {
    let mut threads = Vec::new();
    for pid in pids.iter().flat_map(|pid| procfs::tree(*pid)) {
        // One that is gone is past everything.
        threads.extend(procfs::threads(pid).unwrap_or_default());
    }
    threads.retain(|tid| may_be_at_it(*tid));
    if threads.is_empty() {
        return Ok(true);
    }
    let _one = ONE_TRACER.lock().unwrap_or_else(PoisonError::into_inner);
    pass(&threads, LEAVE, may_be_at_it)
}

/// Whether a thread runs, or waits in a call that throws memory away for something
/// else than for us.
fn may_be_at_it(tid: HostPid) -> bool {
    let call = match procfs::file(tid, "syscall") {
        Ok(call) => call,
        Err(e) => return !matches!(e.raw_os_error(), Some(libc::ESRCH | libc::ENOENT)),
    };
    let call = call.split(|b| *b == b' ').next().unwrap_or_default();
    let is = |nr: i64| nr.to_string().as_bytes() == call;
    if is(libc::SYS_madvise) || is(libc::SYS_process_madvise) {
        // For its event to be read, or for a page.
        let ours = [&b"userfaultfd"[..], b"handle_userfault"];
        let at = procfs::file(tid, "wchan").unwrap_or_default();
        return !ours.iter().any(|name| at.starts_with(name));
    }
    call == b"running\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use crate::base::VAddr;
    use crate::memory::held::Space;
    use crate::memory::testing::{guarded, lazy};
    use crate::memory::{
        Area, Filler, Handler, Job, Object, OnLoss, PageSink, PageSource, SpaceId, Want,
    };
    use crate::sys::ptrace::{self, Options, Waited};
    use crate::sys::testing::{Child, alone};
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

    /// Shares memory with us, and comes to run late: whoever else wants its
    /// processor goes first.
    fn starved() -> (Child, u64, std::fs::File) {
        let child = Child::fork();
        let at = child.mmap_with(0, 8 * PAGE, libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1);
        let name = format!("/proc/{}/map_files/{at:x}-{:x}", child.pid(), at + 8 * PAGE);
        let file = std::fs::File::options()
            .read(true)
            .write(true)
            .open(name)
            .unwrap();
        let words = child.mmap(PAGE);
        child.fill(words, 1, 1);
        let first_processor = [0, 8, words, 0, 0];
        assert_eq!(child.call(libc::SYS_sched_setaffinity, first_processor), 0);
        let idle = [0, libc::SCHED_IDLE.unsigned_abs().into(), words + 8, 0, 0];
        assert_eq!(child.call(libc::SYS_sched_setscheduler, idle), 0);
        (child, at, file)
    }

    /// Says so when it goes, also by a panic.
    struct Stops<'a>(&'a AtomicBool);

    impl Drop for Stops<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    #[test]
    fn what_a_thread_throws_away_is_gone_when_it_is_past_its_call() {
        use std::os::unix::fs::FileExt;
        alone!();
        let (child, at, file) = starved();
        let range = PageRange::with_pages(at, 8).unwrap();
        let object = Object::Shared(4);
        let area = Area {
            range,
            object,
            at: 0,
            wipe_on_fork: false,
        };
        let space = guarded(&child, SpaceId(1), vec![area], vec![]);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut one = nix::sched::CpuSet::new();
                one.set(0).unwrap();
                nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &one).unwrap();
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
            let _stops = Stops(&stop);
            for round in 0..20 {
                let offset = round % 8 * PAGE;
                file.write_all_at(&[1; 4096], offset).unwrap();
                let page = [
                    at + offset,
                    PAGE,
                    u64::from(libc::MADV_REMOVE.unsigned_abs()),
                    0,
                    0,
                ];
                child.start_call(libc::SYS_madvise, page);
                let mut events = Vec::new();
                while space.uffd.read_events(&mut events, 1).unwrap() == 0 {
                    assert!(crate::sys::poll::readable(space.uffd.as_fd(), None).unwrap());
                }
                assert!(past_calls(&[child.pid()]).unwrap());
                assert_eq!(
                    crate::sys::seek::data(&file, 0).unwrap(),
                    None,
                    "round {round}"
                );
                assert_eq!(child.finish(), 0);
            }
        });
    }

    #[test]
    fn who_waits_until_its_event_is_read_is_not_waited_for() {
        let child = Child::fork();
        let (space, range) = lazy(&child, SpaceId(1), 8);
        let page = [
            range.start(),
            PAGE,
            u64::from(libc::MADV_DONTNEED.unsigned_abs()),
            0,
            0,
        ];
        child.start_call(libc::SYS_madvise, page);
        assert!(crate::sys::poll::readable(space.uffd.as_fd(), None).unwrap());
        assert!(past_calls(&[child.pid()]).unwrap());
        let mut events = Vec::new();
        assert_eq!(space.uffd.read_events(&mut events, 1).unwrap(), 1);
        assert_eq!(child.finish(), 0);
    }

    #[test]
    fn a_thread_that_only_runs_is_past_every_call() {
        let child = Child::fork();
        let at = child.mmap(1 << 30);
        // Reads for a second.
        child.start_sum(at, 1 << 28);
        for _ in 0..10 {
            assert!(past_calls(&[child.pid()]).unwrap());
        }
        assert_eq!(child.finish(), 0);
    }
}
