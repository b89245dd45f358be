//! Cgroups of an image made again, and tasks put into them.

use std::cell::OnceCell;
use std::collections::HashMap;

use tracing::{debug, warn};

use super::{Mode, properties};
use crate::base::{Error, HostPid, Result, ResultExt};
use crate::image::records::{CgControllerEntry, CgroupDirEntry, CgroupEntry, CgroupPropEntry};
use crate::image::{Kind as Image, Set};
use crate::sys::cgroup::{self, Dir, Hierarchies, Member};

/// Where the tasks of an image go.
#[derive(Debug)]
pub struct Plan {
    mode: Mode,
    entry: CgroupEntry,
    /// Hierarchy to where the tree was and where it goes.
    moves: HashMap<String, (String, String)>,
}

/// Directories that we made; removed again when a restore fails.
#[derive(Debug, Default)]
pub struct Made {
    dirs: Vec<(Dir, String)>,
    late: Vec<(Dir, Vec<CgroupPropEntry>)>,
}

impl Plan {
    /// Reads cgroup.img; `None` when nothing is to be done: no such file, or
    /// the mode is [`Mode::Ignore`].
    ///
    /// `cg_root` says where a hierarchy's part of the tree goes (`None`: every
    /// hierarchy's). If it names some, then in the others the tree stays where
    /// the caller is: it knows its own container's cgroups. If it names none,
    /// all go where they were.
    ///
    /// # Errors
    /// Contradictory records.
    pub fn read(
        set: &Set,
        mode: Mode,
        cg_root: &[(Option<String>, String)],
    ) -> Result<Option<Self>> {
        if mode == Mode::Ignore {
            return Ok(None);
        }
        let Some(entry) = set.get::<CgroupEntry>(Image::Cgroup, 0)? else {
            return Ok(None);
        };
        let ours = cgroup::own_membership()?;
        let mut moves = HashMap::new();
        let root = entry
            .sets
            .iter()
            .min_by_key(|s| s.id)
            .ok_or_else(|| Error::image("cgroup.img", "holds no set"))?;
        for member in &root.ctls {
            check_path(&member.path)?;
            // A hierarchy without directories: the tree had no place of its own
            // in it, and goes where the caller is.
            let described =
                |c: &CgControllerEntry| !c.dirs.is_empty() && c.cnames.join(",") == member.name;
            if !entry.controllers.iter().any(described) {
                continue;
            }
            let was = match member.cgns_prefix.and_then(|n| usize::try_from(n).ok()) {
                Some(n) if n > 0 => member.path.get(..n).ok_or_else(|| {
                    Error::image("cgroup.img", "a prefix is longer than its path")
                })?,
                _ => &member.path,
            };
            let given = cg_root
                .iter()
                .find(|(c, _)| {
                    c.as_deref()
                        .is_some_and(|c| c == member.name || member.name.split(',').any(|m| m == c))
                })
                .or(cg_root.iter().find(|(c, _)| c.is_none()));
            let goes = match given {
                Some((_, path)) => path.clone(),
                None if cg_root.is_empty() => was.to_owned(),
                None => match ours.iter().find(|o| o.name == member.name) {
                    Some(own) => own.path.clone(),
                    None => was.to_owned(),
                },
            };
            check_path(&goes)?;
            moves.insert(member.name.clone(), (was.to_owned(), goes));
        }
        for set in &entry.sets {
            for member in &set.ctls {
                check_path(&member.path)?;
            }
        }
        Ok(Some(Self { mode, entry, moves }))
    }

    /// Where `path` goes; `None` where the tree had no place of its own.
    fn target(&self, name: &str, path: &str) -> Option<String> {
        let (was, goes) = self.moves.get(name)?;
        Some(match path.strip_prefix(was.trim_end_matches('/')) {
            Some("" | "/") => goes.clone(),
            Some(rest) if rest.starts_with('/') => {
                format!("{}{rest}", goes.trim_end_matches('/'))
            }
            _ => path.to_owned(),
        })
    }

    /// Makes the directories as the mode says, and sets what must be set while
    /// they are empty. On failure what was made is removed again.
    ///
    /// # Errors
    /// Those of mkdir(2) and write(2); a directory that must (or must not)
    /// exist, by path.
    pub fn prepare(&self) -> Result<Made> {
        let mut made = Made::default();
        let hierarchies = Hierarchies::now();
        let mut each = self.entry.controllers.iter();
        let done = each.try_for_each(|c| self.hierarchy(c, &hierarchies, &mut made));
        match done {
            Ok(()) => Ok(made),
            Err(e) => {
                made.undo();
                Err(e)
            }
        }
    }

    fn hierarchy(
        &self,
        controller: &CgControllerEntry,
        all: &Hierarchies,
        made: &mut Made,
    ) -> Result<()> {
        if controller.dirs.is_empty() {
            return Ok(());
        }
        let name = controller.cnames.join(",");
        let root = match all.root(&name) {
            Ok(root) => root,
            Err(e) => {
                // Other hosts mount other hierarchies; a limit that cannot be
                // kept is worth a word, not the container.
                warn!(hierarchy = name, error = %e, "this host has no such cgroup hierarchy");
                return Ok(());
            }
        };
        for dir in &controller.dirs {
            let was = format!("/{}", dir.dir_name.trim_start_matches('/'));
            let path = self.target(&name, &was).unwrap_or(was);
            check_path(&path)?;
            self.directory(&root, path.trim_matches('/'), dir, made)?;
        }
        Ok(())
    }

    fn directory(
        &self,
        above: &Dir,
        path: &str,
        entry: &CgroupDirEntry,
        made: &mut Made,
    ) -> Result<()> {
        let dir = match above.descend(path) {
            Ok(_) if path.is_empty() => above.descend("")?,
            Ok(dir) => {
                if self.mode == Mode::Strict {
                    return Err(Error::errno(
                        format!("make cgroup {}", dir.path()),
                        libc::EEXIST,
                    ));
                }
                if matches!(self.mode, Mode::Props | Mode::Full) {
                    made.late.push((dir.descend("")?, entry.properties.clone()));
                }
                dir
            }
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {
                if matches!(self.mode, Mode::None | Mode::Props) {
                    return Err(e.within("cgroup that must exist"));
                }
                let mut at = above.descend("")?;
                for part in path.split('/').filter(|p| !p.is_empty()) {
                    let (next, new) = at.make(part)?;
                    if new {
                        made.dirs.push((at, part.to_owned()));
                        inherit_cpuset(&next)?;
                    }
                    at = next;
                }
                if let Some(p) = &entry.dir_perms {
                    at.set_perms("", p.mode, p.uid, p.gid)?;
                }
                for property in entry
                    .properties
                    .iter()
                    .filter(|p| properties::is_early(&p.name))
                {
                    set(&at, property)?;
                }
                made.late.push((at.descend("")?, entry.properties.clone()));
                at
            }
            Err(e) => return Err(e),
        };
        for child in &entry.children {
            let plain = !child.dir_name.is_empty() && !child.dir_name.contains('/');
            if !plain || child.dir_name.starts_with('.') {
                return Err(Error::image(
                    "cgroup.img",
                    format!("\"{}\" is no name", child.dir_name),
                ));
            }
            self.directory(&dir, &child.dir_name, child, made)?;
        }
        Ok(())
    }

    /// Moves a process of set `number` where it belongs. What it is in already
    /// is left alone.
    ///
    /// # Errors
    /// A set that the image does not hold; those of moving.
    pub fn place(&self, pid: HostPid, number: u32) -> Result<()> {
        let set = self
            .entry
            .sets
            .iter()
            .find(|s| s.id == number)
            .ok_or_else(|| Error::image("cgroup.img", format!("holds no set {number}")))?;
        let now = cgroup::membership(pid)?;
        let hierarchies = OnceCell::new();
        for member in &set.ctls {
            let Some(want) = self.target(&member.name, &member.path) else {
                continue;
            };
            let Some(at) = now.iter().find(|n| n.name == member.name) else {
                continue;
            };
            if at.path == want {
                continue;
            }
            let to = Member {
                name: member.name.clone(),
                path: want,
            };
            hierarchies
                .get_or_init(Hierarchies::now)
                .open(&to)
                .and_then(|d| d.take(pid))
                .context(|| format!("move task {pid} to cgroup {}:{}", to.name, to.path))?;
            debug!(pid = pid.0, hierarchy = to.name, path = to.path, "moved");
        }
        Ok(())
    }
}

impl Made {
    /// Sets the remaining properties, when the tasks are in.
    ///
    /// # Errors
    /// Those of write(2), with file and value.
    pub fn finish(&self) -> Result<()> {
        for (dir, all) in &self.late {
            for property in all.iter().filter(|p| !properties::is_early(&p.name)) {
                set(dir, property)?;
            }
        }
        Ok(())
    }

    /// Removes the directories again, deepest first.
    pub fn undo(self) {
        for (above, name) in self.dirs.iter().rev() {
            if let Err(e) = above.remove(name) {
                warn!(error = %e, "a cgroup stays behind");
            }
        }
    }
}

/// A new cpuset takes no tasks until it has processors and memory nodes.
fn inherit_cpuset(dir: &Dir) -> Result<()> {
    if dir.hierarchy().split(',').all(|c| c != "cpuset") {
        return Ok(());
    }
    let above = Dir::root(dir.hierarchy())?;
    let parent = dir.path().rsplit_once('/').map_or("", |(p, _)| p);
    let above = above.descend(parent)?;
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if dir.read(file)?.is_empty() {
            dir.write(file, &above.read(file)?)?;
        }
    }
    Ok(())
}

fn set(dir: &Dir, property: &CgroupPropEntry) -> Result<()> {
    let name = property.name.as_str();
    if !properties::is_known(dir.hierarchy(), name) {
        warn!(property = name, cgroup = dir.path(), "not carried");
        return Ok(());
    }
    if let Some(p) = &property.perms
        && dir.property(name)?.is_some()
    {
        dir.set_perms(name, p.mode, p.uid, p.gid)?;
    }
    let value = property.value.trim_end_matches('\n');
    let now = if properties::is_membership(name) {
        None
    } else {
        dir.property(name)?
    };
    match name {
        _ if properties::is_membership(name) || now.as_deref() == Some(value) => Ok(()),
        "cgroup.freeze" => Ok(()),
        "cgroup.type" if value != "threaded" => Ok(()),
        "memory.oom_control"
            if now.is_some_and(|n| {
                n.lines().next() == Some(&format!("oom_kill_disable {value}"))
            }) =>
        {
            Ok(())
        }
        "devices.list" => {
            dir.write("devices.deny", "a")?;
            value
                .lines()
                .try_for_each(|line| dir.write("devices.allow", line))
        }
        "cgroup.subtree_control" => value
            .split(' ')
            .filter(|c| !c.is_empty())
            .try_for_each(|c| dir.write(name, &format!("+{c}"))),
        _ => match dir.write(name, value) {
            // Gone from newer kernels.
            Err(e)
                if name.starts_with("memory.kmem.")
                    && e.raw_os_error() == Some(libc::EOPNOTSUPP) =>
            {
                Ok(())
            }
            other => other,
        },
    }
}

/// A path of a cgroup in an image: absolute, without dots.
fn check_path(path: &str) -> Result<()> {
    if path.starts_with('/') && !path.split('/').any(|c| c == "." || c == "..") {
        Ok(())
    } else {
        Err(Error::image(
            "cgroup path",
            format!("\"{path}\" is not absolute and plain"),
        ))
    }
}

#[cfg(test)]
mod tests;
