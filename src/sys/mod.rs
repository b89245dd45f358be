//! The only room with `unsafe`: one kernel facility a file, its man page cited,
//! `OwnedFd` in and out, ABI structs proven by const assertions, and run-time
//! probes instead of kernel versions.

#![allow(unsafe_code)]

pub mod cpu;
pub mod ptrace;
pub mod steer;
pub mod clone;
pub mod pidfd;
pub mod guardian;
pub mod aio;
pub mod seqpacket;
pub mod poll;
pub mod seek;
pub mod procfs;
pub mod vm;
pub mod kcmp;
pub mod uffd;
pub mod pagemap;
pub mod procmap;
pub mod sched;
pub mod ns;
pub mod mounts;
pub mod cgroup;
pub mod shmem;
pub mod socket;
pub mod netlink;
pub mod sock_diag;
pub mod fdops;
pub mod inherited;
pub mod private;
pub mod tty;

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
pub(crate) mod testing;
