//! The process tree: pids, sessions, groups, zombies, comm, exe, personality.

pub mod capture;
pub mod rebuild;
