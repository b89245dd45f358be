//! Open files: which descriptors a task has, what stands behind each, and how
//! both come back.
//!
//! Capture looks from outside: each descriptor of a stopped task is duplicated
//! into dunlin and asked there, so no code runs in the task and nothing of it
//! changes. Rebuild is the mirror image: dunlin opens every file itself (it is
//! the *holder*), and the tasks fetch duplicates. Only what belongs to a task
//! rather than to a file (members of an epoll set, owners, POSIX locks) is left
//! as calls for the task to make.
//!
//! What cannot be carried is refused before anything has changed, by the name
//! of the task, the descriptor and the thing. The kinds are a closed enum, so a
//! new kind of the kernel's is refused too.

mod anonymous;
mod capture;
mod epoll;
mod fdinfo;
mod ghost;
mod holder;
mod identity;
mod kind;
mod linked;
mod locks;
mod memfd;
mod owner;
mod path;
mod pipe;
mod plan;
mod program;
mod terminal;

#[cfg(test)]
mod tests;

pub use capture::{Capture, Mapped, Policy, same_table};
pub use holder::Holder;
pub use memfd::Contents;
pub use plan::{Call, CallArg, Descriptor, Plan, RestorePolicy};
pub use terminal::{Owner, Pair, numbers as terminal_numbers, rebuild as rebuild_terminal};
