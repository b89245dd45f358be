//! Memory that parent and child still shared since fork(2).
//!
//! Nobody tells which pages two tasks share, so an image has them once for each.
//! But tasks are forked here as they were there: a parent that has its private
//! memory already when it forks gives it to its child, and only pages in which
//! their images differ are written again. So it goes with private anonymous areas
//! that both have at one place; where they have little in common, nothing is
//! lost but the time to find out. Not in a lazy restore: there is nothing yet to
//! be inherited when tasks are made.

use std::collections::{BTreeMap, BTreeSet};

use super::Build;
use super::memory::{fill_uffd, has_pages, pieces, read_piece, space_id};
use crate::base::{NsPid, PAGE_SIZE, PageRange, Result, VAddr};
use crate::engine::plan::Plan;
use crate::engine::plan::task::Body;
use crate::image::pages::{Held, Pagemap, Run};
use crate::memory::{Object, PageReader, RangeSet};
use crate::objects::mm::rebuild::{self as mm, Area, Kind};
use crate::sys::steer::Batch;
use crate::sys::uffd::{Uffd, mode};
use crate::sys::vm;

const PAGE: usize = 4096;
const _: () = assert!(PAGE as u64 == PAGE_SIZE);

/// Areas that a task has before its address space is built.
#[derive(Debug, Default)]
pub(super) struct Early {
    /// Those that are as they will be.
    ready: BTreeSet<PageRange>,
    /// Those that are as they are in the task that it was forked from.
    inherited: BTreeMap<PageRange, NsPid>,
}

fn body(plan: &Plan, pid: NsPid) -> Option<&Body> {
    plan.tasks.get(&pid)?.body.as_ref()
}

/// Its area that is exactly there.
fn own_area(body: &Body, range: PageRange) -> Option<&Area> {
    let areas = &body.space.areas;
    let at = areas.binary_search_by_key(&range.start(), |a| a.range.start());
    areas.get(at.ok()?).filter(|a| a.range == range)
}

/// Whether `child` can take over what stands at `area` of its parent.
fn takes_over(child: &Body, area: &Area) -> bool {
    own_area(child, area.range).is_some_and(|own| {
        (own.kind, own.prot, own.flags) == (Kind::PrivateAnon, area.prot, area.flags)
            && has_pages(child.pages.as_ref(), own)
    })
}

impl Build<'_> {
    /// Gives `parent` the areas that `child` will take over, before it forks.
    ///
    /// # Errors
    /// Which area, and why.
    pub(super) fn before_fork(&mut self, parent: NsPid, child: NsPid) -> Result<()> {
        let plan = self.plan;
        let (Some(from), Some(to)) = (body(plan, parent), body(plan, child)) else {
            return Ok(());
        };
        if self.lazy {
            return Ok(());
        }
        let vdso = self.live(parent)?.vdso.whole();
        let mut guard = None;
        for area in &from.space.areas {
            let free = area.range.intersect(vdso).is_none();
            if free && has_pages(from.pages.as_ref(), area) && takes_over(to, area) {
                self.early_area(parent, from, area, &mut guard)?;
            }
        }
        Ok(())
    }

    /// What `child` has of its parent now: what it does not take over goes.
    ///
    /// # Errors
    /// Those of munmap(2).
    pub(super) fn after_fork(&mut self, parent: NsPid, child: NsPid) -> Result<()> {
        let plan = self.plan;
        let Some(early) = self.early.get(&parent) else {
            return Ok(());
        };
        let ready = early.ready.iter().map(|range| (*range, parent));
        let as_elsewhere = early.inherited.iter().map(|(range, from)| (*range, *from));
        let mut inherited = BTreeMap::new();
        let mut b = Batch::new();
        for (range, from) in ready.chain(as_elsewhere) {
            let keeps = match (
                body(plan, child),
                body(plan, from).and_then(|b| own_area(b, range)),
            ) {
                (Some(to), Some(area)) => takes_over(to, area),
                // a helper: perhaps for its children
                (None, _) => true,
                (Some(_), None) => false,
            };
            if keeps {
                inherited.insert(range, from);
            } else {
                b.call(
                    "munmap",
                    libc::SYS_munmap,
                    &[range.start().into(), range.len().into()],
                );
            }
        }
        let early = Early {
            ready: BTreeSet::new(),
            inherited,
        };
        self.early.insert(child, early);
        if !b.is_empty() {
            self.live(child)?.leader.run(&b)?;
        }
        Ok(())
    }

    /// Whether the task has this area already.
    pub(super) fn has_area(&self, pid: NsPid, area: &Area) -> bool {
        self.early
            .get(&pid)
            .is_some_and(|e| e.ready.contains(&area.range) || e.inherited.contains_key(&area.range))
    }

    /// Makes an area that the task has already as it must be; false if it has
    /// not.
    ///
    /// # Errors
    /// Pages that cannot be read or written.
    pub(super) fn fill_early(&mut self, pid: NsPid, own: &Body, area: &Area) -> Result<bool> {
        if !self.has_area(pid, area) {
            return Ok(false);
        }
        self.early_area(pid, own, area, &mut None)?;
        Ok(true)
    }

    fn early_area(
        &mut self,
        pid: NsPid,
        own: &Body,
        area: &Area,
        guard: &mut Option<Uffd>,
    ) -> Result<()> {
        let early = self.early.entry(pid).or_default();
        if early.ready.contains(&area.range) {
            return Ok(());
        }
        match early.inherited.remove(&area.range) {
            Some(from) => self.differ(pid, own, from, area)?,
            None => {
                let mut b = Batch::new();
                mm::map(&mut b, area, None, true);
                self.live(pid)?.leader.run(&b)?;
                let uffd = self.guard(guard, pid)?;
                uffd.register(area.range, mode::MISSING)?;
                for run in held(own.pages.as_ref(), area.range) {
                    fill_uffd(self.pages, uffd, object(pid), run.range)?;
                }
                uffd.unregister(area.range)?;
            }
        }
        self.early.entry(pid).or_default().ready.insert(area.range);
        Ok(())
    }

    /// Writes the pages of an inherited area that are others in `pid` than in
    /// `from`, and drops those that it has not.
    fn differ(&mut self, pid: NsPid, own: &Body, from: NsPid, area: &Area) -> Result<()> {
        let reader = self.pages;
        let host = self.live(pid)?.host;
        let theirs = body(self.plan, from).and_then(|b| b.pages.as_ref());
        let mut gone: RangeSet = held(theirs, area.range).map(|r| r.range).collect();
        for run in held(own.pages.as_ref(), area.range) {
            gone.remove(run.range);
            for piece in pieces(run.range) {
                let mine = read_piece(reader, object(pid), piece)?;
                let before = content(reader, theirs, object(from), piece)?;
                if mine == before {
                    continue;
                }
                for (at, len) in differences(&mine, &before) {
                    let bytes = mine.get(at..at + len).unwrap_or(&[]);
                    vm::write(host, VAddr(piece.start() + at as u64), bytes)?;
                }
            }
        }
        let mut b = Batch::new();
        for range in gone.iter() {
            b.call(
                "madvise(MADV_DONTNEED)",
                libc::SYS_madvise,
                &[
                    range.start().into(),
                    range.len().into(),
                    libc::MADV_DONTNEED.into(),
                ],
            );
        }
        if !b.is_empty() {
            self.live(pid)?.leader.run(&b)?;
        }
        Ok(())
    }
}

fn object(pid: NsPid) -> Object {
    Object::Private(space_id(pid))
}

fn held(pages: Option<&Pagemap>, range: PageRange) -> impl Iterator<Item = Run> {
    pages
        .into_iter()
        .flat_map(move |p| p.within(range))
        .filter(|r| r.held() != Held::Zero)
}

/// What stands at `piece`; zeros where there is nothing.
fn content(
    reader: &dyn PageReader,
    pages: Option<&Pagemap>,
    object: Object,
    piece: PageRange,
) -> Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(piece.len()).unwrap_or(0)];
    for run in held(pages, piece) {
        let offset = |at: u64| usize::try_from(at - piece.start()).unwrap_or(usize::MAX);
        let part = offset(run.range.start())..offset(run.range.end());
        if let Some(part) = bytes.get_mut(part) {
            reader.read(object, run.range.start(), part)?;
        }
    }
    Ok(bytes)
}

/// Runs of pages that differ: offset and length.
fn differences(one: &[u8], other: &[u8]) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    let pages = one.chunks(PAGE).zip(other.chunks(PAGE));
    for (index, _) in pages.enumerate().filter(|(_, (a, b))| a != b) {
        match runs.last_mut() {
            Some((at, len)) if *at + *len == index * PAGE => *len += PAGE,
            _ => runs.push((index * PAGE, PAGE)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_that_differ_come_in_runs() {
        let one = vec![1u8; 5 * PAGE];
        let mut other = one.clone();
        assert_eq!(differences(&one, &other), []);
        other[0] = 0;
        other[2 * PAGE + 5] = 0;
        other[4 * PAGE - 1] = 0;
        assert_eq!(differences(&one, &other), [(0, PAGE), (2 * PAGE, 2 * PAGE)]);
    }
}
