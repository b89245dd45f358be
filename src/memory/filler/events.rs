//! What the kernel tells, in the order in which it tells it.

use std::os::fd::AsFd;
use std::sync::PoisonError;
use std::time::Instant;

use super::{Filler, Guarded, PendingFault};
use crate::base::{PageRange, Result};
use crate::sys::uffd::{Event, Uffd};

impl Filler {
    /// Reads and applies all events of `space`; faults go to the queue. Returns
    /// how many came.
    pub(in crate::memory) fn drain(&self, space: &Guarded) -> Result<usize> {
        let _gate = space.gate.write().unwrap_or_else(PoisonError::into_inner);
        let turn = self.one_by_one();
        let batch = if turn.is_some() { 1 } else { usize::MAX };
        let mut total = 0;
        let mut doubtful: Vec<PageRange> = Vec::new();
        loop {
            loop {
                if turn.is_some() {
                    self.settle_suspects()?;
                }
                let mut events = Vec::new();
                if space.uffd.read_events(&mut events, batch)? == 0 {
                    break;
                }
                let read_at = Instant::now();
                total += events.len();
                for event in events {
                    self.apply(space, event, read_at, &mut doubtful)?;
                }
            }
            let mut unsettled = Vec::new();
            for range in doubtful.drain(..) {
                if !self.settle_unmap(space, range)? {
                    unsettled.push(range);
                }
            }
            if unsettled.is_empty() {
                break;
            }
            doubtful = unsettled;
            std::thread::yield_now();
        }
        if total > 0 && self.residency().complete() {
            self.ring();
        }
        Ok(total)
    }

    fn apply(
        &self,
        space: &Guarded,
        event: Event,
        read_at: Instant,
        doubtful: &mut Vec<PageRange>,
    ) -> Result<()> {
        match event {
            Event::PageFault { addr, .. } => {
                let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
                faults.push_back(PendingFault {
                    space: space.id,
                    addr,
                    read_at,
                });
                drop(faults);
                self.ring();
            }
            Event::Fork { child } => {
                let uffd = Uffd::adopt(child)?;
                if let Some(Err(e)) = self.anchor.as_ref().map(|a| a.keep(uffd.as_fd())) {
                    tracing::warn!("a child has no anchor: {e}");
                }
                let id = self.residency().fork(space.id)?;
                self.stats.forked();
                self.admit(id, uffd)?;
            }
            Event::Remap { from, to, len } => {
                self.residency().remap(space.id, from, to, len);
                if let Some(old) = from
                    .0
                    .checked_add(len)
                    .and_then(|e| PageRange::new(from.0, e))
                    && !old.is_empty()
                {
                    space.uffd.wake(old)?;
                }
            }
            Event::Remove { range } => {
                let mut residency = self.residency();
                let known = residency.known(space.id, range);
                let doubtful = residency.remove(space.id, range);
                drop(residency);
                let all_known = known.iter().map(|r| r.len()).sum::<u64>() == range.len();
                self.thrown_away(doubtful, all_known)?;
                space.uffd.wake(range)?;
            }
            Event::Unmap { range } => doubtful.push(range),
        }
        Ok(())
    }

    /// An unmapping is told after the fact, when something else may have moved
    /// there: only what the kernel does not guard any more is gone. `false` when
    /// the kernel cannot say yet.
    fn settle_unmap(&self, space: &Guarded, range: PageRange) -> Result<bool> {
        let known = self.residency().known(space.id, range);
        for part in known {
            let Some(page) = part.first_page() else {
                continue;
            };
            for sure in [false, true] {
                match space.uffd.is_guarded(page)? {
                    None => return Ok(false),
                    Some(true) => break,
                    // Asked twice: an event raised meanwhile answers the second.
                    Some(false) if !sure => {}
                    Some(false) => self.residency().unmap(space.id, part),
                }
            }
        }
        space.uffd.wake(range)?;
        Ok(true)
    }
}
