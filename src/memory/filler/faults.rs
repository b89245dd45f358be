//! Threads that wait for pages: answered, asked for, or let down without a lie.

use std::sync::PoisonError;

use super::{Content, Filler, Guarded, PendingFault};
use crate::base::{PAGE_SIZE, PageRange, Result, VAddr};
use crate::memory::{Fault, Object, SpaceId, Want};
use crate::sys::uffd::Stop;

/// What is to be done about a fault.
#[derive(Debug)]
pub(in crate::memory) enum Noted {
    Zero,
    Present,
    Asked,
    Ask(Want),
    /// Perhaps in what the area that ends there has grown by.
    Beyond(VAddr),
}

impl Filler {
    /// Notes a waiting thread, and says what to do for it.
    pub(in crate::memory) fn note_waiting(&self, fault: PendingFault, window: u64) -> Noted {
        let mut residency = self.residency();
        match residency.fault(fault.space, fault.addr) {
            Fault::Zero => Noted::Zero,
            Fault::Present => Noted::Present,
            Fault::Unknown { end } => Noted::Beyond(end),
            Fault::Absent { origin, asked } => {
                let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
                waiting.entry(origin).or_default().push(fault);
                if asked {
                    Noted::Asked
                } else {
                    residency
                        .ask(origin, window)
                        .map_or(Noted::Asked, Noted::Ask)
                }
            }
        }
    }

    /// Requests for every page that somebody waits for, as if none was made.
    pub(in crate::memory) fn ask_again(&self, window: u64) -> Vec<Want> {
        let mut residency = self.residency();
        residency.forget_asked();
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting
            .keys()
            .filter_map(|page| residency.ask(*page, window))
            .collect()
    }

    /// Serves a fault on a page that nothing has to come for. `false`: ask again,
    /// the layout has changed.
    pub(in crate::memory) fn zero(&self, space: &Guarded, addr: VAddr) -> Result<bool> {
        let Some(page) = PageRange::with_pages(addr.0, 1) else {
            return Ok(true);
        };
        let gate = space.gate.read().unwrap_or_else(PoisonError::into_inner);
        if matches!(self.residency().fault(space.id, addr), Fault::Absent { .. }) {
            return Ok(false);
        }
        let stop = space.uffd.zeropage(page)?.stop;
        drop(gate);
        match stop {
            None => self.stats.zeroed(),
            Some(Stop::Exists | Stop::NoArea) => space.uffd.wake(page)?,
            Some(Stop::Gone) => self.ended(space),
            Some(Stop::Again) => {
                self.step_aside(space)?;
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Serves a fault at an address of which nothing is known, above a shared area
    /// that ends at `end`: it may have grown. `false`: ask again.
    pub(in crate::memory) fn beyond(
        &self,
        space: &Guarded,
        end: VAddr,
        addr: VAddr,
    ) -> Result<bool> {
        let gate = space.gate.read().unwrap_or_else(PoisonError::into_inner);
        let to = addr.0 + PAGE_SIZE;
        let guarded = |start: u64, to: u64| match PageRange::new(start, to) {
            Some(range) => space.uffd.is_guarded(range),
            None => Ok(Some(false)),
        };
        let mut grown = guarded(end.0 - PAGE_SIZE, to)?;
        if grown == Some(false) {
            // Not one area; yet mprotect may have split it.
            let mut at = end.0;
            grown = guarded(at, at + PAGE_SIZE)?;
            while grown == Some(true) && at < addr.0 {
                at += PAGE_SIZE;
                grown = guarded(at, at + PAGE_SIZE)?;
            }
        }
        if grown == Some(true) {
            self.residency().grow(space.id, end, VAddr(to));
        }
        drop(gate);
        match grown {
            Some(true) => Ok(false),
            Some(false) => self.zero(space, addr),
            None => {
                self.step_aside(space)?;
                Ok(false)
            }
        }
    }

    /// Reads the events that are in the way, or lets their task get past them.
    pub(super) fn step_aside(&self, space: &Guarded) -> Result<()> {
        if self.drain(space)? == 0 {
            std::thread::yield_now();
        }
        Ok(())
    }

    pub(in crate::memory) fn wake(&self, space: &Guarded, addr: VAddr) -> Result<()> {
        match PageRange::with_pages(addr.0, 1) {
            Some(page) => space.uffd.wake(page),
            None => Ok(()),
        }
    }

    /// Lets every access to a page that is missing end in SIGBUS.
    ///
    /// # Errors
    /// Those of UFFDIO_POISON.
    pub fn poison_missing(&self) -> Result<()> {
        loop {
            // In pieces: what was killed ends meanwhile, and most may not exist at all.
            let Some((object, range)) = self.residency().next_missing(None, 1 << 30) else {
                return Ok(());
            };
            match object {
                Object::Private(_) => self.fill(object, range, Content::Poison)?,
                Object::Shared(_) => self.poison_shared(object, range)?,
            }
        }
    }

    /// Poison is a mark in a page table, not in the object: every mapping gets it
    /// before the pages count as settled.
    fn poison_shared(&self, object: Object, range: PageRange) -> Result<()> {
        let mappings = self.residency().mappings(object, range);
        for piece in mappings {
            let Some(space) = self.space(piece.space) else {
                continue;
            };
            self.poison_each(&space, piece.range)?;
        }
        let pages = self.residency().placed(SpaceId(0), object, range);
        self.stats.poisoned(pages);
        Ok(())
    }

    /// Poisons whatever of `range` has no page, one by one: pages among them stay.
    pub(super) fn poison_each(&self, space: &Guarded, range: PageRange) -> Result<()> {
        for page in range.each_page() {
            while space.uffd.poison(page)?.stop == Some(Stop::Again) {
                self.step_aside(space)?;
            }
        }
        Ok(())
    }
}
