//! Every open file description of the tree, opened once, here: tasks fetch
//! what they need from us by pidfd_getfd(2).

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};

use super::memory::fill_file;
use crate::base::{Error, NsPid, Result, ResultExt};
use crate::engine::plan::SharedMemory;
use crate::image::pages::Pagemap;
use crate::image::{Kind, Set};
use crate::memory::{Object, PageReader};
use crate::objects::files::{self, Call, Descriptor};
use crate::sys::fdops;

/// The open files.
#[derive(Debug)]
pub(in crate::engine) struct Files<'a> {
    plan: &'a files::Plan,
    holder: files::Holder,
    /// Files that are only read by descriptor, but written to by mapping.
    writable: BTreeMap<u32, File>,
}

impl<'a> Files<'a> {
    /// Takes over all open files, and fills the memfds that are not plain shared
    /// memory.
    ///
    /// # Errors
    /// A memfd that cannot be filled.
    pub(in crate::engine) fn open(
        plan: &'a files::Plan,
        holder: files::Holder,
        set: &Set,
        pages: &dyn PageReader,
        shared: &BTreeMap<u64, SharedMemory>,
    ) -> Result<Self> {
        for memfd in holder.contents()? {
            if shared.contains_key(&u64::from(memfd.shmid)) {
                continue;
            }
            let file = File::from(memfd.fd);
            let what = || format!("fill memfd of {} bytes", memfd.size);
            file.set_len(memfd.size).context(what)?;
            let Some(map) = Pagemap::of(set, Kind::PagemapShmem, memfd.shmid)? else {
                continue;
            };
            for run in map.runs() {
                if run.range.end() > memfd.size.next_multiple_of(crate::base::PAGE_SIZE) {
                    return Err(Error::image(
                        Kind::PagemapShmem.file_name(memfd.shmid),
                        format!("lists {} of {} bytes", run.range, memfd.size),
                    ));
                }
                fill_file(pages, &file, Object::Shared(memfd.shmid), run).context(what)?;
            }
            // whole pages were written
            file.set_len(memfd.size).context(what)?;
        }
        Ok(Self {
            plan,
            holder,
            writable: BTreeMap::new(),
        })
    }

    /// Our descriptor for the file with this id.
    pub(super) fn fd(&self, id: u32) -> Result<RawFd> {
        Ok(self.holder.open(id)?.as_raw_fd())
    }

    /// The same file, open for reading and writing.
    pub(super) fn writable_fd(&mut self, id: u32) -> Result<RawFd> {
        let fd = self.holder.open(id)?;
        if fdops::status_flags(fd)? & libc::O_ACCMODE == libc::O_RDWR {
            return Ok(fd.as_raw_fd());
        }
        if let Some(file) = self.writable.get(&id) {
            return Ok(file.as_raw_fd());
        }
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let file = File::options()
            .read(true)
            .write(true)
            .open(path)
            .context(|| format!("open mapped file {id} for writing"))?;
        let raw = file.as_raw_fd();
        self.writable.insert(id, file);
        Ok(raw)
    }

    /// Whether the file with this id is the root directory itself.
    pub(super) fn is_root(&self, id: u32) -> bool {
        self.plan.path(id) == Some("/")
    }

    /// The descriptors of a table, by number.
    pub(super) fn table(&self, files_id: u32) -> &'a [Descriptor] {
        self.plan
            .tables()
            .get(&files_id)
            .map_or(&[][..], Vec::as_slice)
    }

    /// What a task must do itself when its descriptors are there.
    pub(super) fn after(&self, pid: NsPid, files_id: u32, first: bool) -> Vec<Call> {
        self.plan.after(pid, files_id, first)
    }

    /// Seals memfds, when all are filled and mapped.
    pub(in crate::engine) fn seal(&self) -> Result<()> {
        self.holder.seal()
    }
}

/// A number above all descriptors of the tree.
pub(in crate::engine) fn free_number(plan: &files::Plan) -> Result<RawFd> {
    plan.tables()
        .values()
        .flatten()
        .map(|d| d.fd)
        .max()
        .unwrap_or(0)
        .max(2)
        .checked_add(1)
        .ok_or_else(|| Error::image("files", "a descriptor above all numbers"))
}
