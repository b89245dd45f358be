//! The namespaces of a running container as records.

use std::path::PathBuf;

use tracing::debug;

use super::ids::Ids;
use super::mount::capture::{self as mounts, Declared, Mounts};
use super::mount::{MountTable, content};
use super::{external, ipc, net, time};
use crate::base::{Error, HostPid, Result};
use crate::image::records::{NetnsEntry, TaskKobjIdsEntry, UtsnsEntry};
use crate::image::{Kind as Image, Set};
use crate::sys::ns::{self, Kind};

/// What the caller says of namespaces and mounts.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    /// Mountpoint in the container to the key that names it at the restore.
    pub ext_mnt: Vec<(String, String)>,
    /// `mnt[MOUNTPOINT]:KEY`, `net[INODE]:KEY` and others, as typed.
    pub external: Vec<String>,
    /// Mountpoints that are left out.
    pub skip_mnt: Vec<PathBuf>,
    /// CLONE_NEW* bits of namespaces whose content is not carried.
    pub empty_ns: u64,
}

/// What is done about the network namespace.
#[derive(Debug)]
enum Net {
    /// It is ours.
    Shared,
    /// Made anew, without content, as `--empty-ns` says.
    Empty,
    /// The caller provides it under this key.
    External(String),
    /// The container's own, with nothing but `lo`.
    Own(Box<net::Content>),
}

/// The namespaces of one container, looked at but not yet written.
#[derive(Debug)]
pub struct Capture {
    root: HostPid,
    ids: Ids,
    net: Net,
    mounts: Option<Mounts>,
    table: MountTable,
}

impl Capture {
    /// Looks at the namespaces of the root task and refuses, by name, what
    /// cannot be carried. Reads only; may be done before the freeze to fail
    /// early, and must be done in it.
    ///
    /// # Errors
    /// Anything that is not carried; those of reading /proc.
    pub fn new(root: HostPid, policy: &Policy) -> Result<Self> {
        let ids = Ids::of_tree(root)?;
        if ids.is_private(Kind::User) {
            return Err(Error::refused(
                format!(
                    "user namespace {} of task {root}",
                    ids.root_inode(Kind::User)
                ),
                "user namespaces are not carried yet",
            ));
        }
        let net = network(root, &ids, policy)?;
        let own_cgroup_ns = ids.is_private(Kind::Cgroup);
        let (mounts, table) = if ids.is_private(Kind::Mnt) {
            let declared = Declared {
                external: external::mounts(&policy.ext_mnt, &policy.external)?,
                skip: policy.skip_mnt.clone(),
            };
            let all = mounts::read(root, &declared, own_cgroup_ns)?;
            let table = all.table.clone();
            (Some(all), table)
        } else {
            (None, MountTable::of(root)?)
        };
        Ok(Self {
            root,
            ids,
            net,
            mounts,
            table,
        })
    }

    /// Numbers of the namespaces.
    pub fn ids(&self) -> &Ids {
        &self.ids
    }

    /// `root_ids` of the inventory.
    pub fn own_ids(&self) -> TaskKobjIdsEntry {
        self.ids.own()
    }

    /// Fills in the namespace fields of a task.
    ///
    /// # Errors
    /// A nested namespace, by name.
    pub fn fill_ids(&self, pid: HostPid, entry: &mut TaskKobjIdsEntry) -> Result<()> {
        self.ids.fill(pid, entry)
    }

    /// Writes all records. The tasks are stopped.
    ///
    /// # Errors
    /// Objects in namespaces that are not carried; those of the kernel.
    pub fn capture(&self, set: &mut Set) -> Result<()> {
        let root = self.root;
        if self.ids.is_private(Kind::Uts) {
            let (nodename, domainname) = ns::inside(root, &[Kind::Uts], ns::uts_names)?;
            set.put(
                Image::Utsns,
                self.ids.root_id(Kind::Uts),
                &UtsnsEntry {
                    nodename,
                    domainname,
                },
            );
        }
        if self.ids.is_private(Kind::Ipc) {
            set.put(
                Image::IpcnsVar,
                self.ids.root_id(Kind::Ipc),
                &ipc::capture(root)?,
            );
        }
        match &self.net {
            Net::Shared => {}
            Net::Empty => {
                if net::empty::capture(root)? {
                    net::empty::write(self.ids.root_id(Kind::Net), set);
                }
            }
            Net::External(key) => {
                let entry = NetnsEntry {
                    ext_key: Some(key.clone()),
                    ..NetnsEntry::default()
                };
                set.put(Image::Netns, self.ids.root_id(Kind::Net), &entry);
            }
            Net::Own(content) => net::write(content, self.ids.root_id(Kind::Net), set)?,
        }
        if let Some(mounts) = &self.mounts {
            mounts::write(mounts, self.ids.root_id(Kind::Mnt), set);
            content::capture(root, mounts, set)?;
        }
        // Last, so that the time of the capture counts as little as possible.
        let time = if self.ids.is_private(Kind::Time) {
            self.ids.root_id(Kind::Time)
        } else {
            0
        };
        set.put(Image::Timens, time, &time::capture(root)?);
        debug!(mounts = self.table.mounts().len(), "namespaces captured");
        Ok(())
    }
}

fn network(root: HostPid, ids: &Ids, policy: &Policy) -> Result<Net> {
    if !ids.is_private(Kind::Net) {
        return Ok(Net::Shared);
    }
    let inode = ids.root_inode(Kind::Net);
    if let Some(key) = external::of_namespace(Kind::Net, inode, &policy.external) {
        return Ok(Net::External(key));
    }
    if policy.empty_ns & Kind::Net.flag() != 0 {
        return Ok(Net::Empty);
    }
    let content = net::capture(root).map_err(|e| {
        e.within(format!(
            "network namespace {inode}, which is neither external (net[INODE]:KEY) nor empty (--empty-ns net)"
        ))
    })?;
    debug!("network namespace {inode} has nothing but lo");
    Ok(Net::Own(Box::new(content)))
}
