use super::*;
use crate::base::PAGE_SIZE;
use proptest::prelude::*;
use std::collections::BTreeSet;

fn range(page: u64, pages: u64) -> PageRange {
    PageRange::with_pages(page * PAGE_SIZE, pages).unwrap()
}

fn obj(n: u32) -> Object {
    Object::Private(SpaceId(n))
}

fn id(o: Object) -> u32 {
    crate::wire::batch::numbers(o).1
}

fn pages_of(rs: &[PageRange]) -> Vec<u64> {
    rs.iter()
        .flat_map(|r| r.start() / PAGE_SIZE..r.end() / PAGE_SIZE)
        .collect()
}

proptest! {
    #[test]
    fn every_page_goes_once_and_a_wanted_one_goes_at_once(
        pieces in proptest::collection::vec((0u32..3, 0u64..200, 1u64..20), 1..20),
        faults in proptest::collection::vec((any::<prop::sample::Index>(), 0u64..16), 0..40),
        bulk in 1u64..9,
    ) {
        let mut q = Queue::new();
        let mut all = BTreeSet::new();
        for (space, at, len) in pieces {
            q.declare(obj(space), [range(at, len)]);
            all.extend((at..at + len).map(|p| (space, p)));
        }
        let list: Vec<(u32, u64)> = all.iter().copied().collect();
        let mut gone = BTreeSet::new();
        for (pick, window) in faults {
            let (space, page) = list[pick.index(list.len())];
            let answer = q.take_fault(obj(space), range(page, 1), range(page.saturating_sub(2), window), 8).unwrap();
            let Answer::Pages(ranges) = answer else { panic!("{answer:?}") };
            let pages = pages_of(&ranges);
            prop_assert_eq!(pages[0], page);
            gone.insert((space, page));
            for p in &pages[1..] { prop_assert!(gone.insert((space, *p)), "neighbour {} went twice", p); }
            if let Some(piece) = q.take_bulk(bulk, 3) {
                for p in pages_of(&piece.ranges) { prop_assert!(gone.insert((id(piece.object), p)), "page {} went twice", p); }
            }
        }
        while let Some(piece) = q.take_bulk(bulk, 3) {
            let pages = pages_of(&piece.ranges);
            prop_assert!(pages.len() as u64 <= bulk && !pages.is_empty());
            for p in pages { prop_assert!(gone.insert((id(piece.object), p)), "page {} went twice", p); }
        }
        prop_assert_eq!(gone, all);
        prop_assert_eq!(q.left(), 0);
    }
}

/// What happens to a queue, and how far lanes get.
#[derive(Debug, Clone)]
enum Step {
    Fault(prop::sample::Index, u64),
    Bulk(u64),
    List(u32),
    Said,
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (any::<prop::sample::Index>(), 0u64..16).prop_map(|(p, w)| Step::Fault(p, w)),
        3 => (1u64..9).prop_map(Step::Bulk),
        2 => (0u32..3).prop_map(Step::List),
        2 => Just(Step::Said),
        1 => Just(Step::Restart),
    ]
}

/// The other end: what it still lacks, and what it was told.
#[derive(Default)]
struct Told {
    exist: BTreeSet<(u32, u64)>,
    guards: BTreeSet<(u32, u64)>,
    lacks: BTreeSet<(u32, u64)>,
}

impl Told {
    fn sent(&mut self, space: u32, pages: Vec<u64>) {
        for p in pages {
            assert!(
                self.exist.contains(&(space, p)),
                "{p} was sent, and is none"
            );
            self.lacks.remove(&(space, p));
        }
    }

    fn absent(&mut self, space: u32, pages: Vec<u64>) {
        for p in pages {
            assert!(!self.exist.contains(&(space, p)), "{p} exists");
            self.lacks.remove(&(space, p));
        }
    }

    fn looked(&mut self, space: u32, pages: Vec<u64>) {
        self.lacks
            .retain(|(s, p)| *s != space || !pages.contains(p));
    }

    fn hear(&mut self, q: &mut Queue) {
        for (o, r) in q.take_absent() {
            self.absent(id(o), pages_of(&[r]));
        }
        for (o, r) in q.take_guards() {
            for p in pages_of(&[r]) {
                assert!(self.guards.contains(&(o.0, p)), "{p} is no guard page");
                self.lacks.remove(&(o.0, p));
            }
        }
    }

    fn missing(&self) -> Vec<(Object, PageRange)> {
        let one = |(s, p): &(u32, u64)| (obj(*s), range(*p, 1));
        self.lacks.iter().map(one).collect()
    }
}

fn list(q: &mut Queue, told: &Told, space: u32) {
    if q.unlisted().iter().any(|(o, _)| *o == obj(space)) {
        let of = |all: &BTreeSet<(u32, u64)>| -> Vec<_> {
            let here = all.iter().filter(|(s, _)| *s == space);
            here.map(|(_, p)| range(*p, 1)).collect()
        };
        q.list_guards(of(&told.guards).into_iter().map(|r| (SpaceId(space), r)));
        q.list(obj(space), of(&told.exist));
    }
}

proptest! {
    /// Faults, lists, and links that break with whatever was on its way: in the
    /// end each page was sent or said not to exist, and never the wrong of both.
    #[test]
    fn whenever_the_list_comes_every_page_is_sent_or_told_absent(
        kinds in proptest::collection::vec(prop_oneof![Just(0u8), Just(1), Just(2)], 60),
        steps in proptest::collection::vec(step(), 0..60),
    ) {
        let mut q = Queue::new();
        let mut told = Told::default();
        for (page, kind) in (0u64..).zip(kinds) {
            let key = (u32::try_from(page % 3).unwrap(), page / 3);
            q.declare_possible(obj(key.0), [range(key.1, 1)]);
            told.lacks.insert(key);
            match kind {
                0 => { told.exist.insert(key); }
                1 => { told.guards.insert(key); }
                _ => {}
            }
        }
        for s in steps {
            match s {
                Step::Fault(pick, window) => {
                    let lacks: Vec<_> = told.lacks.iter().copied().collect();
                    if lacks.is_empty() { break }
                    let (space, page) = lacks[pick.index(lacks.len())];
                    let window = range(page.saturating_sub(2), window);
                    match q.take_fault(obj(space), range(page, 1), window, 4).unwrap() {
                        Answer::Pages(r) => told.sent(space, pages_of(&r)),
                        Answer::Look(r) => told.looked(space, pages_of(&r)),
                        Answer::Absent => {
                            prop_assert!(!told.guards.contains(&(space, page)));
                            told.absent(space, vec![page]);
                        }
                        Answer::Guard => {
                            prop_assert!(told.guards.contains(&(space, page)));
                            told.absent(space, vec![page]);
                        }
                    }
                    prop_assert!(!told.lacks.contains(&(space, page)), "no answer");
                }
                Step::Bulk(pages) => if let Some(p) = q.take_bulk(pages, 3) {
                    told.sent(id(p.object), pages_of(&p.ranges));
                },
                Step::List(space) => list(&mut q, &told, space),
                Step::Said => told.hear(&mut q),
                Step::Restart => {
                    // All that was taken and not heard is lost.
                    let _ = (q.take_bulk(5, 2), q.take_absent(), q.take_guards());
                    q.restart(&told.missing()).unwrap();
                }
            }
        }
        (0..3).for_each(|space| list(&mut q, &told, space));
        told.hear(&mut q);
        while let Some(p) = q.take_bulk(7, 3) {
            told.sent(id(p.object), pages_of(&p.ranges));
        }
        prop_assert_eq!(&told.lacks, &BTreeSet::new());
        prop_assert_eq!(q.left(), 0);
    }
}

#[test]
fn a_page_that_was_never_there_is_refused() {
    let mut q = Queue::new();
    q.declare(obj(1), [range(10, 2)]);
    assert!(q.take_fault(obj(1), range(12, 1), range(12, 4), 8).is_err());
    assert!(q.take_fault(obj(2), range(10, 1), range(10, 0), 8).is_err());
    assert!(q.restart(&[(obj(1), range(11, 2))]).is_err());
}

#[test]
fn after_a_reconnection_only_the_missing_goes_again() {
    let mut q = Queue::new();
    q.declare(obj(1), [range(0, 10)]);
    while q.take_bulk(4, 4).is_some() {}
    q.restart(&[(obj(1), range(3, 2)), (obj(1), range(9, 1))])
        .unwrap();
    let p = q.take_bulk(100, 8).unwrap();
    assert_eq!(p.ranges, [range(3, 2), range(9, 1)]);
}

#[test]
fn what_turns_out_not_to_exist_is_said_and_never_sent() {
    let mut q = Queue::new();
    q.declare_possible(obj(1), [range(0, 100)]);
    let look = q.take_fault(obj(1), range(4, 1), range(0, 16), 8).unwrap();
    assert_eq!(
        look,
        Answer::Look(vec![range(4, 1), range(0, 4), range(5, 11)])
    );
    assert_eq!(q.take_bulk(100, 8), None);
    assert_eq!(q.unlisted(), [(obj(1), vec![range(0, 100)])]);
    q.list(obj(1), [range(10, 10), range(50, 5)]);
    q.list_guards([(SpaceId(1), range(80, 1))]);
    // What was looked up for the fault has been answered.
    let rest = [range(20, 30), range(55, 45)].map(|r| (obj(1), r));
    assert_eq!(q.take_absent(), rest);
    assert_eq!(q.take_guards(), [(SpaceId(1), range(80, 1))]);
    assert_eq!((q.listed(), q.left()), (15, 9));
    let mut fault = |page| q.take_fault(obj(1), range(page, 1), range(page, 1), 8);
    assert_eq!(fault(30).unwrap(), Answer::Absent);
    assert_eq!(fault(80).unwrap(), Answer::Guard);
    assert_eq!(fault(51).unwrap(), Answer::Pages(vec![range(51, 1)]));
    assert!(fault(100).is_err());
    // The link is lost: what the other end still waits for is judged again.
    q.restart(&[(obj(1), range(8, 4)), (obj(1), range(98, 2))])
        .unwrap();
    let absent = [range(8, 2), range(98, 2)].map(|r| (obj(1), r));
    assert_eq!(q.take_absent(), absent);
    assert_eq!(q.take_guards(), [(SpaceId(1), range(80, 1))]);
    assert_eq!(q.take_bulk(100, 8).unwrap().ranges, [range(10, 2)]);
    assert_eq!(q.left(), 0);
}
