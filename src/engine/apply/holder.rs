//! Every open file description of the tree, opened once, here: tasks fetch
//! what they need from us by pidfd_getfd(2).

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::Path;

use nix::unistd::{Whence, lseek};

use super::memory::fill_file;
use crate::base::{Error, PAGE_SIZE, Result, ResultExt};
use crate::image::pages::Pagemap;
use crate::image::records::{FdTypes, FdinfoEntry, FileEntry, MemfdInodeEntry, RegFileEntry};
use crate::image::{Kind, Set};
use crate::memory::{Object, PageReader};
use crate::sys::{fdops, shmem};

/// The name that the kernel gives to shared anonymous memory.
const SHARED_ANONYMOUS: &str = "/dev/zero";

/// One descriptor of a task.
#[derive(Debug, Clone, Copy)]
pub(in crate::engine) struct Slot {
    /// Its number there.
    pub(super) number: u32,
    /// Whether exec closes it.
    pub(super) cloexec: bool,
    /// Which of ours it is.
    pub(super) ours: RawFd,
}

/// The open files.
pub(in crate::engine) struct Holder<'a> {
    set: &'a Set,
    pages: &'a dyn PageReader,
    /// The container's root directory.
    root: OwnedFd,
    files: BTreeMap<u32, FileEntry>,
    open: BTreeMap<u32, OwnedFd>,
}

impl<'a> Holder<'a> {
    /// Reads which files there are.
    pub(in crate::engine) fn new(
        set: &'a Set,
        pages: &'a dyn PageReader,
        root: OwnedFd,
    ) -> Result<Self> {
        let files = set.all::<FileEntry>(Kind::Files, 0)?;
        Ok(Self {
            set,
            pages,
            root,
            files: files.into_iter().map(|f| (f.id, f)).collect(),
            open: BTreeMap::new(),
        })
    }

    /// Our descriptor for the file with this id.
    pub(in crate::engine) fn fd(&mut self, id: u32) -> Result<RawFd> {
        if let Some(fd) = self.open.get(&id) {
            return Ok(fd.as_raw_fd());
        }
        let file = self
            .files
            .get(&id)
            .ok_or_else(|| Error::image("files", format!("have no file {id}")))?;
        let fd = match (file.r#type(), &file.reg) {
            (FdTypes::Reg, Some(reg)) => open_regular(&self.root, reg)?,
            (FdTypes::Memfd, _) if file.memfd.is_some() => {
                let inode = file.memfd.as_ref().map_or(0, |m| m.inode_id);
                self.open_memfd(inode)?
            }
            (kind, _) => {
                return Err(Error::refused(
                    format!("file {id}"),
                    format!("of type {kind:?} is not carried"),
                ));
            }
        };
        let raw = fd.as_raw_fd();
        self.open.insert(id, fd);
        Ok(raw)
    }

    fn open_memfd(&self, inode: u32) -> Result<OwnedFd> {
        let what = format!("memfd inode {inode}");
        let all = self.set.all::<MemfdInodeEntry>(Kind::Memfd, 0)?;
        let entry = all
            .iter()
            .find(|m| m.inode_id == u64::from(inode))
            .ok_or_else(|| Error::image(what.clone(), "is not in the image"))?;
        if entry.name != SHARED_ANONYMOUS || entry.hugetlb_flag.unwrap_or(0) != 0 {
            return Err(Error::refused(what, "is not carried"));
        }
        // what CRIU takes for a memfd is plain shared memory
        let file = shmem::anonymous(entry.size.next_multiple_of(PAGE_SIZE))?;
        if let Some(map) = Pagemap::of(self.set, Kind::PagemapShmem, entry.shmid)? {
            for run in map.runs() {
                fill_file(self.pages, &file, Object::Shared(entry.shmid), run)
                    .context(|| what.clone())?;
            }
        }
        Ok(file.into())
    }

    /// Whether the file with this id is the root directory itself.
    pub(in crate::engine) fn is_root(&self, id: u32) -> bool {
        self.files
            .get(&id)
            .and_then(|f| f.reg.as_ref())
            .is_some_and(|r| r.name == "/")
    }

    /// A number that no descriptor of these tables has, above all of them.
    pub(in crate::engine) fn free_number(&self, tables: impl Iterator<Item = u32>) -> Result<u32> {
        let mut number = 3;
        for id in tables.collect::<std::collections::BTreeSet<_>>() {
            for e in self.set.all::<FdinfoEntry>(Kind::Fdinfo, id)? {
                number = number.max(e.fd.saturating_add(1));
            }
        }
        Ok(number)
    }

    /// The descriptors of a table, by number.
    pub(in crate::engine) fn table(&mut self, files_id: u32) -> Result<Vec<Slot>> {
        let mut slots = Vec::new();
        for e in self.set.all::<FdinfoEntry>(Kind::Fdinfo, files_id)? {
            slots.push(Slot {
                number: e.fd,
                cloexec: e.flags & 1 != 0,
                ours: self.fd(e.id)?,
            });
        }
        slots.sort_by_key(|s| s.number);
        Ok(slots)
    }
}

fn open_regular(root: &OwnedFd, reg: &RegFileEntry) -> Result<OwnedFd> {
    let flags = reg.flags.cast_signed() & !(libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC);
    let fd = fdops::open_in_root(
        root.as_fd(),
        Path::new(&reg.name),
        flags | libc::O_NOCTTY | libc::O_CLOEXEC,
        0,
    )?;
    let file = File::from(fd);
    let size = file
        .metadata()
        .context(|| format!("look at {}", reg.name))?
        .len();
    if let Some(was) = reg.size
        && was != size
    {
        return Err(Error::caller(
            format!("file {}", reg.name),
            format!("has {size} bytes, at the dump it had {was}"),
        ));
    }
    if reg.pos != 0 {
        let pos = i64::try_from(reg.pos)
            .map_err(|_| Error::image(format!("file {}", reg.name), "has a negative position"))?;
        lseek(&file, pos, Whence::SeekSet).context(|| format!("seek {}", reg.name))?;
    }
    Ok(file.into())
}
