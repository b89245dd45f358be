//! Freeze and hold, dump, plan, apply.

pub mod options;
pub mod freeze;
pub mod running;
pub mod hold;
pub mod dump;
pub mod plan;
pub mod apply;
pub mod restore;
