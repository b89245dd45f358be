//! Interval timers and POSIX timers.

pub mod capture;
pub mod rebuild;
