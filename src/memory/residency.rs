//! The one truth about each page that must still come.
//!
//! Private memory is accounted per address space: a child that forks while a
//! page is missing needs that page too, at another time than its parent. Shared
//! memory is accounted per object: a page placed through one mapping is there
//! for all, and needed as long as anything of the object is mapped anywhere, since
//! mremap can reach it again.
//!
//! ```text
//!            ask                place
//!   absent ------> in flight ---------> present
//!     |  \____________|___________________^
//!     |               | unmap, DONTNEED, exit
//!     +---------------+------------------> gone
//! ```
//!
//! A page is *accounted for* when it is present or gone; when all are, the job is
//! complete. For every account `needed = absent + present + gone` (in flight
//! counts as absent): a property test holds it to that against a model of single
//! pages.
//!
//! No kernel in here. That what is told here happens in the same order as in the
//! kernel is the business of [`super::filler`].

use std::collections::BTreeMap;

mod changes;
mod space;

use crate::base::{Error, PAGE_SIZE, PageRange, Result, VAddr};
use crate::memory::{Object, Origin, RangeSet, SpaceId, Want};
use space::{Account, Space};

/// A guarded area of an address space: where its content comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Area {
    /// Where it is mapped.
    pub range: PageRange,
    /// Whose pages.
    pub object: Object,
    /// Position of its first byte in `object`.
    pub at: u64,
    /// MADV_WIPEONFORK: a child reads zeros here.
    pub wipe_on_fork: bool,
}

/// How the pages of an account stand.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Pages that had to come.
    pub needed: u64,
    /// Pages that came.
    pub present: u64,
    /// Pages that nobody needs any more.
    pub gone: u64,
}

/// What a fault means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing was ever there, or it was thrown away: zeros are right.
    Zero,
    /// No area is known there. If it is what the shared area that ends at `end`
    /// has grown by (mremap in place tells nothing), [`Residency::grow`] it.
    Unknown {
        /// Where the nearest shared area below ends.
        end: VAddr,
    },
    /// The page came meanwhile: wake.
    Present,
    /// The page must come.
    Absent {
        /// From where.
        origin: Origin,
        /// It was asked for already.
        asked: bool,
    },
}

/// A piece of one address space that waits for pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// The address space.
    pub space: SpaceId,
    /// Where in it.
    pub range: PageRange,
    /// Position in the object.
    pub at: u64,
}

impl Piece {
    /// The parts of it whose positions in the object are in `wanted`.
    fn within(self, wanted: &RangeSet) -> Vec<Self> {
        let Some(whole) = PageRange::new(self.at, self.at + self.range.len()) else {
            return Vec::new();
        };
        let start = |r: &PageRange| self.range.start() + (r.start() - self.at);
        wanted
            .within(whole)
            .filter_map(|r| {
                Some(Self {
                    range: PageRange::new(start(&r), start(&r) + r.len())?,
                    at: r.start(),
                    ..self
                })
            })
            .collect()
    }
}

/// See the head of this file.
#[derive(Debug, Default)]
pub struct Residency {
    spaces: BTreeMap<SpaceId, Space>,
    shared: BTreeMap<u32, Account>,
    asked: BTreeMap<Object, RangeSet>,
    forked: u32,
    /// Accounts of address spaces that ended.
    ended: Count,
}

impl Residency {
    /// Nothing to come.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an address space with its guarded areas, and the addresses of
    /// private pages that must come.
    ///
    /// # Errors
    /// Areas overlap, a needed page lies in none, or the number is taken: what
    /// was handed over contradicts itself.
    pub fn add_space(&mut self, id: SpaceId, areas: &[Area], needed: &[PageRange]) -> Result<()> {
        let wrong = |why: String| Error::image(format!("memory of address space {id}"), why);
        if id.0 >= SpaceId::FIRST_FORKED || self.spaces.contains_key(&id) {
            return Err(wrong("its number is taken".to_owned()));
        }
        let mut space = Space::new(id);
        for area in areas {
            if space.overlapping(area.range).next().is_some() {
                return Err(wrong(format!("area {} overlaps another", area.range)));
            }
            let whole = area.at.checked_add(area.range.len()).is_some();
            if area.range.is_empty() || !area.at.is_multiple_of(PAGE_SIZE) || !whole {
                return Err(wrong(format!("area {} is none", area.range)));
            }
            let Object::Shared(shared) = area.object else {
                if area.object != Object::Private(id) || area.at != area.range.start() {
                    return Err(wrong(format!("area {} is not its own", area.range)));
                }
                space.put(area.range, area);
                continue;
            };
            self.shared.entry(shared).or_default();
            space.put(area.range, area);
        }
        for run in needed {
            let covered: u64 = space
                .overlapping(*run)
                .filter(|(_, s)| s.object == Object::Private(id))
                .map(|(r, _)| r.pages())
                .sum();
            if covered != run.pages() {
                return Err(wrong(format!("pages {run} lie in no guarded area")));
            }
            space.private.count.needed += space.private.absent.insert(*run);
        }
        self.spaces.insert(id, space);
        Ok(())
    }

    /// Adds pages of a shared object that must come, by byte offset, mapped or not.
    pub fn add_shared(&mut self, id: u32, needed: &[PageRange]) {
        let account = self.shared.entry(id).or_default();
        for run in needed {
            account.count.needed += account.absent.insert(*run);
        }
    }

    /// What the fault of `space` at `addr` means.
    #[must_use]
    pub fn fault(&self, space: SpaceId, addr: VAddr) -> Fault {
        let Some(s) = self.spaces.get(&space) else {
            return Fault::Present;
        };
        let Some(origin) = s.origin_of(addr.0 & !(PAGE_SIZE - 1)) else {
            return match s.segments.range(..addr.0).next_back() {
                Some((_, below)) if matches!(below.object, Object::Shared(_)) => Fault::Unknown {
                    end: VAddr(below.end),
                },
                _ => Fault::Zero,
            };
        };
        let asked = self
            .asked
            .get(&origin.object)
            .is_some_and(|a| a.contains(origin.at));
        match origin.object {
            Object::Private(_) if s.private.absent.contains(origin.at) => {
                Fault::Absent { origin, asked }
            }
            Object::Shared(id) => match self.shared.get(&id) {
                Some(a) if a.absent.contains(origin.at) => Fault::Absent { origin, asked },
                _ => Fault::Zero,
            },
            Object::Private(_) => Fault::Zero,
        }
    }

    /// Makes a request out of an absent page: it and its absent neighbours, at
    /// most `window` bytes of them, which were not asked for; marks them in
    /// flight. `None` when `page` is no page.
    pub fn ask(&mut self, page: Origin, window: u64) -> Option<Want> {
        let single = PageRange::with_pages(page.at, 1)?;
        let slot = page.at - page.at % window.max(PAGE_SIZE);
        let around = PageRange::with_pages(slot, window / PAGE_SIZE)
            .filter(|r| r.contains(page.at))
            .unwrap_or(single);
        let absent = match page.object {
            Object::Private(origin) => self
                .spaces
                .values()
                .filter(|s| s.origin == origin)
                .map(|s| &s.private.absent)
                .find(|a| a.contains(page.at)),
            Object::Shared(id) => self.shared.get(&id).map(|a| &a.absent),
        };
        let run = absent
            .and_then(|a| a.within(around).find(|r| r.contains(page.at)))
            .unwrap_or(single);
        // Cut at what is in flight already.
        let asked = self.asked.entry(page.object).or_default();
        let (mut start, mut end) = (run.start(), run.end());
        for a in asked.within(run) {
            if a.end() <= page.at {
                start = start.max(a.end());
            } else if a.start() > page.at {
                end = end.min(a.start());
            }
        }
        let window = PageRange::new(start, end).unwrap_or(single);
        asked.insert(window);
        Some(Want { page, window })
    }

    /// Forgets what was asked for: the one who was asked is gone.
    pub fn forget_asked(&mut self) {
        self.asked.clear();
    }

    /// All places that wait for pages of `range` of `object`. For a shared object
    /// each page comes once, through some mapping.
    #[must_use]
    pub fn waiting_for(&self, object: Object, range: PageRange) -> Vec<Piece> {
        let mut pieces = Vec::new();
        match object {
            Object::Private(origin) => {
                for (id, s) in self.spaces.iter().filter(|(_, s)| s.origin == origin) {
                    s.pieces(*id, object, range, &s.private.absent, &mut pieces);
                }
            }
            Object::Shared(id) => {
                let Some(account) = self.shared.get(&id) else {
                    return pieces;
                };
                let mut left: RangeSet = account.absent.within(range).collect();
                for (id, s) in &self.spaces {
                    if left.is_empty() {
                        break;
                    }
                    let mut here = Vec::new();
                    s.pieces(*id, object, range, &left, &mut here);
                    for p in here {
                        pieces.extend(p.within(&left));
                        left.remove_at(p.at, p.range.len());
                    }
                }
            }
        }
        pieces
    }

    /// As [`Self::waiting_for`], in one address space.
    #[must_use]
    pub fn waiting_in(&self, space: SpaceId, object: Object, range: PageRange) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let Some(s) = self.spaces.get(&space) else {
            return pieces;
        };
        let absent = match object {
            Object::Private(origin) if origin == s.origin => Some(&s.private.absent),
            Object::Private(_) => None,
            Object::Shared(id) => self.shared.get(&id).map(|a| &a.absent),
        };
        if let Some(absent) = absent {
            s.pieces(space, object, range, absent, &mut pieces);
        }
        pieces
    }

    /// Pages of `range` of a shared object that must come and are mapped nowhere.
    #[must_use]
    pub fn unmapped(&self, id: u32, range: PageRange) -> Vec<PageRange> {
        let Some(account) = self.shared.get(&id) else {
            return Vec::new();
        };
        let mut left: RangeSet = account.absent.within(range).collect();
        for segment in self.spaces.values().flat_map(|s| &s.segments) {
            if segment.1.object == Object::Shared(id) {
                left.remove_at(segment.1.at, segment.1.end - segment.0);
            }
        }
        left.iter().collect()
    }

    /// Every place that maps `range` of a shared object, whatever is there.
    #[must_use]
    pub fn mappings(&self, object: Object, range: PageRange) -> Vec<Piece> {
        let all: RangeSet = [range].into_iter().collect();
        let mut pieces = Vec::new();
        for (id, s) in &self.spaces {
            s.pieces(*id, object, range, &all, &mut pieces);
        }
        pieces
    }

    /// Pages of `object` are there now, in `space` (a shared object's: anywhere).
    pub fn placed(&mut self, space: SpaceId, object: Object, range: PageRange) -> u64 {
        let pages = match object {
            Object::Private(_) => self
                .spaces
                .get_mut(&space)
                .map_or(0, |s| s.private.present(range)),
            Object::Shared(id) => self.shared.get_mut(&id).map_or(0, |a| a.present(range)),
        };
        if let Some(asked) = self.asked.get_mut(&object) {
            asked.remove(range);
        }
        pages
    }

    /// Pages of `object` that had to come do not exist.
    pub fn never_were(&mut self, object: Object, range: PageRange) {
        match object {
            Object::Private(origin) => {
                for s in self.spaces.values_mut().filter(|s| s.origin == origin) {
                    s.private.never_was(range);
                }
            }
            Object::Shared(id) => {
                if let Some(account) = self.shared.get_mut(&id) {
                    account.never_was(range);
                }
            }
        }
        if let Some(asked) = self.asked.get_mut(&object) {
            asked.remove(range);
        }
    }

    /// Where the addresses `range` of the captured address space `id` are now: in it
    /// and in its children, private memory wherever it was moved to.
    #[must_use]
    pub fn places_of(&self, id: SpaceId, range: PageRange) -> Vec<Piece> {
        let all: RangeSet = [range].into_iter().collect();
        let mut pieces = Vec::new();
        for (&space, s) in self.spaces.iter().filter(|(_, s)| s.origin == id) {
            s.pieces(space, Object::Private(id), range, &all, &mut pieces);
            let shared = s.overlapping(range);
            let shared = shared.filter(|(_, s)| matches!(s.object, Object::Shared(_)));
            pieces.extend(shared.map(|(range, s)| Piece {
                space,
                range,
                at: s.at,
            }));
        }
        pieces
    }

    /// Whose pages are at a place.
    #[must_use]
    pub fn object_at(&self, place: Piece) -> Option<Object> {
        let origin = self.spaces.get(&place.space)?;
        Some(origin.origin_of(place.range.start())?.object)
    }

    /// Pages that must still come, all accounts together.
    #[must_use]
    pub fn missing(&self) -> u64 {
        let private = self.spaces.values().map(|s| s.private.absent.pages());
        let shared = self.shared.values().map(|a| a.absent.pages());
        private.chain(shared).sum()
    }

    /// Every page is accounted for.
    #[must_use]
    pub fn complete(&self) -> bool {
        self.spaces.values().all(|s| s.private.absent.is_empty())
            && self.shared.values().all(|a| a.absent.is_empty())
    }

    /// All accounts together.
    #[must_use]
    pub fn count(&self) -> Count {
        let private = self.spaces.values().map(|s| s.private.count);
        let shared = self.shared.values().map(|a| a.count);
        private.chain(shared).fold(self.ended, |sum, c| Count {
            needed: sum.needed + c.needed,
            present: sum.present + c.present,
            gone: sum.gone + c.gone,
        })
    }

    /// The first pages that must still come at or behind `from`, at most `max`
    /// bytes; in flight or not.
    #[must_use]
    pub fn next_missing(&self, from: Option<Origin>, max: u64) -> Option<(Object, PageRange)> {
        let start = |object: Object| match from {
            Some(f) if object < f.object => None,
            Some(f) if object == f.object => Some(f.at),
            _ => Some(0),
        };
        let first = |object: Object, absent: &RangeSet| -> Option<(Object, PageRange)> {
            let rest = PageRange::new(start(object)?, !(PAGE_SIZE - 1))?;
            let r = absent.within(rest).next()?;
            let end = r.end().min(r.start().saturating_add(max.max(PAGE_SIZE)));
            Some((object, PageRange::new(r.start(), end)?))
        };
        let private = self
            .spaces
            .values()
            .filter_map(|s| first(Object::Private(s.origin), &s.private.absent));
        let shared = self
            .shared
            .iter()
            .filter_map(|(id, a)| first(Object::Shared(*id), &a.absent));
        private
            .chain(shared)
            .min_by_key(|(object, r)| (*object, r.start()))
    }

    /// All pages that are needed and not here, as [`Self::next_missing`] names them.
    #[must_use]
    pub fn missing_ranges(&self) -> Vec<(Object, PageRange)> {
        let mut all = Vec::new();
        let mut from = None;
        while let Some((object, range)) = self.next_missing(from, u64::MAX >> 1) {
            all.push((object, range));
            from = Some(Origin {
                object,
                at: range.end(),
            });
        }
        all
    }
}

#[cfg(test)]
#[path = "residency/tests.rs"]
mod tests;
