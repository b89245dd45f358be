//! What the tasks do to their memory meanwhile: fork, mremap, munmap, madvise,
//! exit.

use std::collections::BTreeMap;

use super::Residency;
use super::space::{Account, Segment, Space};
use crate::base::{Error, PageRange, Result, VAddr};
use crate::memory::{Object, RangeSet, SpaceId};

impl Residency {
    /// `parent` forked: the child needs what the parent lacks.
    pub fn fork(&mut self, parent: SpaceId) -> Result<SpaceId> {
        let p = self
            .spaces
            .get(&parent)
            .ok_or_else(|| Error::bug(format!("fork of address space {parent}"), "unknown"))?;
        let mut child = p.child();
        for (start, s) in p.segments.iter().filter(|(_, s)| s.wipe_on_fork) {
            if let (Object::Private(_), Some(r)) =
                (s.object, PageRange::new(s.at, s.at + (s.end - start)))
            {
                child.private.absent.remove(r);
            }
        }
        child.private.count.needed = child.private.absent.pages();
        let id = self
            .forked
            .checked_add(SpaceId::FIRST_FORKED)
            .map(SpaceId)
            .ok_or_else(|| Error::bug("fork", "too many children"))?;
        self.forked += 1;
        self.spaces.insert(id, child);
        Ok(id)
    }

    /// Pages moved, with whatever must still come there. `len` 0 means that a
    /// shared mapping was duplicated: how far is not told, so the copy reaches as
    /// far as its original does and nothing else lies in the way. The old place of
    /// a shared mapping stays known until its unmapping is told: MREMAP_DONTUNMAP
    /// leaves it, with the same pages.
    pub fn remap(&mut self, space: SpaceId, from: VAddr, to: VAddr, len: u64) {
        let Some(s) = self.spaces.get_mut(&space) else {
            return;
        };
        if len == 0 {
            let Some(segment) = s.segment_at(from.0) else {
                return;
            };
            let skip = from.0 - segment.0.start();
            let reach = segment.0.end() - from.0;
            let next = s.segments.range(to.0..).next().map_or(u64::MAX, |s| *s.0);
            let end = to.0.saturating_add(reach).min(next);
            if let Some(range) = PageRange::new(to.0, end) {
                s.insert(
                    range.start(),
                    Segment {
                        end: range.end(),
                        at: segment.1.at + skip,
                        ..segment.1
                    },
                );
            }
            return;
        }
        let range = |at: VAddr| at.0.checked_add(len).and_then(|e| PageRange::new(at.0, e));
        let (Some(old), Some(new)) = (range(from), range(to)) else {
            return;
        };
        // Whatever was at the new place was unmapped to make room.
        self.unmap(space, new);
        let Some(s) = self.spaces.get_mut(&space) else {
            return;
        };
        let moved: Vec<_> = s.overlapping(old).collect();
        for (r, segment) in moved {
            if matches!(segment.object, Object::Private(_)) {
                s.cut(r);
            }
            let start = to.0 + (r.start() - from.0);
            s.insert(
                start,
                Segment {
                    end: start + r.len(),
                    ..segment
                },
            );
        }
    }

    /// The shared area of `space` that ends at `end` reaches to `to` now, with the
    /// pages that follow in its object.
    pub fn grow(&mut self, space: SpaceId, end: VAddr, to: VAddr) {
        let Some(s) = self.spaces.get_mut(&space) else {
            return;
        };
        let to = s
            .segments
            .range(end.0..)
            .next()
            .map_or(to.0, |next| to.0.min(*next.0));
        if let Some((_, segment)) = s.segments.range_mut(..end.0).next_back()
            && segment.end == end.0
            && matches!(segment.object, Object::Shared(_))
        {
            segment.end = to.max(end.0);
        }
    }

    /// The places within `range` of `space` of which anything is known.
    #[must_use]
    pub fn known(&self, space: SpaceId, range: PageRange) -> Vec<PageRange> {
        self.spaces
            .get(&space)
            .map(|s| s.overlapping(range).map(|(r, _)| r).collect())
            .unwrap_or_default()
    }

    /// A range is mapped no longer: nobody needs what was to come there. Pages of a
    /// shared object are gone when nothing of it is mapped anywhere.
    pub fn unmap(&mut self, space: SpaceId, range: PageRange) {
        let Some(s) = self.spaces.get_mut(&space) else {
            return;
        };
        let cut: Vec<_> = s.overlapping(range).collect();
        s.cut(range);
        for (r, segment) in cut {
            match segment.object {
                Object::Private(_) => {
                    if let Some(s) = self.spaces.get_mut(&space) {
                        s.private.gone_at(segment.at, r.len());
                    }
                }
                Object::Shared(id) => settle_shared(&self.spaces, &mut self.shared, id),
            }
        }
    }

    /// Content was thrown away (madvise DONTNEED, FREE, REMOVE): zeros are right
    /// there from now on. What only the page table forgets, a shared object keeps:
    /// returned are its pages there that must still come, if any of it must.
    pub fn remove(&mut self, space: SpaceId, range: PageRange) -> BTreeMap<u32, Vec<PageRange>> {
        let mut doubtful: BTreeMap<u32, Vec<PageRange>> = BTreeMap::new();
        let Some(s) = self.spaces.get_mut(&space) else {
            return doubtful;
        };
        let cut: Vec<_> = s.overlapping(range).collect();
        for (r, segment) in cut {
            match segment.object {
                Object::Private(_) => s.private.gone_at(segment.at, r.len()),
                Object::Shared(id) => {
                    let account = self.shared.get(&id);
                    let part = PageRange::new(segment.at, segment.at + r.len());
                    if let (Some(account), Some(part)) = (account, part)
                        && !account.absent.is_empty()
                    {
                        let absent = account.absent.within(part);
                        doubtful.entry(id).or_default().extend(absent);
                    }
                }
            }
        }
        doubtful
    }

    /// Pages of a shared object were thrown away (a hole was punched).
    pub fn punched(&mut self, id: u32, range: PageRange) {
        if let Some(account) = self.shared.get_mut(&id) {
            account.gone(range);
        }
    }

    /// The address space has ended (exit, exec).
    pub fn end(&mut self, space: SpaceId) {
        let Some(mut s) = self.spaces.remove(&space) else {
            return;
        };
        s.private.count.gone += s.private.absent.pages();
        let c = s.private.count;
        self.ended.needed += c.needed;
        self.ended.present += c.present;
        self.ended.gone += c.gone;
        for segment in s.segments.values() {
            if let Object::Shared(id) = segment.object {
                settle_shared(&self.spaces, &mut self.shared, id);
            }
        }
    }
}

/// Pages of a shared object of which nothing is mapped are gone.
fn settle_shared(spaces: &BTreeMap<SpaceId, Space>, shared: &mut BTreeMap<u32, Account>, id: u32) {
    let mut segments = spaces.values().flat_map(|s| s.segments.values());
    if segments.any(|s| s.object == Object::Shared(id)) {
        return;
    }
    if let Some(account) = shared.get_mut(&id) {
        account.count.gone += account.absent.pages();
        account.absent = RangeSet::new();
    }
}
