//! The vDSO and its data areas.

pub mod capture;
pub mod rebuild;
