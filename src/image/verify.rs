//! Whether an image is whole, and contradicts itself nowhere.
//!
//! In CRIU a missing file reads as an empty one, so an image that lost a file
//! restores something else and says nothing. Here it is refused, before anything
//! is touched.

use super::frame::Reader;
use super::kind::Kind;
use super::records::{
    CoreEntry, FdinfoEntry, FileEntry, InventoryEntry, March, MmEntry, PstreeEntry,
};
use super::set::Set;
use crate::base::limits::MAX_TASKS;
use crate::base::{Error, Result};
use std::collections::HashSet;

/// The version that has a common magic in each file.
pub const VERSION: u32 = 2;

/// States of a task in `TaskCoreEntry::task_state`.
pub mod task_state {
    /// Runs, sleeps, waits.
    pub const ALIVE: u32 = 1;
    /// Has ended and waits for its parent.
    pub const DEAD: u32 = 2;
    /// Was stopped by a signal.
    pub const STOPPED: u32 = 3;
    /// As dead; some versions tell the two apart.
    pub const ZOMBIE: u32 = 6;
}

impl Set {
    /// Decodes each record of each file once.
    ///
    /// Errors: name of the file, number of the record, what is wrong.
    pub fn check_records(&self) -> Result<()> {
        for &kind in Kind::ALL
            .iter()
            .filter(|&&kind| super::dir::has_records(kind))
        {
            for id in self.ids(kind) {
                let name = kind.file_name(id);
                let bytes = self.raw(&name).unwrap_or_default();
                Reader::new(kind, &name, bytes)?.check()?;
            }
        }
        Ok(())
    }

    /// Checks that this is a whole image of this architecture: each record decodes,
    /// each task of the tree has its files, each descriptor its file, and no two
    /// tasks or threads have one id.
    ///
    /// Errors: the file and the record that are wrong.
    pub fn verify(&self) -> Result<()> {
        if !self.contains(Kind::Inventory, 0) {
            return Err(Error::image(
                "inventory.img",
                "is not there: this is no image, or the dump was interrupted",
            ));
        }
        self.check_records()?;
        let inventory: InventoryEntry = self.require(Kind::Inventory, 0)?;
        if inventory.img_version != VERSION {
            return Err(Error::image(
                "inventory.img",
                format!("version {} of images is not known", inventory.img_version),
            ));
        }
        let files = self.file_ids()?;
        self.verify_tree(&files)
    }

    /// Ids of all open file descriptions.
    fn file_ids(&self) -> Result<HashSet<u32>> {
        let mut ids = HashSet::new();
        for file in self.all::<FileEntry>(Kind::Files, 0)? {
            if !ids.insert(file.id) {
                return Err(Error::image(
                    "files.img",
                    format!("two files have id {:#x}", file.id),
                ));
            }
        }
        Ok(ids)
    }

    fn verify_tree(&self, files: &HashSet<u32>) -> Result<()> {
        let tasks: Vec<PstreeEntry> = self.all(Kind::Pstree, 0)?;
        if tasks.is_empty() {
            return Err(Error::image("pstree.img", "holds no task"));
        }
        if tasks.len() > MAX_TASKS {
            return Err(Error::image(
                "pstree.img",
                format!("holds {} tasks, more than {MAX_TASKS}", tasks.len()),
            ));
        }
        let mut pids = HashSet::new();
        let mut tids = HashSet::new();
        for (index, task) in tasks.iter().enumerate() {
            let wrong = |why: String| {
                Error::image(format!("pstree.img record {index} (pid {})", task.pid), why)
            };
            if index > 0 && !pids.contains(&task.ppid) {
                return Err(wrong(format!("its parent {} is not before it", task.ppid)));
            }
            pids.insert(task.pid);
            // A dead task has one thread, whose id some versions do not fill in.
            let own = [task.pid];
            let all = match &task.threads[..] {
                [] | [0] => &own[..],
                threads => threads,
            };
            if all[0] != task.pid {
                return Err(wrong(String::from("its first thread is another task")));
            }
            for &tid in all {
                if tid == 0 || i32::try_from(tid).is_err() {
                    return Err(wrong(format!("{tid} is no thread id")));
                }
                if !tids.insert(tid) {
                    return Err(wrong(format!("thread id {tid} is used twice")));
                }
                self.verify_core(tid, tid == task.pid)?;
            }
            self.verify_task(task, files)?;
        }
        Ok(())
    }

    /// A thread: of this architecture, with registers if it still runs.
    fn verify_core(&self, tid: u32, leader: bool) -> Result<()> {
        let core: CoreEntry = self.require(Kind::Core, tid)?;
        let name = || Kind::Core.file_name(tid);
        match March::try_from(core.mtype) {
            Ok(March::X86_64) => {}
            Ok(other) => {
                return Err(Error::image(
                    name(),
                    format!("is from another architecture ({other:?}), this is X86_64"),
                ));
            }
            Err(_) => return Err(Error::image(name(), "is from an unknown architecture")),
        }
        let state = core.tc.as_ref().map(|tc| tc.task_state);
        if leader && state.is_none() {
            return Err(Error::image(name(), "has no task"));
        }
        let runs = !matches!(state, Some(task_state::DEAD | task_state::ZOMBIE));
        if runs && (core.thread_info.is_none() || core.thread_core.is_none()) {
            return Err(Error::image(name(), "has no registers"));
        }
        Ok(())
    }

    fn verify_task(&self, task: &PstreeEntry, files: &HashSet<u32>) -> Result<()> {
        let core: CoreEntry = self.require(Kind::Core, task.pid)?;
        let name = Kind::Core.file_name(task.pid);
        match core.tc.map(|tc| tc.task_state) {
            Some(task_state::ALIVE | task_state::STOPPED) => {}
            Some(task_state::DEAD | task_state::ZOMBIE) => return Ok(()),
            state => {
                return Err(Error::image(
                    name,
                    format!("task state {} is not known", state.unwrap_or_default()),
                ));
            }
        }
        let ids = match core.ids {
            Some(ids) => ids,
            None => self.require(Kind::Ids, task.pid)?,
        };
        let mm: MmEntry = self.require(Kind::Mm, task.pid)?;
        verify_areas(&Kind::Mm.file_name(task.pid), &mm)?;
        if !self.contains(Kind::Pagemap, task.pid) {
            return Err(Error::image(
                Kind::Pagemap.file_name(task.pid),
                "is not in the image",
            ));
        }
        if !self.contains(Kind::Fs, task.pid) {
            return Err(Error::image(
                Kind::Fs.file_name(task.pid),
                "is not in the image",
            ));
        }
        let name = Kind::Fdinfo.file_name(ids.files_id);
        let mut numbers = HashSet::new();
        for (index, fd) in self
            .all::<FdinfoEntry>(Kind::Fdinfo, ids.files_id)?
            .into_iter()
            .enumerate()
        {
            let wrong = |why: String| Err(Error::image(format!("{name} record {index}"), why));
            if !files.contains(&fd.id) {
                return wrong(format!("file {:#x} is not in files.img", fd.id));
            }
            if i32::try_from(fd.fd).is_err() || !numbers.insert(fd.fd) {
                return wrong(format!("descriptor {} is used twice or too large", fd.fd));
            }
        }
        Ok(())
    }
}

/// Areas are whole pages, in order, and do not overlap.
fn verify_areas(name: &str, mm: &MmEntry) -> Result<()> {
    let mut end = 0;
    for (index, area) in mm.vmas.iter().enumerate() {
        let range = crate::base::PageRange::new(area.start, area.end);
        // Guard pages are listed as areas within areas.
        let guard = area.status & crate::image::vma::GUARD != 0;
        let why = match range {
            None => "is no range of pages",
            Some(range) if range.is_empty() => "is empty",
            Some(range) if !guard && range.start() < end => "overlaps the one before",
            Some(range) => {
                if !guard {
                    end = range.end();
                }
                continue;
            }
        };
        return Err(Error::image(
            format!("{name} area {index} ({:#x}-{:#x})", area.start, area.end),
            why,
        ));
    }
    Ok(())
}

#[cfg(test)]
#[path = "verify_tests.rs"]
mod tests;
