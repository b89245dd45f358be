//! Peer groups and masters: mount_namespaces(7), "shared subtrees".
//!
//! All mounts are private while the tree is put together, so that nothing is
//! mounted twice by propagation; the groups are made at the end, masters
//! before their slaves. A master outside the container can only be reached
//! through a source that the host provides: such mounts are made slaves of
//! their source before all else turns private, and stay so.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};

use super::flags;
use super::model::{How, Mount};
use crate::base::{Error, Result, ResultExt};
use crate::sys::mounts::{self, Propagation};

/// A peer group with the group that it receives from; 0 is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Group {
    shared: u32,
    master: u32,
}

fn group(m: &Mount) -> Group {
    Group {
        shared: m.entry.shared_id.unwrap_or(0),
        master: m.entry.master_id.unwrap_or(0),
    }
}

/// Groups of mounts, in the order in which they can be made.
#[derive(Debug)]
pub(super) struct Sharing {
    groups: Vec<(Group, Vec<usize>)>,
    inside: BTreeSet<u32>,
}

impl Sharing {
    /// Finds the groups.
    ///
    /// # Errors
    /// Masters in a circle; a member of a group whose root does not lie below
    /// that of the first (the kernel cannot join those); a master outside that
    /// no source of the host leads to.
    pub(super) fn of(all: &[Mount]) -> Result<Self> {
        let mut members: BTreeMap<Group, Vec<usize>> = BTreeMap::new();
        for (i, m) in all.iter().enumerate() {
            let g = group(m);
            if g.shared != 0 || g.master != 0 {
                members.entry(g).or_default().push(i);
            }
        }
        let inside: BTreeSet<u32> = members
            .keys()
            .map(|g| g.shared)
            .filter(|s| *s != 0)
            .collect();
        for list in members.values_mut() {
            list.sort_by_key(|&i| all[i].entry.root.len());
        }
        let mut groups = Vec::new();
        let mut made = BTreeSet::new();
        while !members.is_empty() {
            let ready = members
                .keys()
                .find(|g| g.master == 0 || !inside.contains(&g.master) || made.contains(&g.master))
                .copied();
            let Some(g) = ready else {
                return Err(Error::image("mounts", "their masters form a circle"));
            };
            let list = members.remove(&g).unwrap_or_default();
            check(g, &list, all, &inside)?;
            made.insert(g.shared);
            groups.push((g, list));
        }
        Ok(Self { groups, inside })
    }

    /// Whether the mount receives from a group outside the container.
    pub(super) fn has_outer_master(&self, m: &Mount) -> bool {
        let g = group(m);
        g.master != 0 && !self.inside.contains(&g.master)
    }

    /// Makes all groups; `fds` are the attached mounts.
    pub(super) fn make(&self, all: &[Mount], fds: &[OwnedFd]) -> Result<()> {
        for (g, list) in &self.groups {
            let Some((&first, others)) = list.split_first() else {
                continue;
            };
            let at = || format!("sharing of mount {}", all[first].entry.mountpoint);
            if self.inside.contains(&g.master)
                && let Some(&master) = self.members(g.master).and_then(|l| l.first())
            {
                mounts::join_group(fds[first].as_fd(), fds[master].as_fd()).context(at)?;
                mounts::set_propagation(fds[first].as_fd(), Propagation::Slave, false)
                    .context(at)?;
            }
            if g.shared == 0 {
                // Slaves that nobody receives from: each for itself.
                for &i in others.iter().filter(|_| self.inside.contains(&g.master)) {
                    mounts::join_group(fds[i].as_fd(), fds[first].as_fd()).context(at)?;
                }
                continue;
            }
            mounts::set_propagation(fds[first].as_fd(), Propagation::Shared, false).context(at)?;
            for &i in others {
                mounts::join_group(fds[i].as_fd(), fds[first].as_fd()).context(at)?;
            }
        }
        for (m, fd) in all.iter().zip(fds) {
            if m.entry.flags & flags::UNBINDABLE != 0 {
                mounts::set_propagation(fd.as_fd(), Propagation::Unbindable, false)
                    .context(|| format!("mount {}", m.entry.mountpoint))?;
            }
        }
        Ok(())
    }

    fn members(&self, shared: u32) -> Option<&Vec<usize>> {
        self.groups
            .iter()
            .find(|(g, _)| g.shared == shared)
            .map(|(_, l)| l)
    }
}

fn check(g: Group, list: &[usize], all: &[Mount], inside: &BTreeSet<u32>) -> Result<()> {
    let Some((&first, others)) = list.split_first() else {
        return Ok(());
    };
    let outer = g.master != 0 && !inside.contains(&g.master);
    for &i in list {
        let m = &all[i];
        let leads_out = match m.how {
            How::Root | How::External(_) => true,
            How::Bind(j) => group(&all[j]).master == g.master,
            How::New(_) => false,
        };
        if outer && !leads_out {
            return Err(Error::refused(
                format!("mount {}", m.entry.mountpoint),
                "it receives mounts from a group outside that nothing of the host's leads to",
            ));
        }
    }
    if g.shared == 0 && outer {
        return Ok(());
    }
    for &i in others {
        if !super::is_below(&all[i].entry.root, &all[first].entry.root) {
            return Err(Error::refused(
                format!("mount {}", all[i].entry.mountpoint),
                format!(
                    "it shares with {}, which does not contain it",
                    all[first].entry.mountpoint
                ),
            ));
        }
    }
    Ok(())
}
