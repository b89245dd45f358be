use super::*;
use crate::base::PAGE_SIZE;
use crate::sys::poll::readable;
use crate::sys::testing::Child;
use std::time::Duration;

const PAGE: u64 = PAGE_SIZE;
const LONG: Option<Duration> = Some(Duration::from_secs(20));

fn guarded(child: &Child, pages: u64) -> (Uffd, PageRange) {
    let range = PageRange::with_pages(child.mmap(pages * PAGE), pages).unwrap();
    let uffd = Uffd::handshake(child.userfaultfd(), feature::LAZY | feature::THREAD_ID).unwrap();
    uffd.register(range, mode::MISSING).unwrap();
    (uffd, range)
}

fn next(uffd: &Uffd) -> Event {
    assert!(readable(uffd.as_fd(), LONG).unwrap(), "no event came");
    let mut events = Vec::new();
    assert_eq!(uffd.read_events(&mut events, 16).unwrap(), 1);
    events.pop().unwrap()
}

fn page(range: PageRange, n: u64) -> PageRange {
    PageRange::with_pages(range.start() + n * PAGE, 1).unwrap()
}

#[test]
fn a_fault_is_told_with_address_and_thread_and_served_by_a_copy() {
    let child = Child::fork();
    let (uffd, range) = guarded(&child, 4);
    child.start_sum(range.start() + 2 * PAGE, PAGE);
    match next(&uffd) {
        Event::PageFault { addr, flags, tid } => {
            assert_eq!(addr.0, range.start() + 2 * PAGE);
            assert_eq!(flags & FAULT_WRITE, 0);
            assert_eq!(i64::from(tid), i64::from(child.pid().0));
        }
        other => panic!("{other:?}"),
    }
    let done = uffd
        .copy(VAddr(page(range, 2).start()), &[3; 4096])
        .unwrap();
    assert_eq!((done.bytes, done.stop), (PAGE, None));
    assert_eq!(child.finish(), 3 * PAGE);
}

#[test]
fn a_copy_over_a_page_that_exists_stops_there_and_says_how_far_it_came() {
    let child = Child::fork();
    let (uffd, range) = guarded(&child, 4);
    uffd.zeropage(page(range, 2)).unwrap();
    let bytes = vec![1; 4 * 4096];
    let done = uffd.copy(VAddr(range.start()), &bytes).unwrap();
    assert_eq!((done.bytes, done.stop), (2 * PAGE, Some(Stop::Again)));
    let rest = uffd
        .copy(VAddr(range.start() + 2 * PAGE), &bytes[8192..])
        .unwrap();
    assert_eq!((rest.bytes, rest.stop), (0, Some(Stop::Exists)));
}

#[test]
fn a_fill_outside_the_guarded_areas_and_of_the_dead_is_told_apart() {
    let child = Child::fork();
    let (uffd, range) = guarded(&child, 4);
    child.mprotect(page(range, 1).start(), PAGE, libc::PROT_READ);
    // Three areas now, though nothing was told.
    let done = uffd.copy(VAddr(range.start()), &[1; 8192]).unwrap();
    assert_eq!((done.bytes, done.stop), (0, Some(Stop::NoArea)));
    assert_eq!(uffd.is_guarded(page(range, 1)).unwrap(), Some(true));
    child.start_call(libc::SYS_munmap, [range.start(), PAGE, 0, 0, 0]);
    assert!(readable(uffd.as_fd(), LONG).unwrap());
    let done = uffd
        .copy(VAddr(page(range, 3).start()), &[1; 4096])
        .unwrap();
    assert_eq!(done.stop, Some(Stop::Again));
    assert_eq!(uffd.is_guarded(page(range, 3)).unwrap(), None);
    assert!(matches!(next(&uffd), Event::Unmap { range: r } if r == page(range, 0)));
    assert_eq!(child.finish(), 0);
    assert_eq!(uffd.is_guarded(page(range, 0)).unwrap(), Some(false));
    drop(child);
    let done = uffd
        .copy(VAddr(page(range, 3).start()), &[1; 4096])
        .unwrap();
    assert_eq!(done.stop, Some(Stop::Gone));
}

#[test]
fn fork_remap_remove_and_unmap_are_told() {
    let child = Child::fork();
    let (uffd, range) = guarded(&child, 8);
    let (a, len) = (range.start(), 2 * PAGE);
    let target = child.mmap(len);

    child.start_call(
        libc::SYS_madvise,
        [a, len, libc::MADV_DONTNEED as u64, 0, 0],
    );
    assert!(matches!(next(&uffd), Event::Remove { range: r } if r.start() == a && r.len() == len));
    assert_eq!(child.finish(), 0);

    let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
    child.start_call(libc::SYS_mremap, [a, len, len, flags, target]);
    match next(&uffd) {
        Event::Remap { from, to, len: l } => assert_eq!((from.0, to.0, l), (a, target, len)),
        other => panic!("{other:?}"),
    }
    assert!(matches!(next(&uffd), Event::Unmap { range: r } if r.start() == a && r.len() == len));
    assert_eq!(child.finish(), target);

    let grandchild = std::thread::scope(|s| {
        let forking = s.spawn(|| child.spawn());
        let Event::Fork { child: fd } = next(&uffd) else {
            panic!("no fork event")
        };
        (forking.join().unwrap(), Uffd::adopt(fd).unwrap())
    });
    let (grandchild, theirs) = grandchild;
    grandchild.start_sum(target, PAGE);
    assert!(matches!(next(&theirs), Event::PageFault { addr, .. } if addr.0 == target));
    theirs.copy(VAddr(target), &[9; 4096]).unwrap();
    assert_eq!(grandchild.finish(), 9 * PAGE);
}

#[test]
fn a_poisoned_page_kills_and_never_reads_as_zeros() {
    let child = Child::fork();
    let (uffd, range) = guarded(&child, 1);
    child.start_sum(range.start(), PAGE);
    assert!(matches!(next(&uffd), Event::PageFault { .. }));
    let done = uffd.poison(range).unwrap();
    assert_eq!((done.bytes, done.stop), (PAGE, None));
    assert!(
        readable(child.pidfd().as_fd(), LONG).unwrap(),
        "it must die of SIGBUS"
    );
    assert_eq!(child.finish_within(Duration::ZERO), None);
}

#[test]
fn an_unknown_event_is_an_error() {
    let mut msg = [0; MSG];
    msg[0] = 0x17;
    let e = parse(&msg).unwrap_err();
    assert_eq!(e.to_string(), "read userfaultfd: unknown event 0x17");
}
