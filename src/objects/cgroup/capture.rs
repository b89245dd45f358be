//! The cgroups of a tree as records, and who else is in them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;

use tracing::debug;

use super::{Mode, properties};
use crate::base::{HostPid, Result};
use crate::image::records::{
    CgControllerEntry, CgMemberEntry, CgSetEntry, CgroupDirEntry, CgroupEntry, CgroupPerms,
    CgroupPropEntry,
};
use crate::image::{Kind as Image, Set};
use crate::sys::cgroup::{self, Dir, Member};
use crate::sys::ns::{self, Kind};

/// The captured cgroups of a tree.
#[derive(Debug)]
pub struct Cgroups {
    own: u32,
    numbers: HashMap<HostPid, u32>,
    entry: Option<CgroupEntry>,
}

impl Cgroups {
    /// `root_cg_set` of the inventory: our own set.
    pub fn own_set(&self) -> u32 {
        self.own
    }

    /// The set of a thread.
    pub fn set_of(&self, thread: HostPid) -> Option<u32> {
        self.numbers.get(&thread).copied()
    }

    /// Writes cgroup.img, unless all tasks are in our own cgroups.
    pub fn write(&self, set: &mut Set) {
        if let Some(entry) = &self.entry {
            set.put(Image::Cgroup, 0, entry);
        }
    }
}

/// Captures the cgroups of `threads` (the root task first; thread ids and
/// leaders alike).
///
/// # Errors
/// ENOENT when one is gone; those of reading the directories.
pub fn capture(threads: &[HostPid], mode: Mode) -> Result<Cgroups> {
    let ours = cgroup::own_membership()?;
    let mut sets: Vec<Vec<Member>> = vec![ours];
    let mut numbers = HashMap::new();
    for thread in threads {
        let at = cgroup::membership(*thread)?;
        let i = sets.iter().position(|s| *s == at).unwrap_or_else(|| {
            sets.push(at);
            sets.len() - 1
        });
        numbers.insert(*thread, u32::try_from(i).unwrap_or(u32::MAX - 1) + 1);
    }
    if sets.len() == 1 {
        return Ok(Cgroups {
            own: 1,
            numbers,
            entry: None,
        });
    }
    let prefixes = match threads.first() {
        Some(root) => prefixes(*root)?,
        None => BTreeMap::new(),
    };
    let mut controllers = Vec::new();
    let (ours, theirs) = sets
        .split_first()
        .map_or((&[][..], &[][..]), |(o, t)| (o.as_slice(), t));
    for member in theirs.first().into_iter().flatten() {
        let mut dirs = Vec::new();
        if mode != Mode::Ignore {
            let heads = heads(theirs, &member.name);
            for path in heads {
                // Not ours to describe: the root, and where we are ourselves.
                if path != "/" && !ours.iter().any(|o| o.name == member.name && o.path == path) {
                    let at = Member {
                        name: member.name.clone(),
                        path: path.clone(),
                    };
                    let name = path.trim_start_matches('/');
                    dirs.push(directory(&Dir::open(&at)?, name)?);
                }
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
        .zip(2u32..)
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
        })
        .collect();
    debug!(sets = theirs.len(), "cgroups captured");
    Ok(Cgroups {
        own: 1,
        numbers,
        entry: Some(CgroupEntry { sets, controllers }),
    })
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

/// Processes that are in the container's cgroups or pid namespace and are not
/// in `tree`: exec sessions, health checks.
///
/// # Errors
/// Those of reading the directories.
pub fn strangers(root: HostPid, tree: &BTreeSet<HostPid>) -> Result<Vec<HostPid>> {
    let mut found = BTreeSet::new();
    let ours = cgroup::own_membership()?;
    let mut asked = false;
    for member in cgroup::membership(root)? {
        let shared = |o: &Member| {
            o.name == member.name
                && (o.path == member.path || o.path.starts_with(&format!("{}/", member.path)))
        };
        // The freezer's is the one that counts; any other will do as well.
        if member.path == "/" || ours.iter().any(shared) || (asked && member.name != "freezer") {
            continue;
        }
        found.extend(Dir::open(&member)?.procs_below()?);
        asked = true;
    }
    let space = ns::inode(root, Kind::Pid)?;
    if space != ns::own_inode(Kind::Pid)? {
        found.extend(
            processes()
                .into_iter()
                .filter(|p| ns::inode(*p, Kind::Pid).is_ok_and(|i| i == space)),
        );
    }
    // 0 is one that we cannot see from our pid namespace.
    Ok(found
        .into_iter()
        .filter(|p| !tree.contains(p) && p.0 != 0)
        .collect())
}

fn processes() -> Vec<HostPid> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse().ok())
        .map(HostPid)
        .collect()
}
