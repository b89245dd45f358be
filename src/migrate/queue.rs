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
    epoch: u64,
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

    /// How often it was restarted.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// After a reconnection: only `missing` is left, whatever was taken.
    ///
    /// # Errors
    /// It names pages that were never declared: the peer is wrong.
    pub fn restart(&mut self, missing: &[(Object, PageRange)]) -> Result<()> {
        self.epoch += 1;
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
#[path = "queue/tests.rs"]
mod tests;
