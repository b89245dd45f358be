//! Opens every file of a plan, in dunlin's own process. Tasks fetch duplicates.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use super::memfd::Contents;
use super::plan::{File, Plan};
use super::terminal::{self, Pair};
use super::{anonymous, ghost, memfd, owner, path, pipe};
use crate::base::{Error, Result};
use crate::image::records::{FifoEntry, MemfdFileEntry, PipeEntry, RegFileEntry};
use crate::objects::sockets;
use crate::sys::fdops;
use crate::sys::socket::Place;

/// Open files by their id; dropping it closes ours.
#[derive(Debug)]
pub struct Holder {
    files: BTreeMap<u32, OwnedFd>,
    memfds: BTreeMap<u32, (OwnedFd, u32, u64, i32)>,
}

impl Holder {
    /// Opens everything in `plan`: paths below `root` (the root directory of
    /// the container's mount namespace), sockets in `net` (`None`: ours);
    /// `inherit` are the descriptors that the caller gives, by their keys;
    /// `terminals` are the pseudoterminals of the container; `pairs` makes Unix pairs in the name of a task.
    ///
    /// # Errors
    /// A file that cannot be opened again, by name.
    pub fn new(
        plan: &Plan,
        root: BorrowedFd<'_>,
        net: Option<BorrowedFd<'_>>,
        inherit: &[(String, OwnedFd)],
        terminals: &[Pair],
        pairs: &mut sockets::MakePair<'_>,
    ) -> Result<Self> {
        let mut opener = Opener {
            plan,
            terminals,
            root,
            files: BTreeMap::new(),
            memfds: BTreeMap::new(),
            ghosts: BTreeMap::new(),
        };
        let made = opener
            .inherited(inherit)
            .and_then(|()| opener.open(net, pairs));
        // Ghosts lose their names again, whatever happened.
        let cleaned = opener.remove_ghosts();
        made.and(cleaned)?;
        Ok(Self {
            files: opener.files,
            memfds: opener.memfds,
        })
    }

    /// The open file of this id.
    ///
    /// # Errors
    /// The image has none.
    pub fn open(&self, file: u32) -> Result<BorrowedFd<'_>> {
        self.files
            .get(&file)
            .map(AsFd::as_fd)
            .ok_or_else(|| Error::image(format!("file {file}"), "is not in the image"))
    }

    /// The memfds, empty, to be filled with the contents of their shared memory.
    ///
    /// # Errors
    /// EMFILE.
    pub fn contents(&self) -> Result<Vec<Contents>> {
        self.memfds
            .values()
            .map(|(fd, shmid, size, _)| {
                Ok(Contents {
                    shmid: *shmid,
                    size: *size,
                    fd: fd.try_clone().map_err(|e| Error::os("dup of a memfd", e))?,
                })
            })
            .collect()
    }

    /// Seals the memfds as they were: when they are filled and mapped.
    ///
    /// # Errors
    /// EBUSY for a seal against writing while a writable mapping is there.
    pub fn seal(&self) -> Result<()> {
        for (fd, _, _, seals) in self.memfds.values() {
            if *seals != 0 && *seals != libc::F_SEAL_SEAL {
                fdops::add_seals(fd.as_fd(), *seals)?;
            }
        }
        Ok(())
    }
}

struct Opener<'a> {
    plan: &'a Plan,
    terminals: &'a [Pair],
    root: BorrowedFd<'a>,
    files: BTreeMap<u32, OwnedFd>,
    memfds: BTreeMap<u32, (OwnedFd, u32, u64, i32)>,
    /// Names that ghosts have at the moment.
    ghosts: BTreeMap<u32, PathBuf>,
}

fn dup(fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    fd.try_clone_to_owned().map_err(|e| Error::os("dup", e))
}

impl Opener<'_> {
    fn inherited(&mut self, inherit: &[(String, OwnedFd)]) -> Result<()> {
        for (id, key) in &self.plan.inherited {
            let (_, fd) = inherit
                .iter()
                .find(|(k, _)| k == key)
                .ok_or_else(|| Error::caller(format!("descriptor for {key}"), "was not given"))?;
            self.files.insert(*id, dup(fd.as_fd())?);
        }
        Ok(())
    }

    fn open(
        &mut self,
        net: Option<BorrowedFd<'_>>,
        pairs: &mut sockets::MakePair<'_>,
    ) -> Result<()> {
        let plan = self.plan;
        let place = Place {
            net,
            root: Some((self.root, Path::new("/"))),
        };
        let (mut unix, mut inet) = (Vec::new(), Vec::new());
        for (id, file) in &plan.files {
            match file {
                _ if self.files.contains_key(id) => {}
                File::Unix(e) => unix.push(e),
                File::Inet(e) => inet.push(e),
                other => self
                    .one(*id, other)
                    .map_err(|e| e.within(format!("restore file {id}")))?,
            }
        }
        let mut made = sockets::build(
            &unix,
            &inet,
            &plan.queues,
            place,
            sockets::made_by(&unix, &plan.peers, pairs)?,
        )?;
        for (id, fd) in &made.files {
            self.files.insert(*id, dup(fd.as_fd())?);
        }
        let files = &self.files;
        let queues = self.queues_of_ours();
        made.fill(&queues, |id| {
            files
                .get(&id)
                .map(AsFd::as_fd)
                .ok_or_else(|| Error::image(format!("file {id}"), "travels and is not open"))
        })?;
        made.finish(&unix)?;
        self.finish()
    }

    /// A socket that the caller gives keeps its own queue.
    fn queues_of_ours(&self) -> sockets::Queues {
        let ours = |id: u32| !self.plan.inherited.contains_key(&id);
        let queues = self.plan.queues.iter();
        queues.filter(|(p, _)| ours(p.id_for)).cloned().collect()
    }

    fn one(&mut self, id: u32, file: &File) -> Result<()> {
        let fd = match file {
            File::Path(e) => self.path(id, e)?,
            File::Pipe(e) => return self.pipe(e),
            File::Fifo(e) => self.fifo(e)?,
            File::Eventfd(e) => anonymous::make_eventfd(e)?,
            File::Timerfd(e) => anonymous::make_timerfd(e)?,
            File::Signalfd(e) => anonymous::make_signalfd(e)?,
            File::Epoll(_) => fdops::epoll()?,
            File::Memfd(e) => self.memfd(id, e)?,
            File::Terminal(e) => terminal::open(e, &self.plan.terminals, self.terminals)?,
            File::Unix(_) | File::Inet(_) => return Ok(()),
        };
        self.files.insert(id, fd);
        Ok(())
    }

    fn path(&mut self, id: u32, entry: &RegFileEntry) -> Result<OwnedFd> {
        // The path of a FIFO is opened with its FIFO.
        if is_fifo(entry) && entry.flags & libc::O_PATH.cast_unsigned() == 0 {
            let name = self.name_of(id, entry)?;
            let flags = libc::O_PATH;
            return fdops::open_in_root(self.root, &name, flags, 0);
        }
        let name = self.name_of(id, entry)?;
        let name = name.to_str().unwrap_or(&entry.name).to_owned();
        path::open(self.root, &name, entry)
    }

    /// Where the file can be opened now: its path, or that of its ghost.
    fn name_of(&mut self, id: u32, entry: &RegFileEntry) -> Result<PathBuf> {
        let Some(remap) = self.plan.remaps.get(&id) else {
            return Ok(PathBuf::from(&entry.name));
        };
        if let Some(known) = self.ghosts.get(remap) {
            return Ok(known.clone());
        }
        let ghost = self
            .plan
            .ghosts
            .get(remap)
            .ok_or_else(|| Error::image(format!("ghost file {remap}"), "is not there"))?;
        let name = free_name(self.root, Path::new(&entry.name), *remap)?;
        ghost.make(self.root, &name)?;
        self.ghosts.insert(*remap, name.clone());
        Ok(name)
    }

    fn remove_ghosts(&mut self) -> Result<()> {
        let mut result = Ok(());
        for (id, name) in std::mem::take(&mut self.ghosts) {
            let is_dir = self.plan.ghosts.get(&id).is_some_and(ghost::Ghost::is_dir);
            result = result.and(ghost::remove(self.root, &name, is_dir));
        }
        result
    }

    /// All files of a pipe at once, so that no end is missing in between.
    fn pipe(&mut self, entry: &PipeEntry) -> Result<()> {
        if self.files.contains_key(&entry.id) {
            return Ok(());
        }
        let (read, write) = pipe::make(&self.plan.pipes, entry.pipe_id)?;
        let (mut read, mut write) = (Some(read), Some(write));
        let base = dup(read.as_ref().map_or(self.root, AsFd::as_fd))?;
        for (id, file) in &self.plan.files {
            let File::Pipe(e) = file else { continue };
            if e.pipe_id != entry.pipe_id || self.files.contains_key(id) {
                continue;
            }
            let first = match (e.flags & libc::O_ACCMODE.cast_unsigned()).cast_signed() {
                libc::O_RDONLY => read.take(),
                libc::O_WRONLY => write.take(),
                _ => None,
            };
            let fd = match first {
                Some(fd) => fd,
                None => pipe::reopen(base.as_fd(), e.flags)?,
            };
            self.files.insert(*id, fd);
        }
        Ok(())
    }

    fn fifo(&mut self, entry: &FifoEntry) -> Result<OwnedFd> {
        let id = entry.regf_id.unwrap_or(entry.id);
        let Some(File::Path(reg)) = self.plan.files.get(&id) else {
            return Err(Error::image("FIFO", "has no path"));
        };
        let name = self.name_of(id, reg)?;
        // With both ends open here, no other open waits for its counterpart.
        let both = fdops::open_in_root(self.root, &name, libc::O_RDWR | libc::O_NONBLOCK, 0)?;
        let flags = reg.flags.cast_signed() | libc::O_NONBLOCK;
        let fd = fdops::open_in_root(self.root, &name, flags, 0)?;
        let earlier = self.plan.files.iter().any(|(other, f)| {
            matches!(f, File::Fifo(e) if e.pipe_id == entry.pipe_id)
                && self.files.contains_key(other)
        });
        if !earlier {
            self.plan.fifos.fill(entry.pipe_id, both.as_fd())?;
        }
        fdops::set_status_flags(fd.as_fd(), reg.flags.cast_signed())?;
        owner::rebuild(fd.as_fd(), &reg.fown)?;
        Ok(fd)
    }

    fn memfd(&mut self, id: u32, entry: &MemfdFileEntry) -> Result<OwnedFd> {
        if !self.memfds.contains_key(&entry.inode_id) {
            let inode = self
                .plan
                .memfds
                .get(&entry.inode_id)
                .ok_or_else(|| Error::image("memfd", "has no inode"))?;
            let made = (
                memfd::make(inode)?,
                inode.shmid,
                inode.size,
                inode.seals.cast_signed(),
            );
            self.memfds.insert(entry.inode_id, made);
        }
        let inode = &self.memfds[&entry.inode_id].0;
        // One that is only mapped is opened for whatever its areas allow.
        let listed = self.plan.tables().values().flatten().any(|d| d.file == id);
        let flags = if listed {
            entry.flags
        } else {
            libc::O_RDWR.cast_unsigned()
        };
        let fd = pipe::reopen(inode.as_fd(), flags)?;
        let pos = entry.pos.cast_signed();
        nix::unistd::lseek(&fd, pos, nix::unistd::Whence::SeekSet)
            .map_err(|e| Error::errno(format!("seek memfd to {pos}"), e as i32))?;
        Ok(fd)
    }

    /// Status flags and signals of all files that we opened.
    fn finish(&self) -> Result<()> {
        let inherited: BTreeSet<_> = self.plan.inherited.keys().collect();
        for (id, fd) in &self.files {
            let Some(file) = self.plan.files.get(id).filter(|_| !inherited.contains(id)) else {
                continue;
            };
            let Some((flags, fown)) = file.flags_owner() else {
                continue;
            };
            let only_path = flags & libc::O_PATH.cast_unsigned() != 0
                || matches!(file, File::Path(e) if is_fifo(e));
            if only_path {
                continue;
            }
            let settable = flags.cast_signed() & !libc::O_ASYNC;
            // A path was opened with its flags.
            let set = match file {
                File::Path(_) => Ok(()),
                _ => fdops::set_status_flags(fd.as_fd(), settable),
            };
            set.and_then(|()| owner::rebuild(fd.as_fd(), fown))
                .map_err(|e| e.within(format!("restore file {id}")))?;
        }
        Ok(())
    }
}

fn is_fifo(entry: &RegFileEntry) -> bool {
    let kind = entry.mode.map(|m| m & libc::S_IFMT);
    kind == Some(libc::S_IFIFO)
}

/// A name beside `name` that nothing has; directories that are gone are left out.
fn free_name(root: BorrowedFd<'_>, name: &Path, ghost: u32) -> Result<PathBuf> {
    let mut dir = name.parent().unwrap_or(Path::new("/"));
    loop {
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        match fdops::open_in_root(root, dir, flags, 0) {
            Ok(_) => break,
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {
                dir = dir.parent().unwrap_or(Path::new("/"));
            }
            Err(e) => return Err(e),
        }
    }
    let last = name.file_name().unwrap_or_default().to_string_lossy();
    for n in 0..1000 {
        // The plain name first: it is what the program sees in /proc.
        let candidate = if n == 0 {
            dir.join(last.as_ref())
        } else {
            dir.join(format!("{last}.dunlin-{ghost}-{n}"))
        };
        match fdops::open_in_root(root, &candidate, libc::O_PATH | libc::O_NOFOLLOW, 0) {
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => return Ok(candidate),
            Err(e) => return Err(e),
            Ok(_) => {}
        }
    }
    Err(Error::image(
        format!("file {}", name.display()),
        "has no free name beside it",
    ))
}
