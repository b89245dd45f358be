//! Descriptor tables of stopped tasks to records.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::sys::stat::FileStat;

use super::epoll::Pending;
use super::fdinfo::{self, Fdinfo};
use super::identity::{Identities, Look, Spot};
use super::kind::{self, Kind};
use super::memfd::Contents;
use super::owner;
use super::program;
use crate::base::{Error, HostPid, Result, ResultExt};
use crate::image::records::{FdTypes, FdinfoEntry, FileEntry, FownEntry};
use crate::image::{Kind as Image, Set};
use crate::objects::sockets;
use crate::sys::{kcmp, pidfd};

/// What the caller allows.
#[derive(Debug, Clone)]
pub struct Policy {
    /// `--file-locks`: locks are carried; else a task that holds one is refused.
    pub file_locks: bool,
    /// `--ext-unix-sk`: a datagram socket may be connected to one outside.
    pub ext_unix_sk: bool,
    /// `--ghost-limit`: most bytes of a file without a name.
    pub ghost_limit: u64,
    /// `--external file[MNT:INO]`: files that the caller will provide again.
    pub external: Vec<String>,
    /// The id that the image gives to the network namespace of the tasks.
    pub net_ns_id: Option<u32>,
    /// RPC orphan_pts_master: the restore's caller takes masters of terminals.
    pub orphan_pts_master: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            file_locks: false,
            ext_unix_sk: false,
            ghost_limit: 1 << 20,
            external: Vec::new(),
            net_ns_id: None,
            orphan_pts_master: false,
        }
    }
}

/// A file that an area maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapped {
    /// Id of the file: `vma.shmid`.
    pub id: u32,
    /// It is a memfd: the area has the status bit for that.
    pub memfd: bool,
}

/// Whether two tasks share a descriptor table (CLONE_FILES).
///
/// # Errors
/// ESRCH for a dead task.
pub fn same_table(a: HostPid, b: HostPid) -> Result<bool> {
    Ok(kcmp::shared(a, b, kcmp::Shared::Files)? == Ordering::Equal)
}

/// A descriptor that is being captured, with all that is known of it.
#[derive(Debug)]
pub(super) struct Open<'a> {
    pub(super) spot: Spot,
    pub(super) fd: BorrowedFd<'a>,
    pub(super) stat: FileStat,
    pub(super) link: String,
    pub(super) info: Fdinfo,
    pub(super) fown: FownEntry,
    pub(super) id: u32,
}

impl Open<'_> {
    /// Status flags without those of the descriptor.
    pub(super) fn flags(&self) -> u32 {
        self.info.flags & !O_CLOEXEC
    }
}

const O_CLOEXEC: u32 = libc::O_CLOEXEC.cast_unsigned();
const O_PATH: u32 = libc::O_PATH.cast_unsigned();

/// A descriptor of a captured table.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    pub(super) fd: RawFd,
    pub(super) ino: u64,
}

/// A captured table: the task it was read from, and its descriptors.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) pid: HostPid,
    pub(super) seen: Vec<Seen>,
}

/// Collects the open files of a tree of stopped tasks.
#[derive(Debug)]
pub struct Capture {
    pub(super) policy: Policy,
    pub(super) me: HostPid,
    /// Root directory that paths are looked up from.
    pub(super) root: OwnedFd,
    /// The tasks have a mount namespace of their own.
    pub(super) own_mounts: bool,
    /// Mounts of the tasks' namespace.
    pub(super) mounts: BTreeSet<i32>,
    /// Standard streams of the root task, by (st_dev, st_ino).
    pub(super) standard: BTreeSet<(u64, u64)>,
    shmem: u64,
    pub(super) ids: Identities,
    types: BTreeMap<u32, FdTypes>,
    pub(super) tables: Vec<Table>,
    pub(super) epolls: Vec<Pending>,
    pub(super) pipes: BTreeSet<(Image, u32)>,
    /// Numbers of pseudoterminals.
    pub(super) terminals: BTreeSet<u32>,
    pub(super) ghosts: BTreeMap<(u64, u64), u32>,
    pub(super) memfds: BTreeMap<u64, u32>,
    pub(super) contents: Vec<Contents>,
    special: BTreeMap<(u64, u64, i32, u32, String), Mapped>,
    sockets: sockets::Capture,
    /// Descriptors that travel in a queue: kept, so that they can be compared.
    travelling: Vec<OwnedFd>,
    pub(super) image: Set,
}

impl Capture {
    /// Begins with the tree whose root is `root`.
    ///
    /// # Errors
    /// ENOENT or ESRCH when there is no such task, EACCES without the right to trace it.
    pub fn new(policy: Policy, root: HostPid) -> Result<Self> {
        let link = |path: String| {
            std::fs::read_link(&path).map_err(|e| Error::os(format!("readlink {path}"), e))
        };
        let own_mounts = link(format!("/proc/{root}/ns/mnt"))? != link("/proc/self/ns/mnt".into())?;
        let top = if own_mounts {
            format!("/proc/{root}/root")
        } else {
            "/".into()
        };
        let sockets = sockets::Capture::new(root, policy.net_ns_id, policy.ext_unix_sk)?;
        Ok(Self {
            policy,
            me: HostPid(std::process::id().cast_signed()),
            root: open_path(&top)?,
            own_mounts,
            mounts: mount_ids(root)?,
            standard: standard_streams(root),
            shmem: super::memfd::device()?,
            ids: Identities::default(),
            types: BTreeMap::new(),
            tables: Vec::new(),
            epolls: Vec::new(),
            pipes: BTreeSet::new(),
            terminals: BTreeSet::new(),
            ghosts: BTreeMap::new(),
            memfds: BTreeMap::new(),
            contents: Vec::new(),
            special: BTreeMap::new(),
            sockets,
            travelling: Vec::new(),
            image: Set::new(),
        })
    }

    /// Captures the descriptor table of `pid`; call it once for each shared
    /// table. The answer is its `files_id`.
    ///
    /// # Errors
    /// A descriptor that cannot be carried, by name.
    pub fn table(&mut self, pid: HostPid, task: BorrowedFd<'_>) -> Result<u32> {
        let mut numbers = descriptors(pid)?;
        numbers.sort_unstable();
        let files_id = u32::try_from(self.tables.len() + 2)
            .map_err(|_| Error::bug("descriptor tables", "too many"))?;
        self.image.touch(Image::Fdinfo, files_id);
        self.tables.push(Table {
            pid,
            seen: Vec::with_capacity(numbers.len()),
        });
        for fd in numbers {
            let spot = Spot { pid, fd };
            let dup = pidfd::getfd(task, fd).context(|| format!("task {pid} fd {fd}"))?;
            let (entry, seen) = self
                .descriptor(spot, dup)
                .map_err(|e| named(e, format!("task {pid} fd {fd}")))?;
            self.image.push(Image::Fdinfo, files_id, &entry);
            if let Some(table) = self.tables.last_mut() {
                table.seen.push(seen);
            }
        }
        Ok(files_id)
    }

    fn descriptor(&mut self, spot: Spot, dup: OwnedFd) -> Result<(FdinfoEntry, Seen)> {
        let info = fdinfo::read(spot.pid, spot.fd)?;
        let cloexec = info.flags & O_CLOEXEC != 0;
        let (id, r#type, stat) = self.file(spot, dup.as_fd(), info)?;
        let entry = FdinfoEntry {
            id,
            flags: u32::from(cloexec),
            r#type: r#type.into(),
            fd: u32::try_from(spot.fd).map_err(|_| Error::bug("descriptor", "is negative"))?,
            xattr_security_selinux: None,
        };
        let seen = Seen {
            fd: spot.fd,
            ino: stat.st_ino,
        };
        Ok((entry, seen))
    }

    /// A descriptor that travels in the queue of a socket.
    fn travelling(&mut self, fd: OwnedFd) -> Result<u32> {
        let spot = Spot {
            pid: self.me,
            fd: fd.as_raw_fd(),
        };
        let info = fdinfo::read(spot.pid, spot.fd)?;
        let id = self.file(spot, fd.as_fd(), info)?.0;
        self.travelling.push(fd);
        Ok(id)
    }

    fn file(
        &mut self,
        spot: Spot,
        fd: BorrowedFd<'_>,
        info: Fdinfo,
    ) -> Result<(u32, FdTypes, FileStat)> {
        let stat = stat(fd)?;
        let look = Look {
            dev: stat.st_dev,
            ino: stat.st_ino,
            pos: info.pos,
            flags: info.flags & !O_CLOEXEC,
        };
        if !info.locks.is_empty() {
            self.locks(spot, &info.locks)?;
        }
        let (id, new) = self.ids.id(look, spot)?;
        if !new {
            if let Some(epoll) = self.epolls.iter_mut().find(|e| e.entry.id == id) {
                epoll.holders.push(spot);
            }
            let known = self.types.get(&id).copied().ok_or_else(|| {
                Error::bug(format!("file {id}"), "was seen before and has no type")
            })?;
            return Ok((id, known, stat));
        }
        let fown = if info.flags & O_PATH == 0 {
            owner::capture(fd)?
        } else {
            FownEntry::default()
        };
        let open = Open {
            spot,
            fd,
            stat,
            link: link_of(fd)?,
            info,
            fown,
            id,
        };
        let entry = self.entry(open)?;
        let r#type = entry.r#type();
        self.types.insert(id, r#type);
        // Epoll sets are written at the end, when all targets are known.
        if r#type != FdTypes::Eventpoll {
            self.image.push(Image::Files, 0, &entry);
        }
        Ok((id, r#type, stat))
    }

    fn entry(&mut self, open: Open<'_>) -> Result<FileEntry> {
        // O_PATH opens the name and not what is behind it: a FIFO, a socket.
        let bare = open.flags() & O_PATH != 0 && open.stat.st_nlink > 0;
        let kind = if bare && open.link.starts_with('/') {
            Kind::Path
        } else {
            kind::classify(&open.stat, &open.link, self.shmem)
                .map_err(|what| Error::refused(what, "cannot be carried"))?
        };
        match kind {
            Kind::Path | Kind::Device => self.path(&open, open.id),
            Kind::Terminal => self.terminal(&open),
            Kind::Pipe => self.pipe(&open),
            Kind::Fifo => self.fifo(&open),
            Kind::Memfd => self.memfd(&open),
            Kind::Eventfd => super::anonymous::eventfd(&open),
            Kind::Timerfd => super::anonymous::timerfd(&open),
            Kind::Signalfd => super::anonymous::signalfd(&open),
            Kind::Epoll => self.epoll(open),
            Kind::Socket => self.socket(&open),
        }
    }

    fn socket(&mut self, open: &Open<'_>) -> Result<FileEntry> {
        let (entry, packets) = self.sockets.socket(&sockets::Open {
            id: open.id,
            fd: open.fd,
            ino: open.stat.st_ino,
            flags: open.flags(),
            fown: open.fown.clone(),
        })?;
        for (mut packet, message) in packets {
            let mut ids = Vec::with_capacity(message.rights.len());
            for right in message.rights {
                let id = self.travelling(right);
                ids.push(id.context(|| "descriptor in its queue".into())?);
            }
            sockets::attach(&mut packet, ids);
            self.image
                .push_payload(Image::SkQueues, 0, &packet, &message.data);
        }
        Ok(entry)
    }

    /// A file that is mapped, given as a descriptor that the caller opened
    /// (`/proc/PID/map_files/...`) with the access that the area needs.
    ///
    /// # Errors
    /// A file that cannot be carried, by name.
    pub fn reg_for_mapping(&mut self, fd: &OwnedFd) -> Result<Mapped> {
        let link = link_of(fd.as_fd())?;
        self.special(fd.as_fd(), None)
            .map_err(|e| named(e, format!("mapped file {link}")))
    }

    /// The program of a task: the id for `mm.exe_file_id`.
    ///
    /// # Errors
    /// As [`Self::reg_for_mapping`]; a program of another width.
    pub fn exe(&mut self, pid: HostPid) -> Result<u32> {
        program::check_width(pid)?;
        self.link(pid, "exe")
    }

    /// Working directory and root of a task: the ids for `fs-PID.img`.
    ///
    /// # Errors
    /// As [`Self::reg_for_mapping`].
    pub fn cwd_root(&mut self, pid: HostPid) -> Result<(u32, u32)> {
        Ok((self.link(pid, "cwd")?, self.link(pid, "root")?))
    }

    fn link(&mut self, pid: HostPid, what: &str) -> Result<u32> {
        let fd = open_path(&format!("/proc/{pid}/{what}"))?;
        self.special(fd.as_fd(), Some(0))
            .map(|m| m.id)
            .map_err(|e| named(e, format!("{what} of task {pid}")))
    }

    /// A file without a descriptor in a table, recorded once for each way it is
    /// opened; `flags` stands for those of `fd`.
    fn special(&mut self, fd: BorrowedFd<'_>, flags: Option<u32>) -> Result<Mapped> {
        let spot = Spot {
            pid: self.me,
            fd: fd.as_raw_fd(),
        };
        let mut info = fdinfo::read(spot.pid, spot.fd)?;
        info.flags = flags.unwrap_or(info.flags & !O_CLOEXEC);
        let stat = stat(fd)?;
        let link = link_of(fd)?;
        let key = (
            stat.st_dev,
            stat.st_ino,
            info.mnt_id,
            info.flags,
            link.clone(),
        );
        if let Some(known) = self.special.get(&key) {
            return Ok(*known);
        }
        let open = Open {
            spot,
            fd,
            stat,
            link,
            info,
            fown: FownEntry::default(),
            id: self.ids.fresh(),
        };
        let entry = self.entry(open)?;
        let mapped = match entry.r#type() {
            FdTypes::Reg => Mapped {
                id: entry.id,
                memfd: false,
            },
            FdTypes::Memfd => Mapped {
                id: entry.id,
                memfd: true,
            },
            other => {
                return Err(Error::refused(
                    format!("mapping of a file of type {other:?}"),
                    "cannot be carried",
                ));
            }
        };
        self.image.push(Image::Files, 0, &entry);
        self.special.insert(key, mapped);
        Ok(mapped)
    }

    /// Writes everything into `set`, and hands out the memfds whose contents
    /// are still to be saved as shared memory.
    ///
    /// # Errors
    /// An epoll set with a member that no task has open any more; a socket
    /// whose other end is outside.
    pub fn finish(mut self, set: &mut Set) -> Result<Vec<Contents>> {
        let ids = &mut self.ids;
        for entry in self.sockets.finish(|| ids.fresh())? {
            self.image.push(Image::Files, 0, &entry);
        }
        for peer in self.sockets.peers() {
            self.image.push(Image::DunlinPeers, 0, peer);
        }
        self.finish_epolls()?;
        for (name, bytes) in self.image.files() {
            set.put_raw(name, bytes.to_vec())?;
        }
        Ok(self.contents)
    }
}

/// Puts `whose` before what cannot be carried, so that the message reads
/// "task 12 fd 5: io_uring descriptor cannot be carried".
fn named(e: Error, whose: String) -> Error {
    e.within(whose)
}

pub(super) fn stat(fd: BorrowedFd<'_>) -> Result<FileStat> {
    nix::sys::stat::fstat(fd).context(|| "fstat".into())
}

/// Where a descriptor of ours leads.
pub(super) fn link_of(fd: BorrowedFd<'_>) -> Result<String> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let link = std::fs::read_link(&path).map_err(|e| Error::os(format!("readlink {path}"), e))?;
    link.into_os_string()
        .into_string()
        .map_err(|name| Error::refused(format!("file {name:?}"), "has a name that is not UTF-8"))
}

fn open_path(path: &str) -> Result<OwnedFd> {
    use nix::fcntl::{OFlag, open};
    open(
        path,
        OFlag::O_PATH | OFlag::O_CLOEXEC,
        nix::sys::stat::Mode::empty(),
    )
    .context(|| format!("open {path}"))
}

fn descriptors(pid: HostPid) -> Result<Vec<RawFd>> {
    let path = format!("/proc/{pid}/fd");
    let dir = std::fs::read_dir(&path).map_err(|e| Error::os(format!("read {path}"), e))?;
    let mut numbers = Vec::new();
    for entry in dir {
        let entry = entry.map_err(|e| Error::os(format!("read {path}"), e))?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|n| n.parse().ok());
        numbers.push(number.ok_or_else(|| Error::bug(&path, format!("holds {name:?}")))?);
    }
    Ok(numbers)
}

fn mount_ids(pid: HostPid) -> Result<BTreeSet<i32>> {
    let path = format!("/proc/{pid}/mountinfo");
    let bytes = std::fs::read(&path).map_err(|e| Error::os(format!("read {path}"), e))?;
    Ok(String::from_utf8_lossy(&bytes)
        .lines()
        .filter_map(|line| line.split(' ').next()?.parse().ok())
        .collect())
}

fn standard_streams(pid: HostPid) -> BTreeSet<(u64, u64)> {
    use std::os::linux::fs::MetadataExt;
    (0..3)
        .filter_map(|fd| std::fs::metadata(format!("/proc/{pid}/fd/{fd}")).ok())
        .map(|m| (m.st_dev(), m.st_ino()))
        .collect()
}
