//! What pages belong to.

use std::fmt;

use serde::{Deserialize, Serialize};

/// An address space of the tree that was captured: the number of its
/// `pagemap-N.img`. A child forked after the resume has one of its own, above
/// [`SpaceId::FIRST_FORKED`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SpaceId(pub u32);

impl SpaceId {
    /// Numbers from here on are children that forked while pages were missing.
    /// pid_max never comes near.
    pub const FIRST_FORKED: u32 = 1 << 31;
}

/// What a source is asked for: pages of an address space as it was captured, or
/// of a shared memory object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Object {
    /// Private memory; positions are addresses at the time of capture.
    Private(SpaceId),
    /// Shared anonymous memory, by the number of its `pagemap-shmem-N.img`;
    /// positions are byte offsets into it.
    Shared(u32),
}

/// Where a page's content comes from: byte position `at` in `object`, a
/// multiple of the page size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin {
    /// Whose page.
    pub object: Object,
    /// Byte position.
    pub at: u64,
}

impl fmt::Display for SpaceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Private(space) => write!(f, "address space {space}"),
            Self::Shared(id) => write!(f, "shared memory {id}"),
        }
    }
}
