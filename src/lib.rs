//! dunlin moves running OCI containers between hosts, and saves and restarts
//! them, with their memory following lazily.
//!
//! The rooms, lowest first. A room may name only rooms above it in this list;
//! `integration/layering.rs` holds it to that.
//!
//! | room | what it knows |
//! |---|---|
//! | [`base`] | words that all may use: errors, ids, limits |
//! | [`sys`] | the only `unsafe`: one kernel facility a file |
//! | [`image`] | bytes to records and back: CRIU's image format |
//! | [`memory`] | page contents: which exist, where they come from, who serves them |
//! | [`objects`] | one room per kind of kernel object: capture and rebuild |
//! | [`engine`] | freeze, dump, plan, apply |
//! | [`wire`] | our protocol: frames, session state machine, transport |
//! | [`migrate`] | phases, journal, source, destination, switch-over |
//! | [`runtime`] | what an OCI runtime knows about a container |
//! | [`face`] | a request in, a job run, a reply out |

pub mod base;
pub mod sys;
pub mod image;
pub mod memory;
pub mod objects;
pub mod engine;
pub mod wire;
pub mod migrate;
pub mod runtime;
pub mod face;
