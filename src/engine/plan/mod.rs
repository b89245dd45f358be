//! Records to a plan; pure: nothing here touches the kernel.
//!
//! Everything that can be wrong with an image is found here: records that are
//! missing, damaged or contradict each other, objects that cannot be carried,
//! trees that cannot be built. What is left for [`super::apply`] are the
//! kernel's own refusals.

pub mod steps;
pub mod task;
pub mod tree;
mod world;

use std::collections::{BTreeMap, BTreeSet};

use crate::base::limits::MAX_TASKS;
use crate::base::{Error, NsPid, Result};
use crate::image::pages::Pagemap;
use crate::image::records::{FileEntry, InventoryEntry, MemfdInodeEntry, PstreeEntry};
use crate::image::{Kind, Set};
use crate::objects::mm::rebuild::Kind as AreaKind;
use crate::objects::task::rebuild::State;
use task::{Task, ns_pid};
use tree::{Member, Tree};

const IMAGE_VERSION: u32 = 1;
const IMAGE_VERSION_COMMON: u32 = 2;

/// Shared anonymous memory of the tree.
#[derive(Debug, Clone)]
pub struct SharedMemory {
    /// Bytes, as far as anybody maps it or it has pages: mremap may reach those.
    pub len: u64,
    /// Which pages it has; `None` if the image lists none.
    pub pages: Option<Pagemap>,
}

/// All that is to be built, checked.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Tasks by pid.
    pub tasks: BTreeMap<NsPid, Task>,
    /// In which order they are made.
    pub tree: Tree,
    /// The records of the tree, root first.
    pub members: Vec<Member>,
    /// Shared anonymous memory by number.
    pub shared: BTreeMap<u64, SharedMemory>,
}

/// Where the root lies before it is moved anywhere: session and group of the
/// process that makes it, as it will see them.
pub type Outer = (NsPid, NsPid);

impl Plan {
    /// Reads and checks the image. `outer`: see [`Outer`]; `shell_job`: a root
    /// in a foreign session goes into that of the caller.
    ///
    /// # Errors
    /// What is wrong, by the name of file, task and object.
    pub fn read(set: &Set, outer: Outer, shell_job: bool) -> Result<Self> {
        let inventory: InventoryEntry = set.require(Kind::Inventory, 0)?;
        if !matches!(inventory.img_version, IMAGE_VERSION | IMAGE_VERSION_COMMON) {
            return Err(Error::image(
                Kind::Inventory.file_name(0),
                format!("image version {} is not known", inventory.img_version),
            ));
        }
        let entries: Vec<PstreeEntry> = set.all(Kind::Pstree, 0)?;
        if entries.is_empty() || entries.len() > MAX_TASKS {
            return Err(Error::image(
                Kind::Pstree.file_name(0),
                format!("has {} tasks", entries.len()),
            ));
        }
        let mut tasks = BTreeMap::new();
        let mut threads = BTreeSet::new();
        let mut members = Vec::new();
        for e in &entries {
            let task = Task::read(set, e)?;
            // a zombie's list is not filled in
            for t in e.threads.iter().filter(|_| task.body.is_some()) {
                let tid = ns_pid(*t)?;
                if tid != task.pid && !threads.insert(tid) {
                    return Err(Error::image(
                        Kind::Pstree.file_name(0),
                        format!("thread {tid} comes twice"),
                    ));
                }
            }
            members.push(Member {
                pid: task.pid,
                ppid: id(e.ppid)?,
                pgid: id(e.pgid)?,
                sid: id(e.sid)?,
                zombie: matches!(task.state, State::Zombie(_)),
            });
            tasks.insert(task.pid, task);
        }
        if shell_job {
            adopt_session(&mut members, outer);
        }
        let tree = tree::plan(&members, outer, &threads)?;
        let root = tasks.get(&tree.root);
        if root.is_none_or(|t| t.body.is_none()) {
            return Err(Error::image("tree of tasks", "its root is a zombie"));
        }
        plain_shared_memory(set, &mut tasks)?;
        let shared = shared_memory(set, &tasks)?;
        let plan = Self {
            tasks,
            tree,
            members,
            shared,
        };
        plan.check_sharing()?;
        Ok(plan)
    }

    /// The root task.
    ///
    /// # Errors
    /// Never, for a plan that [`Plan::read`] made.
    pub fn root(&self) -> Result<&Task> {
        self.task(self.tree.root)
    }

    /// A task by pid.
    ///
    /// # Errors
    /// If there is none.
    pub fn task(&self, pid: NsPid) -> Result<&Task> {
        self.tasks
            .get(&pid)
            .ok_or_else(|| Error::bug("plan", format!("has no task {pid}")))
    }

    /// Every number that the tree needs: of tasks, threads, groups and sessions.
    pub fn ids(&self) -> BTreeSet<NsPid> {
        let bodies = self.tasks.values().filter_map(|t| t.body.as_ref());
        let threads = bodies.flat_map(|b| b.threads.iter().map(|t| t.tid));
        let members = self.members.iter();
        threads
            .chain(members.flat_map(|m| [m.pid, m.pgid, m.sid]))
            .collect()
    }

    /// Address spaces, signal handlers that are shared between processes are not
    /// carried; shared descriptor tables and directories only from the parent.
    fn check_sharing(&self) -> Result<()> {
        let mut spaces: BTreeMap<u32, NsPid> = BTreeMap::new();
        let mut handlers: BTreeMap<u32, NsPid> = BTreeMap::new();
        for t in self.tasks.values().filter(|t| t.body.is_some()) {
            for (map, id, what) in [
                (&mut spaces, t.ids.vm_id, "address space"),
                (&mut handlers, t.ids.sighand_id, "signal handlers"),
            ] {
                if let Some(other) = map.insert(id, t.pid) {
                    return Err(Error::refused(
                        format!("task {}", t.pid),
                        format!("it shares its {what} with task {other}, which is not carried"),
                    ));
                }
            }
        }
        Ok(())
    }
}

/// A pid, session or group of a record; 0 lies outside.
fn id(raw: u32) -> Result<NsPid> {
    i32::try_from(raw)
        .map(NsPid)
        .map_err(|_| Error::image("tree of tasks", format!("{raw} is no pid")))
}

/// Puts all that are in the root's foreign session or group into `outer`.
fn adopt_session(members: &mut [Member], outer: Outer) {
    let pids: BTreeSet<NsPid> = members.iter().map(|m| m.pid).collect();
    let Some(root) = members.iter().find(|m| !pids.contains(&m.ppid)).copied() else {
        return;
    };
    for m in members {
        if m.sid == root.sid && !pids.contains(&root.sid) {
            m.sid = outer.0;
        }
        if m.pgid == root.pgid && !pids.contains(&root.pgid) {
            m.pgid = outer.1;
        }
    }
}

/// The name that the kernel gives to shared anonymous memory, which CRIU takes
/// for a memfd of that name on some kernels.
const SHARED_ANONYMOUS: &str = "/dev/zero";

/// Makes areas of such a memfd what they are.
fn plain_shared_memory(set: &Set, tasks: &mut BTreeMap<NsPid, Task>) -> Result<()> {
    let inodes: BTreeMap<u64, u32> = set
        .all::<MemfdInodeEntry>(Kind::Memfd, 0)?
        .into_iter()
        .filter(|m| m.name == SHARED_ANONYMOUS && m.hugetlb_flag.unwrap_or(0) == 0)
        .map(|m| (m.inode_id, m.shmid))
        .collect();
    if inodes.is_empty() {
        return Ok(());
    }
    let files: BTreeMap<u32, u32> = set
        .all::<FileEntry>(Kind::Files, 0)?
        .into_iter()
        .filter_map(|f| {
            let inode = f.memfd?.inode_id;
            Some((f.id, *inodes.get(&u64::from(inode))?))
        })
        .collect();
    let bodies = tasks.values_mut().filter_map(|t| t.body.as_mut());
    for area in bodies.flat_map(|b| b.space.areas.iter_mut()) {
        if let AreaKind::SharedFile(id) = area.kind
            && let Some(shmid) = files.get(&id)
        {
            area.kind = AreaKind::SharedAnon(u64::from(*shmid));
        }
    }
    Ok(())
}

fn shared_memory(set: &Set, tasks: &BTreeMap<NsPid, Task>) -> Result<BTreeMap<u64, SharedMemory>> {
    const MAX_LEN: u64 = 1 << 46;
    let mut shared: BTreeMap<u64, SharedMemory> = BTreeMap::new();
    for body in tasks.values().filter_map(|t| t.body.as_ref()) {
        for a in &body.space.areas {
            let AreaKind::SharedAnon(number) = a.kind else {
                continue;
            };
            let end = a.offset.saturating_add(a.range.len());
            if end > MAX_LEN {
                return Err(Error::image(
                    format!("shared memory {number}"),
                    format!("is {end} bytes long"),
                ));
            }
            let entry = shared.entry(number).or_insert(SharedMemory {
                len: 0,
                pages: None,
            });
            entry.len = entry.len.max(end);
        }
    }
    for (number, memory) in &mut shared {
        let id = u32::try_from(*number).map_err(|_| {
            Error::image(
                format!("shared memory {number}"),
                "has no pagemap by that number",
            )
        })?;
        memory.pages = Pagemap::of(set, Kind::PagemapShmem, id)?;
        let end = memory.pages.as_ref().and_then(|p| p.runs().last());
        let end = end.map_or(0, |run| run.range.end());
        if end > MAX_LEN {
            return Err(Error::image(
                Kind::PagemapShmem.file_name(id),
                format!("lists pages up to {end:#x}"),
            ));
        }
        memory.len = memory.len.max(end);
    }
    Ok(shared)
}
