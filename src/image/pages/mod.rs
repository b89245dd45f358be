//! Contents of pages: `pages-N.img`, with the pagemap that tells which they are.
//!
//! A pagemap lists runs of pages. The bytes of those that are *here* lie one after
//! the other in the pages file, in the order of the list and with nothing between.
//! All others have no bytes in it: those that an earlier image of the same tree
//! holds (`parent`, a link in the directory), those that stay behind on another
//! machine (lazy), and those that are all zero.
//!
//! A private address space is listed by address under its pid, a shared memory by
//! byte offset under its number.

mod map;
mod reader;
mod writer;

pub use map::{Held, Pagemap, Run};
pub use reader::PagesReader;
pub use writer::PagesWriter;

/// The content is in the image that `parent` points to.
pub const PE_PARENT: u32 = 1 << 0;
/// The content may come after the task has resumed; it is here only if
/// [`PE_PRESENT`] is set as well.
pub const PE_LAZY: u32 = 1 << 1;
/// The content is in the pages file.
pub const PE_PRESENT: u32 = 1 << 2;

#[cfg(test)]
mod tests;
