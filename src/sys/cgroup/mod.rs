//! Control groups: cgroups(7), both versions, and their two freezers.
//!
//! A hierarchy is opened where it is mounted, else by a private, detached mount
//! of it: it does not matter where (or whether) it is mounted for us. v1 hierarchies are named
//! by their controllers (`freezer`, `cpu,cpuacct`, `name=systemd`), the v2 one
//! by the empty name, as in /proc/PID/cgroup and in images.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use crate::base::{Error, HostPid, Result, ResultExt};
use crate::sys::mounts::{self, BENEATH, FsContext, MountInfo, NO_SYMLINKS};

mod freezer;
mod warm;

pub use freezer::{FREEZE_LIMIT, Prefrozen, freezer_of, prefrozen};
pub use warm::Warm;

/// One line of /proc/PID/cgroup.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Member {
    /// Controllers, comma separated; `name=x`; empty for v2.
    pub name: String,
    /// Path in that hierarchy, from the root of our cgroup namespace.
    pub path: String,
}

/// The cgroups of a task (or thread, by its id), sorted by name.
///
/// # Errors
/// ENOENT when it is gone; a path that is not UTF-8.
pub fn membership(pid: HostPid) -> Result<Vec<Member>> {
    read_membership(&format!("/proc/{pid}/cgroup"))
}

/// The cgroups of the calling thread, sorted by name.
///
/// # Errors
/// As [`membership`].
pub fn own_membership() -> Result<Vec<Member>> {
    read_membership("/proc/thread-self/cgroup")
}

fn read_membership(path: &str) -> Result<Vec<Member>> {
    let bytes = fs::read(path).context(|| format!("read {path}"))?;
    let text = String::from_utf8(bytes)
        .map_err(|_| Error::refused(path.to_owned(), "a cgroup path is not UTF-8"))?;
    parse_membership(&text).ok_or_else(|| {
        Error::new(
            crate::base::Blame::Kernel,
            path.to_owned(),
            "not understood",
        )
    })
}

fn parse_membership(text: &str) -> Option<Vec<Member>> {
    let mut all = Vec::new();
    for line in text.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let name = parts.next()?.to_owned();
        let path = parts.next()?;
        // The cgroup of a zombie may be gone already.
        let path = path.strip_suffix(" (deleted)").unwrap_or(path).to_owned();
        all.push(Member { name, path });
    }
    all.sort();
    Some(all)
}

/// Whether processes of a hierarchy are killed or frozen by it: v2, the one of a
/// service manager, the freezer. The other v1 ones only count and limit.
fn ends_processes(name: &str) -> bool {
    name.is_empty() || name.starts_with("name=") || name.split(',').any(|c| c == "freezer")
}

/// Moves a process to the root of each hierarchy through which its cgroup might be
/// killed or frozen; false where that is not allowed.
pub fn leave(pid: HostPid) -> bool {
    let Ok(members) = membership(pid) else {
        return false;
    };
    let mut all = true;
    let hierarchies = Hierarchies::now();
    let at_risk = |m: &&Member| m.path != "/" && ends_processes(&m.name);
    for m in members.iter().filter(at_risk) {
        if let Err(e) = hierarchies.root(&m.name).and_then(|root| root.take(pid)) {
            tracing::debug!("process {pid} stays in its cgroup: {e}");
            all = false;
        }
    }
    all
}

/// A directory of a hierarchy, open.
#[derive(Debug)]
pub struct Dir {
    fd: OwnedFd,
    name: String,
    path: String,
}

impl Dir {
    /// The root of the hierarchy `name` (of our cgroup namespace).
    ///
    /// # Errors
    /// EBUSY or ENOENT when there is no such hierarchy, EPERM.
    pub fn root(name: &str) -> Result<Self> {
        Hierarchies::now().root(name)
    }

    /// The directory that this membership names.
    ///
    /// # Errors
    /// ENOENT when it does not exist; a path outside our cgroup namespace.
    pub fn open(member: &Member) -> Result<Self> {
        Hierarchies::now().open(member)
    }

    /// A directory below this one.
    ///
    /// # Errors
    /// ENOENT when it does not exist, EXDEV for a path that leaves this one.
    pub fn descend(&self, path: &str) -> Result<Self> {
        let relative = path.trim_start_matches('/');
        let full = join(&self.path, relative);
        let fd = mounts::open_at(
            self.fd.as_fd(),
            Path::new(relative),
            libc::O_RDONLY | libc::O_DIRECTORY,
            BENEATH | NO_SYMLINKS,
        )
        .context(|| self.subject_of(&full))?;
        Ok(Self {
            fd,
            name: self.name.clone(),
            path: full,
        })
    }

    /// Makes the directory `name` in this one if it is not there, and opens it.
    ///
    /// # Errors
    /// Those of mkdir(2).
    pub fn make(&self, name: &str) -> Result<(Self, bool)> {
        let at = format!("{}/{name}", self.own_path());
        let made = match fs::create_dir(&at) {
            Ok(()) => true,
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => false,
            Err(e) => {
                return Err(Error::os(
                    format!("make {}", self.subject_of(&join(&self.path, name))),
                    e,
                ));
            }
        };
        Ok((self.descend(name)?, made))
    }

    /// Removes the (empty) directory `name` in this one.
    ///
    /// # Errors
    /// EBUSY while tasks are in it.
    pub fn remove(&self, name: &str) -> Result<()> {
        let at = format!("{}/{name}", self.own_path());
        fs::remove_dir(at)
            .context(|| format!("remove {}", self.subject_of(&join(&self.path, name))))
    }

    /// Name of the hierarchy; empty for v2.
    pub fn hierarchy(&self) -> &str {
        &self.name
    }

    /// Path from the root of our cgroup namespace.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Whether it is of the v2 hierarchy.
    pub fn is_v2(&self) -> bool {
        self.name.is_empty()
    }

    /// Permission bits with file type, uid and gid.
    ///
    /// # Errors
    /// Those of stat(2).
    pub fn stat(&self, file: &str) -> Result<(u32, u32, u32)> {
        use std::os::unix::fs::MetadataExt;
        let at = format!("{}/{file}", self.own_path());
        let m = fs::metadata(at).context(|| self.subject(file))?;
        Ok((m.mode(), m.uid(), m.gid()))
    }

    /// Owner and permissions of a file in it, or of itself for "".
    ///
    /// # Errors
    /// Those of chown(2) and chmod(2).
    pub fn set_perms(&self, file: &str, mode: u32, uid: u32, gid: u32) -> Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let at = format!("{}/{file}", self.own_path());
        std::os::unix::fs::chown(&at, Some(uid), Some(gid)).context(|| self.subject(file))?;
        let perms = fs::Permissions::from_mode(mode & 0o7777);
        fs::set_permissions(&at, perms).context(|| self.subject(file))
    }

    /// Content of a property, without trailing newline; `None` if it has no
    /// such property, or one that cannot be read.
    ///
    /// # Errors
    /// Those of read(2), but not those that only say "not here".
    pub fn property(&self, file: &str) -> Result<Option<String>> {
        match self.read(file) {
            Ok(t) => Ok(Some(t)),
            Err(e) => match e.raw_os_error() {
                Some(
                    libc::ENOENT | libc::EOPNOTSUPP | libc::EINVAL | libc::EACCES | libc::ENODEV,
                ) => Ok(None),
                _ => Err(e),
            },
        }
    }

    /// Content of a property, without trailing newlines.
    ///
    /// # Errors
    /// Those of open(2) and read(2).
    pub fn read(&self, file: &str) -> Result<String> {
        let at = format!("{}/{file}", self.own_path());
        let text = fs::read_to_string(at).context(|| format!("read {}", self.subject(file)))?;
        Ok(text.trim_end_matches('\n').to_owned())
    }

    /// Writes a property in one write(2).
    ///
    /// # Errors
    /// Those of open(2) and write(2).
    pub fn write(&self, file: &str, value: &str) -> Result<()> {
        let at = format!("{}/{file}", self.own_path());
        let what = || format!("write \"{value}\" to {}", self.subject(file));
        let mut f = fs::OpenOptions::new().write(true).open(at).context(what)?;
        f.write_all(value.as_bytes()).context(what)
    }

    /// Moves a process with all its threads here.
    ///
    /// # Errors
    /// ESRCH when it is gone, EBUSY where v2 allows no tasks.
    pub fn take(&self, pid: HostPid) -> Result<()> {
        self.write("cgroup.procs", &pid.to_string())
    }

    /// The processes directly in it (0 stands for one that we cannot see).
    ///
    /// # Errors
    /// Those of reading cgroup.procs.
    pub fn procs(&self) -> Result<Vec<HostPid>> {
        let text = self.read("cgroup.procs")?;
        Ok(text
            .lines()
            .filter_map(|l| l.parse().ok())
            .map(HostPid)
            .collect())
    }

    /// Names of the directories in it, sorted.
    ///
    /// # Errors
    /// Those of readdir(3).
    pub fn children(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.own_path()).context(|| self.subject(""))? {
            let entry = entry.context(|| self.subject(""))?;
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                names.extend(entry.file_name().into_string());
            }
        }
        names.sort();
        Ok(names)
    }

    /// The processes in it and in all below.
    ///
    /// # Errors
    /// As [`Dir::procs`]; directories that vanish meanwhile are none.
    pub fn procs_below(&self) -> Result<BTreeSet<HostPid>> {
        let mut all: BTreeSet<_> = self.procs()?.into_iter().collect();
        for name in self.children()? {
            match self.descend(&name) {
                Ok(child) => all.extend(child.procs_below()?),
                Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(all)
    }

    fn own_path(&self) -> String {
        format!("/proc/self/fd/{}", self.fd.as_raw_fd())
    }

    fn subject(&self, file: &str) -> String {
        self.subject_of(&join(&self.path, file))
    }

    fn subject_of(&self, path: &str) -> String {
        let name = if self.name.is_empty() {
            "v2"
        } else {
            &self.name
        };
        format!("cgroup {name}:{path}")
    }
}

/// Where hierarchies are mounted for us. Reading that takes as long as there are
/// mounts: once is enough for many directories.
#[derive(Debug)]
pub struct Hierarchies {
    mounts: Vec<MountInfo>,
}

impl Hierarchies {
    /// Those of now. Without a mount table none is mounted.
    pub fn now() -> Self {
        Self {
            mounts: mounts::own_mountinfo().unwrap_or_default(),
        }
    }

    /// As [`Dir::root`].
    ///
    /// # Errors
    /// As [`Dir::root`].
    pub fn root(&self, name: &str) -> Result<Dir> {
        let fd = match self.mounted(name) {
            Some(fd) => fd,
            None => private_mount(name)?,
        };
        Ok(Dir {
            fd,
            name: name.to_owned(),
            path: "/".to_owned(),
        })
    }

    /// As [`Dir::open`].
    ///
    /// # Errors
    /// As [`Dir::open`].
    pub fn open(&self, member: &Member) -> Result<Dir> {
        self.root(&member.name)?.descend(&member.path)
    }

    /// Whether `fd` lies in a mount of a hierarchy.
    ///
    /// # Errors
    /// Those of statx(2).
    pub fn has_mount_of(&self, fd: BorrowedFd<'_>) -> Result<bool> {
        let id = mounts::mount_id(fd)?;
        let is_one = |m: &MountInfo| m.id == id && m.fstype.starts_with("cgroup");
        Ok(self.mounts.iter().any(is_one))
    }

    /// The root of a hierarchy where it is mounted whole for us. Saves a mount of
    /// our own, whose end waits for all processors (0.5 ms and more).
    fn mounted(&self, name: &str) -> Option<OwnedFd> {
        let is = |m: &MountInfo| {
            let options: Vec<&str> = m.super_options.split(',').collect();
            m.root == "/"
                && if name.is_empty() {
                    m.fstype == "cgroup2"
                } else {
                    m.fstype == "cgroup" && name.split(',').all(|c| options.contains(&c))
                }
        };
        let at = self.mounts.iter().find(|m| is(m))?;
        let fd: OwnedFd = fs::File::open(&at.mountpoint).ok()?.into();
        // Something else may be mounted over it.
        (mounts::mount_id(fd.as_fd()).ok()? == at.id).then_some(fd)
    }
}

fn private_mount(name: &str) -> Result<OwnedFd> {
    let fs = if name.is_empty() {
        FsContext::open("cgroup2")?
    } else {
        let fs = FsContext::open("cgroup")?;
        for controller in name.split(',') {
            match controller.strip_prefix("name=") {
                Some(n) => fs.string("name", n)?,
                None => fs.flag(controller)?,
            }
        }
        fs
    };
    fs.mount(0)
        .context(|| format!("open cgroup hierarchy \"{name}\""))
}

impl From<Dir> for OwnedFd {
    fn from(dir: Dir) -> Self {
        dir.fd
    }
}

fn join(a: &str, b: &str) -> String {
    match (a.trim_end_matches('/'), b.trim_matches('/')) {
        ("", "") => "/".to_owned(),
        (a, "") => a.to_owned(),
        (a, b) => format!("{a}/{b}"),
    }
}

#[cfg(test)]
pub(crate) mod tests;
