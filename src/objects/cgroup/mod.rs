//! Membership in control groups, and their properties: cgroups(7).
//!
//! Tasks with the same cgroups in all hierarchies form a set; each thread's
//! record names its set. For the directories of the tree, the properties that
//! limit it are written down too, so that a restore can make them where they
//! are missing.

mod capture;
mod place;
mod properties;
mod rebuild;
mod strangers;

pub use capture::Cgroups;
pub use place::enter_namespace;
pub use rebuild::{Made, Plan};
pub use strangers::Outside;

/// How directories and properties are treated; CRIU's words.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Membership and properties are not touched.
    Ignore,
    /// Directories are made where missing; properties only of those we made.
    #[default]
    Soft,
    /// Directories must exist, properties are not touched.
    None,
    /// Directories must exist, properties are set.
    Props,
    /// Directories are made where missing, properties always set.
    Full,
    /// Directories must not exist yet; properties are set.
    Strict,
}
