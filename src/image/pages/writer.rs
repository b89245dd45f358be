//! Writing a pages file.

use super::map::{Held, Pagemap, Run};
use super::{PE_LAZY, PE_PRESENT};
use crate::base::{Error, PAGE_SIZE, PageRange, Result, ResultExt};
use crate::image::{Kind, Set};
use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Pieces below this are gathered before they are written, bytes.
const GATHER: usize = 1 << 20;

/// Writes `pages-N.img` and gathers the pagemap that goes with it.
///
/// Pieces come in any order of addresses. Small ones are gathered to 1 MiB, larger
/// ones are written as they are, so one that is read into a buffer of that size is
/// not copied again. To write from several threads, [`reserve`](Self::reserve)
/// first, then [`fill`](Self::fill).
///
/// Dropped without [`finish`](Self::finish), it removes its file.
#[derive(Debug)]
pub struct PagesWriter {
    file: File,
    path: PathBuf,
    pages_id: u32,
    runs: Vec<Run>,
    /// Bytes that runs were given.
    end: u64,
    /// The last bytes before `end`, not written yet.
    gathered: Vec<u8>,
    finished: bool,
}

impl PagesWriter {
    /// Makes an empty pages file (mode 0600); one that is there is emptied, and the
    /// image that it was part of is none any more: with pages of another moment it
    /// would look whole.
    ///
    /// Errors: open(2), unlink(2).
    pub fn create(dir: &Path, pages_id: u32) -> Result<Self> {
        let path = dir.join(Kind::Pages.file_name(pages_id));
        let inventory = dir.join(Kind::Inventory.file_name(0));
        match std::fs::remove_file(&inventory) {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                return Err(Error::os(format!("remove {}", inventory.display()), e));
            }
            _ => {}
        }
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path)
            .context(|| format!("create {}", path.display()))?;
        Ok(Self {
            file,
            path,
            pages_id,
            runs: Vec::new(),
            end: 0,
            gathered: Vec::new(),
            finished: false,
        })
    }

    /// Appends the content of the pages from `start`: whole pages, as many as
    /// `bytes` holds. `lazy`: they may come after the task has resumed.
    ///
    /// Errors: write(2); no whole pages.
    pub fn write(&mut self, start: u64, bytes: &[u8], lazy: bool) -> Result<()> {
        let range = start
            .checked_add(bytes.len() as u64)
            .and_then(|end| PageRange::new(start, end))
            .ok_or_else(|| {
                Error::bug(
                    format!("write {}", self.path.display()),
                    format!("{} bytes at {start:#x} are no pages", bytes.len()),
                )
            })?;
        if self.gathered.len() + bytes.len() > GATHER {
            self.flush()?;
        }
        let at = self.end;
        self.add(range, here(lazy));
        if self.gathered.is_empty() && bytes.len() >= GATHER / 4 {
            return self.put(at, bytes);
        }
        self.gathered.reserve_exact(GATHER - self.gathered.len());
        self.gathered.extend_from_slice(bytes);
        Ok(())
    }

    /// Gives the content of these pages its place, which the caller fills later.
    /// Returns its offset in the pages file.
    ///
    /// Errors: write(2).
    pub fn reserve(&mut self, range: PageRange, lazy: bool) -> Result<u64> {
        self.flush()?;
        let offset = self.end;
        self.add(range, here(lazy));
        Ok(offset)
    }

    /// Writes content to a place that was reserved. Any thread may call it.
    ///
    /// Errors: write(2); a place that was not reserved.
    pub fn fill(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let end = offset.checked_add(bytes.len() as u64);
        if end.is_none_or(|end| end > self.end) {
            return Err(Error::bug(
                format!("write {}", self.path.display()),
                format!("{} bytes at {offset} were not reserved", bytes.len()),
            ));
        }
        self.put(offset, bytes)
    }

    /// Lists pages without content here: with [`PE_LAZY`] they stay elsewhere,
    /// with `PE_PARENT` the parent image has them, with 0 they are zero.
    pub fn mark(&mut self, range: PageRange, flags: u32) {
        debug_assert_eq!(flags & PE_PRESENT, 0, "content is written, not marked");
        self.add(range, flags & !PE_PRESENT);
    }

    fn add(&mut self, range: PageRange, flags: u32) {
        if range.is_empty() {
            return;
        }
        let run = Run {
            range,
            flags,
            offset: self.end,
        };
        if run.held() == Held::Here {
            self.end += range.len();
        }
        match self.runs.last_mut() {
            Some(last) if last.flags == flags && last.range.end() == range.start() => {
                if let Some(joined) = PageRange::new(last.range.start(), range.end()) {
                    last.range = joined;
                }
            }
            _ => self.runs.push(run),
        }
    }

    fn flush(&mut self) -> Result<()> {
        self.put(self.end - self.gathered.len() as u64, &self.gathered)?;
        self.gathered.clear();
        Ok(())
    }

    fn put(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.file
            .write_all_at(bytes, offset)
            .context(|| format!("write {}", self.path.display()))
    }

    /// Bytes of content so far.
    pub fn bytes(&self) -> u64 {
        self.end
    }

    /// Pages of content so far.
    pub fn pages(&self) -> u64 {
        self.end / PAGE_SIZE
    }

    /// Writes what is left, and puts the pagemap into the set under this type
    /// ([`Kind::Pagemap`] or [`Kind::PagemapShmem`]) and id. Returns bytes of
    /// content. Without content the pages file exists and is empty.
    ///
    /// The content is left to the page cache; [`Set::store`] says why.
    ///
    /// Errors: write(2).
    pub fn finish(mut self, set: &mut Set, kind: Kind, id: u32) -> Result<u64> {
        self.flush()?;
        let what = || format!("write {}", self.path.display());
        // What was reserved and not filled reads as zeros instead of end of file.
        let length = self.file.metadata().context(what)?.len();
        if length < self.end {
            self.file.set_len(self.end).context(what)?;
        }
        set.put_raw(
            kind.file_name(id),
            Pagemap::encode(self.pages_id, &self.runs),
        )?;
        self.finished = true;
        Ok(self.end)
    }
}

impl Drop for PagesWriter {
    fn drop(&mut self) {
        if !self.finished {
            // Nothing refers to it; the error that led here is the one to tell.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn here(lazy: bool) -> u32 {
    if lazy {
        PE_PRESENT | PE_LAZY
    } else {
        PE_PRESENT
    }
}
