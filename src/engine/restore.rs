//! A restore as callers see it: [`Plan::read`] checks an image, [`Plan::apply`]
//! builds its tasks, all stopped, [`Rebuilt::resume`] lets them go.
//!
//! Whoever calls [`Plan::apply`] must have one thread only: the first task is a
//! copy of the calling process.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd};
use std::path::Path;

use nix::unistd::{getpgrp, getsid};

use super::apply::{Build, Files, Origin, Ready, free_number, own_pidfd};
use super::options::{CgroupMode, Observer, Restore, Stage};
use super::plan;
use crate::base::{Error, HostPid, NsPid, Result, ResultExt};
use crate::image::pages::PagesReader;
use crate::image::records::InventoryEntry;
use crate::image::{Kind, Set};
use crate::memory::{Job, Object, PageReader, SpaceId};
use crate::objects::{cgroup, files, namespaces};
use crate::sys::clone::{self, Request};
use crate::sys::{ns, pidfd};

/// A checked image, with what the caller asked for.
#[derive(Debug)]
pub struct Plan<'a> {
    set: &'a Set,
    options: Restore,
    inner: plan::Plan,
    files: files::Plan,
    namespaces: namespaces::Plan,
    cgroups: Option<cgroup::Plan>,
    /// The set of cgroups that the dumper was in; who shared it, shares ours.
    own_cgroups: Option<u32>,
}

impl<'a> Plan<'a> {
    /// Reads and checks `set`. Nothing is touched.
    ///
    /// # Errors
    /// Whatever is missing, damaged, contradictory or not carried, by name.
    pub fn read(set: &'a Set, options: Restore) -> Result<Self> {
        let common = &options.common;
        let namespaces = namespaces::Plan::read(
            set,
            &namespaces::RebuildPolicy {
                ext_mnt: common.ext_mnt.clone(),
                external: common.external.clone(),
                inherit: options
                    .inherit
                    .iter()
                    .map(|(k, fd)| (k.clone(), fd.as_fd()))
                    .collect(),
                root: common.root.clone(),
                join_ns: options.join_ns.clone(),
                empty_ns: common.empty_ns,
            },
        )?;
        let outer = if namespaces.is_private(ns::Kind::Pid) {
            // outside of the new pid namespace
            (NsPid(0), NsPid(0))
        } else {
            (
                NsPid(getsid(None).map_or(0, nix::unistd::Pid::as_raw)),
                NsPid(getpgrp().as_raw()),
            )
        };
        let inner = plan::Plan::read(set, outer, common.shell_job)?;
        let files = files::Plan::read(
            set,
            &files::RestorePolicy {
                inherit: options.inherit.iter().map(|(k, _)| k.clone()).collect(),
                file_locks: common.file_locks,
                ext_unix_sk: common.ext_unix_sk,
            },
        )?;
        let cgroups = cgroup::Plan::read(set, mode(common.cgroups), &common.cg_root)?;
        let inventory: InventoryEntry = set.require(Kind::Inventory, 0)?;
        Ok(Self {
            set,
            own_cgroups: inventory.root_cg_set,
            inner,
            files,
            namespaces,
            cgroups,
            options,
        })
    }

    /// Whether the tasks have a network namespace of their own.
    pub fn has_own_network(&self) -> bool {
        self.namespaces.is_private(ns::Kind::Net)
    }

    /// Whether the tasks have any namespace of their own.
    pub fn has_own_namespaces(&self) -> bool {
        self.namespaces.any_private()
    }

    /// What will be done, in order, a sentence each.
    pub fn steps(&self) -> impl Iterator<Item = String> {
        self.inner.steps().into_iter().map(|s| s.to_string())
    }

    /// Builds all tasks, stopped. `pages` gives their memory; `observer` is told
    /// about the stages.
    ///
    /// # Errors
    /// The step that failed; what was made is gone again.
    pub fn apply(self, pages: &dyn PageReader, observer: &mut dyn Observer) -> Result<Rebuilt> {
        let plan = &self.inner;
        observer.at(Stage::PreRestore, None)?;
        self.namespaces.before_clone()?;
        let last_cap = last_cap()?;
        let mut made = CgroupsMade::default();
        if let Some(c) = &self.cgroups {
            made.0 = Some(c.prepare()?);
        }
        let own = own_pidfd()?;
        let origin = self.clone_root()?;
        let root = origin.pid();
        observer.at(Stage::SetupNamespaces, Some(root))?;
        self.place(root, plan.tree.root)?;
        origin.line()?.send(b"go")?;
        let terminals = self.terminals(root, &origin.ready()?)?;
        observer.at(Stage::PostSetupNamespaces, Some(root))?;
        for t in &terminals {
            observer.pts_master(t.number, t.master.as_fd())?;
        }

        let root_dir = open_root(root)?;
        let net = self
            .namespaces
            .is_private(ns::Kind::Net)
            .then(|| ns::open(root, ns::Kind::Net))
            .transpose()?;
        let mut build = Build::begin(
            plan,
            pages,
            self.options.lazy,
            free_number(&self.files)?,
            own.as_raw_fd(),
            origin,
        )?;
        build.set_terminals(&terminals);
        build.grow()?;
        build.foreground()?;
        let holder = files::Holder::new(
            &self.files,
            root_dir.as_fd(),
            net.as_ref().map(AsFd::as_fd),
            &self.options.inherit,
            &terminals,
            &mut |kind, by| build.pair_by(kind, by),
        )?;
        let mut files = Files::open(&self.files, holder, self.set, pages, &plan.shared)?;
        build.share()?;
        let living = build.living();
        let mut tables = BTreeSet::new();
        let firsts: BTreeSet<NsPid> = living
            .iter()
            .copied()
            .filter(|p| plan.task(*p).is_ok_and(|t| tables.insert(t.ids.files_id)))
            .collect();
        for &pid in &living {
            self.place(build.host(pid)?, pid)?;
            build.furnish(pid, &mut files, firsts.contains(&pid))?;
        }
        files.seal()?;
        if let Some(made) = &made.0 {
            made.finish()?;
        }
        for &pid in &living {
            build.threads(pid)?;
            build.close_service(pid)?;
        }
        for &pid in &living {
            build
                .attributes(pid, last_cap)
                .context(|| format!("attributes of task {pid}"))?;
            build.own_files(pid, &files, firsts.contains(&pid))?;
        }
        let ready = build.settle(self.options.stopped)?;
        observer.at(Stage::PostRestore, Some(root))?;
        observer.at(Stage::NetworkUnlock, Some(root))?;
        Ok(Rebuilt { root, ready, made })
    }

    /// Fetches the masters that the root task has opened, by their numbers there.
    fn terminals(&self, root: HostPid, numbers: &[u8]) -> Result<Vec<files::Pair>> {
        let task = pidfd::open(root)?;
        numbers
            .chunks_exact(4)
            .filter_map(|n| n.try_into().ok())
            .map(|n| pidfd::getfd(task.as_fd(), i32::from_le_bytes(n)))
            .map(|master| files::rebuild_terminal(self.set, master?))
            .collect()
    }

    /// The first task: waits for a word, makes its namespaces, and waits.
    fn clone_root(&self) -> Result<Origin> {
        let mut flags = self.namespaces.clone_flags();
        if self.options.sibling {
            flags |= u64::from(libc::CLONE_PARENT.unsigned_abs());
        }
        let request = Request {
            flags,
            set_tid: vec![self.inner.tree.root],
        };
        let child = clone::spawn(&request, |line| {
            if line.receive()?.is_none() {
                return Err(Error::bug("restore", "was given up"));
            }
            // open until they are fetched
            let masters = self.namespaces.in_root(&mut |_| {})?;
            let numbers = masters.into_iter().map(|fd| fd.into_raw_fd().to_le_bytes());
            Ok(numbers.flatten().collect())
        })?;
        Ok(Origin::new(child))
    }

    /// Puts a task into its cgroups.
    fn place(&self, host: HostPid, pid: NsPid) -> Result<()> {
        let task = self.inner.task(pid)?;
        let set = task
            .body
            .as_ref()
            .and_then(|b| b.threads.first())
            .and_then(|t| t.own.cg_set)
            .or(task.core.cg_set);
        match (&self.cgroups, set) {
            (Some(c), Some(set)) if Some(set) != self.own_cgroups => c.place(host, set),
            _ => Ok(()),
        }
    }
}

fn mode(m: CgroupMode) -> cgroup::Mode {
    match m {
        CgroupMode::Ignore => cgroup::Mode::Ignore,
        CgroupMode::Soft => cgroup::Mode::Soft,
        CgroupMode::None => cgroup::Mode::None,
        CgroupMode::Props => cgroup::Mode::Props,
        CgroupMode::Full => cgroup::Mode::Full,
        CgroupMode::Strict => cgroup::Mode::Strict,
    }
}

/// Cgroup directories that we made, removed again unless the tasks go on.
#[derive(Debug, Default)]
struct CgroupsMade(Option<cgroup::Made>);

impl Drop for CgroupsMade {
    fn drop(&mut self) {
        if let Some(made) = self.0.take() {
            made.undo();
        }
    }
}

/// All tasks, built and stopped. Dropping it kills them.
#[derive(Debug)]
pub struct Rebuilt {
    root: HostPid,
    // dropped first: its tasks are in the directories that the other removes
    ready: Ready,
    made: CgroupsMade,
}

impl Rebuilt {
    /// The root task, as the host sees it.
    pub fn root(&self) -> HostPid {
        self.root
    }

    /// Takes what is to be filled after the resume (lazy restores only). Whoever
    /// takes it must keep the descriptors open until all is filled.
    pub fn take_lazy(&mut self) -> Job {
        std::mem::take(&mut self.ready.lazy)
    }

    /// Lets all tasks go.
    ///
    /// # Errors
    /// The observer's, before anything runs (the tasks are killed then); after
    /// that, tasks that died.
    pub fn resume(mut self, observer: &mut dyn Observer) -> Result<HostPid> {
        let root = self.root;
        observer.at(Stage::PreResume, Some(root))?;
        self.made.0 = None;
        self.ready.release()?;
        observer.at(Stage::PostResume, Some(root))?;
        Ok(root)
    }
}

/// Page contents out of an image directory.
#[derive(Debug)]
pub struct ImagePages {
    readers: BTreeMap<Object, PagesReader>,
}

impl ImagePages {
    /// Opens all pages files of the image `set`, which lies in `dir`.
    ///
    /// # Errors
    /// Missing or short files, by name.
    pub fn open(set: &Set, dir: &Path) -> Result<Self> {
        let mut readers = BTreeMap::new();
        for kind in [Kind::Pagemap, Kind::PagemapShmem] {
            for id in set.ids(kind) {
                let object = if kind == Kind::Pagemap {
                    Object::Private(SpaceId(id))
                } else {
                    Object::Shared(id)
                };
                if let Some(reader) = PagesReader::open(set, dir, kind, id)? {
                    readers.insert(object, reader);
                }
            }
        }
        Ok(Self { readers })
    }
}

impl PageReader for ImagePages {
    fn read(&self, object: Object, at: u64, buf: &mut [u8]) -> Result<()> {
        self.readers
            .get(&object)
            .ok_or_else(|| Error::image(object.to_string(), "has no pages in the image"))?
            .read(at, buf)
    }
}

fn open_root(root: HostPid) -> Result<OwnedFd> {
    use std::os::unix::fs::OpenOptionsExt;
    let path = format!("/proc/{root}/root");
    std::fs::File::options()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
        .open(&path)
        .map(OwnedFd::from)
        .context(|| format!("open {path}"))
}

fn last_cap() -> Result<u32> {
    let path = "/proc/sys/kernel/cap_last_cap";
    let text = std::fs::read_to_string(path).context(|| format!("read {path}"))?;
    text.trim()
        .parse()
        .map_err(|_| Error::bug(path, format!("holds {text:?}")))
}
