//! What page tables say: at once, or of pages that may wait, after the freeze.
//!
//! A walk of page tables takes milliseconds a populated GiB. A restore needs to know
//! before the resume where guard pages are, and no more: a page that may wait is
//! asked for when somebody touches it, and may turn out not to exist. So a capture
//! that need not list such pages ([`Lister`] does later) looks only where guard
//! pages were before the freeze, and at areas that are new since. A guard page that
//! was made in between is told afterwards ([`Late::late_guards`]).

use std::collections::BTreeMap;
use std::sync::Arc;

use super::process::Mapped;
use crate::base::{Error, PageRange, Result};
use crate::memory::held::{Content, Existing, HeldPages, Space};
use crate::memory::{Object, RangeSet, SpaceId};
use crate::objects::mm::capture::{Area, Before, Kind as AreaKind};

/// What the page table of one address space says.
#[derive(Debug)]
pub(super) struct Scan {
    pub(super) space: Space,
    /// Area by area.
    pub(super) content: Vec<Found>,
    /// Guard pages of all areas.
    pub(super) guards: Vec<PageRange>,
}

/// What was found of an area.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// These pages have content, and no others.
    All(Vec<PageRange>),
    /// No page before this range has content; which ones of it do is not known.
    Within(Option<PageRange>),
}

impl Scan {
    /// Walks the page table, once. With `before`, only as far as the restore needs
    /// it before the resume.
    pub(super) fn read(mapped: &Mapped, before: Option<&Before>) -> Result<Self> {
        let space = Space::open(SpaceId(mapped.virt), mapped.pid)?;
        let (mut content, mut guards) = (Vec::with_capacity(mapped.areas.len()), Vec::new());
        for area in &mapped.areas {
            if let Some(before) = before.filter(|_| area.can_follow()) {
                guards.extend(guards_now(&space, area.range, before)?);
                content.push(Found::Within(may_exist(&space, area)?));
                continue;
            }
            let kind = match area.kind {
                AreaKind::PrivateAnon => Content::Anonymous,
                AreaKind::PrivateFile => Content::Changed,
                AreaKind::SharedAnon(_) => Content::Elsewhere,
                AreaKind::Vdso => {
                    content.push(Found::All(vec![area.range]));
                    continue;
                }
                AreaKind::SharedFile
                | AreaKind::Memfd
                | AreaKind::Droppable
                | AreaKind::Vvar
                | AreaKind::Vsyscall => {
                    content.push(Found::All(Vec::new()));
                    continue;
                }
            };
            let found = space.existing(area.range, kind)?;
            content.push(Found::All(found.content));
            guards.extend(found.guards);
        }
        Ok(Self {
            space,
            content,
            guards,
        })
    }
}

/// Bytes between two places that are looked at together: a walk over page tables of
/// so many takes less time than another call.
const NEAR: u64 = 1 << 20;

/// The guard pages of an area that were there before the freeze and still are, and
/// all of what nobody has looked at; others that lie between may be told as well.
fn guards_now(space: &Space, area: PageRange, before: &Before) -> Result<Vec<PageRange>> {
    let (were, unseen) = before.guards(area);
    let mut now = RangeSet::new();
    for part in together(were.into_iter().chain(unseen).collect()) {
        for guard in space.guards(part)? {
            now.insert(guard);
        }
    }
    Ok(now.iter().collect())
}

/// What covers all of `parts`, with nothing between them that is longer than [`NEAR`].
fn together(mut parts: Vec<PageRange>) -> Vec<PageRange> {
    parts.sort_unstable_by_key(|p| p.start());
    let mut all: Vec<PageRange> = Vec::new();
    for part in parts {
        let joined = all
            .last()
            .filter(|last| part.start() <= last.end().saturating_add(NEAR))
            .and_then(|last| PageRange::new(last.start(), last.end().max(part.end())));
        match (joined, all.last_mut()) {
            (Some(joined), Some(last)) => *last = joined,
            _ => all.push(part),
        }
    }
    all
}

fn may_exist(space: &Space, area: &Area) -> Result<Option<PageRange>> {
    if area.kind != AreaKind::PrivateAnon {
        return Ok(None); // the object has the pages
    }
    let first = space.first(area.range)?;
    Ok(first.and_then(|at| PageRange::new(at, area.range.end())))
}

/// Looks up which pages of held tasks exist, when a capture has left that open.
#[derive(Debug)]
pub struct Late {
    held: Arc<HeldPages>,
    /// Guard pages that the images list.
    told: BTreeMap<SpaceId, RangeSet>,
    /// Where others may have been made in shared memory: by address.
    shared: Vec<(SpaceId, PageRange)>,
}

impl Late {
    pub(super) fn new(
        held: Arc<HeldPages>,
        told: BTreeMap<SpaceId, RangeSet>,
        shared: Vec<(SpaceId, PageRange)>,
    ) -> Self {
        Self { held, told, shared }
    }

    /// What of `range` exists, beside the guard pages that the images list.
    ///
    /// # Errors
    /// Those of the scan.
    pub fn existing(&self, object: Object, range: PageRange) -> Result<Existing> {
        let mut found = self.held.existing(object, range)?;
        if let Object::Private(id) = object {
            found.guards = self.untold(id, found.guards);
        }
        Ok(found)
    }

    /// Guard pages in mappings of shared memory that the images do not list: the
    /// address space, and where in it.
    ///
    /// # Errors
    /// Those of the scan.
    pub fn late_guards(&self) -> Result<Vec<(SpaceId, PageRange)>> {
        let mut all = Vec::new();
        for (id, area) in &self.shared {
            let space = self.held.space(*id);
            let space = space.ok_or_else(|| Error::bug(format!("look at {id}"), "not held"))?;
            let guards = self.untold(*id, space.guards(*area)?);
            all.extend(guards.into_iter().map(|g| (*id, g)));
        }
        Ok(all)
    }

    fn untold(&self, id: SpaceId, guards: Vec<PageRange>) -> Vec<PageRange> {
        let mut left: RangeSet = guards.into_iter().collect();
        if let Some(told) = self.told.get(&id) {
            left.subtract(told);
        }
        left.iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_that_are_near_are_looked_at_together_and_others_are_not() {
        let pages = |at: u64, n| PageRange::with_pages(at << 12, n).unwrap();
        let near = NEAR >> 12;
        let parts = vec![
            pages(900_000, 1),
            pages(10, 1),
            pages(12 + near, 4),
            pages(11, 1),
            pages(17 + 2 * near, 1),
        ];
        let all = [
            pages(10, 6 + near),
            pages(17 + 2 * near, 1),
            pages(900_000, 1),
        ];
        assert_eq!(together(parts), all);
        assert_eq!(together(Vec::new()), []);
    }
}
