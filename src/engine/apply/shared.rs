//! Shared anonymous memory of the tree: made before anybody maps it. What may
//! not follow later is filled here, once. The rest comes through whichever mapping
//! a page is missing in.
//!
//! Memfds are always filled at once: read(2) and write(2) do not ask a
//! userfaultfd, and would find holes.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Build;
use super::memory::fill_file;
use crate::base::{Error, PageRange, Result, ResultExt};
use crate::engine::plan::{Plan, SharedMemory};
use crate::image::pages::{Held, Run};
use crate::memory::{Area as Guarded, LazyShared, Object, RangeSet};
use crate::objects::mm::rebuild::{Area, Kind};
use crate::sys::shmem;

/// What of one object is touched as soon as the tasks go on.
#[derive(Debug, Default)]
struct Touched {
    pages: RangeSet,
    /// Where the kernel writes and cannot wait.
    rseq: Vec<u64>,
}

impl Build<'_> {
    /// Makes the shared memory of the tree, and fills what may not follow.
    ///
    /// # Errors
    /// Which memory, and why.
    pub(in crate::engine) fn share(&mut self) -> Result<()> {
        let touched = if self.lazy {
            touched(self.plan)
        } else {
            BTreeMap::new()
        };
        let none = Touched::default();
        for (&number, memory) in &self.plan.shared {
            let what = || format!("shared memory {number}");
            let file = Arc::new(shmem::anonymous(memory.len)?);
            let id = u32::try_from(number).unwrap_or(u32::MAX);
            let (now, needed) = if self.lazy {
                divide(memory, touched.get(&number).unwrap_or(&none)).context(what)?
            } else {
                (runs(memory).collect(), Vec::new())
            };
            for run in &now {
                fill_file(self.pages, &file, Object::Shared(id), run).context(what)?;
            }
            if !needed.is_empty() {
                let file = Arc::clone(&file);
                self.left.shared.push(LazyShared { id, file, needed });
            }
            self.shared.insert(number, file);
        }
        Ok(())
    }

    /// The number of this shared memory, if pages of it follow.
    pub(super) fn follows(&self, number: u64) -> Option<u32> {
        let mut left = self.left.shared.iter().map(|s| s.id);
        left.find(|id| u64::from(*id) == number)
    }
}

fn runs(memory: &SharedMemory) -> impl Iterator<Item = Run> {
    let runs = memory.pages.iter().flat_map(|p| p.runs());
    runs.copied().filter(|run| run.held() != Held::Zero)
}

/// What is filled now, and what follows.
fn divide(memory: &SharedMemory, touched: &Touched) -> Result<(Vec<Run>, Vec<PageRange>)> {
    let (mut now, mut later) = (Vec::new(), Vec::new());
    for run in runs(memory) {
        if !run.lazy() {
            now.push(run);
            continue;
        }
        if run.held() == Held::Elsewhere {
            // whoever made the image left them behind, needed or not
            if let Some(at) = touched.rseq.iter().find(|at| run.range.contains(**at)) {
                return Err(Error::image(
                    format!("pages {}", run.range),
                    format!("were left behind, and the kernel writes at {at:#x} (rseq)"),
                ));
            }
            later.push(run.range);
            continue;
        }
        let mut rest: RangeSet = [run.range].into_iter().collect();
        for range in touched.pages.within(run.range) {
            let offset = run.offset + (range.start() - run.range.start());
            now.push(Run {
                range,
                offset,
                ..run
            });
            rest.remove(range);
        }
        later.extend(rest.iter());
    }
    Ok((now, later))
}

/// What all tasks touch at once, object by object.
fn touched(plan: &Plan) -> BTreeMap<u64, Touched> {
    let mut all: BTreeMap<u64, Touched> = BTreeMap::new();
    for body in plan.tasks.values().filter_map(|t| t.body.as_ref()) {
        let areas = body.space.areas.iter();
        let shared: Vec<(u64, &Area)> = areas
            .filter_map(|a| match a.kind {
                Kind::SharedAnon(number) => Some((number, a)),
                _ => None,
            })
            .collect();
        if shared.is_empty() {
            continue;
        }
        let eager = body.eager();
        for (number, a) in shared {
            let it = all.entry(number).or_default();
            for part in eager.iter().filter_map(|e| e.intersect(a.range)) {
                let at = a.offset + (part.start() - a.range.start());
                it.pages.insert_at(at, part.len());
            }
            let rseq = body.threads.iter().filter_map(|t| t.rseq());
            it.rseq.extend(
                rseq.map(|r| r.rseq_abi_pointer)
                    .filter(|at| a.range.contains(*at))
                    .map(|at| a.offset + (at - a.range.start())),
            );
        }
    }
    all
}

/// What of an area the handler may fill: guard pages hide what lies below, and a
/// page placed there would take their place.
pub(super) fn guarded(
    area: &Area,
    id: u32,
    guard_pages: &[PageRange],
) -> impl Iterator<Item = Guarded> {
    let mut open: RangeSet = [area.range].into_iter().collect();
    for g in guard_pages {
        open.remove(*g);
    }
    let (start, offset) = (area.range.start(), area.offset);
    let parts: Vec<PageRange> = open.iter().collect();
    parts.into_iter().map(move |range| Guarded {
        range,
        object: Object::Shared(id),
        at: offset + (range.start() - start),
        wipe_on_fork: false,
    })
}
