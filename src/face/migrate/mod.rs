//! `dunlin migrate`, `dunlin receive`, `dunlin resolve`: a migration with runc at
//! both ends. This is where [`crate::migrate`]'s ports are put on engine and
//! runtime.

mod args;
mod cgroups;
mod container;
mod eager;
mod host;
mod mapped;
mod move_away;
mod orphan;
mod receive;
mod resolve;
mod sizes;

use super::Failure;

/// `dunlin migrate ID HOST:PORT ...`.
///
/// # Errors
/// Wrong usage, or whatever stopped the migration.
pub(super) fn migrate(args: &[String]) -> Result<(), Failure> {
    move_away::main(args)
}

/// `dunlin receive --listen HOST:PORT --dir DIR ...`.
///
/// # Errors
/// Wrong usage, or whatever stopped it.
pub(super) fn receive(args: &[String]) -> Result<(), Failure> {
    receive::main(args)
}

/// `dunlin resolve [--list] ID ...`.
///
/// # Errors
/// Wrong usage, or what only a person can decide.
pub(super) fn resolve(args: &[String]) -> Result<(), Failure> {
    resolve::main(args)
}

/// The hidden command of [`crate::migrate::guard`].
///
/// # Errors
/// What could not be settled.
pub(super) fn guard(args: &[String]) -> Result<(), Failure> {
    resolve::guard(args)
}
