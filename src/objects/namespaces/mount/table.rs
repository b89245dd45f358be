//! Questions to the mount table of a container.

use crate::base::{HostPid, Result};
use crate::sys::mounts::{self, MountInfo};

/// The mounts that the root task sees, in the order of creation.
#[derive(Debug, Clone)]
pub struct MountTable {
    mounts: Vec<MountInfo>,
}

impl MountTable {
    /// Reads the table of a task.
    ///
    /// # Errors
    /// Those of [`mounts::mountinfo`].
    pub fn of(pid: HostPid) -> Result<Self> {
        Ok(Self {
            mounts: mounts::mountinfo(pid)?,
        })
    }

    /// A table from lines that were read already.
    pub fn new(mounts: Vec<MountInfo>) -> Self {
        Self { mounts }
    }

    /// All mounts.
    pub fn mounts(&self) -> &[MountInfo] {
        &self.mounts
    }

    /// The mount of this id (`mnt_id:` of fdinfo).
    pub fn by_id(&self, id: u32) -> Option<&MountInfo> {
        self.mounts.iter().find(|m| m.id == id)
    }

    /// The root mount: the one that is mounted on nothing visible.
    pub fn root(&self) -> Option<&MountInfo> {
        self.mounts
            .iter()
            .find(|m| m.mountpoint == "/" && (m.parent == m.id || self.by_id(m.parent).is_none()))
    }
}

/// Whether the absolute `path` is `top` or lies below it.
pub fn is_below(path: &str, top: &str) -> bool {
    relative(path, top).is_some()
}

/// `path` from `top` on, without leading slash; `None` if it is not below.
pub fn relative<'a>(path: &'a str, top: &str) -> Option<&'a str> {
    let rest = path.strip_prefix(top.trim_end_matches('/'))?;
    if rest.is_empty() {
        Some("")
    } else {
        rest.strip_prefix('/')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn below_means_whole_components() {
        assert_eq!(relative("/a/b", "/a"), Some("b"));
        assert_eq!(relative("/a", "/a"), Some(""));
        assert_eq!(relative("/ab", "/a"), None);
        assert_eq!(relative("/x", "/"), Some("x"));
    }
}
