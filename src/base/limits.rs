//! Limits on lengths that come from outside (images, peers, steered tasks).
//! Nothing foreign sizes an allocation unless it stayed under one of these.

/// Largest protobuf record in an image or a request, bytes.
pub const MAX_RECORD: usize = 64 << 20;
/// Largest image file that is kept in memory, bytes (pages files are not).
pub const MAX_IMAGE_FILE: u64 = 1 << 30;
/// Most tasks in a tree.
pub const MAX_TASKS: usize = 1 << 16;
