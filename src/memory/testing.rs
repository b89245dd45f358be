//! Address spaces of a test's child that wait for their pages.

use crate::base::{PAGE_SIZE, PageRange};
use crate::memory::{Area, LazySpace, Object, SpaceId, guard};
use crate::sys::testing::Child;

/// Private memory that lies where it was captured.
pub(crate) fn own(id: SpaceId, range: PageRange) -> Area {
    Area {
        range,
        object: Object::Private(id),
        at: range.start(),
        wipe_on_fork: false,
    }
}

/// These areas of `child`, guarded; `needed` of its private pages must come.
pub(crate) fn guarded(
    child: &Child,
    id: SpaceId,
    areas: Vec<Area>,
    needed: Vec<PageRange>,
) -> LazySpace {
    LazySpace {
        id,
        pid: child.pid(),
        pidfd: child.pidfd().try_clone().unwrap(),
        uffd: guard(child.userfaultfd(), &areas).unwrap(),
        areas,
        needed,
        locked: Vec::new(),
    }
}

/// `pages` private pages, all of them missing.
pub(crate) fn lazy(child: &Child, id: SpaceId, pages: u64) -> (LazySpace, PageRange) {
    let range = PageRange::with_pages(child.mmap(pages * PAGE_SIZE), pages).unwrap();
    (guarded(child, id, vec![own(id, range)], vec![range]), range)
}
