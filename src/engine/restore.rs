//! A restore as callers see it: [`Plan::read`] checks an image, [`Plan::apply`]
//! builds its tasks, all stopped, [`Rebuilt::resume`] lets them go.
//!
//! Whoever calls [`Plan::apply`] must have one thread only: the first task is a
//! copy of the calling process.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use nix::unistd::{getpgrp, getsid};

use super::apply::{Build, Holder, Origin, Ready, own_pidfd};
use super::options::{Observer, Restore, Stage};
use super::plan;
use crate::base::{Error, HostPid, NsPid, Result, ResultExt};
use crate::image::pages::PagesReader;
use crate::image::records::TaskKobjIdsEntry;
use crate::image::{Kind, Set};
use crate::memory::{Object, PageReader, SpaceId};
use crate::sys::clone::{self, Request};

pub use super::apply::LazySpace;

/// A checked image, with what the caller asked for.
#[derive(Debug)]
pub struct Plan<'a> {
    set: &'a Set,
    options: Restore,
    inner: plan::Plan,
}

impl<'a> Plan<'a> {
    /// Reads and checks `set`. Nothing is touched.
    ///
    /// # Errors
    /// Whatever is missing, damaged, contradictory or not carried, by name.
    pub fn read(set: &'a Set, options: Restore) -> Result<Self> {
        let outer = (
            NsPid(getsid(None).map_or(0, nix::unistd::Pid::as_raw)),
            NsPid(getpgrp().as_raw()),
        );
        let inner = plan::Plan::read(set, outer, options.common.shell_job)?;
        Ok(Self {
            set,
            options,
            inner,
        })
    }

    /// What would be done, one step a line.
    pub fn print(&self) -> String {
        self.inner
            .steps()
            .iter()
            .map(|s| format!("{s}\n"))
            .collect()
    }

    /// Builds all tasks, stopped. `pages` gives their memory; `observer` is told
    /// about the stages.
    ///
    /// # Errors
    /// The step that failed; what was made is gone again.
    pub fn apply(self, pages: &dyn PageReader, observer: &mut dyn Observer) -> Result<Rebuilt> {
        let plan = &self.inner;
        observer.at(Stage::PreRestore, None)?;
        check_namespaces(plan)?;
        let last_cap = last_cap()?;
        let pidfd = own_pidfd()?;
        let request = Request {
            flags: if self.options.sibling {
                u64::from(libc::CLONE_PARENT.unsigned_abs())
            } else {
                0
            },
            set_tid: vec![plan.tree.root],
        };
        let origin = Origin::new(clone::spawn(&request, |line| {
            line.receive()?;
            Ok(Vec::new())
        })?);
        let root = origin.pid();
        observer.at(Stage::SetupNamespaces, Some(root))?;
        origin.line()?.send(b"go")?;
        origin.ready()?;
        observer.at(Stage::PostSetupNamespaces, Some(root))?;

        let mut holder = Holder::new(self.set, pages, open_root(root)?)?;
        let service = holder.free_number(plan.tasks.values().map(|t| t.ids.files_id))?;
        let mut build = Build::begin(
            plan,
            pages,
            self.options.lazy,
            service,
            pidfd.as_raw_fd(),
            origin,
        )?;
        build.grow()?;
        build.share()?;
        let living = build.living();
        let mut tables = std::collections::BTreeSet::new();
        for &pid in &living {
            let own_table = tables.insert(plan.task(pid)?.ids.files_id);
            build.furnish(pid, &mut holder, own_table)?;
        }
        for &pid in &living {
            build.threads(pid)?;
            build.close_service(pid)?;
        }
        for &pid in &living {
            build
                .attributes(pid, last_cap)
                .context(|| format!("attributes of task {pid}"))?;
        }
        let ready = build.settle()?;
        observer.at(Stage::PostRestore, Some(root))?;
        observer.at(Stage::NetworkUnlock, Some(root))?;
        Ok(Rebuilt { root, ready })
    }
}

/// All tasks, built and stopped. Dropping it kills them.
#[derive(Debug)]
pub struct Rebuilt {
    root: HostPid,
    ready: Ready,
}

impl Rebuilt {
    /// The root task, as the host sees it.
    pub fn root(&self) -> HostPid {
        self.root
    }

    /// Takes what is to be filled after the resume (lazy restores only). Whoever
    /// takes it must keep the descriptors open until all is filled.
    pub fn take_lazy(&mut self) -> Vec<LazySpace> {
        std::mem::take(&mut self.ready.lazy)
    }

    /// Lets all tasks go.
    ///
    /// # Errors
    /// The observer's, before anything runs (the tasks are killed then); after
    /// that, tasks that died.
    pub fn resume(self, observer: &mut dyn Observer) -> Result<HostPid> {
        let root = self.root;
        observer.at(Stage::PreResume, Some(root))?;
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

/// Refuses an image whose tasks lie in namespaces of their own.
fn check_namespaces(plan: &plan::Plan) -> Result<()> {
    let Some(outside) = &plan.root_ids else {
        return Ok(());
    };
    let ids = |t: &TaskKobjIdsEntry| {
        [
            ("pid", t.pid_ns_id),
            ("net", t.net_ns_id),
            ("ipc", t.ipc_ns_id),
            ("uts", t.uts_ns_id),
            ("mnt", t.mnt_ns_id),
            ("user", t.user_ns_id),
            ("cgroup", t.cgroup_ns_id),
            ("time", t.time_ns_id),
        ]
    };
    let root = plan.root()?;
    for ((name, a), (_, b)) in ids(outside).into_iter().zip(ids(&root.ids)) {
        if a != b {
            return Err(Error::refused(
                format!("task {}", root.pid),
                format!("it is in a {name} namespace of its own, which is not carried"),
            ));
        }
    }
    Ok(())
}
