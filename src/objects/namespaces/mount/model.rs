//! Where each mount of an image comes from. Dump and restore ask the same
//! function, so that a table that is written can also be built again, and what
//! cannot is refused by name while the container still runs.

use std::collections::{HashMap, HashSet};

use super::table::{is_below, relative};
use crate::base::{Error, Result};
use crate::image::records::{Fstype, MntEntry};

/// Kinds of file systems that we make anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fs {
    Proc,
    Sysfs,
    Devtmpfs,
    Tmpfs,
    Devpts,
    Mqueue,
    Cgroup,
    Cgroup2,
}

impl Fs {
    pub(super) fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "proc" => Self::Proc,
            "sysfs" => Self::Sysfs,
            "devtmpfs" => Self::Devtmpfs,
            "tmpfs" => Self::Tmpfs,
            "devpts" => Self::Devpts,
            "mqueue" => Self::Mqueue,
            "cgroup" => Self::Cgroup,
            "cgroup2" => Self::Cgroup2,
            _ => return None,
        })
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Proc => "proc",
            Self::Sysfs => "sysfs",
            Self::Devtmpfs => "devtmpfs",
            Self::Tmpfs => "tmpfs",
            Self::Devpts => "devpts",
            Self::Mqueue => "mqueue",
            Self::Cgroup => "cgroup",
            Self::Cgroup2 => "cgroup2",
        }
    }

    pub(super) fn record(self) -> Fstype {
        match self {
            Self::Proc => Fstype::Proc,
            Self::Sysfs => Fstype::Sysfs,
            Self::Devtmpfs => Fstype::Devtmpfs,
            Self::Tmpfs => Fstype::Tmpfs,
            Self::Devpts => Fstype::Devpts,
            Self::Mqueue => Fstype::Mqueue,
            Self::Cgroup => Fstype::Cgroup,
            Self::Cgroup2 => Fstype::Cgroup2,
        }
    }

    fn from_record(code: u32) -> Option<Self> {
        [
            Self::Proc,
            Self::Sysfs,
            Self::Devtmpfs,
            Self::Tmpfs,
            Self::Devpts,
            Self::Mqueue,
            Self::Cgroup,
            Self::Cgroup2,
        ]
        .into_iter()
        .find(|f| u32::try_from(f.record() as i32) == Ok(code))
    }
}

/// Where a mount comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum How {
    /// The root file system, which the caller has mounted for us.
    Root,
    /// Something of the host that the caller names by this key.
    External(String),
    /// A new instance.
    New(Fs),
    /// A part of another mount of the container (its index).
    Bind(usize),
}

/// A mount with where it comes from and its parent's index.
#[derive(Debug, Clone)]
pub(crate) struct Mount {
    pub(crate) entry: MntEntry,
    pub(crate) how: How,
    pub(crate) parent: Option<usize>,
}

/// Finds out where all mounts come from; `entries` in the order of creation.
///
/// # Errors
/// A mount that comes from nowhere we know, by its path; a table that is no
/// tree.
pub(crate) fn resolve(entries: Vec<MntEntry>) -> Result<Vec<Mount>> {
    let parents = tree(&entries)?;
    let mut hows: Vec<Option<How>> = entries
        .iter()
        .zip(&parents)
        .map(|(e, parent)| match (&e.ext_key, parent) {
            (_, None) => Some(How::Root),
            (Some(key), _) => Some(How::External(key.clone())),
            (None, _) => None,
        })
        .collect();
    for i in 0..entries.len() {
        if hows[i].is_none() {
            hows[i] = Some(origin(&entries, &hows, i)?);
        }
    }
    Ok(entries
        .into_iter()
        .zip(hows)
        .zip(parents)
        .map(|((entry, how), parent)| Mount {
            entry,
            how: how.unwrap_or(How::Root),
            parent,
        })
        .collect())
}

/// Where the mount `i`, which is neither root nor external, comes from.
fn origin(entries: &[MntEntry], hows: &[Option<How>], i: usize) -> Result<How> {
    let e = &entries[i];
    let same = |j: usize| {
        j != i && entries[j].root_dev == e.root_dev && is_below(&e.root, &entries[j].root)
    };
    let all = 0..entries.len();
    // A part of what the host provides, or of what was made before.
    let made = |h: &Option<How>| matches!(h, Some(How::Root | How::External(_) | How::New(_)));
    if let Some(j) = all.clone().find(|&j| same(j) && made(&hows[j])) {
        return Ok(How::Bind(j));
    }
    if e.root == "/"
        && let Some(fs) = Fs::from_record(e.fstype)
    {
        return Ok(How::New(fs));
    }
    // A part of an instance that stands later in the table.
    let whole = |j: usize| {
        same(j)
            && entries[j].root == "/"
            && hows[j].is_none()
            && Fs::from_record(entries[j].fstype).is_some()
    };
    if let Some(j) = all.clone().find(|&j| whole(j)) {
        return Ok(How::Bind(j));
    }
    Err(Error::refused(
        format!("mount {}", e.mountpoint),
        format!(
            "{} of {} is neither external nor a part of a file system that the container mounts whole",
            e.root, e.source
        ),
    ))
}

/// The index of each one's parent; `None` for the root.
fn tree(entries: &[MntEntry]) -> Result<Vec<Option<usize>>> {
    let mut by_id = HashMap::new();
    for (i, e) in entries.iter().enumerate() {
        let plain = e.mountpoint.starts_with('/')
            && e.root.starts_with('/')
            && ![&e.mountpoint, &e.root]
                .iter()
                .any(|p| p.split('/').any(|c| c == "." || c == ".."));
        if !plain {
            return Err(Error::image(
                format!("mount {}", e.shown()),
                "its path is not absolute and plain",
            ));
        }
        if by_id.insert(e.mnt_id, i).is_some() {
            return Err(Error::image(
                format!("mount {}", e.shown()),
                "its id occurs twice",
            ));
        }
        for (is, what) in [
            (e.with_plugin, "it was made by a plugin"),
            (e.deleted, "what is mounted was deleted"),
            (e.internal_sharing, "it shares with a mount of the host"),
            (e.ext_mount, "it is external in the way of old images"),
        ] {
            if is == Some(true) {
                return Err(Error::refused(format!("mount {}", e.mountpoint), what));
            }
        }
    }
    let mut parents = Vec::with_capacity(entries.len());
    let mut root = None;
    for (i, e) in entries.iter().enumerate() {
        let parent = by_id.get(&e.parent_mnt_id).copied().filter(|p| *p != i);
        match parent {
            Some(p) => {
                if relative(&e.mountpoint, &entries[p].mountpoint).is_none() {
                    return Err(Error::image(
                        format!("mount {}", e.shown()),
                        format!("it does not lie below its parent {}", entries[p].mountpoint),
                    ));
                }
            }
            None if e.mountpoint == "/" && root.is_none() => root = Some(i),
            None => {
                return Err(Error::refused(
                    format!("mount {}", e.shown()),
                    "what it is mounted on cannot be seen (a second root, or a mount that is skipped)",
                ));
            }
        }
        parents.push(parent);
    }
    if root.is_none() {
        return Err(Error::refused(
            "mount namespace",
            "no mount at /: the root task has another root than its namespace",
        ));
    }
    for (i, e) in entries.iter().enumerate() {
        let mut seen = HashSet::new();
        let mut at = Some(i);
        while let Some(j) = at {
            if !seen.insert(j) {
                return Err(Error::image(
                    format!("mount {}", e.shown()),
                    "it is mounted below itself",
                ));
            }
            at = parents[j];
        }
    }
    Ok(parents)
}

trait Shown {
    fn shown(&self) -> String;
}

impl Shown for MntEntry {
    fn shown(&self) -> String {
        format!("{} ({})", self.mountpoint, self.mnt_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn m(id: u32, parent: u32, dev: u32, root: &str, at: &str, fs: Fstype) -> MntEntry {
        MntEntry {
            fstype: (fs as i32).cast_unsigned(),
            mnt_id: id,
            parent_mnt_id: parent,
            root_dev: dev,
            root: root.into(),
            mountpoint: at.into(),
            ..MntEntry::default()
        }
    }

    fn container() -> Vec<MntEntry> {
        let mut null = m(9, 2, 4, "/null", "/proc/keys", Fstype::Tmpfs);
        null.ext_key = Some("/dev/null".into());
        vec![
            m(1, 99, 8, "/c/rootfs", "/", Fstype::Unsupported),
            m(2, 1, 3, "/", "/proc", Fstype::Proc),
            m(3, 1, 4, "/", "/dev", Fstype::Tmpfs),
            m(4, 2, 3, "/sys", "/proc/sys", Fstype::Proc),
            null,
            m(5, 1, 8, "/c/rootfs/data", "/again", Fstype::Unsupported),
        ]
    }

    #[test]
    fn a_runc_container_resolves_into_root_new_external_and_parts() {
        let all = resolve(container()).unwrap();
        let hows: Vec<_> = all.iter().map(|m| m.how.clone()).collect();
        assert_eq!(
            hows,
            [
                How::Root,
                How::New(Fs::Proc),
                How::New(Fs::Tmpfs),
                How::Bind(1),
                How::External("/dev/null".into()),
                How::Bind(0)
            ]
        );
    }

    #[test]
    fn a_part_of_the_host_that_nobody_declared_is_refused_by_its_path() {
        let mut c = container();
        c.push(m(7, 1, 8, "/srv/data", "/data", Fstype::Unsupported));
        let e = resolve(c).unwrap_err();
        assert!(
            e.to_string().contains("/data") && e.to_string().contains("external"),
            "{e}"
        );
    }

    #[test]
    fn a_part_whose_whole_stands_later_in_the_table_is_found() {
        let mut c = container();
        c.insert(1, m(20, 1, 11, "/x", "/part", Fstype::Tmpfs));
        c.push(m(21, 1, 11, "/", "/whole", Fstype::Tmpfs));
        let all = resolve(c).unwrap();
        assert_eq!(all[1].how, How::Bind(7));
        assert_eq!(all[7].how, How::New(Fs::Tmpfs));
    }

    #[test]
    fn tables_that_are_no_tree_are_refused() {
        let twice = |mut c: Vec<MntEntry>| {
            c[1].mnt_id = 1;
            c
        };
        let cycle = |mut c: Vec<MntEntry>| {
            c[1].parent_mnt_id = 4;
            c[1].mountpoint = "/proc/sys".into();
            c
        };
        let orphan = |mut c: Vec<MntEntry>| {
            c[2].parent_mnt_id = 77;
            c
        };
        let climbing = |mut c: Vec<MntEntry>| {
            c[2].mountpoint = "/dev/../etc".into();
            c
        };
        for broken in [
            twice(container()),
            cycle(container()),
            orphan(container()),
            climbing(container()),
            vec![],
        ] {
            resolve(broken).unwrap_err();
        }
    }
}
