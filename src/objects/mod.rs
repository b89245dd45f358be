//! One room per kind of kernel object: capture and rebuild side by side.

pub mod task;
pub mod thread;
pub mod credentials;
pub mod signals;
pub mod timers;
pub mod seccomp;
pub mod rlimits;
pub mod mm;
pub mod vdso;
pub mod files;
pub mod sockets;
pub mod namespaces;
pub mod cgroup;
