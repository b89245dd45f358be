//! Uids, groups, capabilities, securebits, no_new_privs.

pub mod capture;
pub mod rebuild;
