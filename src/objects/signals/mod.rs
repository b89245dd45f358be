//! Actions, masks, pending queues, alternate stacks.

pub mod capture;
pub mod rebuild;
