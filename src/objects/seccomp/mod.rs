//! Seccomp mode and filters.

pub mod capture;
pub mod rebuild;
