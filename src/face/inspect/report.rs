//! What an image says, gathered from its records.

use super::Section;
use super::areas::{self, Memory};
use super::files::{self, Descriptor, Names};
use super::spaces::{self, CgroupPlace, Mount, Namespace};
use crate::base::limits::MAX_TASKS;
use crate::base::{Error, Result, ResultExt};
use crate::image::records::{
    CoreEntry, FsEntry, InventoryEntry, Lsmtype, MmEntry, PstreeEntry, SeccompMode,
    TaskKobjIdsEntry, ThreadCoreEntry,
};
use crate::image::{Kind, Set, task_state};
use serde::Serialize;
use std::fs;
use std::path::Path;

/// An image directory.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Report {
    pub(super) image: ImageInfo,
    pub(super) tasks: Vec<Task>,
    pub(super) shared_memory: Vec<Memory>,
    pub(super) namespaces: Vec<Namespace>,
    pub(super) mounts: Vec<Mount>,
    pub(super) cgroups: Vec<CgroupPlace>,
}

/// What holds for all of it.
#[derive(Debug, Clone, Serialize)]
pub(super) struct ImageInfo {
    pub(super) directory: String,
    pub(super) version: u32,
    pub(super) made_by: &'static str,
    pub(super) run_id: Option<String>,
    /// CLOCK_MONOTONIC at the dump, seconds.
    pub(super) uptime_s: Option<f64>,
    pub(super) lsm: &'static str,
    pub(super) has_parent: bool,
    /// Namespaces of whoever made the image.
    #[serde(serialize_with = "map")]
    pub(super) callers: Vec<(&'static str, u32)>,
    /// Length of all files but pages files.
    pub(super) metadata_bytes: u64,
    /// What is wrong with it, if it cannot be restored.
    pub(super) damage: Option<String>,
}

/// One task.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Task {
    pub(super) pid: u32,
    pub(super) ppid: u32,
    pub(super) pgid: u32,
    pub(super) sid: u32,
    /// Parents above it in this image.
    pub(super) depth: usize,
    pub(super) comm: String,
    pub(super) state: &'static str,
    pub(super) exit_code: Option<u32>,
    pub(super) exe: Option<String>,
    pub(super) cwd: Option<String>,
    pub(super) root: Option<String>,
    pub(super) umask: Option<u32>,
    pub(super) threads: Vec<Thread>,
    pub(super) pending_signals: usize,
    pub(super) posix_timers: usize,
    pub(super) memory: Option<Memory>,
    pub(super) descriptors: Vec<Descriptor>,
    #[serde(serialize_with = "map")]
    pub(super) namespaces: Vec<(&'static str, u32)>,
}

/// One thread.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Thread {
    pub(super) tid: u32,
    pub(super) comm: Option<String>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) seccomp: &'static str,
    pub(super) no_new_privs: bool,
    pub(super) cgroup_set: Option<u32>,
    pub(super) pending_signals: usize,
}

impl Report {
    /// Reads a directory.
    pub(super) fn read(dir: &Path) -> Result<Self> {
        let what = || format!("inspect {}", dir.display());
        if !fs::metadata(dir).context(what)?.is_dir() {
            return Err(Error::caller(what(), "is no directory"));
        }
        let set = Set::read(dir)?;
        if set.files().next().is_none() {
            return Err(Error::caller(
                format!("inspect {}", dir.display()),
                "there is no image in it",
            ));
        }
        let mut report = Self::of(&set)?;
        report.image.directory = dir.display().to_string();
        report.image.has_parent = dir.join("parent").exists();
        Ok(report)
    }

    /// Gathers what the set says.
    pub(super) fn of(set: &Set) -> Result<Self> {
        let names = Names::of(set)?;
        let entries: Vec<PstreeEntry> = set.all(Kind::Pstree, 0)?;
        let mut tasks: Vec<Task> = Vec::new();
        for entry in entries {
            if entry.threads.len() > MAX_TASKS || tasks.len() >= MAX_TASKS {
                return Err(Error::image(
                    Kind::Pstree.file_name(0),
                    format!("has more than {MAX_TASKS} tasks or threads"),
                ));
            }
            let depth = tasks
                .iter()
                .find(|task| task.pid == entry.ppid)
                .map_or(0, |parent| parent.depth + 1);
            tasks.push(task(set, &names, &entry, depth)?);
        }
        Ok(Self {
            image: image(set)?,
            tasks: in_order(tasks),
            shared_memory: areas::shared(set)?,
            namespaces: spaces::namespaces(set)?,
            mounts: spaces::mounts(set)?,
            cgroups: spaces::cgroups(set)?,
        })
    }

    /// The sections as JSON; all if none is named.
    pub(super) fn json(&self, sections: &[Section]) -> Result<String> {
        let all = sections.is_empty();
        let mut value =
            serde_json::to_value(self).map_err(|e| Error::bug("inspect", e.to_string()))?;
        let shows = |section| all || sections.contains(&section);
        if let Some(object) = value.as_object_mut() {
            let tasks = [Section::Ps, Section::Mem, Section::Files];
            object.retain(|key, _| match key.as_str() {
                "tasks" => tasks.into_iter().any(shows),
                "shared_memory" => shows(Section::Mem),
                "namespaces" => shows(Section::Ns),
                "mounts" => shows(Section::Mounts),
                "cgroups" => shows(Section::Cgroups),
                _ => true,
            });
            let tasks = object.get_mut("tasks").and_then(|t| t.as_array_mut());
            for task in tasks.into_iter().flatten() {
                if let Some(task) = task.as_object_mut() {
                    task.retain(|key, _| match key.as_str() {
                        "memory" => shows(Section::Mem) || shows(Section::Ps),
                        "descriptors" => shows(Section::Files),
                        _ => true,
                    });
                }
            }
        }
        serde_json::to_string_pretty(&value).map_err(|e| Error::bug("inspect", e.to_string()))
    }
}

/// Pairs as a JSON object.
pub(super) fn map<K, V, S>(pairs: &[(K, V)], serializer: S) -> Result<S::Ok, S::Error>
where
    K: Serialize,
    V: Serialize,
    S: serde::Serializer,
{
    serializer.collect_map(pairs.iter().map(|(key, value)| (key, value)))
}

/// Each task right behind its parent and the parent's earlier children.
fn in_order(tasks: Vec<Task>) -> Vec<Task> {
    let mut ordered: Vec<Task> = Vec::with_capacity(tasks.len());
    for task in tasks {
        let parent = ordered.iter().position(|t| t.pid == task.ppid);
        let at = match parent {
            None => ordered.len(),
            Some(parent) => ordered[parent + 1..]
                .iter()
                .position(|t| t.depth <= ordered[parent].depth)
                .map_or(ordered.len(), |n| parent + 1 + n),
        };
        ordered.insert(at, task);
    }
    ordered
}

fn image(set: &Set) -> Result<ImageInfo> {
    let inventory: Option<InventoryEntry> = set.get(Kind::Inventory, 0)?;
    let ours = set.contains(Kind::DunlinManifest, 0);
    let inventory = inventory.unwrap_or_default();
    Ok(ImageInfo {
        directory: String::new(),
        version: inventory.img_version,
        made_by: if ours { "dunlin" } else { "CRIU" },
        lsm: match Lsmtype::try_from(inventory.lsmtype.unwrap_or_default()) {
            Ok(Lsmtype::NoLsm) => "none",
            Ok(Lsmtype::Selinux) => "SELinux",
            Ok(Lsmtype::Apparmor) => "AppArmor",
            Err(_) => "unknown",
        },
        run_id: inventory.dump_criu_run_id,
        uptime_s: inventory
            .dump_uptime
            .map(|us| std::time::Duration::from_micros(us).as_secs_f64()),
        has_parent: false,
        callers: inventory
            .root_ids
            .map(|ids| spaces::ids_of(&ids))
            .unwrap_or_default(),
        metadata_bytes: set.total_bytes() as u64,
        damage: set.verify().err().map(|e| e.to_string()),
    })
}

fn task(set: &Set, names: &Names, entry: &PstreeEntry, depth: usize) -> Result<Task> {
    let pid = entry.pid;
    let core: CoreEntry = set.get(Kind::Core, pid)?.unwrap_or_default();
    let ids: Option<TaskKobjIdsEntry> = match core.ids {
        Some(ids) => Some(ids),
        None => set.get(Kind::Ids, pid)?,
    };
    let fs: Option<FsEntry> = set.get(Kind::Fs, pid)?;
    let mm: Option<MmEntry> = set.get(Kind::Mm, pid)?;
    let mut threads = Vec::with_capacity(entry.threads.len());
    for &tid in &entry.threads {
        let core: CoreEntry = set.get(Kind::Core, tid)?.unwrap_or_default();
        threads.push(thread(tid, core.thread_core));
    }
    let tc = core.tc.unwrap_or_default();
    let dead = matches!(tc.task_state, task_state::DEAD | task_state::ZOMBIE);
    Ok(Task {
        pid,
        ppid: entry.ppid,
        pgid: entry.pgid,
        sid: entry.sid,
        depth,
        state: match tc.task_state {
            task_state::ALIVE => "alive",
            task_state::DEAD => "dead",
            task_state::STOPPED => "stopped",
            task_state::ZOMBIE => "zombie",
            _ => "unknown",
        },
        exit_code: dead.then_some(tc.exit_code),
        exe: mm.as_ref().map(|mm| names.path(mm.exe_file_id)),
        cwd: fs.as_ref().map(|fs| names.path(fs.cwd_id)),
        root: fs.as_ref().map(|fs| names.path(fs.root_id)),
        umask: fs.and_then(|fs| fs.umask),
        threads,
        pending_signals: tc.signals_s.map_or(0, |queue| queue.signals.len()),
        posix_timers: tc.timers.map_or(0, |timers| timers.posix.len()),
        comm: tc.comm,
        memory: match mm {
            Some(mm) => Some(areas::of_task(set, names, pid, &mm)?),
            None => None,
        },
        descriptors: match &ids {
            Some(ids) if !dead => files::descriptors(set, names, ids.files_id)?,
            _ => Vec::new(),
        },
        namespaces: ids.map(|ids| spaces::ids_of(&ids)).unwrap_or_default(),
    })
}

fn thread(tid: u32, core: Option<ThreadCoreEntry>) -> Thread {
    let core = core.unwrap_or_default();
    let creds = core.creds.unwrap_or_default();
    let known = core.comm.is_some() || creds != Default::default();
    Thread {
        tid,
        uid: known.then_some(creds.euid),
        gid: known.then_some(creds.egid),
        seccomp: match SeccompMode::try_from(core.seccomp_mode.unwrap_or_default()) {
            Ok(SeccompMode::Disabled) => "none",
            Ok(SeccompMode::Strict) => "strict",
            Ok(SeccompMode::Filter) => "filter",
            Err(_) => "unknown",
        },
        no_new_privs: creds.no_new_privs.unwrap_or_default() != 0,
        cgroup_set: core.cg_set,
        pending_signals: core.signals_p.map_or(0, |queue| queue.signals.len()),
        comm: core.comm,
    }
}
