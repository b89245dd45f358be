//! The content of a tmpfs, as CRIU keeps it: a tar archive, compressed by gzip.
//!
//! Written and read in this process: starting `tar` costs more than a small tmpfs
//! takes. What is written is GNU tar's format (so that CRIU's `tar --extract` reads
//! it), with times in nanoseconds and extended attributes in PAX records before the
//! members; what is read is that, and PAX and old GNU archives as others write them.
//!
//! An archive may be forged. Nothing is written but below the directory that is
//! given: each part of a path is opened without following links, `..` and absolute
//! paths are refused, lengths are limited before anything is allocated.

mod pack;
mod stream;
mod unpack;

pub use pack::pack;
pub use unpack::unpack;

/// Bytes of a header, and the unit that contents are padded to.
const BLOCK: usize = 512;
/// Most bytes of extended records before one member.
const MAX_EXTENDED: u64 = 4 << 20;
/// Longest path, as for the kernel.
const MAX_PATH: usize = 4096;
/// Most members of an archive.
const MAX_MEMBERS: usize = 1 << 20;
/// Most pieces of a sparse file.
const MAX_PIECES: usize = 1 << 20;
/// Most bytes of contents of an archive.
const MAX_CONTENT: u64 = 1 << 40;

#[cfg(test)]
mod tests;
