//! Bytes to records and back: CRIU's image format 1.1.
//!
//! An image is a directory. Its small files are held in memory as a [`Set`], so
//! that one and the same value goes to disk or over a connection, and nothing of
//! it touches a disk while a container is stopped. Page contents are too large
//! for that: [`pages`] reads and writes them as streams.
//!
//! Everything here reads bytes that may have been damaged or forged: a decoder
//! returns an error that names file and record, never panics, and never sizes an
//! allocation by a number that it has read.

pub mod archive;
mod dir;
mod frame;
mod kind;
pub mod pages;
pub mod records;
mod set;
mod verify;
pub mod vma;

pub use frame::Entry;
pub use kind::{IdForm, Kind, Magic};
pub use set::Set;
pub use verify::{VERSION, task_state};

#[cfg(test)]
mod hostile_tests;
