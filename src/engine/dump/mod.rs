//! The order of a capture.
//!
//! A dump stops the tree, looks for strangers, asks every process what it is,
//! writes records into a [`Set`] in memory, and notes which pages exist. No page
//! is copied: they stay in the stopped tasks, and who needs them reads them
//! there ([`Pages`]). So the freeze does not grow with memory unless the caller
//! writes the pages inside it.
//!
//! Whatever fails, the tree goes on: [`Frozen`] lets it go when dropped.

mod pages;
mod process;
mod scan;
mod styles;

pub use pages::{Pages, Run};
pub use scan::Late;

use process::Mapped;
use scan::Scan;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use super::freeze::Tree;
use super::hold::{self, Hold, Verdict};
use super::options::{self, Observer, Stage};
use crate::base::{Error, HostPid, Result};
use crate::image::records::{InventoryEntry, Lsmtype, PluginsEntry, PstreeEntry};
use crate::image::{Kind, Set};
use crate::objects::seccomp::capture::Filters;
use crate::objects::{cgroup, files, namespaces};
use crate::sys::ns;

const IMAGE_VERSION: u32 = 2;

/// A stopped tree that is being dumped. Dropped, all tasks go on.
#[derive(Debug)]
pub struct Frozen {
    tree: Tree,
    outside: cgroup::Outside,
}

/// What a capture found.
#[derive(Debug)]
pub struct Captured {
    /// All records.
    pub set: Set,
    /// Which pages exist, and a reader for them.
    pub pages: Pages,
    /// How long it took to stop the tree, and then to capture it.
    pub times: Times,
    /// How many tasks the tree has.
    pub tasks: usize,
}

/// What the engine spent time on, for statistics.
#[derive(Debug, Clone, Copy, Default)]
pub struct Times {
    /// From the first interrupt until all were stopped.
    pub freezing: Duration,
    /// From then on until all records stood in memory.
    pub capture: Duration,
}

/// Stops the tree of a dump.
///
/// # Errors
/// No such task; a task that cannot be stopped; tasks in the container that are
/// not in the tree. All go on then.
pub fn freeze(opts: &options::Dump) -> Result<Frozen> {
    let outside = cgroup::Outside::now(opts.pid);
    let tree = Tree::stop(opts.pid, opts.list_later)?;
    Ok(Frozen { tree, outside })
}

impl Frozen {
    /// Captures the tree. The observer is told of `NetworkLock` once all are stopped.
    ///
    /// # Errors
    /// An object that cannot be carried, by name; the observer's error.
    pub fn capture(
        &mut self,
        opts: &options::Dump,
        observer: &mut dyn Observer,
    ) -> Result<Captured> {
        let root = self.tree.root()?.pid;
        let freezing = self.tree.since.elapsed();
        let began = Instant::now();
        // before scripts put their locks into the network that is looked at
        let spaces = namespaces::Capture::new(root, &namespace_policy(&opts.common))?;
        observer.at(Stage::NetworkLock, Some(root))?;
        let all = 0..self.tree.processes().len();
        let mapped = all.map(|index| Mapped::read(&mut self.tree, index));
        let mapped: Vec<_> = mapped.collect::<Result<_>>()?;
        let before: Vec<_> = self
            .tree
            .processes()
            .iter()
            .map(|p| {
                p.alive()
                    .filter(|_| opts.list_later)
                    .map(|a| Arc::clone(&a.before))
            })
            .collect();
        let tids = self.tree.tids();
        let cgroups = cgroup::Cgroups::of(root, &tids)?;
        let (set, pages) = std::thread::scope(|scope| {
            // The one step that may grow with memory goes beside all others.
            let scan = scope.spawn(|| {
                let scans = mapped.iter().zip(&before).map(|(m, before)| {
                    let scan = |m| Scan::read(m, before.as_deref());
                    m.as_ref().map(scan).transpose()
                });
                scans.collect::<Result<Vec<_>>>()
            });
            // Only this thread may steer tasks. What they are in, others can look at.
            let groups = scope.spawn(|| {
                let mut set = Set::new();
                check_members(&self.outside, root, &tids)?;
                cgroups.capture(opts.common.cgroups, &mut set)?;
                Ok(set)
            });
            let around = scope.spawn(|| {
                let mut set = Set::new();
                spaces.capture(&mut set)?;
                Ok(set)
            });
            let scan = || joined("read page tables", scan);
            let (mut set, pages) = records(&mut self.tree, opts, &spaces, &cgroups, &mapped, scan)?;
            set.append(joined("capture cgroups", groups)?);
            set.append(joined("capture namespaces", around)?);
            Ok::<_, Error>((set, pages))
        })?;
        let times = Times {
            freezing,
            capture: began.elapsed(),
        };
        let tasks = mapped.len();
        tracing::info!(tasks, ?times.freezing, ?times.capture, "captured");
        Ok(Captured {
            set,
            pages,
            times,
            tasks,
        })
    }

    /// Lets the tree go on.
    ///
    /// # Errors
    /// If a task cannot be let go.
    pub fn resume(self) -> Result<()> {
        self.tree.resume()
    }

    /// Kills the tree, and returns once it is dead.
    ///
    /// # Errors
    /// If a task does not die.
    pub fn kill(self) -> Result<()> {
        self.tree.kill()
    }

    /// Moves all tasks into a control group of ours that is frozen, and detaches
    /// from them: they stay, whatever becomes of us.
    ///
    /// # Errors
    /// If there is no such group; all go on then.
    pub fn hold(self) -> Result<Hold> {
        let root = self.tree.root()?.pid;
        let mut tasks = Vec::new();
        for p in self.tree.processes() {
            if let Some(alive) = p.alive() {
                let pidfd = alive
                    .pidfd
                    .try_clone()
                    .map_err(|e| Error::os(format!("duplicate the pidfd of task {}", p.pid), e))?;
                tasks.push(hold::Task { pid: p.pid, pidfd });
            }
        }
        let hold = Hold::begin(root, tasks)?;
        match self.tree.resume().and_then(|()| hold.confirm()) {
            Ok(()) => Ok(hold),
            // nothing was granted: they may go on
            Err(e) => match hold.release(Verdict::NeverGranted) {
                Ok(()) => Err(e),
                Err(both) => Err(e.within(format!(
                    "hold task {root} (and letting it go failed too: {})",
                    both.1
                ))),
            },
        }
    }

    /// The stopped tree.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }
}

/// What a thread has found.
fn joined<T>(what: &str, thread: ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread
        .join()
        .unwrap_or_else(|_| Err(Error::bug(what, "it panicked")))
}

/// All records of the tasks, and the pages that `scan` finds meanwhile in each of
/// `mapped`.
fn records(
    tree: &mut Tree,
    opts: &options::Dump,
    spaces: &namespaces::Capture,
    cgroups: &cgroup::Cgroups,
    mapped: &[Option<Mapped>],
    scan: impl FnOnce() -> Result<Vec<Option<Scan>>>,
) -> Result<(Set, Pages)> {
    let root = tree.root()?.pid;
    let mut set = Set::new();
    let mut files = files::Capture::new(file_policy(&opts.common, spaces.ids()), root)?;
    let mut filters = Filters::default();
    let mut pages = pages::Collector::new(opts.list_later);
    let mut shared = process::Sharing::default();
    let mut cx = process::Context {
        set: &mut set,
        namespaces: spaces,
        files: &mut files,
        filters: &mut filters,
        pages: &mut pages,
        cgroups,
        sharing: &mut shared,
    };
    let mut rests = Vec::with_capacity(mapped.len());
    for (index, mapped) in mapped.iter().enumerate() {
        rests.push(match mapped {
            Some(mapped) => Some(process::capture(tree, index, mapped, &mut cx)?),
            None => {
                let dead = tree.processes().get(index);
                let gone = || Error::bug("capture", "no such process");
                process::zombie(dead.ok_or_else(gone)?, cx.set);
                None
            }
        });
        pstree(tree, index, cx.set, opts.common.shell_job)?;
    }
    for ((mapped, rest), scan) in mapped.iter().zip(&rests).zip(scan()?) {
        if let (Some(mapped), Some(rest), Some(scan)) = (mapped, rest, scan) {
            process::memory(mapped, rest, scan, &mut cx)?;
        }
    }
    let contents = files.finish(&mut set)?;
    pages.memfds(contents)?;
    set.put(Kind::Seccomp, 0, &filters.record());
    set.put(Kind::Inventory, 0, &inventory(spaces, cgroups));
    Ok((set, pages.finish()?))
}

fn pstree(tree: &Tree, index: usize, set: &mut Set, shell_job: bool) -> Result<()> {
    let all = tree.processes();
    let p = all
        .get(index)
        .ok_or_else(|| Error::bug("process tree", "no such process"))?;
    let parent = p.parent.and_then(|i| all.get(i));
    let (pgid, sid) = p.group_and_session();
    let virt = p.virt();
    let is_member = |id: i32| {
        all.iter()
            .any(|q| q.virt() == id || q.group_and_session().1 == id && id != 0)
    };
    if (sid == 0 || (index == 0 && sid != virt)) && !shell_job {
        return Err(Error::refused(
            format!("task {}", p.pid),
            format!(
                "it belongs to session {sid}, which lies outside of the tree (see --shell-job)"
            ),
        ));
    }
    if pgid == 0 && !shell_job || (index > 0 && !is_member(sid) && !shell_job) {
        return Err(Error::refused(
            format!("task {}", p.pid),
            "its process group or session lies outside of the tree",
        ));
    }
    let number = |n: i32| u32::try_from(n).unwrap_or(0);
    let threads = p
        .alive()
        .map(|a| a.threads.iter().map(|t| number(t.virt())).collect())
        .unwrap_or_else(|| vec![number(virt)]);
    set.push(
        Kind::Pstree,
        0,
        &PstreeEntry {
            pid: number(virt),
            ppid: parent.map_or(0, |q| number(q.virt())),
            pgid: number(pgid),
            sid: number(sid),
            threads,
        },
    );
    Ok(())
}

/// Who is in the container but not in the tree would be left behind.
fn check_members(outside: &cgroup::Outside, root: HostPid, tree: &BTreeSet<HostPid>) -> Result<()> {
    let strangers = outside.strangers(root, tree)?;
    let Some(pid) = strangers.first() else {
        return Ok(());
    };
    let name = crate::sys::procfs::comm(*pid).unwrap_or_default();
    Err(Error::refused(
        format!("task {pid} ({name})"),
        format!("it is in the container of task {root} but not in its tree (an exec session?)"),
    ))
}

fn namespace_policy(common: &options::Common) -> namespaces::CapturePolicy {
    namespaces::CapturePolicy {
        ext_mnt: common.ext_mnt.clone(),
        external: common.external.clone(),
        skip_mnt: common.skip_mnt.clone(),
        empty_ns: common.empty_ns,
    }
}

fn file_policy(common: &options::Common, ids: &namespaces::ids::Ids) -> files::Policy {
    files::Policy {
        file_locks: common.file_locks,
        ext_unix_sk: common.ext_unix_sk,
        external: common.external.clone(),
        net_ns_id: Some(ids.root_id(ns::Kind::Net)),
        orphan_pts_master: common.orphan_pts_master,
        ..files::Policy::default()
    }
}

fn inventory(spaces: &namespaces::Capture, cgroups: &cgroup::Cgroups) -> InventoryEntry {
    InventoryEntry {
        img_version: IMAGE_VERSION,
        fdinfo_per_id: Some(true),
        root_ids: Some(spaces.own_ids()),
        ns_per_id: Some(true),
        root_cg_set: Some(cgroups.own_set()),
        lsmtype: Some(Lsmtype::NoLsm.into()),
        network_lock_method: Some(0),
        plugins_entry: Some(PluginsEntry::default()),
        dump_criu_run_id: Some(run_id()),
        ..Default::default()
    }
}

/// A random UUID, as CRIU's run ids are.
fn run_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/uuid")
        .map(|s| s.trim().to_owned())
        .unwrap_or_default()
}
