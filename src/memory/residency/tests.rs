use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const SHARED: Object = Object::Shared(9);

fn pages(start: u64, n: u64) -> PageRange {
    PageRange::with_pages(start * PAGE_SIZE, n).unwrap()
}

fn at(page: u64) -> VAddr {
    VAddr(page * PAGE_SIZE)
}

fn area(start: u64, n: u64, object: Object, offset: u64) -> Area {
    Area {
        range: pages(start, n),
        object,
        at: offset * PAGE_SIZE,
        wipe_on_fork: false,
    }
}

/// Two address spaces: private pages 0..16, and shared object 9 at 20..28.
fn two_spaces() -> Residency {
    let mut r = Residency::new();
    for id in [SpaceId(1), SpaceId(2)] {
        let areas = [area(0, 16, Object::Private(id), 0), area(20, 8, SHARED, 0)];
        r.add_space(id, &areas, &[pages(2, 10)]).unwrap();
    }
    r.add_shared(9, &[pages(1, 6)]);
    r
}

#[test]
fn a_child_needs_what_its_parent_lacks_and_no_more() {
    let mut r = two_spaces();
    r.placed(SpaceId(1), Object::Private(SpaceId(1)), pages(2, 4));
    let child = r.fork(SpaceId(1)).unwrap();
    assert_eq!(r.fault(child, at(3)), Fault::Zero);
    assert!(matches!(r.fault(child, at(6)), Fault::Absent { .. }));
    let places = r.waiting_for(Object::Private(SpaceId(1)), pages(5, 2));
    let spaces: Vec<_> = places.iter().map(|p| p.space).collect();
    assert_eq!(spaces, [SpaceId(1), child]);
    assert!(places.iter().all(|p| p.range == pages(6, 1)));
    r.end(SpaceId(1));
    assert!(matches!(r.fault(child, at(6)), Fault::Absent { .. }));
}

#[test]
fn memory_that_is_wiped_on_fork_is_zero_in_the_child() {
    let mut r = Residency::new();
    let id = SpaceId(1);
    let wiped = Area {
        wipe_on_fork: true,
        ..area(0, 4, Object::Private(id), 0)
    };
    let kept = area(4, 4, Object::Private(id), 4);
    r.add_space(id, &[wiped, kept], &[pages(0, 8)]).unwrap();
    let child = r.fork(id).unwrap();
    assert_eq!(r.fault(child, at(1)), Fault::Zero);
    assert!(matches!(r.fault(child, at(5)), Fault::Absent { .. }));
    assert_eq!(r.missing(), 12);
}

#[test]
fn a_duplicated_shared_mapping_leads_to_the_same_pages() {
    let mut r = two_spaces();
    r.remap(SpaceId(1), at(22), at(40), 0);
    let Fault::Absent { origin, .. } = r.fault(SpaceId(1), at(41)) else {
        panic!("it must be missing");
    };
    assert_eq!((origin.object, origin.at), (SHARED, 3 * PAGE_SIZE));
    // Six pages were left of the original behind page 22.
    assert_eq!(r.fault(SpaceId(1), at(46)), Fault::Unknown { end: at(46) });
    r.unmap(SpaceId(1), pages(20, 8));
    r.end(SpaceId(2));
    assert!(matches!(r.fault(SpaceId(1), at(41)), Fault::Absent { .. }));
    assert_eq!(r.waiting_for(SHARED, pages(0, 8)), {
        let range = pages(40, 5);
        let at = 2 * PAGE_SIZE;
        [Piece {
            space: SpaceId(1),
            range,
            at,
        }]
    });
}

#[test]
fn pages_of_a_shared_object_are_needed_until_nothing_of_it_is_mapped() {
    let mut r = two_spaces();
    r.end(SpaceId(2));
    r.unmap(SpaceId(1), pages(22, 6));
    assert_eq!(r.unmapped(9, pages(0, 8)), [pages(2, 5)]);
    assert!(r.waiting_for(SHARED, pages(2, 5)).is_empty());
    // It grows again, in place.
    assert_eq!(r.fault(SpaceId(1), at(24)), Fault::Unknown { end: at(22) });
    r.grow(SpaceId(1), at(22), at(25));
    assert!(
        matches!(r.fault(SpaceId(1), at(24)), Fault::Absent { origin, .. }
        if origin.at == 4 * PAGE_SIZE)
    );
    assert_eq!(r.unmapped(9, pages(0, 8)), [pages(5, 2)]);
    // Punched, by whom the kernel did not tell: the caller found out.
    let doubtful = r.remove(SpaceId(1), pages(20, 3));
    assert_eq!(doubtful, BTreeMap::from([(9, vec![pages(1, 2)])]));
    r.punched(9, pages(1, 2));
    assert_eq!(r.fault(SpaceId(1), at(21)), Fault::Zero);
    let gone = r.count().gone;
    r.unmap(SpaceId(1), pages(20, 5));
    assert_eq!(r.count().gone, gone + 4);
}

#[test]
fn a_shared_mapping_that_moved_is_known_at_both_places_until_one_goes() {
    let mut r = two_spaces();
    r.remap(SpaceId(1), at(20), at(40), 8 * PAGE_SIZE);
    for page in [22, 42] {
        assert!(
            matches!(r.fault(SpaceId(1), at(page)), Fault::Absent { origin, .. }
            if origin.at == 2 * PAGE_SIZE)
        );
    }
    r.unmap(SpaceId(1), pages(20, 8));
    assert_eq!(r.fault(SpaceId(1), at(22)), Fault::Zero);
}

#[test]
fn a_request_takes_absent_neighbours_that_nobody_asked_for() {
    let mut r = two_spaces();
    let object = Object::Private(SpaceId(1));
    let page = |n: u64| Origin {
        object,
        at: n * PAGE_SIZE,
    };
    r.placed(SpaceId(1), object, pages(3, 1));
    assert_eq!(r.ask(page(5), 4 * PAGE_SIZE).unwrap().window, pages(4, 4));
    assert_eq!(r.ask(page(8), 8 * PAGE_SIZE).unwrap().window, pages(8, 4));
    assert!(matches!(
        r.fault(SpaceId(1), at(9)),
        Fault::Absent { asked: true, .. }
    ));
    r.forget_asked();
    assert_eq!(r.ask(page(9), 16 * PAGE_SIZE).unwrap().window, pages(4, 8));
}

#[test]
fn a_guard_that_is_told_late_is_found_where_its_memory_went() {
    let mut r = two_spaces();
    r.remap(SpaceId(1), at(4), at(50), 2 * PAGE_SIZE);
    let child = r.fork(SpaceId(1)).unwrap();
    let found = |r: &Residency, range| {
        let places = r.places_of(SpaceId(1), range);
        let mut all: Vec<_> = places.iter().map(|p| (p.space, p.range)).collect();
        all.sort_by_key(|(space, range)| (*space, range.start()));
        all
    };
    assert_eq!(
        found(&r, pages(5, 2)),
        [
            (SpaceId(1), pages(6, 1)),
            (SpaceId(1), pages(51, 1)),
            (child, pages(6, 1)),
            (child, pages(51, 1)),
        ]
    );
    // Shared memory has its guard pages by address.
    let both = [(SpaceId(1), pages(21, 1)), (child, pages(21, 1))];
    assert_eq!(found(&r, pages(21, 1)), both);
}

#[test]
fn what_contradicts_itself_is_refused_by_name() {
    let mut r = Residency::new();
    let own = Object::Private(SpaceId(1));
    let e = r
        .add_space(SpaceId(1), &[area(0, 4, own, 0)], &[pages(3, 2)])
        .unwrap_err();
    assert_eq!(
        e.to_string(),
        "memory of address space 1: pages 0x3000-0x5000 lie in no guarded area"
    );
    let twice = [area(0, 4, own, 0), area(3, 4, own, 3)];
    assert!(r.add_space(SpaceId(1), &twice, &[]).is_err());
    let foreign = [area(0, 4, Object::Private(SpaceId(2)), 0)];
    assert!(r.add_space(SpaceId(1), &foreign, &[]).is_err());
    assert!(r.add_space(SpaceId(u32::MAX), &[], &[]).is_err());
}

#[derive(Debug, Clone)]
enum Step {
    Place(usize, u64, u64),
    Never(usize, u64, u64),
    Ask(usize, u64),
    Fork(usize),
    Remap(usize, u64, u64, u64),
    Unmap(usize, u64, u64),
    Remove(usize, u64, u64),
    End(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let s = 0usize..5;
    prop_oneof![
        4 => (0usize..3, 0u64..16, 1u64..6).prop_map(|(o, p, n)| Step::Place(o, p, n)),
        1 => (0usize..3, 0u64..16, 1u64..6).prop_map(|(o, p, n)| Step::Never(o, p, n)),
        1 => (s.clone(), 0u64..30).prop_map(|(s, p)| Step::Ask(s, p)),
        2 => s.clone().prop_map(Step::Fork),
        3 => (s.clone(), 0u64..30, 0u64..40, 1u64..8)
            .prop_map(|(s, f, t, n)| Step::Remap(s, f, t, n)),
        2 => (s.clone(), 0u64..40, 1u64..8).prop_map(|(s, p, n)| Step::Unmap(s, p, n)),
        2 => (s.clone(), 0u64..40, 1u64..8).prop_map(|(s, p, n)| Step::Remove(s, p, n)),
        1 => s.prop_map(Step::End),
    ]
}

/// One page at a time, and no cleverness.
#[derive(Default)]
struct Model {
    /// Address space to its pages: page to (object, position).
    maps: BTreeMap<SpaceId, BTreeMap<u64, (Object, u64)>>,
    /// Missing private pages: (address space, position).
    private: BTreeSet<(SpaceId, u64)>,
    shared: BTreeSet<u64>,
}

impl Model {
    fn unmap(&mut self, space: SpaceId, range: std::ops::Range<u64>) {
        for page in range {
            if let Some((Object::Private(_), p)) =
                self.maps.get_mut(&space).and_then(|m| m.remove(&page))
            {
                self.private.remove(&(space, p));
            }
        }
        let mut left = self.maps.values().flat_map(|m| m.values());
        if !left.any(|(o, _)| *o == SHARED) {
            self.shared.clear();
        }
    }
}

proptest! {
    #[test]
    fn every_page_is_accounted_for_as_in_a_model_of_single_pages(
        steps in prop::collection::vec(step(), 0..40)
    ) {
        let mut r = two_spaces();
        let mut model = Model::default();
        for id in [SpaceId(1), SpaceId(2)] {
            let map = model.maps.entry(id).or_default();
            map.extend((0..16).map(|p| (p, (Object::Private(id), p))));
            map.extend((0..8).map(|p| (20 + p, (SHARED, p))));
            model.private.extend((2..12).map(|p| (id, p)));
        }
        model.shared.extend(1..7);
        let objects = [Object::Private(SpaceId(1)), Object::Private(SpaceId(2)), SHARED];
        let mut ids = vec![SpaceId(1), SpaceId(2)];
        let mut origin: BTreeMap<_, _> = ids.iter().map(|id| (*id, *id)).collect();
        for step in steps {
            match step {
                Step::Place(o, p, n) => {
                    for piece in r.waiting_for(objects[o], pages(p, n)) {
                        let got = PageRange::with_pages(piece.at, piece.range.pages()).unwrap();
                        prop_assert_eq!(r.placed(piece.space, objects[o], got), got.pages());
                    }
                    if objects[o] == SHARED {
                        for part in r.unmapped(9, pages(p, n)) {
                            prop_assert_eq!(r.placed(SpaceId(0), SHARED, part), part.pages());
                        }
                    }
                    for p in p..p + n {
                        match objects[o] {
                            SHARED => { model.shared.remove(&p); }
                            object => model.private.retain(|(s, q)| {
                                *q != p || !model.maps[s].values().any(|m| *m == (object, p))
                            }),
                        }
                    }
                }
                Step::Never(o, p, n) => {
                    r.never_were(objects[o], pages(p, n));
                    match objects[o] {
                        SHARED => model.shared.retain(|q| !(p..p + n).contains(q)),
                        // A forked child's pages come from where its parent's do.
                        Object::Private(id) => model.private.retain(|(s, q)| {
                            origin[s] != id || !(p..p + n).contains(q)
                        }),
                        Object::Shared(_) => unreachable!(),
                    }
                }
                Step::Ask(s, p) => {
                    let Some(id) = ids.get(s) else { continue };
                    if let Fault::Absent { origin, asked: false } = r.fault(*id, at(p)) {
                        let want = r.ask(origin, 8 * PAGE_SIZE).unwrap();
                        prop_assert!(want.window.contains(origin.at));
                        let absent: u64 = r
                            .waiting_for(origin.object, want.window)
                            .iter()
                            .map(|p| p.range.pages())
                            .sum();
                        let unmapped = match origin.object {
                            SHARED => r.unmapped(9, want.window).iter().map(|r| r.pages()).sum(),
                            _ => 0,
                        };
                        prop_assert!(absent + unmapped >= want.window.pages());
                    }
                }
                Step::Fork(s) => {
                    let Some(id) = ids.get(s).copied() else { continue };
                    let child = r.fork(id).unwrap();
                    ids.push(child);
                    origin.insert(child, origin[&id]);
                    let map = model.maps[&id].clone();
                    model.maps.insert(child, map);
                    let lacks: Vec<_> = model.private.iter().filter(|p| p.0 == id).collect();
                    let lacks: Vec<_> = lacks.into_iter().map(|p| (child, p.1)).collect();
                    model.private.extend(lacks);
                }
                Step::Remap(s, f, t, n) => {
                    let Some(id) = ids.get(s).copied() else { continue };
                    if f < t + n && t < f + n {
                        continue;
                    }
                    r.remap(id, at(f), at(t), n * PAGE_SIZE);
                    let moved: Vec<_> = (0..n)
                        .filter_map(|i| Some((t + i, model.maps.get_mut(&id)?.remove(&(f + i))?)))
                        .collect();
                    // Not through unmap: pages on the way are not gone.
                    let keep: Vec<_> = moved.clone();
                    let park: BTreeMap<u64, _> = keep.iter().map(|(a, m)| (a + 1000, *m)).collect();
                    model.maps.get_mut(&id).unwrap().extend(park.clone());
                    model.unmap(id, t..t + n);
                    for a in park.keys() {
                        model.maps.get_mut(&id).unwrap().remove(a);
                    }
                    // A shared mapping stays where it was, too.
                    let stays = moved.iter().filter(|(_, (o, _))| *o == SHARED);
                    let stays: Vec<_> = stays.map(|(a, m)| (a - t + f, *m)).collect();
                    let map = model.maps.get_mut(&id).unwrap();
                    map.extend(stays);
                    map.extend(moved);
                }
                Step::Unmap(s, p, n) => {
                    let Some(id) = ids.get(s).copied() else { continue };
                    r.unmap(id, pages(p, n));
                    model.unmap(id, p..p + n);
                }
                Step::Remove(s, p, n) => {
                    let Some(id) = ids.get(s).copied() else { continue };
                    r.remove(id, pages(p, n));
                    for p in p..p + n {
                        if let Some((Object::Private(_), q)) = model.maps[&id].get(&p) {
                            model.private.remove(&(id, *q));
                        }
                    }
                }
                Step::End(s) => {
                    if s >= ids.len() { continue }
                    let id = ids.remove(s);
                    r.end(id);
                    model.unmap(id, 0..60);
                    model.maps.remove(&id);
                }
            }
            let c = r.count();
            prop_assert_eq!(c.needed, c.present + c.gone + r.missing());
            prop_assert_eq!(r.missing(), (model.private.len() + model.shared.len()) as u64);
            prop_assert_eq!(r.complete(), r.missing() == 0);
            for id in &ids {
                for page in 0..60 {
                    let absent = match model.maps[id].get(&page) {
                        Some((SHARED, p)) => model.shared.contains(p),
                        Some((_, p)) => model.private.contains(&(*id, *p)),
                        None => false,
                    };
                    let said = matches!(r.fault(*id, at(page)), Fault::Absent { .. });
                    prop_assert_eq!(said, absent, "page {} of {}", page, id);
                }
            }
            // What is missing can be found, mapped or (shared memory) not.
            let mut found = 0;
            let mut from = None;
            while let Some((object, range)) = r.next_missing(from, 3 * PAGE_SIZE) {
                let places = r.waiting_for(object, range);
                found += places.iter().map(|p| p.range.pages()).sum::<u64>();
                if object == SHARED {
                    found += r.unmapped(9, range).iter().map(|r| r.pages()).sum::<u64>();
                }
                from = Some(Origin { object, at: range.end() });
            }
            prop_assert_eq!(found, r.missing());
        }
    }
}

#[test]
fn very_many_areas_are_filled_in_no_time() {
    let id = SpaceId(1);
    let object = Object::Private(id);
    let page = |n: u64| PageRange::with_pages((16 + 2 * n) * PAGE_SIZE, 1).unwrap();
    let many = 60_000;
    let area = |range: PageRange| Area {
        range,
        object,
        at: range.start(),
        wipe_on_fork: false,
    };
    let areas: Vec<_> = (0..many).map(|n| area(page(n))).collect();
    let needed: Vec<_> = (0..many).map(page).collect();
    let mut residency = Residency::new();
    residency.add_space(id, &areas, &needed).unwrap();
    // One was moved, and a child knows that too.
    let away = 1 << 40;
    residency.remap(id, VAddr(page(7).start()), VAddr(away), PAGE_SIZE);
    let child = residency.fork(id).unwrap();
    let begun = std::time::Instant::now();
    for n in 0..many {
        let pieces = residency.waiting_for(object, page(n));
        let start = if n == 7 { away } else { page(n).start() };
        assert_eq!(pieces.len(), 2);
        assert!(pieces.iter().all(|p| p.range.start() == start));
        residency.placed(id, object, page(n));
        residency.placed(child, object, page(n));
    }
    assert!(residency.complete());
    // By looking at all areas for each: a minute.
    assert!(begun.elapsed() < std::time::Duration::from_secs(5));
}
