//! What is learned of pages only after the resume: that they do not exist, or that
//! they are guard pages.
//!
//! A guard page is a mark in a page table that only the process itself can make
//! (madvise(MADV_GUARD_INSTALL)), so somebody has to make it call: [`MakeGuards`]. A
//! child that forked meanwhile is no known process, and gets poison: an access ends
//! in SIGBUS, not in SIGSEGV.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use super::{Filler, Guarded, PendingFault};
use crate::base::{Error, HostPid, PageRange, Result};
use crate::memory::{Object, Piece, RangeSet, SpaceId};

/// Makes guard pages in a process that runs, all in one stop. `false`: it could not be
/// had just now, since it may wait for whoever reads its events.
pub type MakeGuards = Box<dyn Fn(HostPid, &[PageRange]) -> Result<bool> + Send + Sync>;

/// How often a process is tried that does not stop.
const TRIES: usize = 12;

#[derive(Default)]
pub(super) struct Late {
    /// Those whose pid is known.
    pub(super) processes: BTreeMap<SpaceId, HostPid>,
    maker: OnceLock<MakeGuards>,
    /// What was told: in a new epoch it is told again.
    told: Mutex<BTreeMap<SpaceId, RangeSet>>,
}

impl fmt::Debug for Late {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Late")
            .field("processes", &self.processes)
            .finish_non_exhaustive()
    }
}

impl Filler {
    /// Says who makes guard pages that are told late; before anything is served.
    /// Without it they are poisoned.
    pub fn make_guards_by(&self, maker: MakeGuards) {
        // The first one stays.
        let _ = self.late.maker.set(maker);
    }

    /// Pages do not exist: who waits for one is served zeros.
    pub(super) fn forget(&self, object: Object, range: PageRange) {
        let mut residency = self.residency();
        residency.never_were(object, range);
        let complete = residency.complete();
        let waited = self.no_longer_waited_for(object, range);
        drop(residency);
        let again = !waited.is_empty();
        if again {
            let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
            faults.extend(waited);
        }
        if again || complete {
            self.ring();
        }
    }

    fn no_longer_waited_for(&self, object: Object, range: PageRange) -> Vec<PendingFault> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting
            .extract_if(|page, _| page.object == object && range.contains(page.at))
            .flat_map(|(_, faults)| faults)
            .collect()
    }

    /// See [`crate::memory::PageSink::guards`].
    pub(super) fn guard_late(&self, id: SpaceId, ranges: &[PageRange]) -> Result<()> {
        let fresh = {
            let mut told = self.told();
            let told = told.entry(id).or_default();
            let mut fresh: RangeSet = ranges.iter().copied().collect();
            fresh.subtract(told);
            // Whoever is told the same on another lane does not wait for this one.
            for range in fresh.iter() {
                told.insert(range);
            }
            fresh
        };
        let fresh: Vec<_> = fresh.iter().collect();
        self.guard_now(id, &fresh).inspect_err(|_| {
            let mut told = self.told();
            let told = told.entry(id).or_default();
            for range in &fresh {
                told.remove(*range);
            }
        })
    }

    fn told(&self) -> MutexGuard<'_, BTreeMap<SpaceId, RangeSet>> {
        let told = self.late.told.lock();
        told.unwrap_or_else(PoisonError::into_inner)
    }

    fn guard_now(&self, id: SpaceId, ranges: &[PageRange]) -> Result<()> {
        let object = Object::Private(id);
        let (mut done, mut places) = (Vec::new(), Vec::new());
        loop {
            let mut residency = self.residency();
            let now: Vec<_> = ranges
                .iter()
                .flat_map(|range| residency.places_of(id, *range))
                .collect();
            let next = now.iter().map(|p| p.space).find(|s| !done.contains(s));
            places.extend(now);
            let Some(space) = next else {
                // None has forked since it was looked at.
                for range in ranges {
                    residency.never_were(object, *range);
                }
                break;
            };
            drop(residency);
            done.push(space);
            self.guard_space(space, id, ranges)?;
        }
        // Nobody is served zeros: whoever waits meets the guard page now, also where
        // it has taken the place of shared memory.
        for range in ranges {
            self.no_longer_waited_for(object, *range);
        }
        self.wake_all(&places);
        if self.residency().complete() {
            self.ring();
        }
        Ok(())
    }

    fn guard_space(&self, space: SpaceId, id: SpaceId, ranges: &[PageRange]) -> Result<()> {
        let Some(space) = self.space(space) else {
            return Ok(());
        };
        let maker = self.late.maker.get();
        let known = self.late.processes.get(&space.id).copied().zip(maker);
        for n in 0..TRIES {
            let Some((pid, maker)) = known else { break };
            if n >= TRIES / 4 {
                // It may wait in the kernel for one of these: that gets EFAULT.
                self.poison_waiting(&space, id, ranges)?;
            }
            let gate = space.gate.write().unwrap_or_else(PoisonError::into_inner);
            match self.make_guards(&space, pid, maker, id, ranges) {
                Ok(true) => {
                    drop(gate);
                    return self.settle_forks(&space, ranges);
                }
                Ok(false) => {}
                Err(e) if e.raw_os_error() == Some(libc::ESRCH) => return Ok(()),
                Err(e) => {
                    drop(gate);
                    if let [_, _, ..] = ranges {
                        // Whichever it was, the others can be made.
                        let mut each = ranges.iter();
                        return each.try_for_each(|r| self.guard_space(space.id, id, &[*r]));
                    }
                    tracing::warn!("guard pages of process {pid}: {e}");
                    break;
                }
            }
            drop(gate);
            self.step_aside(&space)?;
        }
        for range in ranges {
            tracing::warn!(
                "pages {range} of address space {id} were guard pages: an access ends in SIGBUS there"
            );
        }
        for place in self.places_in(space.id, id, ranges) {
            self.poison_each(&space, place.range)?;
        }
        Ok(())
    }

    /// Reads what was raised before a guard page was made: a child that has not got
    /// it is known then.
    fn settle_forks(&self, space: &Guarded, ranges: &[PageRange]) -> Result<()> {
        let Some(page) = ranges.first().and_then(|r| r.first_page()) else {
            return Ok(());
        };
        loop {
            // Alone: what somebody else has read is applied as well.
            let gate = space.gate.write().unwrap_or_else(PoisonError::into_inner);
            if space.uffd.is_guarded(page)?.is_some() {
                return Ok(());
            }
            drop(gate);
            self.step_aside(space)?;
        }
    }

    fn places_in(&self, space: SpaceId, id: SpaceId, ranges: &[PageRange]) -> Vec<Piece> {
        let residency = self.residency();
        let places = ranges.iter().flat_map(|r| residency.places_of(id, *r));
        places.filter(|p| p.space == space).collect()
    }

    /// The caller holds the gate alone: nothing moves that has not moved already, and
    /// nothing is placed.
    fn make_guards(
        &self,
        space: &Guarded,
        pid: HostPid,
        maker: &MakeGuards,
        id: SpaceId,
        ranges: &[PageRange],
    ) -> Result<bool> {
        let places = self.places_in(space.id, id, ranges);
        for place in &places {
            let page = place.range.first_page();
            let page = page.ok_or_else(|| Error::bug(format!("guard {place:?}"), "is no range"))?;
            if space.uffd.is_guarded(page)?.is_none() {
                return Ok(false);
            }
        }
        let all: Vec<_> = places.iter().map(|p| p.range).collect();
        if !all.is_empty() && !maker(pid, &all)? {
            return Ok(false);
        }
        for place in places {
            if matches!(self.residency().object_at(place), Some(Object::Shared(_))) {
                // A page of the object would take the guard page's place.
                self.residency().unmap(space.id, place.range);
            }
        }
        Ok(true)
    }

    /// Poisons those of `ranges` that somebody waits for.
    fn poison_waiting(&self, space: &Guarded, id: SpaceId, ranges: &[PageRange]) -> Result<()> {
        let places = self.places_in(space.id, id, ranges);
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let here = waiting.values().flatten().filter(|f| f.space == space.id);
        let pages: Vec<_> = here
            .filter(|f| places.iter().any(|p| p.range.contains(f.addr.0)))
            .filter_map(|f| PageRange::with_pages(f.addr.0, 1))
            .collect();
        drop(waiting);
        pages
            .into_iter()
            .try_for_each(|page| self.poison_each(space, page))
    }
}
