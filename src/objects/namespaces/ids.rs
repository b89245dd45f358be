//! Small numbers for namespaces, as images use them.
//!
//! Our own namespaces are numbered first, then those of the root task; a
//! namespace that both share has one number. So a reader finds out which
//! namespaces a container has of its own by comparing `root_ids` of the
//! inventory with the ids of the root task.

use std::collections::HashMap;

use crate::base::{Error, HostPid, Result};
use crate::image::records::TaskKobjIdsEntry;
use crate::sys::ns::{self, Kind};

/// Numbers of all namespaces of a dump.
#[derive(Debug)]
pub struct Ids {
    numbers: HashMap<(Kind, u64), u32>,
    own: HashMap<Kind, u64>,
    root: HashMap<Kind, u64>,
}

impl Ids {
    /// Numbers our namespaces and those of the root task.
    ///
    /// # Errors
    /// ENOENT when the task is gone.
    pub fn of_tree(root: HostPid) -> Result<Self> {
        let mut ids = Self {
            numbers: HashMap::new(),
            own: HashMap::new(),
            root: HashMap::new(),
        };
        for kind in Kind::ALL {
            let inode = ns::own_inode(kind)?;
            ids.number(kind, inode);
            ids.own.insert(kind, inode);
        }
        for kind in Kind::ALL {
            let inode = ns::inode(root, kind)?;
            ids.number(kind, inode);
            ids.root.insert(kind, inode);
        }
        Ok(ids)
    }

    fn number(&mut self, kind: Kind, inode: u64) {
        let next = u32::try_from(self.numbers.len()).unwrap_or(u32::MAX - 1) + 1;
        self.numbers.entry((kind, inode)).or_insert(next);
    }

    /// The number of the root task's namespace of `kind`.
    pub fn root_id(&self, kind: Kind) -> u32 {
        let inode = self.root_inode(kind);
        self.numbers.get(&(kind, inode)).copied().unwrap_or(0)
    }

    /// The inode of the root task's namespace of `kind`.
    pub fn root_inode(&self, kind: Kind) -> u64 {
        self.root.get(&kind).copied().unwrap_or(0)
    }

    /// Whether the container has a namespace of `kind` of its own.
    pub fn is_private(&self, kind: Kind) -> bool {
        self.root.get(&kind) != self.own.get(&kind)
    }

    /// `root_ids` of the inventory: our own.
    pub fn own(&self) -> TaskKobjIdsEntry {
        let mut entry = TaskKobjIdsEntry {
            vm_id: 1,
            files_id: 1,
            fs_id: 1,
            sighand_id: 1,
            ..TaskKobjIdsEntry::default()
        };
        for kind in Kind::ALL {
            let inode = self.own.get(&kind).copied().unwrap_or(0);
            *slot(&mut entry, kind) = self.numbers.get(&(kind, inode)).copied();
        }
        entry
    }

    /// Fills in the namespace fields of a task.
    ///
    /// # Errors
    /// A namespace that is neither the root task's nor ours, by name.
    pub fn fill(&self, pid: HostPid, entry: &mut TaskKobjIdsEntry) -> Result<()> {
        for kind in Kind::ALL {
            let inode = ns::inode(pid, kind)?;
            let number = self.numbers.get(&(kind, inode)).copied();
            if number.is_none() || self.root.get(&kind) != Some(&inode) {
                return Err(nested(pid, kind, inode));
            }
            if matches!(kind, Kind::Time | Kind::Pid) {
                let children = ns::inode_for_children(pid, kind)?;
                if children != inode {
                    return Err(nested(pid, kind, children));
                }
            }
            *slot(entry, kind) = number;
        }
        Ok(())
    }
}

fn nested(pid: HostPid, kind: Kind, inode: u64) -> Error {
    Error::refused(
        format!("{} namespace {inode} of task {pid}", kind.name()),
        "it is not the root task's: nested namespaces are not carried",
    )
}

/// The field of a namespace kind.
pub(super) fn slot(entry: &mut TaskKobjIdsEntry, kind: Kind) -> &mut Option<u32> {
    match kind {
        Kind::Pid => &mut entry.pid_ns_id,
        Kind::Net => &mut entry.net_ns_id,
        Kind::Ipc => &mut entry.ipc_ns_id,
        Kind::Uts => &mut entry.uts_ns_id,
        Kind::Time => &mut entry.time_ns_id,
        Kind::Mnt => &mut entry.mnt_ns_id,
        Kind::User => &mut entry.user_ns_id,
        Kind::Cgroup => &mut entry.cgroup_ns_id,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_in_our_namespaces_has_our_numbers_in_the_order_of_the_images() {
        let me = HostPid(i32::try_from(std::process::id()).unwrap());
        let ids = Ids::of_tree(me).unwrap();
        let mut entry = ids.own();
        assert_eq!(
            (entry.pid_ns_id, entry.net_ns_id, entry.mnt_ns_id),
            (Some(1), Some(2), Some(6))
        );
        assert_eq!((entry.time_ns_id, entry.cgroup_ns_id), (Some(5), Some(8)));
        let before = entry.clone();
        ids.fill(me, &mut entry).unwrap();
        assert_eq!(before, entry);
        assert!(Kind::ALL.iter().all(|k| !ids.is_private(*k)));
    }
}
