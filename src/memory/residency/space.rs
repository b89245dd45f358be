//! One address space: which of its addresses come from where, and what it lacks.

use std::collections::{BTreeMap, BTreeSet};

use super::{Area, Count, Piece};
use crate::base::PageRange;
use crate::memory::{Object, Origin, RangeSet, SpaceId};

#[derive(Debug, Clone, Copy)]
pub(super) struct Segment {
    pub(super) end: u64,
    pub(super) object: Object,
    pub(super) at: u64,
    pub(super) wipe_on_fork: bool,
}

/// Pages by position in the object that they come from.
#[derive(Debug, Clone, Default)]
pub(super) struct Account {
    pub(super) absent: RangeSet,
    pub(super) count: Count,
}

impl Account {
    pub(super) fn present(&mut self, range: PageRange) -> u64 {
        let pages = self.absent.remove(range);
        self.count.present += pages;
        pages
    }

    pub(super) fn gone(&mut self, range: PageRange) {
        self.count.gone += self.absent.remove(range);
    }

    pub(super) fn never_was(&mut self, range: PageRange) {
        self.count.needed -= self.absent.remove(range);
    }

    pub(super) fn gone_at(&mut self, at: u64, len: u64) {
        self.count.gone += self.absent.remove_at(at, len);
    }
}

#[derive(Debug)]
pub(super) struct Space {
    /// The captured address space that its private pages come from.
    pub(super) origin: SpaceId,
    pub(super) segments: BTreeMap<u64, Segment>,
    /// Where private segments start that do not lie where they were captured.
    moved: BTreeSet<u64>,
    pub(super) private: Account,
}

impl Space {
    pub(super) fn new(origin: SpaceId) -> Self {
        Self {
            origin,
            segments: BTreeMap::new(),
            moved: BTreeSet::new(),
            private: Account::default(),
        }
    }

    /// That of a child that forks now, which needs what this one lacks.
    pub(super) fn child(&self) -> Self {
        let mut child = Self {
            origin: self.origin,
            segments: self.segments.clone(),
            moved: self.moved.clone(),
            private: Account {
                absent: self.private.absent.clone(),
                count: Count::default(),
            },
        };
        child.segments.retain(|_, s| !s.wipe_on_fork);
        child.moved.retain(|at| child.segments.contains_key(at));
        child
    }

    pub(super) fn insert(&mut self, start: u64, segment: Segment) {
        if matches!(segment.object, Object::Private(_)) && segment.at != start {
            self.moved.insert(start);
        } else {
            self.moved.remove(&start);
        }
        self.segments.insert(start, segment);
    }

    pub(super) fn put(&mut self, range: PageRange, area: &Area) {
        self.insert(
            range.start(),
            Segment {
                end: range.end(),
                object: area.object,
                at: area.at,
                wipe_on_fork: area.wipe_on_fork,
            },
        );
    }

    pub(super) fn segment_at(&self, addr: u64) -> Option<(PageRange, Segment)> {
        let (start, s) = self.segments.range(..=addr).next_back()?;
        (addr < s.end).then_some((PageRange::new(*start, s.end)?, *s))
    }

    pub(super) fn origin_of(&self, addr: u64) -> Option<Origin> {
        let (range, s) = self.segment_at(addr)?;
        Some(Origin {
            object: s.object,
            at: s.at + (addr - range.start()),
        })
    }

    /// The parts of segments within `range`, each with its own position.
    pub(super) fn overlapping(
        &self,
        range: PageRange,
    ) -> impl Iterator<Item = (PageRange, Segment)> + '_ {
        let first = self
            .segments
            .range(..=range.start())
            .next_back()
            .map_or(range.start(), |(s, _)| *s);
        self.segments
            .range(first..range.end().max(first))
            .filter_map(move |(start, s)| {
                let part = PageRange::new(*start, s.end)?.intersect(range)?;
                let at = s.at + (part.start() - start);
                Some((
                    part,
                    Segment {
                        end: part.end(),
                        at,
                        ..*s
                    },
                ))
            })
    }

    pub(super) fn cut(&mut self, range: PageRange) {
        let parts: Vec<u64> = self
            .segments
            .range(..range.end())
            .rev()
            .take_while(|(_, s)| s.end > range.start())
            .map(|(start, _)| *start)
            .collect();
        for start in parts {
            let Some(s) = self.segments.remove(&start) else {
                continue;
            };
            self.moved.remove(&start);
            if start < range.start() {
                let end = range.start();
                self.insert(start, Segment { end, ..s });
            }
            if range.end() < s.end {
                let at = s.at + (range.end() - start);
                self.insert(range.end(), Segment { at, ..s });
            }
        }
    }

    /// Where pages of `wanted` within `range` (positions in `object`) are mapped.
    pub(super) fn pieces(
        &self,
        space: SpaceId,
        object: Object,
        range: PageRange,
        wanted: &RangeSet,
        out: &mut Vec<Piece>,
    ) {
        let mut look = |start: u64, s: &Segment| {
            let Some(part) = PageRange::new(s.at, s.at + (s.end - start))
                .and_then(|whole| whole.intersect(range))
            else {
                return;
            };
            for run in wanted.within(part) {
                let addr = start + (run.start() - s.at);
                if let Some(range) = PageRange::new(addr, addr + run.len()) {
                    let at = run.start();
                    out.push(Piece { space, range, at });
                }
            }
        };
        if matches!(object, Object::Shared(_)) {
            let here = self.segments.iter().filter(|(_, s)| s.object == object);
            here.for_each(|(start, s)| look(*start, s));
            return;
        }
        // There may be a million, and this is asked for each batch of pages: most
        // lie where they were.
        let here = self.overlapping(range).filter(|(_, s)| s.object == object);
        here.filter(|(r, s)| s.at == r.start())
            .for_each(|(r, s)| look(r.start(), &s));
        let moved = self.moved.iter();
        let moved = moved.filter_map(|at| Some((at, self.segments.get(at)?)));
        moved
            .filter(|(_, s)| s.object == object)
            .for_each(|(start, s)| look(*start, s));
    }
}
