//! The memory map: areas, their kinds, heap, arguments, auxiliary vector, exe.

pub mod capture;
pub mod rebuild;

pub use crate::image::vma as status;

/// First address behind user space.
pub const TASK_SIZE: u64 = 0x7fff_ffff_f000;
/// MAP_DROPPABLE, mmap(2).
pub const MAP_DROPPABLE: u32 = 0x08;
