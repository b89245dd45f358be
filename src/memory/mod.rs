//! Page contents: which exist, where they come from, who serves them.
//!
//! Every restore is lazy; an eager one has drained before it resumes. An address
//! space is built empty and guarded by a userfaultfd; a [`PageSource`] fills it:
//! an image directory, tasks held on this host, a peer. Nobody above this room
//! knows which.
//!
//! * [`held`]: pages read in place, from tasks that are stopped or frozen.
//! * [`Residency`]: the one truth about each page that must still come. It
//!   knows no kernel, so that it can be tested against a model.
//! * [`filler`]: places pages, in whatever address spaces need them, from any
//!   thread.
//! * [`handler`]: the thread that hears of faults, forks, moves and unmappings.
//! * [`guardian`]: the process that keeps a dead handler's descriptors open and
//!   stops the container, so that nothing ever reads a zero in place of a page.
//! * [`anchor`]: what keeps them open when that process is killed as well.
//! * [`handoff`]: how the process that restores hands its address spaces to the
//!   process that serves pages.
//! * [`serve`]: all of it together, for a source on this machine.

mod ids;
mod ranges;
mod residency;
mod source;
mod stats;
pub mod held;
pub mod filler;
pub mod fill;
pub mod handler;
pub mod guardian;
pub mod anchor;
pub mod handoff;
pub mod serve;

#[cfg(test)]
pub(crate) mod testing;

pub use filler::{Filler, Job, LazyShared, LazySpace, PastCalls, guard};
pub use handler::{Direct, Handler, OnLoss};
pub use ids::{Object, Origin, SpaceId};
pub use ranges::RangeSet;
pub use residency::{Area, Count, Fault, Piece, Residency};
pub use source::{PageReader, PageSink, PageSource, Want};
pub use stats::{Stats, Summary};
