//! Which pages still have to go: the source's queue, taken from both ends.
//! Bulk lanes take long pieces in address order from a cursor; a fault takes its
//! page and the neighbours that have not gone yet, and draws the cursor to where
//! it happened. Each page is taken once, except that a wanted page is always
//! given again: it may be on its way behind a megabyte of others.

use std::collections::BTreeMap;

use crate::base::{Error, PAGE_SIZE, PageRange, Result};
use crate::memory::Object;

/// Disjoint ranges of pages, by start address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ranges {
    map: BTreeMap<u64, u64>,
    pages: u64,
}

impl Ranges {
    /// Pages in it.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Whether the page at this address is in it.
    pub fn contains(&self, addr: u64) -> bool {
        self.at(addr).is_some()
    }

    /// The range that holds this address.
    fn at(&self, addr: u64) -> Option<PageRange> {
        let (start, end) = self.map.range(..=addr).next_back()?;
        (addr < *end)
            .then(|| PageRange::new(*start, *end))
            .flatten()
    }

    /// Whether all pages of `range` are in it.
    pub fn covers(&self, range: PageRange) -> bool {
        let mut at = range.start();
        while at < range.end() {
            match self.at(at) {
                Some(r) => at = r.end(),
                None => return false,
            }
        }
        true
    }

    /// Adds pages; those that are in it already stay.
    pub fn insert(&mut self, range: PageRange) {
        if range.is_empty() {
            return;
        }
        self.remove(range);
        let (mut start, mut end) = (range.start(), range.end());
        if let Some((s, e)) = self.map.range(..start).next_back()
            && *e == start
        {
            start = *s;
        }
        if let Some(e) = self.map.remove(&end) {
            end = e;
        }
        self.map.insert(start, end);
        self.pages += range.pages();
    }

    /// Takes out what of `range` is in it, in address order.
    pub fn remove(&mut self, range: PageRange) -> Vec<PageRange> {
        let mut out = Vec::new();
        let first = self
            .map
            .range(..=range.start())
            .next_back()
            .filter(|(_, e)| **e > range.start())
            .map_or(range.start(), |(s, _)| *s);
        let hit: Vec<(u64, u64)> = self
            .map
            .range(first..range.end().max(first))
            .map(|(s, e)| (*s, *e))
            .collect();
        for (s, e) in hit {
            self.map.remove(&s);
            if s < range.start() {
                self.map.insert(s, range.start());
            }
            if e > range.end() {
                self.map.insert(range.end(), e);
            }
            if let Some(r) = PageRange::new(s.max(range.start()), e.min(range.end())) {
                self.pages -= r.pages();
                out.push(r);
            }
        }
        out
    }

    /// All ranges, in address order.
    pub fn iter(&self) -> impl Iterator<Item = PageRange> + '_ {
        self.map.iter().filter_map(|(s, e)| PageRange::new(*s, *e))
    }

    /// Takes up to `pages` pages in up to `runs` ranges, from `cursor` on.
    fn take_from(&mut self, cursor: u64, mut pages: u64, runs: usize) -> Vec<PageRange> {
        let mut out = Vec::new();
        let mut at = self.at(cursor).map_or(cursor, |_| cursor);
        while pages > 0 && out.len() < runs {
            let next = match self.at(at) {
                Some(r) => PageRange::new(at, r.end()),
                None => self
                    .map
                    .range(at..)
                    .next()
                    .and_then(|(s, e)| PageRange::new(*s, *e)),
            };
            let Some(r) = next else { break };
            let end = r.end().min(r.start() + pages.min(1 << 40) * PAGE_SIZE);
            let Some(take) = PageRange::new(r.start(), end) else {
                break;
            };
            self.remove(take);
            pages -= take.pages();
            at = take.end();
            out.push(take);
        }
        out
    }
}

#[derive(Debug, Default)]
struct Space {
    declared: Ranges,
    left: Ranges,
    cursor: u64,
}

/// What has to go, of all address spaces.
#[derive(Debug, Default)]
pub struct Queue {
    spaces: BTreeMap<Object, Space>,
    /// The object that the bulk lanes are in.
    turn: Option<Object>,
}

/// Pages of one object that were taken to be sent now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Whose pages.
    pub object: Object,
    /// Its ranges, disjoint.
    pub ranges: Vec<PageRange>,
}

impl Queue {
    /// An empty queue.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds pages of an object.
    pub fn declare(&mut self, object: Object, ranges: impl IntoIterator<Item = PageRange>) {
        let s = self.spaces.entry(object).or_default();
        for r in ranges {
            s.declared.insert(r);
            s.left.insert(r);
        }
    }

    /// Pages that have not been taken yet.
    pub fn left(&self) -> u64 {
        self.spaces.values().map(|s| s.left.pages()).sum()
    }

    /// Pages declared.
    pub fn declared(&self) -> u64 {
        self.spaces.values().map(|s| s.declared.pages()).sum()
    }

    /// The next piece for a bulk lane, of up to `pages` pages in up to `runs`
    /// ranges; `None`: everything has been taken.
    pub fn take_bulk(&mut self, pages: u64, runs: usize) -> Option<Piece> {
        let has = |o: &Object| self.spaces.get(o).is_some_and(|s| s.left.pages() > 0);
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

    /// What answers a fault: the wanted pages, whether they went already or not,
    /// then what of `window` has not gone yet, in up to `runs` ranges.
    ///
    /// # Errors
    /// A page was asked for that this container never had: the peer is wrong.
    pub fn take_fault(
        &mut self,
        object: Object,
        wanted: PageRange,
        window: PageRange,
        runs: usize,
    ) -> Result<Piece> {
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
        let mut ranges = vec![wanted];
        for r in s.left.remove(window) {
            if ranges.len() < runs {
                ranges.push(r);
            } else {
                s.left.insert(r);
            }
        }
        s.cursor = wanted.end().max(window.end());
        self.turn = Some(object);
        Ok(Piece { object, ranges })
    }

    /// After a reconnection: only `missing` is left, whatever was taken.
    ///
    /// # Errors
    /// It names pages that were never declared: the peer is wrong.
    pub fn restart(&mut self, missing: &[(Object, PageRange)]) -> Result<()> {
        for s in self.spaces.values_mut() {
            s.left = Ranges::default();
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
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::SpaceId;
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
        fn ranges_are_a_set_of_pages(ops in proptest::collection::vec((any::<bool>(), 0u64..60, 0u64..12), 0..60)) {
            let mut r = Ranges::default();
            let mut model = BTreeSet::new();
            for (add, at, len) in ops {
                if add {
                    r.insert(range(at, len));
                    model.extend(at..at + len);
                } else {
                    let out = pages_of(&r.remove(range(at, len)));
                    let want: Vec<u64> = model.iter().copied().filter(|p| (at..at + len).contains(p)).collect();
                    prop_assert_eq!(&out, &want);
                    for p in want { model.remove(&p); }
                }
                let now: Vec<PageRange> = r.iter().collect();
                prop_assert_eq!(pages_of(&now), model.iter().copied().collect::<Vec<_>>());
                prop_assert_eq!(r.pages(), model.len() as u64);
                for p in 0..75 { prop_assert_eq!(r.contains(p * PAGE_SIZE), model.contains(&p)); }
            }
        }

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
                let piece = q.take_fault(obj(space), range(page, 1), range(page.saturating_sub(2), window), 8).unwrap();
                let pages = pages_of(&piece.ranges);
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
}
