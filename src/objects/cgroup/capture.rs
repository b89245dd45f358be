//! The cgroups of a tree as records, and who else is in them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use tracing::debug;

use super::{Mode, properties};
use crate::base::{HostPid, Result};
use crate::image::records::{
    CgControllerEntry, CgMemberEntry, CgSetEntry, CgroupDirEntry, CgroupEntry, CgroupPerms,
    CgroupPropEntry,
};
use crate::image::{Kind as Image, Set};
use crate::sys::cgroup::{self, Dir, Hierarchies, Member};
use crate::sys::ns::{self, Kind};

/// The number of our own set.
const OWN: u32 = 1;

/// Which cgroups the threads of a tree are in.
#[derive(Debug)]
pub struct Cgroups {
    /// What is the same in all hierarchies is a set; the first one is our own.
    sets: Vec<Vec<Member>>,
    numbers: HashMap<HostPid, u32>,
    root: HostPid,
}

impl Cgroups {
    /// Asks where `threads` are (thread ids and leaders alike). The root's set is the
    /// first one: it says where the tree is.
    ///
    /// # Errors
    /// ENOENT when one is gone.
    pub fn of(root: HostPid, threads: &BTreeSet<HostPid>) -> Result<Self> {
        let mut sets = vec![cgroup::own_membership()?];
        let mut numbers = HashMap::new();
        let others = threads.iter().filter(|t| **t != root);
        for thread in std::iter::once(&root).chain(others) {
            let at = cgroup::membership(*thread)?;
            let i = sets.iter().position(|s| *s == at).unwrap_or_else(|| {
                sets.push(at);
                sets.len() - 1
            });
            numbers.insert(*thread, u32::try_from(i).unwrap_or(u32::MAX - 1) + OWN);
        }
        Ok(Self {
            sets,
            numbers,
            root,
        })
    }

    /// `root_cg_set` of the inventory: our own set.
    pub fn own_set(&self) -> u32 {
        OWN
    }

    /// The set of a thread.
    pub fn set_of(&self, thread: HostPid) -> Option<u32> {
        self.numbers.get(&thread).copied()
    }

    /// Describes the sets and their directories: cgroup.img, unless all tasks are in
    /// our own cgroups.
    ///
    /// # Errors
    /// Those of reading the directories.
    pub fn capture(&self, mode: Mode, set: &mut Set) -> Result<()> {
        let Some((ours, theirs)) = self.sets.split_first() else {
            return Ok(());
        };
        let Some(first) = theirs.first() else {
            return Ok(());
        };
        let prefixes = prefixes(self.root)?;
        let hierarchies = Hierarchies::now();
        let mut controllers = Vec::new();
        for member in first {
            let mut dirs = Vec::new();
            let heads = match mode {
                Mode::Ignore => Vec::new(),
                _ => heads(theirs, &member.name),
            };
            for path in heads {
                // Not ours to describe: the root, and where we are ourselves.
                if path != "/" && !ours.iter().any(|o| o.name == member.name && o.path == path) {
                    let dir = hierarchies.root(&member.name)?.descend(&path)?;
                    dirs.push(directory(&dir, path.trim_start_matches('/'))?);
                }
            }
            controllers.push(CgControllerEntry {
                cnames: member.name.split(',').map(str::to_owned).collect(),
                dirs,
                is_threaded: Some(!member.name.is_empty()),
            });
        }
        let sets = theirs
            .iter()
            .zip(OWN + 1..)
            .map(|(members, id)| CgSetEntry {
                id,
                ctls: members
                    .iter()
                    .map(|m| CgMemberEntry {
                        name: m.name.clone(),
                        path: m.path.clone(),
                        cgns_prefix: prefixes.get(&m.name).copied(),
                    })
                    .collect(),
            });
        let sets = sets.collect();
        debug!(sets = theirs.len(), "cgroups captured");
        set.put(Image::Cgroup, 0, &CgroupEntry { sets, controllers });
        Ok(())
    }
}

/// The directories of one hierarchy that hold all of the tree.
fn heads(sets: &[Vec<Member>], name: &str) -> Vec<String> {
    let mut paths: Vec<&str> = sets
        .iter()
        .flatten()
        .filter(|m| m.name == name)
        .map(|m| m.path.as_str())
        .collect();
    paths.sort_unstable();
    paths.dedup();
    let mut heads: Vec<String> = Vec::new();
    for path in paths {
        let inside = |h: &String| {
            path.strip_prefix(h.as_str())
                .is_some_and(|r| r.starts_with('/'))
        };
        if !heads.iter().any(inside) {
            heads.push(path.to_owned());
        }
    }
    heads
}

fn directory(dir: &Dir, name: &str) -> Result<CgroupDirEntry> {
    let mut entry = CgroupDirEntry {
        dir_name: name.to_owned(),
        ..CgroupDirEntry::default()
    };
    let perms = |(mode, uid, gid)| CgroupPerms { mode, uid, gid };
    entry.dir_perms = Some(perms(dir.stat("")?));
    for file in properties::of(dir.hierarchy()) {
        let value = if properties::is_membership(file) {
            Some(String::new())
        } else {
            dir.property(file)?.map(|v| match file {
                // The rest of the file counts what has happened.
                "memory.oom_control" => v
                    .lines()
                    .next()
                    .and_then(|l| l.split(' ').next_back())
                    .unwrap_or("0")
                    .to_owned(),
                // What the freezer does just now is not a setting.
                "cgroup.freeze" => "0".to_owned(),
                _ => v,
            })
        };
        if let Some(value) = value {
            entry.properties.push(CgroupPropEntry {
                name: file.to_owned(),
                value,
                perms: Some(perms(dir.stat(file)?)),
            });
        }
    }
    for child in dir.children()? {
        if child == HOLD {
            continue;
        }
        entry
            .children
            .push(directory(&dir.descend(&child)?, &child)?);
    }
    Ok(entry)
}

/// Name of the child cgroup in which a migration holds tasks; no part of the
/// container.
pub(crate) const HOLD: &str = "dunlin-hold";

/// Length of the root of the task's cgroup namespace in its paths, by
/// hierarchy, where it has a namespace of its own.
fn prefixes(root: HostPid) -> Result<BTreeMap<String, u32>> {
    if ns::inode(root, Kind::Cgroup)? == ns::own_inode(Kind::Cgroup)? {
        return Ok(BTreeMap::new());
    }
    let outer = cgroup::membership(root)?;
    let inner = ns::inside(root, &[Kind::Cgroup], || cgroup::membership(root))?;
    let mut all = BTreeMap::new();
    for (o, i) in outer.iter().zip(&inner) {
        let below = i.path.trim_end_matches('/');
        if let Some(prefix) = o.path.strip_suffix(below) {
            all.insert(o.name.clone(), u32::try_from(prefix.len()).unwrap_or(0));
        }
    }
    Ok(all)
}
