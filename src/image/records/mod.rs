//! The records of CRIU's images, and of its RPC, as plain structs.
//!
//! Names, numbers, types and labels (required, optional, repeated) are those of
//! CRIU's protocol buffers (proto2), because they are the format. So: a required
//! field is a plain value, an optional one is an `Option`, a repeated one is a
//! `Vec` that is written unpacked, an enumeration is an `i32` field whose type has
//! the same name in camel case.
//!
//! A record has no behaviour. What the numbers in it mean is known to the room of
//! the object (`objects`), to [`crate::image::pages`], and to the man page named here.
#![allow(
    missing_docs,
    reason = "most fields are named after the kernel's own field, which the man page explains"
)]

mod bpf;
mod cgroup;
mod core;
mod files;
mod memory;
mod namespaces;
mod net;
mod notify;
mod ours;
mod paths;
mod report;
pub mod rpc;
mod security;
mod shapes;
mod sockets;
mod tree;
mod tty;
mod wanted;
mod x86;

pub use bpf::*;
pub use cgroup::*;
pub use core::*;
pub use files::*;
pub use memory::*;
pub use namespaces::*;
pub use net::*;
pub use notify::*;
pub use ours::*;
pub use paths::*;
pub use report::*;
pub use security::*;
pub use sockets::*;
pub use tree::*;
pub use tty::*;
pub use wanted::{Check, Record, Refused, decode};
pub use x86::*;
