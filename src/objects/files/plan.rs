//! What is to be opened, read from an image and checked; nothing is touched.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::ghost::Ghost;
use super::pipe::Data;
use super::{anonymous, locks, owner, terminal};
use crate::base::{Error, NsPid, Result};
use crate::image::records::{
    EventfdFileEntry, EventpollFileEntry, FdTypes, FdinfoEntry, FifoEntry, FileEntry,
    FileLockEntry, FownEntry, GhostFileEntry, InetSkEntry, MemfdFileEntry, MemfdInodeEntry,
    PeerCredEntry, PipeEntry, RegFileEntry, RemapFilePathEntry, RemapType, SignalfdEntry,
    SkPacketEntry, TimerfdEntry, TtyFileEntry, TtyInfoEntry, UnixSkEntry,
};
use crate::image::{Kind as Image, Set};
use crate::objects::sockets;
use crate::sys::{fdops, steer};

/// What the caller gives and allows.
#[derive(Debug, Clone, Default)]
pub struct RestorePolicy {
    /// Keys of the descriptors that will be inherited: `pipe:[INO]`,
    /// `socket:[INO]`, `file[MNT:INO]`, a path, or `stdio[N]` for whatever
    /// stood at descriptor N (0 to 2) and comes from outside.
    pub inherit: Vec<String>,
    /// `--file-locks`.
    pub file_locks: bool,
    /// `--ext-unix-sk`: sockets may be connected to names outside.
    pub ext_unix_sk: bool,
}

/// An entry of a descriptor table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptor {
    /// Number.
    pub fd: i32,
    /// FD_CLOEXEC.
    pub cloexec: bool,
    /// Id of the file behind it.
    pub file: u32,
}

/// An open file description of an image: all kinds that can be opened again.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum File {
    Path(RegFileEntry),
    Pipe(PipeEntry),
    Fifo(FifoEntry),
    Eventfd(EventfdFileEntry),
    Timerfd(TimerfdEntry),
    Signalfd(SignalfdEntry),
    Epoll(EventpollFileEntry),
    Memfd(MemfdFileEntry),
    Unix(UnixSkEntry),
    Inet(InetSkEntry),
    Terminal(TtyFileEntry),
}

impl File {
    fn read(entry: FileEntry) -> Result<Self> {
        let id = entry.id;
        let r#type = FdTypes::try_from(entry.r#type)
            .map_err(|_| Error::image(format!("file {id}"), "is of an unknown type"))?;
        let file = match r#type {
            FdTypes::Reg => entry.reg.map(Self::Path),
            FdTypes::Pipe => entry.pipe.map(Self::Pipe),
            FdTypes::Fifo => entry.fifo.map(Self::Fifo),
            FdTypes::Eventfd => entry.efd.map(Self::Eventfd),
            FdTypes::Timerfd => entry.tfd.map(Self::Timerfd),
            FdTypes::Signalfd => entry.sgfd.map(Self::Signalfd),
            FdTypes::Eventpoll => entry.epfd.map(Self::Epoll),
            FdTypes::Memfd => entry.memfd.map(Self::Memfd),
            FdTypes::Unixsk => entry.usk.map(Self::Unix),
            FdTypes::Inetsk => entry.isk.map(Self::Inet),
            FdTypes::Tty => entry.tty.map(Self::Terminal),
            other @ (FdTypes::Und
            | FdTypes::Inotify
            | FdTypes::Packetsk
            | FdTypes::Fanotify
            | FdTypes::Netlinksk
            | FdTypes::Ns
            | FdTypes::Tunf
            | FdTypes::Ext
            | FdTypes::Bpfmap
            | FdTypes::Pidfd) => {
                return Err(Error::image(
                    format!("file {id} of type {other:?}"),
                    "cannot be restored",
                ));
            }
        };
        file.ok_or_else(|| Error::image(format!("file {id}"), "has no record of its type"))
    }

    /// Status flags and owner.
    pub(super) fn flags_owner(&self) -> Option<(u32, &FownEntry)> {
        match self {
            Self::Path(e) => Some((e.flags, &e.fown)),
            Self::Pipe(e) => Some((e.flags, &e.fown)),
            Self::Fifo(_) => None,
            Self::Eventfd(e) => Some((e.flags, &e.fown)),
            Self::Timerfd(e) => Some((e.flags, &e.fown)),
            Self::Signalfd(e) => Some((e.flags, &e.fown)),
            Self::Epoll(e) => Some((e.flags, &e.fown)),
            Self::Memfd(e) => Some((e.flags, &e.fown)),
            Self::Unix(e) => Some((e.flags, &e.fown)),
            Self::Inet(e) => Some((e.flags, &e.fown)),
            Self::Terminal(e) => Some((e.flags, &e.fown)),
        }
    }

    /// By which name a caller can give it.
    fn key(&self) -> Option<String> {
        match self {
            Self::Path(e) => Some(e.name.clone()),
            Self::Pipe(e) => Some(format!("pipe:[{}]", e.pipe_id)),
            Self::Unix(e) => Some(format!("socket:[{}]", e.ino)),
            _ => None,
        }
    }
}

/// One argument of a [`Call`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallArg {
    /// A number.
    Value(u64),
    /// The address of these bytes.
    Bytes(Vec<u8>),
}

/// A system call that a task makes itself, when its descriptors are in place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// For messages.
    pub what: &'static str,
    /// SYS_*.
    pub nr: i64,
    /// Up to six.
    pub args: Vec<CallArg>,
}

impl Call {
    /// Appends it to a batch.
    pub fn add_to(&self, batch: &mut steer::Batch) {
        let args: Vec<steer::Arg> = self
            .args
            .iter()
            .map(|a| match a {
                CallArg::Value(v) => (*v).into(),
                CallArg::Bytes(b) => batch.bytes(b).into(),
            })
            .collect();
        batch.call(self.what, self.nr, &args);
    }
}

/// All open files and descriptor tables of an image.
#[derive(Debug)]
pub struct Plan {
    pub(super) files: BTreeMap<u32, File>,
    /// How a file comes from outside: its id to the key.
    pub(super) inherited: BTreeMap<u32, String>,
    /// Files that are opened from a ghost.
    pub(super) remaps: BTreeMap<u32, u32>,
    pub(super) ghosts: BTreeMap<u32, Ghost>,
    pub(super) pipes: Data,
    pub(super) fifos: Data,
    pub(super) queues: sockets::Queues,
    /// Whom SO_PEERCRED of Unix sockets names, by their ids.
    pub(super) peers: BTreeMap<u32, PeerCredEntry>,
    pub(super) memfds: BTreeMap<u32, MemfdInodeEntry>,
    /// Terminals by the id of their record.
    pub(super) terminals: BTreeMap<u32, TtyInfoEntry>,
    locks: Vec<FileLockEntry>,
    tables: BTreeMap<u32, Vec<Descriptor>>,
}

impl Plan {
    /// Reads and checks all records of open files.
    ///
    /// # Errors
    /// A damaged or contradictory image; a file that cannot be restored, by
    /// name; a file from outside for which the caller gives no descriptor.
    pub fn read(set: &Set, policy: &RestorePolicy) -> Result<Self> {
        let mut files = BTreeMap::new();
        for entry in set.all::<FileEntry>(Image::Files, 0)? {
            let id = entry.id;
            if files.insert(id, File::read(entry)?).is_some() {
                return Err(Error::image(format!("file {id}"), "is there twice"));
            }
        }
        let mut plan = Self {
            files,
            inherited: BTreeMap::new(),
            remaps: BTreeMap::new(),
            ghosts: BTreeMap::new(),
            pipes: Data::read(set, Image::PipesData)?,
            fifos: Data::read(set, Image::FifoData)?,
            queues: Vec::new(),
            peers: BTreeMap::new(),
            memfds: BTreeMap::new(),
            terminals: terminal::read(set)?,
            locks: Vec::new(),
            tables: BTreeMap::new(),
        };
        plan.read_tables(set)?;
        plan.read_remaps(set)?;
        plan.read_locks(set, policy)?;
        for inode in set.all::<MemfdInodeEntry>(Image::Memfd, 0)? {
            let id = u32::try_from(inode.inode_id)
                .map_err(|_| Error::image("memfd", "has an id above 32 bits"))?;
            plan.memfds.insert(id, inode);
        }
        for entry in set.entries::<SkPacketEntry>(Image::SkQueues, 0)? {
            plan.queues.push((entry.record, entry.payload.to_vec()));
        }
        for peer in set.all::<PeerCredEntry>(Image::DunlinPeers, 0)? {
            plan.peers.insert(peer.file, peer);
        }
        plan.find_inherited(policy)?;
        plan.check(policy)?;
        Ok(plan)
    }

    fn read_tables(&mut self, set: &Set) -> Result<()> {
        for id in set.ids(Image::Fdinfo) {
            let mut table = Vec::new();
            for entry in set.all::<FdinfoEntry>(Image::Fdinfo, id)? {
                let fd = i32::try_from(entry.fd)
                    .map_err(|_| Error::image(format!("fdinfo-{id}"), "has a huge descriptor"))?;
                if !self.files.contains_key(&entry.id) {
                    return Err(Error::image(
                        format!("fdinfo-{id}: descriptor {fd}"),
                        format!("is of file {}, which is not there", entry.id),
                    ));
                }
                table.push(Descriptor {
                    fd,
                    cloexec: entry.flags & 1 != 0,
                    file: entry.id,
                });
            }
            table.sort_by_key(|d| d.fd);
            if table.windows(2).any(|w| w[0].fd == w[1].fd) {
                return Err(Error::image(
                    format!("fdinfo-{id}"),
                    "has a descriptor twice",
                ));
            }
            self.tables.insert(id, table);
        }
        Ok(())
    }

    fn read_remaps(&mut self, set: &Set) -> Result<()> {
        for remap in set.all::<RemapFilePathEntry>(Image::RemapFpath, 0)? {
            let subject = || format!("file {}", remap.orig_id);
            match remap
                .remap_type
                .map_or(Ok(RemapType::Ghost), RemapType::try_from)
            {
                Ok(RemapType::Ghost) => {}
                Ok(RemapType::Linked | RemapType::Procfs) | Err(_) => {
                    return Err(Error::image(
                        subject(),
                        "is remapped in a way that cannot be restored",
                    ));
                }
            }
            if let Entry::Vacant(place) = self.ghosts.entry(remap.remap_id) {
                let ghost = set
                    .entries::<GhostFileEntry>(Image::GhostFile, remap.remap_id)?
                    .into_iter()
                    .next()
                    .ok_or_else(|| Error::image(subject(), "has no ghost file"))?;
                let ghost = Ghost::parse(ghost.record, ghost.payload)
                    .map_err(|e| e.within(format!("ghost file {}", remap.remap_id)))?;
                place.insert(ghost);
            }
            self.remaps.insert(remap.orig_id, remap.remap_id);
        }
        Ok(())
    }

    fn read_locks(&mut self, set: &Set, policy: &RestorePolicy) -> Result<()> {
        self.locks = set.all(Image::Filelocks, 0)?;
        self.locks.iter().try_for_each(locks::check)?;
        if !self.locks.is_empty() && !policy.file_locks {
            return Err(Error::caller(
                "the image holds locks on files",
                "which are restored only with --file-locks",
            ));
        }
        Ok(())
    }

    fn find_inherited(&mut self, policy: &RestorePolicy) -> Result<()> {
        for (id, file) in &self.files {
            let given = file.key().and_then(|key| {
                let bare = key.strip_prefix('/').unwrap_or(&key);
                policy.inherit.iter().find(|k| **k == key || **k == bare)
            });
            let standard = || {
                let at = self.tables.values().flatten().filter(|d| d.file == *id);
                at.map(|d| format!("stdio[{}]", d.fd))
                    .find(|k| policy.inherit.contains(k))
            };
            if let Some(key) = given {
                self.inherited.insert(*id, key.clone());
            } else if let File::Path(RegFileEntry {
                ext: Some(true),
                name,
                ..
            }) = file
            {
                let key = standard().ok_or_else(|| {
                    Error::caller(
                        format!("file {name} comes from outside the container"),
                        "and no descriptor was given for it (--inherit-fd)",
                    )
                })?;
                self.inherited.insert(*id, key);
            }
        }
        Ok(())
    }

    /// Everything that can be known to fail before it is tried.
    fn check(&self, policy: &RestorePolicy) -> Result<()> {
        for (id, file) in &self.files {
            let result = match file {
                File::Path(e) => absolute(&e.name, e.ext),
                File::Fifo(e) => self.check_fifo(e),
                File::Timerfd(e) => anonymous::check_timerfd(e),
                File::Memfd(e) if !self.memfds.contains_key(&e.inode_id) => {
                    Err(Error::image("memfd", "has no inode"))
                }
                File::Terminal(e) if !self.terminals.contains_key(&e.tty_info_id) => {
                    Err(Error::image("terminal", "has no record of what it is"))
                }
                File::Unix(e) => sockets::check_unix(e, policy.ext_unix_sk),
                File::Inet(e) => sockets::check_inet(e),
                File::Pipe(_)
                | File::Eventfd(_)
                | File::Signalfd(_)
                | File::Epoll(_)
                | File::Terminal(_)
                | File::Memfd(_) => Ok(()),
            };
            result.map_err(|e| e.within(format!("file {id}")))?;
        }
        for (packet, _) in &self.queues {
            for id in packet.scm.iter().flat_map(|s| &s.rights) {
                if !self.files.contains_key(id) {
                    let subject = format!("message for socket {}", packet.id_for);
                    return Err(Error::image(subject, "carries a file that is not there"));
                }
            }
        }
        Ok(())
    }

    fn check_fifo(&self, entry: &FifoEntry) -> Result<()> {
        match self.files.get(&entry.regf_id.unwrap_or(entry.id)) {
            Some(File::Path(_)) => Ok(()),
            _ => Err(Error::image("FIFO", "has no path")),
        }
    }

    /// The descriptor tables by their `files_id`, each in ascending order.
    pub fn tables(&self) -> &BTreeMap<u32, Vec<Descriptor>> {
        &self.tables
    }

    /// The path of a file that is opened by path, as it is in the image.
    pub fn path(&self, file: u32) -> Option<&str> {
        match self.files.get(&file)? {
            File::Path(e) => Some(&e.name),
            _ => None,
        }
    }

    /// What the task `pid` has to do itself once all its descriptors stand at
    /// their numbers: owners of files, members of epoll sets, locks. `first`:
    /// it is the first task of those that share the table. To be run with the
    /// final credentials, which owners remember.
    pub fn after(&self, pid: NsPid, files_id: u32, first: bool) -> Vec<Call> {
        let mut calls = Vec::new();
        let table = self.tables.get(&files_id).map_or(&[][..], Vec::as_slice);
        if first {
            for (fd, file) in self.owned(files_id, table) {
                let whose = match file {
                    File::Fifo(e) => self.files.get(&e.regf_id.unwrap_or(e.id)),
                    other => Some(other),
                };
                if let Some((flags, fown)) = whose.and_then(File::flags_owner) {
                    calls.extend(owner_calls(fd, flags, fown));
                }
                if let File::Epoll(epoll) = file
                    && self.home(epoll, files_id)
                {
                    calls.extend(epoll.tfd.iter().map(|t| epoll_call(fd, t)));
                }
            }
        }
        let mine = self.locks.iter().filter(|l| l.pid == pid.0);
        calls.extend(mine.map(lock_call));
        calls
    }

    /// Files of a table, each at its first number there, for which this table
    /// is responsible: the first that has it, or the home of an epoll set.
    fn owned<'p>(&'p self, files_id: u32, table: &[Descriptor]) -> Vec<(i32, &'p File)> {
        let mut seen = std::collections::BTreeSet::new();
        let mut owned = Vec::new();
        for d in table {
            let Some(file) = self.files.get(&d.file) else {
                continue;
            };
            let first = self
                .tables
                .iter()
                .find(|(_, t)| t.iter().any(|o| o.file == d.file))
                .is_some_and(|(id, _)| *id == files_id);
            if seen.insert(d.file) && (first || matches!(file, File::Epoll(_))) {
                owned.push((d.fd, file));
            }
        }
        owned
    }

    /// Whether an epoll set is filled from this table: the first that has the
    /// set and all its members.
    fn home(&self, epoll: &EventpollFileEntry, files_id: u32) -> bool {
        let complete = |table: &Vec<Descriptor>| {
            let has = |fd: u32| table.iter().any(|d| d.fd.cast_unsigned() == fd);
            table.iter().any(|d| d.file == epoll.id) && epoll.tfd.iter().all(|t| has(t.tfd))
        };
        self.tables
            .iter()
            .find(|(_, t)| complete(t))
            .is_some_and(|(id, _)| *id == files_id)
    }
}

fn absolute(name: &str, ext: Option<bool>) -> Result<()> {
    if name.starts_with('/') || ext == Some(true) {
        Ok(())
    } else {
        Err(Error::image(format!("path {name:?}"), "is not absolute"))
    }
}

fn number(fd: i32) -> CallArg {
    CallArg::Value(u64::from(fd.cast_unsigned()))
}

fn owner_calls(fd: i32, flags: u32, fown: &FownEntry) -> Vec<Call> {
    let mut calls = Vec::new();
    let fcntl = |what, cmd: i32, arg| Call {
        what,
        nr: libc::SYS_fcntl,
        args: vec![number(fd), number(cmd), arg],
    };
    if let Some(bytes) = owner::call_bytes(fown) {
        let arg = CallArg::Bytes(bytes);
        calls.push(fcntl("F_SETOWN_EX", fdops::SET_OWNER, arg));
    }
    // The kernel remembers the number of the descriptor by which it was set.
    if flags & libc::O_ASYNC.cast_unsigned() != 0 {
        let arg = CallArg::Value(u64::from(flags));
        calls.push(fcntl("F_SETFL", libc::F_SETFL, arg));
    }
    calls
}

fn epoll_call(fd: i32, t: &crate::image::records::EventpollTfdEntry) -> Call {
    // struct epoll_event is packed on x86-64.
    let mut event = t.events.to_ne_bytes().to_vec();
    event.extend_from_slice(&t.data.to_ne_bytes());
    Call {
        what: "epoll_ctl",
        nr: libc::SYS_epoll_ctl,
        args: vec![
            number(fd),
            number(libc::EPOLL_CTL_ADD),
            CallArg::Value(u64::from(t.tfd)),
            CallArg::Bytes(event),
        ],
    }
}

fn lock_call(lock: &FileLockEntry) -> Call {
    if lock.flag == locks::FLOCK {
        let how = if lock.r#type == 1 {
            libc::LOCK_EX
        } else {
            libc::LOCK_SH
        };
        return Call {
            what: "flock",
            nr: libc::SYS_flock,
            args: vec![number(lock.fd), number(how | libc::LOCK_NB)],
        };
    }
    let cmd = if lock.flag == locks::OFD {
        libc::F_OFD_SETLK
    } else {
        libc::F_SETLK
    };
    Call {
        what: "lock a file",
        nr: libc::SYS_fcntl,
        args: vec![
            number(lock.fd),
            number(cmd),
            CallArg::Bytes(locks::call_bytes(lock)),
        ],
    }
}
