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

    /// The mount in which a lookup of the absolute `path` ends. Symbolic links
    /// are not followed: the path must be one that the kernel printed.
    pub fn reached_by(&self, path: &str) -> Option<&MountInfo> {
        let mut at = self.root()?;
        let mut left = self.mounts.len();
        loop {
            // Of the mounts on this one the lookup meets the highest first;
            // one that is mounted deeper below it is hidden then.
            let next = self
                .mounts
                .iter()
                .filter(|m| m.parent == at.id && m.id != at.id && is_below(path, &m.mountpoint))
                .min_by_key(|m| m.mountpoint.len());
            match next {
                Some(m) if left > 0 => {
                    at = m;
                    left -= 1;
                }
                _ => return Some(at),
            }
        }
    }

    /// Whether `path`, of a file in the mount `id`, leads elsewhere by now
    /// because something else was mounted over it.
    pub fn is_overmounted(&self, path: &str, id: u32) -> bool {
        self.reached_by(path).is_none_or(|m| m.id != id)
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

    fn table() -> MountTable {
        let text = b"1 99 8:1 / / rw - ext4 d rw\n\
            2 1 0:2 / /a/b rw - tmpfs t rw\n\
            3 1 0:3 / /a rw - tmpfs t rw\n\
            4 1 0:4 / /p rw - proc p rw\n\
            5 4 0:5 / /p rw - tmpfs t rw\n\
            6 4 0:4 /sys /p/sys ro - proc p rw\n";
        MountTable::new(mounts::parse(text).unwrap())
    }

    #[test]
    fn a_path_ends_in_the_mount_that_a_lookup_would_reach() {
        let t = table();
        let ends = |p: &str| t.reached_by(p).unwrap().id;
        assert_eq!(ends("/"), 1);
        assert_eq!(ends("/ab"), 1);
        // /a was mounted later and hides /a/b, /p is covered, and so is /p/sys.
        assert_eq!(ends("/a/b/c"), 3);
        assert_eq!((ends("/p"), ends("/p/sys/x")), (5, 5));
        assert!(t.is_overmounted("/p/1", 4));
        assert!(!t.is_overmounted("/a/x", 3));
    }

    #[test]
    fn below_means_whole_components() {
        assert_eq!(relative("/a/b", "/a"), Some("b"));
        assert_eq!(relative("/a", "/a"), Some(""));
        assert_eq!(relative("/ab", "/a"), None);
        assert_eq!(relative("/x", "/"), Some("x"));
    }
}
