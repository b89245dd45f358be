//! Registers, extended state, rseq, robust lists, interrupted system calls.

pub mod capture;
pub mod rebuild;
