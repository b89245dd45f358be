//! Where pages come from, and where they go.

use crate::base::{Error, PageRange, Result};
use crate::memory::{Object, Origin, SpaceId};

/// A page that somebody waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Want {
    /// The page; it comes first.
    pub page: Origin,
    /// Pages around it (it included) that are still missing and would be
    /// welcome with it.
    pub window: PageRange,
}

impl Want {
    /// Whose pages.
    #[must_use]
    pub fn object(&self) -> Object {
        self.page.object
    }
}

/// Something that has the pages.
pub trait PageSource: Send + Sync {
    /// Asks for a page urgently, and for those around it. The answer goes to
    /// `sink`, at once or later from another thread; a page may come twice, and
    /// unasked. Called by the thread that serves faults: a source that is not
    /// local must not wait here.
    ///
    /// # Errors
    /// The pages cannot be had; [`PageSink::lost`] is then called with it.
    fn want(&self, want: Want, sink: &dyn PageSink) -> Result<()>;
}

/// Where pages are put. All of it may be called from several threads at once.
pub trait PageSink: Send + Sync {
    /// Places whole pages of `object` from position `at` on, in every address
    /// space that still needs them; what nobody needs (any more) is passed over.
    ///
    /// # Errors
    /// The kernel refused for another reason than that a page exists or is gone;
    /// `at` or the length is not whole pages.
    fn place(&self, object: Object, at: u64, bytes: &[u8]) -> Result<()>;

    /// As [`Self::place`], for pages that hold zeros only.
    ///
    /// # Errors
    /// As [`Self::place`].
    fn place_zeros(&self, object: Object, range: PageRange) -> Result<()>;

    /// No such pages exist: whoever touches them reads zeros from now on. Names any
    /// number of pages; those that came already stay.
    ///
    /// # Errors
    /// As [`Self::place`].
    fn never_were(&self, object: Object, range: PageRange) -> Result<()>;

    /// These addresses of the captured address space `id` are guard pages, which
    /// nobody knew when it was built. Told once.
    ///
    /// # Errors
    /// Neither a guard page nor poison could be put there.
    fn guards(&self, id: SpaceId, ranges: &[PageRange]) -> Result<()>;

    /// The source is lost: nothing more comes. What then happens to those who
    /// wait is the handler's policy; they never read zeros.
    fn lost(&self, why: Error);
}

/// A source that can be read at any place at once.
pub trait PageReader: Send + Sync {
    /// Fills `buf` (whole pages) from position `at` of `object`.
    ///
    /// # Errors
    /// A page that cannot be read is an error, never zeros.
    fn read(&self, object: Object, at: u64, buf: &mut [u8]) -> Result<()>;
}
