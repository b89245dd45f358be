//! Mount namespaces: the table of a container, where each mount comes from,
//! what is in its temporary file systems, and all of it made again.

pub(crate) mod capture;
pub(crate) mod content;
pub(crate) mod flags;
pub(crate) mod model;
pub(crate) mod rebuild;
mod sharing;
mod table;

pub use table::{MountTable, is_below, relative};
