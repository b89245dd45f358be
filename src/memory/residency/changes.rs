//! What the tasks do to their memory meanwhile: fork, mremap, munmap, madvise,
//! exit.

use super::space::{Account, Segment, Space};
use super::{Count, Residency};
use crate::base::{Error, PageRange, Result, VAddr};
use crate::memory::{Object, RangeSet, SpaceId};

impl Residency {
    /// `parent` forked: the child needs what the parent lacks.
    pub fn fork(&mut self, parent: SpaceId) -> Result<SpaceId> {
        let p = self
            .spaces
            .get(&parent)
            .ok_or_else(|| Error::bug(format!("fork of address space {parent}"), "unknown"))?;
        let mut child = Space {
            origin: p.origin,
            segments: p.segments.clone(),
            private: Account {
                absent: p.private.absent.clone(),
                count: Count::default(),
            },
        };
        child.segments.retain(|_, s| !s.wipe_on_fork);
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
    /// far as its original does and nothing else lies in the way.
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
                s.segments.insert(
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
        s.cut(old);
        for (r, segment) in moved {
            let start = to.0 + (r.start() - from.0);
            s.segments.insert(
                start,
                Segment {
                    end: start + r.len(),
                    ..segment
                },
            );
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

    /// A range is mapped no longer: nobody needs what was to come there. A page of
    /// a shared object is gone when its last mapping is.
    pub fn unmap(&mut self, space: SpaceId, range: PageRange) {
        let Some(s) = self.spaces.get_mut(&space) else {
            return;
        };
        let cut: Vec<_> = s.overlapping(range).collect();
        s.cut(range);
        for (r, segment) in cut {
            let Some(origin) = PageRange::new(segment.at, segment.at + r.len()) else {
                continue;
            };
            match segment.object {
                Object::Private(_) => {
                    if let Some(s) = self.spaces.get_mut(&space) {
                        s.private.gone(origin);
                    }
                }
                Object::Shared(id) => self.settle_shared(id, origin),
            }
        }
    }

    /// Content was thrown away (madvise DONTNEED, FREE): zeros are right there
    /// from now on. A shared object keeps its pages.
    pub fn remove(&mut self, space: SpaceId, range: PageRange) {
        let Some(s) = self.spaces.get_mut(&space) else {
            return;
        };
        let cut: Vec<_> = s.overlapping(range).collect();
        for (r, segment) in cut {
            if let (Object::Private(_), Some(origin)) = (
                segment.object,
                PageRange::new(segment.at, segment.at + r.len()),
            ) {
                s.private.gone(origin);
            }
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
        for (start, segment) in s.segments {
            if let (Object::Shared(id), Some(range)) = (
                segment.object,
                PageRange::new(segment.at, segment.at + (segment.end - start)),
            ) {
                self.settle_shared(id, range);
            }
        }
    }

    /// Pages of a shared object that no mapping reaches are gone.
    fn settle_shared(&mut self, id: u32, range: PageRange) {
        let mut left: RangeSet = [range].into_iter().collect();
        for s in self.spaces.values() {
            for (start, segment) in &s.segments {
                if segment.object == Object::Shared(id) {
                    left.remove_at(segment.at, segment.end - start);
                }
            }
        }
        if let Some(account) = self.shared.get_mut(&id) {
            for r in left.iter() {
                account.gone(r);
            }
        }
    }
}
