//! The memory map: areas, their kinds, brk, arguments, auxv, exe.

pub mod capture;
pub mod rebuild;
