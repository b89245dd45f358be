//! What the host provides for mounts of a container.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use super::{Plan, open_path};
use crate::base::Result;
use crate::image::records::MntEntry;
use crate::objects::namespaces::mount::model::{Fs, How, Mount};
use crate::sys::cgroup::{self, Hierarchies, Member};

/// What is asked for many mounts and told once.
pub(super) struct Host {
    hierarchies: Hierarchies,
    /// The cgroups that this task is in.
    now: Vec<Member>,
}

impl Host {
    pub(super) fn now() -> Result<Self> {
        Ok(Self {
            hierarchies: Hierarchies::now(),
            now: cgroup::own_membership()?,
        })
    }
}

impl Plan {
    /// Where the host has what it provides for this mount, if it does.
    pub(super) fn place_on_host(
        &self,
        i: usize,
        m: &Mount,
        host: &Host,
    ) -> Result<Option<OwnedFd>> {
        match &m.how {
            How::Root => open_path(&self.root).map(Some),
            How::External(_) => self
                .sources
                .get(&i)
                .map(|source| self.source_place(m, source, host))
                .transpose(),
            How::New(_) | How::Bind(_) => Ok(None),
        }
    }

    /// Where `source` is. Where the container had its own cgroup mounted, it is
    /// the one that it is in now: runc names the one that runc is in itself, or
    /// the root, and the container would see more than before.
    fn source_place(&self, m: &Mount, source: &Path, host: &Host) -> Result<OwnedFd> {
        let top = open_path(source)?;
        let fstype = i32::try_from(m.entry.fstype).unwrap_or(-1);
        let is_cgroup =
            fstype == Fs::Cgroup.record() as i32 || fstype == Fs::Cgroup2.record() as i32;
        let hierarchy = self
            .cgroups
            .iter()
            .find(|(name, _)| names_hierarchy(name, &m.entry));
        let Some((name, _)) = hierarchy.filter(|(_, was)| is_cgroup && m.entry.root == **was)
        else {
            return Ok(top);
        };
        match host.now.iter().find(|n| n.name == *name) {
            Some(now) if now.path != "/" && host.hierarchies.has_mount_of(top.as_fd())? => {
                Ok(host.hierarchies.open(now)?.into())
            }
            _ => Ok(top),
        }
    }
}

fn names_hierarchy(name: &str, e: &MntEntry) -> bool {
    let options: Vec<&str> = e.options.split(',').collect();
    if name.is_empty() {
        return i32::try_from(e.fstype) == Ok(Fs::Cgroup2.record() as i32);
    }
    name.split(',').all(|c| options.contains(&c))
}
