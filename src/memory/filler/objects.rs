//! Shared objects: what cannot be said by address.
//!
//! Their pages are placed through mappings, like private ones: the kernel then
//! refuses a page that exists, and accounts it to the tasks. Two things need a
//! descriptor of the object. Pages that are mapped nowhere (any more) are written
//! to it, since mremap may reach them again. And madvise(MADV_REMOVE) must be
//! told from MADV_DONTNEED: both raise the same event, before they act, but the
//! first empties the object and the second only a page table. A hole that was
//! punched leaves its trace in the object's time of modification, which neither a
//! mapping nor UFFDIO_COPY changes. So that time is set to a mark of ours, events
//! of all address spaces are read one by one and while no page of an object is
//! being placed (*turn*), and after each that may be a hole somebody else waits until
//! no thread is in such a call any more ([`PastCalls`]); then the mark tells. Where
//! nobody can say so, the mark is watched for a moment; whoever is slower than that is
//! remembered, and looked at again before a page is placed there.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::{Arc, PoisonError, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use nix::sys::stat::futimens;
use nix::sys::time::{TimeSpec, TimeValLike};

use super::{Content, Filler};
use crate::base::{Error, HostPid, PageRange, Result, ResultExt};
use crate::memory::{Object, SpaceId};
use crate::sys::seek;

/// Waits until all threads of these processes, and of those below them, are past the
/// call that throws memory away in which they may be, but for those that wait until
/// their event is read. `false`: it cannot tell.
pub type PastCalls = Box<dyn Fn(&[HostPid]) -> Result<bool> + Send + Sync>;

/// Seconds of the time that says that nothing was punched.
const MARK: i64 = 1;
/// How long a task that throws pages away may take from its event to its deed,
/// before others go on, where nobody can tell when it is done.
const DEED: Duration = Duration::from_millis(5);
/// Between two looks.
const LOOK: Duration = Duration::from_micros(50);

/// A shared object of which pages must come.
#[derive(Debug)]
pub struct LazyShared {
    /// Its number in images.
    pub id: u32,
    /// The object itself, open for reading and writing.
    pub file: Arc<File>,
    /// Pages that must come, by byte offset, mapped or not.
    pub needed: Vec<PageRange>,
}

/// See the head of this file.
#[derive(Debug)]
pub(super) struct SharedObject {
    file: Arc<File>,
    /// Somebody may have punched a hole, or be about to.
    restless: bool,
    /// Missing pages that are in it, if so.
    suspect: Vec<PageRange>,
}

impl SharedObject {
    pub(super) fn new(file: Arc<File>) -> Result<Self> {
        let object = Self {
            file,
            restless: false,
            suspect: Vec::new(),
        };
        object.mark()?;
        Ok(object)
    }

    fn mark(&self) -> Result<()> {
        let mark = TimeSpec::seconds(MARK);
        futimens(self.file.as_fd(), &mark, &mark).context(|| "mark shared memory".to_owned())
    }

    /// Whether a hole was punched since the mark was set; sets it again.
    fn punched(&self) -> Result<bool> {
        let what = || "look at shared memory".to_owned();
        // Waits for whoever is punching: that holds the inode's lock, and changes
        // the time last.
        seek::data(&self.file, 0).context(what)?;
        if self.file.metadata().context(what)?.mtime() == MARK {
            return Ok(false);
        }
        self.mark()?;
        Ok(true)
    }

    /// Watches until a hole is punched, or nobody seems to.
    fn punched_soon(&self) -> Result<bool> {
        let until = Instant::now() + DEED;
        loop {
            if self.punched()? {
                return Ok(true);
            }
            if Instant::now() >= until {
                return Ok(false);
            }
            std::thread::sleep(LOOK);
        }
    }
}

impl Filler {
    /// Held by whoever reads events while holes may be punched: two deeds at once
    /// could not be told apart, and a page that is on its way must not come behind
    /// them.
    pub(super) fn one_by_one(&self) -> Option<RwLockWriteGuard<'_, ()>> {
        let lock = || self.turn.write().unwrap_or_else(PoisonError::into_inner);
        (!self.objects.is_empty()).then(lock)
    }

    /// Held by whoever places pages of an object through a mapping.
    pub(super) fn beside_others(&self, object: Object) -> Option<RwLockReadGuard<'_, ()>> {
        let lock = || self.turn.read().unwrap_or_else(PoisonError::into_inner);
        matches!(object, Object::Shared(_)).then(lock)
    }

    /// A task is about to throw away what it sees of missing `pages` of objects, or the
    /// pages themselves; of any object, unless `all_known`. The caller holds
    /// [`Self::one_by_one`].
    pub(super) fn thrown_away(
        &self,
        mut pages: BTreeMap<u32, Vec<PageRange>>,
        all_known: bool,
    ) -> Result<()> {
        if pages.is_empty() && all_known {
            return Ok(());
        }
        let done = self.deeds_are_done();
        for (&id, object) in &self.objects {
            let of_this = pages.remove(&id);
            if of_this.is_none() && all_known {
                continue;
            }
            let mut object = object.lock().unwrap_or_else(PoisonError::into_inner);
            // An earlier suspect has had its time: it only forgot its page table.
            object.suspect = of_this.unwrap_or_default();
            object.restless = true;
            if done {
                self.settle_suspect(id, &mut object)?;
                object.suspect.clear();
                object.restless = false;
            } else if !object.suspect.is_empty() && object.punched_soon()? {
                self.holes(id, &mut object);
            }
        }
        Ok(())
    }

    fn deeds_are_done(&self) -> bool {
        let Some(past) = self.past_calls.0.get() else {
            return false;
        };
        let all: Vec<_> = self.pidfds.iter().map(|(pid, _)| *pid).collect();
        past(&all).unwrap_or_else(|e| {
            tracing::debug!("whether memory has been thrown away: {e}");
            false
        })
    }

    /// Says who knows whether a task still throws memory away; before anything is
    /// served.
    pub fn past_calls_by(&self, past: PastCalls) {
        // The first one stays.
        let _ = self.past_calls.0.set(past);
    }

    /// Looks whether a suspect has punched his hole: before the next event is read,
    /// lest the hole of one is taken for that of another.
    pub(super) fn settle_suspects(&self) -> Result<()> {
        self.objects.keys().try_for_each(|id| self.look_again(*id))
    }

    fn settle_suspect(&self, id: u32, object: &mut SharedObject) -> Result<()> {
        if object.restless && object.punched()? {
            self.holes(id, object);
        }
        Ok(())
    }

    /// Where the suspect was nothing comes any more: whoever waits there, waits no
    /// longer.
    fn holes(&self, id: u32, suspected: &mut SharedObject) {
        let object = Object::Shared(id);
        suspected.restless = false;
        for range in suspected.suspect.drain(..) {
            let mut residency = self.residency();
            residency.punched(id, range);
            let mappings = residency.mappings(object, range);
            drop(residency);
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.retain(|page, _| page.object != object || !range.contains(page.at));
            drop(waiting);
            self.wake_all(&mappings);
        }
    }

    /// Looks once more, before pages are placed, whether they were thrown away.
    pub(super) fn look_again(&self, id: u32) -> Result<()> {
        match self.objects.get(&id) {
            Some(object) => {
                let mut object = object.lock().unwrap_or_else(PoisonError::into_inner);
                self.settle_suspect(id, &mut object)
            }
            None => Ok(()),
        }
    }

    /// Places pages that are mapped nowhere. Returns how many there were.
    pub(super) fn fill_unmapped(
        &self,
        id: u32,
        range: PageRange,
        content: Content<'_>,
    ) -> Result<u64> {
        if self.residency().unmapped(id, range).is_empty() {
            return Ok(0);
        }
        let object = self.objects.get(&id).ok_or_else(|| {
            Error::bug(
                format!("fill shared memory {id}"),
                "nobody holds the object",
            )
        })?;
        // A mapping that has grown may reach the page at any time, and its task
        // may write to it when it is there: nobody else places it before it counts
        // as placed, and no hole is punched unseen.
        let _turn = self.one_by_one();
        let mut object = object.lock().unwrap_or_else(PoisonError::into_inner);
        self.settle_suspect(id, &mut object)?;
        let mut pages = 0;
        let parts = self.residency().unmapped(id, range);
        for part in parts {
            if let Content::Bytes(bytes) = content {
                let inner = || Error::bug(format!("fill {part}"), "outside of what there is");
                let from = usize::try_from(part.start() - range.start()).map_err(|_| inner())?;
                let len = usize::try_from(part.len()).map_err(|_| inner())?;
                let bytes = bytes.get(from..from + len).ok_or_else(inner)?;
                object
                    .file
                    .write_all_at(bytes, part.start())
                    .context(|| format!("write {part} of shared memory {id}"))?;
            }
            self.mark(SpaceId(0), Object::Shared(id), part, content);
            pages += part.pages();
        }
        object.mark()?;
        Ok(pages)
    }
}
