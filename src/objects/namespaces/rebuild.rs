//! The namespaces of a container made again.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use tracing::debug;

use super::ids::slot;
use super::mount::rebuild as mounts;
use super::{external, ipc, net, time};
use crate::base::{Error, Result, ResultExt};
use crate::image::records::{
    CgroupEntry, CoreEntry, InventoryEntry, IpcMsgEntry, IpcSemEntry, IpcShmEntry, IpcVarEntry,
    NetnsEntry, PstreeEntry, Record, TaskKobjIdsEntry, TimensEntry, UtsnsEntry,
};
use crate::image::{Kind as Image, Set};
use crate::sys::ns::{self, Kind};

/// What the caller provides, and how it wants things.
#[derive(Debug, Default)]
pub struct Policy<'a> {
    /// Key to source on this host.
    pub ext_mnt: Vec<(String, String)>,
    /// `mnt[KEY]:SOURCE` and others, as typed.
    pub external: Vec<String>,
    /// Descriptors by key; a network namespace is one of them.
    pub inherit: Vec<(String, BorrowedFd<'a>)>,
    /// Where the root file system is mounted.
    pub root: Option<PathBuf>,
    /// Kind, file or pid, more: namespaces to join instead of making them.
    pub join_ns: Vec<(String, String, Option<String>)>,
    /// CLONE_NEW* bits of namespaces that are made without content.
    pub empty_ns: u64,
}

/// Steps of [`Plan::in_root`], for whoever measures them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Existing namespaces are entered.
    Join,
    /// Names, limits, clocks, root of cgroups.
    Settings,
    /// Mounts are made and pivoted into.
    Mounts,
    /// All is done.
    Done,
}

/// What is to be made; nothing of it has been touched yet.
#[derive(Debug)]
pub struct Plan {
    private: Vec<Kind>,
    join: Vec<(Kind, OwnedFd)>,
    uts: Option<UtsnsEntry>,
    net: Option<net::Content>,
    /// `lo` of an empty network namespace was up.
    lo_up: bool,
    ipc: Option<IpcVarEntry>,
    time: Option<TimensEntry>,
    mounts: Option<mounts::Plan>,
    cgroup_root: Option<Vec<(String, String)>>,
}

impl Plan {
    /// Reads and checks all records of namespaces.
    ///
    /// # Errors
    /// Missing or contradictory records, namespaces that are not carried,
    /// things that the caller must provide and does not; each by name.
    pub fn read(set: &Set, policy: &Policy<'_>) -> Result<Self> {
        let inventory: InventoryEntry = set.require(Image::Inventory, 0)?;
        let mut ours = inventory.root_ids.clone().unwrap_or_default();
        let mut theirs = root_ids(set)?;
        let private: Vec<Kind> = Kind::ALL
            .into_iter()
            .filter(|k| {
                slot(&mut theirs, *k).is_some() && slot(&mut theirs, *k) != slot(&mut ours, *k)
            })
            .collect();
        let id = |kind: Kind| slot(&mut theirs.clone(), kind).unwrap_or(0);
        let has = |kind: Kind| private.contains(&kind);
        if has(Kind::User) {
            return Err(Error::refused(
                "user namespace",
                "user namespaces are not carried yet",
            ));
        }

        let mut join = joined(&policy.join_ns)?;
        let joins_net = join.iter().any(|(k, _)| *k == Kind::Net);
        let (mut net, mut lo_up) = (None, false);
        if has(Kind::Net) && !joins_net {
            match set.get::<NetnsEntry>(Image::Netns, id(Kind::Net))? {
                Some(NetnsEntry {
                    ext_key: Some(key), ..
                }) => join.push((Kind::Net, provided(&key, policy)?)),
                Some(settings) if policy.empty_ns & Kind::Net.flag() == 0 => {
                    net = Some(net::read(set, id(Kind::Net), settings)?);
                }
                Some(_) => {}
                None => lo_up = net::empty::read(set, id(Kind::Net))?,
            }
        }

        let uts = has(Kind::Uts)
            .then(|| set.require(Image::Utsns, id(Kind::Uts)))
            .transpose()?;
        let ipc = if has(Kind::Ipc) {
            no_objects::<IpcShmEntry>(set, Image::IpcnsShm, id(Kind::Ipc))?;
            no_objects::<IpcMsgEntry>(set, Image::IpcnsMsg, id(Kind::Ipc))?;
            no_objects::<IpcSemEntry>(set, Image::IpcnsSem, id(Kind::Ipc))?;
            Some(set.require(Image::IpcnsVar, id(Kind::Ipc))?)
        } else {
            None
        };
        let time: Option<TimensEntry> = if has(Kind::Time) {
            Some(set.require(Image::Timens, id(Kind::Time))?)
        } else {
            set.get(Image::Timens, 0)?
        };
        if let Some(t) = &time {
            time::value(&t.monotonic)?;
            time::value(&t.boottime)?;
        }

        let members = root_cgroups(set)?;
        let mounts = if has(Kind::Mnt) {
            let given = external::mounts(&policy.ext_mnt, &policy.external)?;
            let cgroups: HashMap<_, _> = members
                .iter()
                .map(|(n, p, _)| (n.clone(), p.clone()))
                .collect();
            Some(mounts::Plan::read(
                set,
                id(Kind::Mnt),
                &given,
                policy.root.as_deref(),
                cgroups,
            )?)
        } else {
            None
        };
        let cgroup_root = has(Kind::Cgroup).then(|| {
            members
                .iter()
                .filter_map(|(name, path, prefix)| {
                    // What lies below the root that the container sees.
                    Some((
                        name.clone(),
                        path.get(usize::try_from((*prefix)?).ok()?..)?.to_owned(),
                    ))
                })
                .collect()
        });
        Ok(Self {
            private,
            join,
            uts,
            net,
            lo_up,
            ipc,
            time,
            mounts,
            cgroup_root,
        })
    }

    /// CLONE_NEW* bits for the root task. Time and cgroup namespaces are made
    /// later, by the task itself: their content must be right before it enters.
    pub fn clone_flags(&self) -> u64 {
        self.private
            .iter()
            .filter(|k| !matches!(k, Kind::Time | Kind::Cgroup | Kind::User))
            .filter(|k| !self.join.iter().any(|(j, _)| j == *k))
            .fold(0, |flags, k| flags | k.flag())
    }

    /// Whether the container has a namespace of this kind of its own.
    pub fn is_private(&self, kind: Kind) -> bool {
        self.private.contains(&kind)
    }

    /// Whether the container has any namespace of its own.
    pub fn any_private(&self) -> bool {
        !self.private.is_empty()
    }

    /// A last look at what the host must provide, before anything is made.
    ///
    /// # Errors
    /// A missing root or source, by path.
    pub fn before_clone(&self) -> Result<()> {
        self.mounts
            .as_ref()
            .map_or(Ok(()), mounts::Plan::check_host)
    }

    /// Makes everything, in the root task just cloned with
    /// [`Plan::clone_flags`]: single-threaded, in the cgroups of the container.
    /// Afterwards `/` is the container's, and /proc of its pid namespace is
    /// where the container has it.
    ///
    /// # Errors
    /// Those of the kernel, with the mount or setting they befell; the task is
    /// of no use then. Returns the masters of the container's terminals.
    pub fn in_root(&self, notify: &mut dyn FnMut(Phase)) -> Result<Vec<OwnedFd>> {
        let mut masters = Vec::new();
        notify(Phase::Join);
        for (kind, fd) in &self.join {
            ns::enter(fd.as_fd(), *kind)?;
        }
        notify(Phase::Settings);
        if let Some(uts) = &self.uts {
            ns::set_uts_names(&uts.nodename, &uts.domainname)?;
        }
        if let Some(net) = &self.net {
            net::rebuild(net)?;
        }
        if self.lo_up {
            net::empty::rebuild()?;
        }
        if let Some(ipc) = &self.ipc {
            ipc::rebuild(ipc)?;
        }
        if let Some(time) = &self.time {
            time::rebuild(time)?;
        }
        if let Some(below) = &self.cgroup_root {
            crate::objects::cgroup::enter_namespace(below)?;
        }
        if let Some(mounts) = &self.mounts {
            notify(Phase::Mounts);
            masters = mounts.assemble()?;
        }
        notify(Phase::Done);
        debug!(private = ?self.private, "namespaces made");
        Ok(masters)
    }
}

/// The network namespace that the caller provides under `key`.
fn provided(key: &str, policy: &Policy<'_>) -> Result<OwnedFd> {
    let given = policy.inherit.iter().find(|(k, _)| k == key);
    let (_, fd) = given.ok_or_else(|| {
        Error::caller(
            "external network namespace",
            format!("no descriptor is inherited under its key {key}"),
        )
    })?;
    fd.try_clone_to_owned()
        .context(|| format!("duplicate {key}"))
}

/// Refuses an image that holds System V objects of a kind.
fn no_objects<T: Record>(set: &Set, kind: Image, id: u32) -> Result<()> {
    if set.entries::<T>(kind, id)?.is_empty() {
        return Ok(());
    }
    Err(Error::refused(
        kind.file_name(id),
        "System V objects are not carried yet",
    ))
}

/// The ids of the root task: of its own file, else of its core.
fn root_ids(set: &Set) -> Result<TaskKobjIdsEntry> {
    let tree: Vec<PstreeEntry> = set.all(Image::Pstree, 0)?;
    let root = tree
        .iter()
        .find(|t| t.ppid == 0)
        .or(tree.first())
        .ok_or_else(|| Error::image("pstree.img", "holds no task"))?;
    let pid = root.pid;
    if let Some(ids) = set.get(Image::Ids, pid)? {
        return Ok(ids);
    }
    let core: CoreEntry = set.require(Image::Core, pid)?;
    core.ids
        .ok_or_else(|| Error::image(Image::Ids.file_name(pid), "is missing"))
}

/// Hierarchy, path and length of the cgroup-namespace prefix of the root task.
fn root_cgroups(set: &Set) -> Result<Vec<(String, String, Option<u32>)>> {
    let Some(all) = set.get::<CgroupEntry>(Image::Cgroup, 0)? else {
        return Ok(Vec::new());
    };
    let tree: Vec<PstreeEntry> = set.all(Image::Pstree, 0)?;
    let Some(root) = tree.first() else {
        return Ok(Vec::new());
    };
    let core: Option<CoreEntry> = set.get(Image::Core, root.pid)?;
    let number = core.and_then(|c| {
        c.thread_core
            .and_then(|t| t.cg_set)
            .or(c.tc.and_then(|t| t.cg_set))
    });
    let chosen = all
        .sets
        .iter()
        .find(|s| Some(s.id) == number)
        .or(all.sets.first());
    Ok(chosen
        .into_iter()
        .flat_map(|s| &s.ctls)
        .map(|c| (c.name.clone(), c.path.clone(), c.cgns_prefix))
        .collect())
}

/// Opens the namespaces of `--join-ns KIND:FILE-OR-PID`.
fn joined(words: &[(String, String, Option<String>)]) -> Result<Vec<(Kind, OwnedFd)>> {
    let mut all = Vec::new();
    for (name, place, _) in words {
        let what = format!("join {name} namespace {place}");
        let kind = match Kind::from_name(name) {
            Some(k @ (Kind::Net | Kind::Ipc | Kind::Uts)) => k,
            Some(Kind::Pid | Kind::Time | Kind::Mnt | Kind::User | Kind::Cgroup) => {
                return Err(Error::caller(
                    what,
                    "only net, ipc and uts namespaces can be joined",
                ));
            }
            None => return Err(Error::caller(what, "no such kind of namespace")),
        };
        let path = if place.bytes().all(|b| b.is_ascii_digit()) {
            format!("/proc/{place}/ns/{}", kind.name())
        } else {
            place.clone()
        };
        all.push((kind, File::open(&path).context(|| what)?.into()));
    }
    Ok(all)
}
