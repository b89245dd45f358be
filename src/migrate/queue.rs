//! Which pages still have to go: the source's queue, taken from both ends.
//! Bulk lanes take long pieces in address order from a cursor; a fault takes its
//! page and the neighbours that have not gone yet, and draws the cursor to where
//! it happened. Each page is taken once, except that a wanted page is always
//! given again: it may be on its way behind a megabyte of others.
//!
//! Which pages exist may not be known at first: then all that may exist is declared,
//! bulk lanes wait for [`Queue::list`], and who takes for a fault has to look. What
//! the list shows not to exist goes too, as such.

use std::collections::BTreeMap;

use crate::base::{Error, PageRange, Result};
use crate::memory::{Object, RangeSet, SpaceId};

#[derive(Debug, Default)]
struct Space {
    /// May exist.
    declared: RangeSet,
    /// Exists, once that is known.
    listed: Option<RangeSet>,
    left: RangeSet,
    cursor: u64,
}

impl Space {
    /// What was left and does not exist; it is left no longer.
    fn absent(&mut self) -> RangeSet {
        let Some(listed) = &self.listed else {
            return RangeSet::new();
        };
        let mut absent = self.left.clone();
        absent.subtract(listed);
        self.left.subtract(&absent);
        absent
    }
}

/// What has to go, of all address spaces.
#[derive(Debug, Default)]
pub struct Queue {
    spaces: BTreeMap<Object, Space>,
    /// The object that the bulk lanes are in.
    turn: Option<Object>,
    /// What does not exist and has to be said.
    absent: Vec<(Object, PageRange)>,
    /// Guard pages that the images do not list, by address.
    guards: BTreeMap<SpaceId, RangeSet>,
    /// Those that have to be said.
    untold: Vec<(SpaceId, PageRange)>,
}

/// Pages of one object that were taken to be sent now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Whose pages.
    pub object: Object,
    /// Its ranges, disjoint.
    pub ranges: Vec<PageRange>,
}

/// What answers a fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// These pages.
    Pages(Vec<PageRange>),
    /// Whatever of these pages exists.
    Look(Vec<PageRange>),
    /// No such pages exist.
    Absent,
    /// They are guard pages.
    Guard,
}

impl Queue {
    /// An empty queue.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds pages of an object, all of which exist.
    pub fn declare(&mut self, object: Object, ranges: impl IntoIterator<Item = PageRange>) {
        self.declare_possible(object, ranges);
        if let Some(s) = self.spaces.get_mut(&object) {
            s.listed = Some(s.declared.clone());
        }
    }

    /// Adds pages of an object that may exist: [`Queue::list`] tells.
    pub fn declare_possible(
        &mut self,
        object: Object,
        ranges: impl IntoIterator<Item = PageRange>,
    ) {
        let s = self.spaces.entry(object).or_default();
        for r in ranges {
            s.declared.insert(r);
            s.left.insert(r);
        }
    }

    /// What was declared and is not listed yet.
    pub fn unlisted(&self) -> Vec<(Object, Vec<PageRange>)> {
        let open = self.spaces.iter().filter(|(_, s)| s.listed.is_none());
        open.map(|(object, s)| (*object, s.declared.iter().collect()))
            .collect()
    }

    /// Of all that was declared of an object, these pages exist.
    pub fn list(&mut self, object: Object, ranges: impl IntoIterator<Item = PageRange>) {
        if let Some(s) = self.spaces.get_mut(&object) {
            s.listed = Some(ranges.into_iter().collect());
            let absent = s.absent();
            self.absent.extend(absent.iter().map(|r| (object, r)));
        }
    }

    /// These addresses are guard pages that the images do not list.
    pub fn list_guards(&mut self, guards: impl IntoIterator<Item = (SpaceId, PageRange)>) {
        for (id, range) in guards {
            self.guards.entry(id).or_default().insert(range);
            self.untold.push((id, range));
        }
    }

    /// Pages that have not been taken yet.
    pub fn left(&self) -> u64 {
        self.spaces.values().map(|s| s.left.pages()).sum()
    }

    /// Pages that exist, as far as that is known.
    pub fn listed(&self) -> u64 {
        let listed = self.spaces.values().filter_map(|s| s.listed.as_ref());
        listed.map(RangeSet::pages).sum()
    }

    /// All that does not exist and was not taken yet.
    pub fn take_absent(&mut self) -> Vec<(Object, PageRange)> {
        std::mem::take(&mut self.absent)
    }

    /// All guard pages that were not taken yet.
    pub fn take_guards(&mut self) -> Vec<(SpaceId, PageRange)> {
        std::mem::take(&mut self.untold)
    }

    /// The next piece for a bulk lane, of up to `pages` pages in up to `runs`
    /// ranges; `None`: everything that is listed has been taken.
    pub fn take_bulk(&mut self, pages: u64, runs: usize) -> Option<Piece> {
        let waits = |s: &Space| s.listed.is_some() && !s.left.is_empty();
        let has = |o: &Object| self.spaces.get(o).is_some_and(waits);
        let object = self
            .turn
            .filter(has)
            .or_else(|| self.spaces.keys().copied().find(has))?;
        self.turn = Some(object);
        let s = self.spaces.get_mut(&object)?;
        let mut ranges = s.left.take_from(s.cursor, pages, runs);
        if ranges.is_empty() {
            ranges = s.left.take_from(0, pages, runs);
        }
        s.cursor = ranges.last()?.end();
        Some(Piece { object, ranges })
    }

    /// What answers a fault: what exists of the wanted pages, whether it went already
    /// or not, then what of `window` has not gone yet, in up to `runs` ranges.
    ///
    /// # Errors
    /// A page was asked for that this container never had: the peer is wrong.
    pub fn take_fault(
        &mut self,
        object: Object,
        wanted: PageRange,
        window: PageRange,
        runs: usize,
    ) -> Result<Answer> {
        let no = || {
            Error::peer(
                format!("page fault at {wanted} of {object}"),
                "no such pages here",
            )
        };
        let s = self.spaces.get_mut(&object).ok_or_else(no)?;
        if wanted.is_empty() || !s.declared.covers(wanted) {
            return Err(no());
        }
        s.left.remove(wanted);
        let mut ranges: Vec<_> = match &s.listed {
            Some(listed) => listed.within(wanted).collect(),
            None => vec![wanted],
        };
        if ranges.is_empty() {
            let guards = match object {
                Object::Private(id) => self.guards.get(&id),
                Object::Shared(_) => None,
            };
            return Ok(match guards {
                Some(g) if g.covers(wanted) => Answer::Guard,
                _ => Answer::Absent,
            });
        }
        for r in s.left.take(window) {
            if ranges.len() < runs {
                ranges.push(r);
            } else {
                s.left.insert(r);
            }
        }
        s.cursor = wanted.end().max(window.end());
        self.turn = Some(object);
        Ok(match s.listed {
            Some(_) => Answer::Pages(ranges),
            None => Answer::Look(ranges),
        })
    }

    /// After a reconnection: only `missing` is left, whatever was taken.
    ///
    /// # Errors
    /// It names pages that were never declared: the peer is wrong.
    pub fn restart(&mut self, missing: &[(Object, PageRange)]) -> Result<()> {
        for s in self.spaces.values_mut() {
            s.left = RangeSet::new();
            s.cursor = 0;
        }
        for (object, range) in missing {
            let no = || {
                Error::peer(
                    format!("missing pages {range} of {object}"),
                    "no such pages here",
                )
            };
            let s = self.spaces.get_mut(object).ok_or_else(no)?;
            if !s.declared.covers(*range) {
                return Err(no());
            }
            s.left.insert(*range);
        }
        self.absent.clear();
        for (object, s) in &mut self.spaces {
            let absent = s.absent();
            self.absent.extend(absent.iter().map(|r| (*object, r)));
        }
        // Whether the first word of them arrived is not known: told twice is fine.
        let all = self.guards.iter();
        self.untold = all.flat_map(|(id, g)| g.iter().map(|r| (*id, r))).collect();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
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
}
