use super::*;
use crate::base::{PageRange, VAddr};
use crate::memory::filler::{Job, LazyShared, LazySpace};
use crate::memory::testing::{guarded, lazy};
use crate::memory::{Area, fill};
use crate::sys::testing::Child;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

const PAGE: u64 = PAGE_SIZE;
const SPACE: SpaceId = SpaceId(1);
const OWN: Object = Object::Private(SPACE);

/// Every page is full of a byte that depends on where it comes from.
struct Pattern;

fn byte(object: Object, at: u64) -> u64 {
    let salt = match object {
        Object::Private(_) => 0,
        Object::Shared(_) => 100,
    };
    (at / PAGE + salt) % 251 + 1
}

impl PageReader for Pattern {
    fn read(&self, object: Object, at: u64, buf: &mut [u8]) -> Result<()> {
        for (i, page) in (0..).zip(buf.chunks_mut(4096)) {
            page.fill(u8::try_from(byte(object, at + i * PAGE)).unwrap());
        }
        Ok(())
    }
}

fn expected(object: Object, at: u64, pages: u64) -> u64 {
    (0..pages).map(|i| byte(object, at + i * PAGE) * PAGE).sum()
}

fn start(spaces: Vec<LazySpace>, shared: Vec<LazyShared>) -> Handler {
    let filler = Filler::new(Job {
        spaces,
        shared,
        anchor: None,
    })
    .unwrap();
    Handler::start(
        filler,
        Arc::new(Direct(Pattern)),
        Box::new(|_| OnLoss::Kill),
    )
    .unwrap()
}

#[test]
fn faults_are_served_and_the_rest_is_filled_beside_them() {
    let child = Child::fork();
    let (space, range) = lazy(&child, SPACE, 1024);
    let handler = start(vec![space], vec![]);
    for page in [3, 700, 100, 1023] {
        let at = range.start() + page * PAGE;
        assert_eq!(child.sum(at, PAGE), expected(OWN, at, 1));
    }
    fill::fill_all(&handler.sink(), &Pattern, 2).unwrap();
    let out = handler.wait().unwrap();
    assert_eq!(
        (out.count.needed, out.count.present, out.count.gone),
        (1024, 1024, 0)
    );
    assert_eq!(
        out.summary.asked_bytes + out.summary.pushed_bytes,
        1024 * PAGE
    );
    assert_eq!(out.summary.faults, 4);
    assert!(out.summary.p50_ns > 0);
    assert_eq!(
        child.sum(range.start(), range.len()),
        expected(OWN, range.start(), 1024)
    );
}

#[test]
fn pages_that_were_never_there_read_as_zeros_at_once() {
    let child = Child::fork();
    let (mut space, range) = lazy(&child, SPACE, 8);
    space.needed = vec![PageRange::with_pages(range.start(), 1).unwrap()];
    let handler = start(vec![space], vec![]);
    assert_eq!(child.sum(range.start() + PAGE, 7 * PAGE), 0);
    child.fill(range.start() + 2 * PAGE, PAGE, 9);
    assert_eq!(
        child.sum(range.start(), PAGE),
        expected(OWN, range.start(), 1)
    );
    let out = handler.wait().unwrap();
    assert_eq!(out.summary.zero_faults, 7);
    assert_eq!(child.sum(range.start() + 2 * PAGE, PAGE), 9 * PAGE);
}

#[test]
fn an_eager_fill_needs_no_handler_and_a_stopped_process_no_help() {
    let child = Child::fork();
    let (space, range) = lazy(&child, SPACE, 2048);
    crate::sys::pidfd::send_signal(child.pidfd().as_fd(), libc::SIGSTOP).unwrap();
    let filler = Filler::new(Job {
        spaces: vec![space],
        shared: vec![],
        anchor: None,
    })
    .unwrap();
    fill::fill_all(&filler, &Pattern, 2).unwrap();
    assert!(filler.residency().complete());
    drop(filler);
    crate::sys::pidfd::send_signal(child.pidfd().as_fd(), libc::SIGCONT).unwrap();
    assert_eq!(
        child.sum(range.start(), range.len()),
        expected(OWN, range.start(), 2048)
    );
}

#[test]
fn children_that_fork_while_pages_are_missing_get_them_too() {
    let child = Child::fork();
    let (space, range) = lazy(&child, SPACE, 64);
    let handler = start(vec![space], vec![]);
    let at = range.start();
    assert_eq!(child.sum(at, PAGE), expected(OWN, at, 1));
    let second = child.spawn();
    // The parent writes to a page before the child has seen it.
    child.fill(at + 40 * PAGE, PAGE, 0xee);
    assert_eq!(
        second.sum(at + 40 * PAGE, PAGE),
        expected(OWN, at + 40 * PAGE, 1)
    );
    fill::fill_all(&handler.sink(), &Pattern, 1).unwrap();
    assert_eq!(handler.wait().unwrap().summary.forks, 1);
    assert_eq!(second.sum(at, range.len()), expected(OWN, at, 64));
    assert_eq!(child.sum(at + 40 * PAGE, PAGE), 0xee * PAGE);
}

#[test]
fn memory_that_moves_goes_away_or_is_thrown_away_is_followed() {
    let child = Child::fork();
    let (space, range) = lazy(&child, SPACE, 64);
    let at = range.start();
    let target = child.mmap(32 * PAGE);
    let handler = start(vec![space], vec![]);
    let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
    let moved = child.call(libc::SYS_mremap, [at, 16 * PAGE, 32 * PAGE, flags, target]);
    assert_eq!(moved.cast_unsigned(), target);
    assert_eq!(
        child.sum(target + 5 * PAGE, PAGE),
        expected(OWN, at + 5 * PAGE, 1)
    );
    // Grown: never there.
    assert_eq!(child.sum(target + 20 * PAGE, PAGE), 0);
    child.munmap(at + 16 * PAGE, 16 * PAGE);
    let dontneed = libc::MADV_DONTNEED as u64;
    child.call(
        libc::SYS_madvise,
        [at + 32 * PAGE, 16 * PAGE, dontneed, 0, 0],
    );
    assert_eq!(child.sum(at + 32 * PAGE, 16 * PAGE), 0);
    child.mprotect(at + 50 * PAGE, PAGE, libc::PROT_READ);
    fill::fill_all(&handler.sink(), &Pattern, 2).unwrap();
    let out = handler.wait().unwrap();
    assert_eq!(out.count.needed, 64);
    // A window around the first fault may have come before the rest went.
    assert!((17..=32).contains(&out.count.gone), "{out:?}");
    assert_eq!(child.sum(target, 16 * PAGE), expected(OWN, at, 16));
    assert_eq!(
        child.sum(at + 48 * PAGE, 16 * PAGE),
        expected(OWN, at + 48 * PAGE, 16)
    );
}

#[test]
fn a_process_that_dies_needs_nothing_any_more() {
    let child = Child::fork();
    let (space, _) = lazy(&child, SPACE, 64);
    let handler = start(vec![space], vec![]);
    drop(child);
    fill::fill_all(&handler.sink(), &Pattern, 1).unwrap();
    assert_eq!(handler.wait().unwrap().count.gone, 64);
}

/// A source far away: it answers when it is told to, or never.
#[derive(Default)]
struct Remote {
    wants: Mutex<Vec<Want>>,
    came: Condvar,
}

impl Remote {
    fn next(&self) -> Want {
        let mut wants = self.wants.lock().unwrap();
        loop {
            if let Some(w) = wants.pop() {
                return w;
            }
            let (w, late) = self
                .came
                .wait_timeout(wants, Duration::from_secs(20))
                .unwrap();
            assert!(!late.timed_out(), "nobody asked");
            wants = w;
        }
    }
}

impl PageSource for Remote {
    fn want(&self, want: Want, _: &dyn PageSink) -> Result<()> {
        self.wants.lock().unwrap().push(want);
        self.came.notify_one();
        Ok(())
    }
}

#[test]
fn a_far_source_answers_later_and_is_asked_again_when_it_comes_back() {
    let child = Child::fork();
    let (space, range) = lazy(&child, SPACE, 64);
    let filler = Filler::new(Job {
        spaces: vec![space],
        shared: vec![],
        anchor: None,
    })
    .unwrap();
    let remote = Arc::new(Remote::default());
    let source: Arc<dyn PageSource> = Arc::clone(&remote) as _;
    let handler = Handler::start(filler, source, Box::new(|_| OnLoss::Wait)).unwrap();
    let at = range.start() + 20 * PAGE;
    child.start_sum(at, PAGE);
    let want = remote.next();
    assert_eq!(want.page.at, at);
    assert!(want.window.contains(at) && want.window.len() <= WINDOW);
    handler
        .sink()
        .lost(Error::peer("read pages", "connection reset"));
    handler.asker().ask_again().unwrap();
    assert_eq!(remote.next(), want);
    assert_eq!(child.finish_within(Duration::ZERO), None, "it must wait");
    fill::fill_all(&handler.sink(), &Pattern, 1).unwrap();
    assert_eq!(child.finish(), expected(OWN, at, 1));
    assert!(handler.wait().unwrap().lost.is_some());
}

#[test]
fn with_the_source_lost_nobody_ever_reads_zeros() {
    for policy in [OnLoss::Poison, OnLoss::Kill] {
        let child = Child::fork();
        let (space, range) = lazy(&child, SPACE, 64);
        let filler = Filler::new(Job {
            spaces: vec![space],
            shared: vec![],
            anchor: None,
        })
        .unwrap();
        let remote = Arc::new(Remote::default());
        let source: Arc<dyn PageSource> = Arc::clone(&remote) as _;
        let handler = Handler::start(filler, source, Box::new(move |_| policy)).unwrap();
        child.start_sum(range.start(), PAGE);
        remote.next();
        handler
            .sink()
            .lost(Error::peer("read pages", "gone for good"));
        let out = handler.wait().unwrap();
        assert!(
            crate::sys::pidfd::wait_exit(child.pidfd().as_fd(), Some(Duration::from_secs(20)))
                .unwrap()
        );
        assert_eq!(child.finish_within(Duration::ZERO), None, "{policy:?}");
        assert!(out.lost.is_some());
        assert_eq!(out.count.needed, out.count.present + out.count.gone);
    }
}

/// Every few reads another page is placed late, so that the order varies.
struct Slow(AtomicU64);

impl PageReader for Slow {
    fn read(&self, object: Object, at: u64, buf: &mut [u8]) -> Result<()> {
        if self.0.fetch_add(1, Ordering::Relaxed).is_multiple_of(3) {
            std::thread::yield_now();
        }
        Pattern.read(object, at, buf)
    }
}

#[test]
fn memory_that_moves_and_forks_while_two_threads_fill_it_stays_right() {
    for round in 0..20u64 {
        let child = Child::fork();
        let pages = 512;
        let (space, range) = lazy(&child, SPACE, pages);
        let spare = child.mmap(2 * pages * PAGE);
        child.munmap(spare, 2 * pages * PAGE);
        let handler = start(vec![space], vec![]);
        let sink = handler.sink();
        // Where each block of 64 pages is now.
        let mut place: Vec<u64> = (0..8).map(|b| range.start() + b * 64 * PAGE).collect();
        let mut children = Vec::new();
        std::thread::scope(|s| {
            s.spawn(|| {
                let slow = Slow(AtomicU64::new(round));
                fill::fill_all(&sink, &slow, 2).unwrap();
            });
            let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
            let mut free = spare;
            for i in 0..12u64 {
                let block = usize::try_from((i * 5 + round) % 8).unwrap();
                let from = place[block];
                let moved = child.call(libc::SYS_mremap, [from, 64 * PAGE, 64 * PAGE, flags, free]);
                assert_eq!(moved.cast_unsigned(), free);
                place[block] = free;
                free = from;
                if i % 6 == 2 {
                    children.push((child.spawn(), place.clone()));
                }
            }
        });
        let out = handler.wait().unwrap();
        assert_eq!(out.count.gone, 0, "{out:?}");
        children.push((child, place));
        for (child, place) in &children {
            for (block, at) in (0u64..).zip(place) {
                let origin = range.start() + block * 64 * PAGE;
                assert_eq!(
                    child.sum(*at, 64 * PAGE),
                    expected(OWN, origin, 64),
                    "round {round}"
                );
            }
        }
        let e = crate::sys::vm::read_vec(children[0].0.pid(), VAddr(PAGE), 1).unwrap_err();
        assert!(e.raw_os_error().is_some());
    }
}

#[path = "shared_tests.rs"]
mod shared;

/// Whether a process waits until somebody has read what it did to its memory. It may
/// be blocked in fork(2) before it has come to that.
fn waits_for_event(child: &Child) -> bool {
    let path = format!("/proc/{}/wchan", child.pid());
    let at = std::fs::read_to_string(path).unwrap();
    at.starts_with("userfaultfd_event")
}

#[test]
fn a_child_that_forks_while_a_guard_page_is_made_reads_no_zeros_there() {
    let parent = Arc::new(Child::fork());
    let (space, range) = lazy(&parent, SPACE, 8);
    let job = Job {
        spaces: vec![space],
        ..Job::default()
    };
    let filler = Filler::new(job).unwrap();
    let forked = Arc::new(Mutex::new(None));
    let (theirs, kept) = (Arc::clone(&parent), Arc::clone(&forked));
    // It forks just before, and nobody has heard of that when the page is made.
    filler.make_guards_by(Box::new(move |_, _| {
        let parent = Arc::clone(&theirs);
        *kept.lock().unwrap() = Some(std::thread::spawn(move || parent.spawn()));
        while !waits_for_event(&theirs) {
            std::thread::yield_now();
        }
        Ok(true)
    }));
    let source = Arc::new(Direct(Pattern));
    let handler = Handler::start(filler, source, Box::new(|_| OnLoss::Kill)).unwrap();
    let page = PageRange::with_pages(range.start() + 3 * PAGE, 1).unwrap();
    handler.sink().guards(SPACE, &[page]).unwrap();
    let child = forked.lock().unwrap().take().unwrap().join().unwrap();
    child.start_sum(page.start(), PAGE);
    let long = Some(Duration::from_secs(5));
    assert!(crate::sys::pidfd::wait_exit(child.pidfd().as_fd(), long).unwrap());
}
