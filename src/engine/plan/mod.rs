//! Records to ordered steps per task; pure: nothing here touches the kernel.

pub mod tree;
mod world;
