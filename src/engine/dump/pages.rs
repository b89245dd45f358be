//! Which pages a captured tree has, and where they are: still in the tasks.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::scan::{Found, Late, Scan};
use crate::base::{Error, PageRange, Result};
use crate::image::pages::{PE_LAZY, PagesWriter};
use crate::image::{Kind, Set};
use crate::memory::held::{Content, HeldPages, Shared, Space};
use crate::memory::{Object, PageReader, RangeSet, SpaceId};
use crate::objects::files;
use crate::objects::mm::capture::{Area, Kind as AreaKind};

/// Bytes read and written at once: they stay in a processor's own cache between
/// the two, which with a MiB they do not.
const PIECE: usize = 256 << 10;
/// Threads that write pages; the kernel's copying is what takes the time.
const WRITERS: usize = 2;

/// Pages that exist, and whether they may come after the resume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Addresses, or byte offsets into a shared object.
    pub range: PageRange,
    /// May stay where they are for now. With [`Pages::late`] it is not said that such
    /// pages exist, only that no others do.
    pub lazy: bool,
}

/// All pages of a captured tree. The tasks must stay stopped while it is used.
#[derive(Debug)]
pub struct Pages {
    /// Reads them in place.
    pub held: Arc<HeldPages>,
    /// What exists, object by object.
    pub runs: BTreeMap<Object, Vec<Run>>,
    /// Tells which of the lazy pages exist, if that was left open.
    pub late: Option<Late>,
}

/// What a write of pages amounted to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Written {
    /// Bytes in pages files.
    pub bytes: u64,
    /// Bytes that were left in the tasks.
    pub left: u64,
}

/// Gathers [`Pages`] while a tree is captured.
#[derive(Debug)]
pub(super) struct Collector {
    /// Lazy pages are listed after the freeze.
    later: bool,
    spaces: Vec<Space>,
    shared: Vec<Shared>,
    runs: BTreeMap<Object, Vec<Run>>,
    guards: BTreeMap<SpaceId, RangeSet>,
    /// How shared memory is mapped, by its number.
    uses: BTreeMap<u32, Use>,
    /// Where it is mapped.
    mappings: Vec<(SpaceId, PageRange)>,
}

/// How the tree maps a shared memory object.
#[derive(Debug, Default)]
struct Use {
    /// Where the last mapping ends in it.
    end: u64,
    /// Some mapping of it cannot be guarded.
    locked: bool,
    /// Pages that are touched at once.
    eager: RangeSet,
}

impl Collector {
    pub(super) fn new(later: bool) -> Self {
        Self {
            later,
            spaces: Vec::new(),
            shared: Vec::new(),
            runs: BTreeMap::new(),
            guards: BTreeMap::new(),
            uses: BTreeMap::new(),
            mappings: Vec::new(),
        }
    }

    /// Notes the pages of one address space. `eager` are those that the task or
    /// the kernel touches at once.
    pub(super) fn space(&mut self, scan: Scan, areas: &[Area], eager: &RangeSet) -> Result<()> {
        let guards: RangeSet = scan.guards.into_iter().collect();
        let mut runs = Vec::new();
        for (area, found) in areas.iter().zip(scan.content) {
            if let AreaKind::SharedAnon(ino) = area.kind {
                self.shared_memory(ino, &scan.space, area, eager)?;
            }
            match found {
                Found::All(found) => {
                    let may_wait = area.can_be_lazy();
                    for found in found {
                        push(&mut runs, found, may_wait, eager);
                    }
                }
                Found::Within(None) => {}
                Found::Within(Some(range)) => {
                    let exact = |part| {
                        let found = scan.space.existing(part, Content::Anonymous)?;
                        Ok(found.content)
                    };
                    divide(&mut runs, range, eager, &guards, exact)?;
                }
            }
        }
        self.runs.insert(Object::Private(scan.space.id()), runs);
        self.guards.insert(scan.space.id(), guards);
        self.spaces.push(scan.space);
        Ok(())
    }

    fn shared_memory(
        &mut self,
        ino: u64,
        space: &Space,
        area: &Area,
        eager: &RangeSet,
    ) -> Result<()> {
        let id = shared_id(ino)?;
        if !self.uses.contains_key(&id) {
            self.shared.push(Shared::open(id, space, area.range)?);
        }
        let it = self.uses.entry(id).or_default();
        let offset = area.entry.pgoff;
        it.end = it.end.max(offset + area.range.len());
        it.locked |= !self.later && !area.can_be_lazy();
        for part in eager.within(area.range) {
            let at = offset + (part.start() - area.range.start());
            it.eager.insert_at(at, part.len());
        }
        self.mappings.push((space.id(), area.range));
        Ok(())
    }

    /// Contents of memfds, saved like shared memory; they never wait, since read(2)
    /// and write(2) do not ask a userfaultfd.
    pub(super) fn memfds(&mut self, contents: Vec<files::Contents>) -> Result<()> {
        for c in contents {
            self.shared.push(Shared::from_file(c.shmid, c.fd.into())?);
            self.uses.entry(c.shmid).or_default().locked = true;
        }
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<Pages> {
        for shared in &self.shared {
            let it = self.uses.entry(shared.id()).or_default();
            let mut runs = Vec::new();
            let whole = shared.whole();
            // A run of its own: CRIU passes over what ends behind all mappings.
            let border = it.end.min(whole.end());
            let part = |a, b| PageRange::new(a, b).filter(|r| !r.is_empty());
            if let Some(mapped) = part(0, border) {
                if self.later && !it.locked {
                    let exact = |part| shared.existing(part);
                    divide(&mut runs, mapped, &it.eager, &RangeSet::new(), exact)?;
                } else {
                    for found in shared.existing(mapped)? {
                        push(&mut runs, found, !it.locked, &it.eager);
                    }
                }
            }
            if let Some(behind) = part(border, whole.end()) {
                let run = |range| Run { range, lazy: false };
                runs.extend(shared.existing(behind)?.into_iter().map(run));
            }
            self.runs.insert(Object::Shared(shared.id()), runs);
        }
        let held = Arc::new(HeldPages::new(self.spaces, self.shared));
        let late = self
            .later
            .then(|| Late::new(Arc::clone(&held), self.guards, self.mappings));
        Ok(Pages {
            held,
            runs: self.runs,
            late,
        })
    }
}

/// Pages of `whole` that may exist wait, but for `eager` ones, of which `exact`
/// tells which exist; `guards` are none.
fn divide(
    runs: &mut Vec<Run>,
    whole: PageRange,
    eager: &RangeSet,
    guards: &RangeSet,
    exact: impl Fn(PageRange) -> Result<Vec<PageRange>>,
) -> Result<()> {
    let mut waits: RangeSet = [whole].into_iter().collect();
    for guard in guards.within(whole) {
        waits.remove(guard);
    }
    let first = runs.len();
    for part in eager.within(whole) {
        waits.remove(part);
        let run = |range| Run { range, lazy: false };
        runs.extend(exact(part)?.into_iter().map(run));
    }
    runs.extend(waits.iter().map(|range| Run { range, lazy: true }));
    if let Some(new) = runs.get_mut(first..) {
        new.sort_by_key(|r| r.range.start());
    }
    Ok(())
}

/// The number of a shared memory object in images: its inode's.
pub(super) fn shared_id(ino: u64) -> Result<u32> {
    u32::try_from(ino).map_err(|_| {
        Error::refused(
            format!("shared memory {ino}"),
            "its inode number is too large",
        )
    })
}

/// Splits `found` at the borders of `eager`.
fn push(runs: &mut Vec<Run>, found: PageRange, may_wait: bool, eager: &RangeSet) {
    if !may_wait {
        runs.push(Run {
            range: found,
            lazy: false,
        });
        return;
    }
    let mut at = found.start();
    for e in eager.within(found) {
        runs.extend(
            PageRange::new(at, e.start())
                .filter(|r| !r.is_empty())
                .map(|range| Run { range, lazy: true }),
        );
        runs.push(Run {
            range: e,
            lazy: false,
        });
        at = e.end();
    }
    runs.extend(
        PageRange::new(at, found.end())
            .filter(|r| !r.is_empty())
            .map(|range| Run { range, lazy: true }),
    );
}

/// A stretch of one pages file: its offset, and the runs it is made of.
struct Piece {
    writer: usize,
    offset: u64,
    parts: Vec<(Object, PageRange)>,
}

impl Pages {
    /// Bytes of all pages.
    pub fn bytes(&self) -> u64 {
        self.runs.values().flatten().map(|r| r.range.len()).sum()
    }

    /// Which pages may wait, of each object that has some.
    pub fn lazy(&self) -> Vec<(Object, Vec<PageRange>)> {
        let of = |runs: &Vec<Run>| runs.iter().filter(|r| r.lazy).map(|r| r.range).collect();
        self.runs
            .iter()
            .map(|(object, runs)| (*object, of(runs)))
            .filter(|(_, ranges): &(_, Vec<_>)| !ranges.is_empty())
            .collect()
    }

    /// Writes pages files into `dir` and their pagemaps into `set`. With
    /// `leave_lazy`, pages that may wait stay in the tasks and are only listed.
    ///
    /// # Errors
    /// A page that cannot be read; write(2).
    pub fn write(&self, dir: &Path, set: &mut Set, leave_lazy: bool) -> Result<Written> {
        let mut done = Written::default();
        let mut writers = Vec::with_capacity(self.runs.len());
        let mut pieces: Vec<Piece> = Vec::new();
        for (number, (object, runs)) in (1u32..).zip(&self.runs) {
            let mut writer = PagesWriter::create(dir, number)?;
            let index = writers.len();
            for run in runs {
                if run.lazy && leave_lazy {
                    writer.mark(run.range, PE_LAZY);
                    done.left += run.range.len();
                    continue;
                }
                let offset = writer.reserve(run.range, run.lazy)?;
                cut(&mut pieces, index, offset, *object, run.range);
            }
            writers.push((writer, *object));
        }
        self.copy(&writers, &pieces)?;
        for (writer, object) in writers {
            done.bytes += match object {
                Object::Private(id) => writer.finish(set, Kind::Pagemap, id.0)?,
                Object::Shared(id) => writer.finish(set, Kind::PagemapShmem, id)?,
            };
        }
        Ok(done)
    }

    fn copy(&self, writers: &[(PagesWriter, Object)], pieces: &[Piece]) -> Result<()> {
        let next = AtomicUsize::new(0);
        let work = || -> Result<()> {
            let mut buf = vec![0u8; PIECE];
            while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
                let mut filled = 0usize;
                for (object, range) in &piece.parts {
                    let len = usize::try_from(range.len()).unwrap_or(usize::MAX);
                    let part = buf.get_mut(filled..filled.saturating_add(len));
                    let part = part.ok_or_else(|| {
                        Error::bug("write pages", "a piece is larger than its buffer")
                    })?;
                    self.held.read(*object, range.start(), part)?;
                    filled += len;
                }
                let (writer, _) = writers
                    .get(piece.writer)
                    .ok_or_else(|| Error::bug("write pages", "no such file"))?;
                writer.fill(piece.offset, buf.get(..filled).unwrap_or(&[]))?;
            }
            Ok(())
        };
        if pieces.len() < 2 * WRITERS {
            return work();
        }
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..WRITERS).map(|_| scope.spawn(work)).collect();
            let mine = work();
            others.into_iter().fold(mine, |first, t| {
                first.and(
                    t.join()
                        .unwrap_or_else(|_| Err(Error::bug("write pages", "a thread panicked"))),
                )
            })
        })
    }
}

/// Cuts a run into pieces of at most [`PIECE`] bytes, the first of which joins
/// the last one of the same file if it fits.
fn cut(pieces: &mut Vec<Piece>, writer: usize, mut offset: u64, object: Object, range: PageRange) {
    let mut at = range.start();
    while at < range.end() {
        let room = match pieces.last() {
            Some(p) if p.writer == writer => {
                PIECE as u64 - p.parts.iter().map(|(_, r)| r.len()).sum::<u64>()
            }
            _ => 0,
        };
        let take = if room > 0 { room } else { PIECE as u64 }.min(range.end() - at);
        let Some(part) = PageRange::new(at, at + take) else {
            return;
        };
        match pieces.last_mut() {
            Some(p) if room > 0 => p.parts.push((object, part)),
            _ => pieces.push(Piece {
                writer,
                offset,
                parts: vec![(object, part)],
            }),
        }
        at += take;
        offset += take;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, pages: u64) -> PageRange {
        PageRange::with_pages(start << 12, pages).unwrap()
    }

    #[test]
    fn pages_that_are_touched_at_once_are_cut_out_of_lazy_runs() {
        let mut eager = RangeSet::new();
        eager.insert(range(4, 2));
        let mut runs = Vec::new();
        push(&mut runs, range(0, 10), true, &eager);
        assert_eq!(
            runs,
            [
                Run {
                    range: range(0, 4),
                    lazy: true
                },
                Run {
                    range: range(4, 2),
                    lazy: false
                },
                Run {
                    range: range(6, 4),
                    lazy: true
                }
            ]
        );
    }

    #[test]
    fn pieces_cover_every_run_once_and_stay_under_their_size() {
        let mut pieces = Vec::new();
        let mut offset = 0;
        let object = Object::Shared(1);
        for (start, pages) in [(0, 3), (10, 600), (900, 1)] {
            cut(&mut pieces, 0, offset, object, range(start, pages));
            offset += pages << 12;
        }
        let mut at = 0;
        for p in &pieces {
            assert_eq!(p.offset, at);
            let len: u64 = p.parts.iter().map(|(_, r)| r.len()).sum();
            assert!(len <= PIECE as u64);
            at += len;
        }
        assert_eq!(at, offset);
    }
}
