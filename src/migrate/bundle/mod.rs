//! The bundle's root file system on its way: read at the source while the
//! container runs ([`walk`]), written below one directory at the destination
//! ([`land`]).
//!
//! Both ends distrust what they handle. The container may swap a directory for a
//! symbolic link while the source reads: each path component is opened from its
//! parent's descriptor without following links. The source may be hostile: the
//! destination resolves every path beneath its directory, follows no link, makes
//! no device, and stops at a limit.

pub mod land;
pub mod walk;

/// Longest path, bytes.
pub const MAX_PATH: usize = 4096;
/// Deepest directory.
pub const MAX_DEPTH: usize = 200;
/// Most entries.
pub const MAX_ENTRIES: u64 = 8 << 20;

#[cfg(test)]
mod tests;
