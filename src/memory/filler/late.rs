//! What is learned of pages only after the resume: that they do not exist, or that
//! they are guard pages.
//!
//! A guard page is a mark in a page table that only the process itself can make
//! (madvise(MADV_GUARD_INSTALL)), so somebody has to make it call: [`MakeGuard`]. A
//! child that forked meanwhile is no known process, and gets poison: an access ends
//! in SIGBUS, not in SIGSEGV.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, OnceLock, PoisonError};

use super::{Filler, Guarded, PendingFault};
use crate::base::{Error, HostPid, PageRange, Result};
use crate::memory::{Object, Piece, RangeSet, SpaceId};

/// Makes guard pages in a process that runs. `false`: it could not be had just now,
/// since it may wait for whoever reads its events.
pub type MakeGuard = Box<dyn Fn(HostPid, PageRange) -> Result<bool> + Send + Sync>;

/// How often a process is tried that does not stop.
const TRIES: usize = 12;

#[derive(Default)]
pub(super) struct Late {
    /// Those whose pid is known.
    pub(super) processes: BTreeMap<SpaceId, HostPid>,
    maker: OnceLock<MakeGuard>,
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
    pub fn make_guards_by(&self, maker: MakeGuard) {
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
    pub(super) fn guard_late(&self, id: SpaceId, range: PageRange) -> Result<()> {
        let mut told = self
            .late
            .told
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let told = told.entry(id).or_default();
        let mut fresh: RangeSet = [range].into_iter().collect();
        fresh.subtract(told);
        for range in fresh.iter() {
            self.guard_now(id, range)?;
            told.insert(range);
        }
        Ok(())
    }

    fn guard_now(&self, id: SpaceId, range: PageRange) -> Result<()> {
        let object = Object::Private(id);
        let (mut done, mut places) = (Vec::new(), Vec::new());
        loop {
            let mut residency = self.residency();
            let now = residency.places_of(id, range);
            let next = now.iter().map(|p| p.space).find(|s| !done.contains(s));
            places.extend(now);
            let Some(space) = next else {
                // None has forked since it was looked at.
                residency.never_were(object, range);
                break;
            };
            drop(residency);
            done.push(space);
            self.guard_space(space, id, range)?;
        }
        // Nobody is served zeros: whoever waits meets the guard page now, also where
        // it has taken the place of shared memory.
        self.no_longer_waited_for(object, range);
        self.wake_all(&places);
        if self.residency().complete() {
            self.ring();
        }
        Ok(())
    }

    fn guard_space(&self, space: SpaceId, id: SpaceId, range: PageRange) -> Result<()> {
        let Some(space) = self.space(space) else {
            return Ok(());
        };
        let maker = self.late.maker.get();
        let known = self.late.processes.get(&space.id).copied().zip(maker);
        for n in 0..TRIES {
            let Some((pid, maker)) = known else { break };
            if n == TRIES / 4 {
                // It may wait in the kernel for this very page: that gets EFAULT.
                self.poison_places(&space, id, range)?;
            }
            let gate = space.gate.write().unwrap_or_else(PoisonError::into_inner);
            match self.make_guards(&space, pid, maker, id, range) {
                Ok(true) => {
                    drop(gate);
                    return self.settle_forks(&space, range);
                }
                Ok(false) => {}
                Err(e) if e.raw_os_error() == Some(libc::ESRCH) => return Ok(()),
                Err(e) => {
                    tracing::warn!("guard pages {range} of process {pid}: {e}");
                    break;
                }
            }
            drop(gate);
            self.step_aside(&space)?;
        }
        tracing::warn!(
            "pages {range} of address space {id} were guard pages: an access ends in SIGBUS there"
        );
        self.poison_places(&space, id, range)
    }

    /// Reads what was raised before a guard page was made: a child that has not got
    /// it is known then.
    fn settle_forks(&self, space: &Guarded, range: PageRange) -> Result<()> {
        let page = range.first_page();
        let page = page.ok_or_else(|| Error::bug(format!("guard {range}"), "is no range"))?;
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

    fn places_in(&self, space: SpaceId, id: SpaceId, range: PageRange) -> Vec<Piece> {
        let mut places = self.residency().places_of(id, range);
        places.retain(|p| p.space == space);
        places
    }

    /// The caller holds the gate alone: nothing moves that has not moved already, and
    /// nothing is placed.
    fn make_guards(
        &self,
        space: &Guarded,
        pid: HostPid,
        maker: &MakeGuard,
        id: SpaceId,
        range: PageRange,
    ) -> Result<bool> {
        for place in self.places_in(space.id, id, range) {
            let page = place.range.first_page();
            let page = page.ok_or_else(|| Error::bug(format!("guard {place:?}"), "is no range"))?;
            if space.uffd.is_guarded(page)?.is_none() || !maker(pid, place.range)? {
                return Ok(false);
            }
            if matches!(self.residency().object_at(place), Some(Object::Shared(_))) {
                // A page of the object would take the guard page's place.
                self.residency().unmap(space.id, place.range);
            }
        }
        Ok(true)
    }

    fn poison_places(&self, space: &Guarded, id: SpaceId, range: PageRange) -> Result<()> {
        for place in self.places_in(space.id, id, range) {
            self.poison_each(space, place.range)?;
        }
        Ok(())
    }
}
