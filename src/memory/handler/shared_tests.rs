//! Shared objects.

use super::*;
use crate::sys::pidfd::wait_exit;
use std::fs::File;
use std::sync::atomic::AtomicBool;

const OBJECT: Object = Object::Shared(4);
const PAGES: u64 = 64;

/// An object of some pages, all missing, mapped by a child from `at` on.
struct World {
    child: Child,
    at: u64,
    file: File,
}

impl World {
    fn new() -> Self {
        let child = Child::fork();
        // Room to grow into, above.
        let room = child.mmap(4 * PAGES * PAGE);
        child.munmap(room, 4 * PAGES * PAGE);
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        let at = child.mmap_with(room, PAGES * PAGE, flags, -1);
        let name = format!("{at:x}-{:x}", at + PAGES * PAGE);
        let file = File::options()
            .read(true)
            .write(true)
            .open(format!("/proc/{}/map_files/{name}", child.pid()))
            .unwrap();
        Self { child, at, file }
    }

    fn page(&self, page: u64) -> u64 {
        self.at + page * PAGE
    }

    /// The first `pages` of the object, as `child` maps them at `at`.
    fn space(&self, child: &Child, id: SpaceId, at: u64, pages: u64) -> LazySpace {
        let area = Area {
            range: PageRange::with_pages(at, pages).unwrap(),
            object: OBJECT,
            at: 0,
            wipe_on_fork: false,
        };
        guarded(child, id, vec![area], vec![])
    }

    fn lazy(&self) -> LazyShared {
        LazyShared {
            id: 4,
            file: Arc::new(self.file.try_clone().unwrap()),
            needed: vec![PageRange::with_pages(0, PAGES).unwrap()],
        }
    }

    fn start(&self) -> Handler {
        let space = self.space(&self.child, SPACE, self.at, PAGES);
        start(vec![space], vec![self.lazy()])
    }

    /// A second child that maps the same, and the handler of both.
    fn start_two(&self) -> (Child, Handler) {
        let second = self.child.spawn();
        let spaces = vec![
            self.space(&self.child, SPACE, self.at, PAGES),
            self.space(&second, SpaceId(2), self.at, PAGES),
        ];
        let handler = start(spaces, vec![self.lazy()]);
        (second, handler)
    }

    fn madvise(&self, first: u64, pages: u64, advice: i32) {
        let args = [
            self.page(first),
            pages * PAGE,
            u64::from(advice.cast_unsigned()),
            0,
            0,
        ];
        assert_eq!(self.child.call(libc::SYS_madvise, args), 0);
    }

    fn sum(&self, first: u64, pages: u64) -> u64 {
        self.child.sum(self.page(first), pages * PAGE)
    }
}

fn whole(first: u64, pages: u64) -> u64 {
    expected(OBJECT, first * PAGE, pages)
}

#[test]
fn shared_memory_comes_once_and_wakes_everyone_who_waits() {
    let world = World::new();
    let parent = &world.child;
    let second = parent.spawn();
    let at = world.at;
    let spaces = vec![
        world.space(parent, SPACE, at, PAGES),
        world.space(&second, SpaceId(2), at, PAGES),
    ];
    // Both wait for the same page before anything is served.
    parent.start_sum(world.page(7), PAGE);
    second.start_sum(world.page(7), PAGE);
    let handler = start(spaces, vec![world.lazy()]);
    assert_eq!(parent.finish(), whole(7, 1));
    assert_eq!(second.finish(), whole(7, 1));
    parent.fill(world.page(9), PAGE, 3);
    assert_eq!(second.sum(world.page(9), PAGE), 3 * PAGE);
    fill::fill_all(&handler.sink(), &Pattern, 2).unwrap();
    assert_eq!(handler.wait().unwrap().count.present, PAGES);
    assert_eq!(second.sum(at, 7 * PAGE), whole(0, 7));
}

#[test]
fn a_page_table_that_forgets_shared_memory_loses_nothing() {
    let world = World::new();
    let handler = world.start();
    world.madvise(4, 8, libc::MADV_DONTNEED);
    assert_eq!(world.sum(20, 1), whole(20, 1));
    assert_eq!(world.sum(4, 8), whole(4, 8));
    world.madvise(0, 2, libc::MADV_DONTNEED);
    fill::fill_all(&handler.sink(), &Pattern, 2).unwrap();
    let count = handler.wait().unwrap().count;
    assert_eq!((count.present, count.gone), (PAGES, 0));
    assert_eq!(world.sum(0, PAGES), whole(0, PAGES));
}

#[test]
fn a_hole_punched_before_its_pages_came_stays_a_hole() {
    let world = World::new();
    let (second, handler) = world.start_two();
    for round in 0..4 {
        world.madvise(4 * round, 2, libc::MADV_REMOVE);
        // The one forgets, the other removes: neither is taken for the other.
        world.madvise(4 * round + 2, 1, libc::MADV_DONTNEED);
    }
    second.fill(world.page(5), PAGE, 2);
    // A page among them is there already.
    let byte = u8::try_from(byte(OBJECT, 33 * PAGE)).unwrap();
    handler
        .sink()
        .place(OBJECT, 33 * PAGE, &[byte; 4096])
        .unwrap();
    assert_eq!(handler.sink().residency().missing(), PAGES - 8 - 1);
    world.madvise(32, 4, libc::MADV_REMOVE);
    fill::fill_all(&handler.sink(), &Pattern, 2).unwrap();
    let count = handler.wait().unwrap().count;
    assert_eq!(count.gone, 11, "{count:?}");
    for round in 0..4 {
        let written = if round == 1 { 2 * PAGE } else { 0 };
        assert_eq!(world.sum(4 * round, 2), written);
        assert_eq!(world.sum(4 * round + 2, 2), whole(4 * round + 2, 2));
    }
    assert_eq!(world.sum(16, 16), whole(16, 16));
    assert_eq!(world.sum(32, 4), 0);
    assert_eq!(world.sum(36, PAGES - 36), whole(36, PAGES - 36));
}

#[test]
fn a_hole_among_pages_that_came_is_not_taken_for_one_among_those_that_did_not() {
    let world = World::new();
    let handler = world.start();
    let byte = u8::try_from(byte(OBJECT, 40 * PAGE)).unwrap();
    handler
        .sink()
        .place(OBJECT, 40 * PAGE, &[byte; 4096])
        .unwrap();
    world.madvise(10, 2, libc::MADV_DONTNEED);
    world.madvise(40, 1, libc::MADV_REMOVE);
    world.madvise(12, 2, libc::MADV_DONTNEED);
    fill::fill_all(&handler.sink(), &Pattern, 2).unwrap();
    let count = handler.wait().unwrap().count;
    assert_eq!((count.present, count.gone), (PAGES, 0));
    assert_eq!(world.sum(0, 40), whole(0, 40));
    assert_eq!(world.sum(40, 1), 0);
}

#[test]
fn who_waits_for_a_page_that_is_punched_away_reads_zeros() {
    let world = World::new();
    let second = world.child.spawn();
    let at = world.at;
    let spaces = vec![
        world.space(&world.child, SPACE, at, PAGES),
        world.space(&second, SpaceId(2), at, PAGES),
    ];
    let filler = Filler::new(Job {
        spaces,
        shared: vec![world.lazy()],
        anchor: None,
    })
    .unwrap();
    let remote = Arc::new(Remote::default());
    let source: Arc<dyn PageSource> = Arc::clone(&remote) as _;
    let handler = Handler::start(filler, source, Box::new(|_| OnLoss::Wait)).unwrap();
    second.start_sum(world.page(3), PAGE);
    assert_eq!(remote.next().page.at, 3 * PAGE);
    world.madvise(3, 1, libc::MADV_REMOVE);
    assert_eq!(second.finish(), 0);
    fill::fill_all(&handler.sink(), &Pattern, 1).unwrap();
    assert_eq!(handler.wait().unwrap().count.gone, 1);
    assert_eq!(
        second.sum(world.page(2), 3 * PAGE),
        whole(2, 1) + whole(4, 1)
    );
}

#[test]
fn shared_memory_that_moves_grows_or_is_left_behind_is_followed() {
    let world = World::new();
    let child = &world.child;
    let target = child.mmap(2 * PAGES * PAGE);
    let handler = world.start();
    // The tail is unmapped, and comes back as the area grows in place, split.
    child.munmap(world.page(16), (PAGES - 16) * PAGE);
    child.mprotect(world.page(15), PAGE, libc::PROT_READ);
    let grown = child.call(libc::SYS_mremap, [world.page(15), PAGE, 9 * PAGE, 0, 0]);
    assert_eq!(grown.cast_unsigned(), world.page(15));
    child.mprotect(world.page(20), PAGE, libc::PROT_READ);
    assert_eq!(world.sum(21, 1), whole(21, 1));
    // Moved, and left at the old place as well.
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | libc::MREMAP_DONTUNMAP;
    let args = [
        world.at,
        15 * PAGE,
        15 * PAGE,
        u64::from(flags.cast_unsigned()),
        target,
    ];
    assert_eq!(child.call(libc::SYS_mremap, args).cast_unsigned(), target);
    assert_eq!(child.sum(target + 2 * PAGE, PAGE), whole(2, 1));
    assert_eq!(world.sum(1, 1), whole(1, 1));
    fill::fill_all(&handler.sink(), &Pattern, 2).unwrap();
    let count = handler.wait().unwrap().count;
    assert_eq!((count.present, count.gone), (PAGES, 0));
    assert_eq!(world.sum(0, 24), whole(0, 24));
    assert_eq!(child.sum(target, 15 * PAGE), whole(0, 15));
    // What nobody mapped came all the same.
    let rest = (PAGES - 21) * PAGE;
    let grown = child.call(libc::SYS_mremap, [world.page(21), 3 * PAGE, rest, 0, 0]);
    assert_eq!(grown.cast_unsigned(), world.page(21));
    assert_eq!(world.sum(0, PAGES), whole(0, PAGES));
}

#[test]
fn shared_memory_is_needed_until_its_last_mapping_goes() {
    let world = World::new();
    let (second, handler) = world.start_two();
    let at = world.at;
    // A child of the first, and then neither of them.
    let third = world.child.spawn();
    world.child.munmap(at, PAGES * PAGE);
    assert_eq!(third.sum(world.page(3), PAGE), whole(3, 1));
    second.munmap(at, PAGES * PAGE);
    third.munmap(world.page(8), 8 * PAGE);
    assert_eq!(third.sum(world.page(20), PAGE), whole(20, 1));
    assert!(!handler.is_finished());
    crate::sys::pidfd::send_signal(third.pidfd().as_fd(), libc::SIGKILL).unwrap();
    assert!(wait_exit(third.pidfd().as_fd(), Some(Duration::from_secs(20))).unwrap());
    // An end is noticed by whoever comes with a page.
    fill::fill_all(&handler.sink(), &Pattern, 1).unwrap();
    let count = handler.wait().unwrap().count;
    assert!(count.gone > 0 && count.present > 0, "{count:?}");
    assert_eq!(count.needed, count.present + count.gone);
}

#[test]
fn with_the_source_lost_shared_memory_never_reads_as_zeros() {
    for policy in [OnLoss::Poison, OnLoss::Kill] {
        let world = World::new();
        let second = world.child.spawn();
        let at = world.at;
        let spaces = vec![
            world.space(&world.child, SPACE, at, PAGES),
            world.space(&second, SpaceId(2), at, PAGES / 2),
        ];
        let filler = Filler::new(Job {
            spaces,
            shared: vec![world.lazy()],
            anchor: None,
        })
        .unwrap();
        let remote = Arc::new(Remote::default());
        let source: Arc<dyn PageSource> = Arc::clone(&remote) as _;
        let handler = Handler::start(filler, source, Box::new(move |_| policy)).unwrap();
        for child in [&world.child, &second] {
            child.start_sum(world.page(2), PAGE);
        }
        remote.next();
        handler
            .sink()
            .lost(Error::peer("read pages", "gone for good"));
        let out = handler.wait().unwrap();
        for child in [&world.child, &second] {
            assert!(wait_exit(child.pidfd().as_fd(), Some(Duration::from_secs(20))).unwrap());
            assert_eq!(child.finish_within(Duration::ZERO), None, "{policy:?}");
        }
        assert_eq!(out.count.needed, out.count.present + out.count.gone);
    }
}

#[test]
fn a_hole_is_not_taken_for_an_older_one_by_who_places_pages_meanwhile() {
    let world = World::new();
    let handler = world.start();
    let sink = handler.sink();
    let over = AtomicBool::new(false);
    let byte = u8::try_from(byte(OBJECT, 63 * PAGE)).unwrap();
    std::thread::scope(|s| {
        // More than there are processors: the handler is held up now and then.
        for _ in 0..8 {
            s.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    sink.place(OBJECT, 63 * PAGE, &[byte; 4096]).unwrap();
                }
            });
        }
        for round in 0..20 {
            world.madvise(3 * round, 1, libc::MADV_DONTNEED);
            world.madvise(3 * round + 1, 1, libc::MADV_REMOVE);
        }
        over.store(true, Ordering::Relaxed);
    });
    fill::fill_all(&sink, &Pattern, 2).unwrap();
    let pages = |n: u64| (0..20u64).map(move |round| 3 * round + n);
    let lost: Vec<_> = pages(0).filter(|p| world.sum(*p, 1) == 0).collect();
    let back: Vec<_> = pages(1).filter(|p| world.sum(*p, 1) != 0).collect();
    assert_eq!((lost, back), (vec![], vec![]));
}

/// Gives nothing, and tells that it was asked.
#[derive(Default)]
struct Silent {
    asked: Mutex<bool>,
    bell: Condvar,
}

impl PageSource for Silent {
    fn want(&self, _: Want, _: &dyn PageSink) -> Result<()> {
        *self.asked.lock().unwrap() = true;
        self.bell.notify_all();
        Ok(())
    }
}

#[test]
fn who_waits_for_a_shared_page_under_a_guard_page_is_woken() {
    let world = World::new();
    let space = world.space(&world.child, SPACE, world.at, PAGES);
    let job = Job {
        spaces: vec![space],
        shared: vec![world.lazy()],
        anchor: None,
    };
    let filler = Filler::new(job).unwrap();
    // The kernel does not know it: who is woken looks at the page again.
    filler.make_guards_by(Box::new(|_, _| Ok(true)));
    let source = Arc::new(Silent::default());
    let handler = Handler::start(filler, source.clone(), Box::new(|_| OnLoss::Kill)).unwrap();
    world.child.start_sum(world.page(5), PAGE);
    let asked = source.asked.lock().unwrap();
    drop(source.bell.wait_while(asked, |asked| !*asked).unwrap());
    let page = PageRange::with_pages(world.page(5), 1).unwrap();
    let sink = handler.sink();
    sink.guards(SPACE, &[page]).unwrap();
    sink.place(OBJECT, 5 * PAGE, &[9; 4096]).unwrap();
    let sum = world.child.finish_within(Duration::from_secs(5));
    assert_eq!(sum, Some(9 * PAGE));
}
