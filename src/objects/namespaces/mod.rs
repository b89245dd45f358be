//! Namespaces: mount, pid, network, UTS, IPC, cgroup, time.
//!
//! A container has some namespaces of its own and shares others with us.
//! Images tell which by small numbers ([`ids`]). Capture reads from outside,
//! on threads that enter a namespace for a moment; rebuild runs as our own
//! code in the first task of the restored tree, before it becomes a task of
//! the container.

mod capture;
mod external;
pub mod ids;
mod ipc;
mod mount;
mod net;
mod rebuild;
mod time;

pub use capture::{Capture, Policy as CapturePolicy};
pub use mount::{MountTable, is_below, relative};
pub use rebuild::{Phase, Plan, Policy as RebuildPolicy};
