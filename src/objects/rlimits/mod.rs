//! Resource limits, read without CAP_SYS_RESOURCE.

pub mod capture;
pub mod rebuild;
