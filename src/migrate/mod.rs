//! Moving a running container to another host, so that at most one copy runs,
//! always: phases and their journal, the source, the destination, the bundle.
//!
//! Why it is so:
//! - What happens when a process dies or a link breaks is decided by the journal
//!   alone ([`journal`]): each word that gives the container away is written and
//!   fsynced before it is said.
//! - The rooms below know how to stop, capture, rebuild; the runtime above knows
//!   what a container is. This room knows neither: it drives both through two
//!   small traits ([`ports`]), so that the protocol is tested without a kernel.
//! - Memory stays in the stopped tasks until it is wanted ([`queue`],
//!   [`pump`], [`remote`]): the pause does not grow with it.
//! - The destination takes a stranger's bundle ([`policy`], [`bundle`]): what it
//!   may bring is a list of what is allowed, never of what is forbidden.

pub mod budget;
pub mod bundle;
pub mod control;
pub mod destination;
mod destination_pages;
pub mod gate;
pub mod guard;
mod images;
pub mod journal;
pub mod loss;
pub mod pages;
pub mod policy;
pub mod ports;
pub mod probe;
pub mod pump;
pub mod queue;
pub mod remote;
pub mod source;
mod source_pages;
mod threads;

pub use threads::runtime;

#[cfg(test)]
mod tests;
