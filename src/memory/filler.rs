//! Places pages in guarded address spaces, from any thread.
//!
//! The kernel refuses to fill (EAGAIN) from the moment that it raises an event
//! until the event is read. Between the read and our knowing what it said, a fill
//! by another thread would act on yesterday's layout: put a page of one mapping
//! into another that has just been moved to its address, or miss the child of a
//! fork. So each address space has a *gate*: whoever fills holds it shared over
//! "look up, fill, mark"; whoever reads events holds it alone over "read, apply".
//! Any thread that meets EAGAIN reads the events itself; faults among them go to
//! the handler's queue.
//!
//! Order of locks: gate, turn, object, residency, waiting. No lock is held while a
//! source is asked.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::Instant;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};

mod events;
mod faults;
mod late;
mod objects;

use crate::base::{Error, HostPid, PAGE_SIZE, PageRange, Result, ResultExt, VAddr};
use crate::memory::anchor::Anchor;
use crate::memory::stats::{Cause, Stats};
use crate::memory::{Area, Object, Origin, PageSink, Piece, Residency, SpaceId};
use crate::sys::pidfd;
use crate::sys::uffd::{Filled, Stop, Uffd, mode};
pub(super) use faults::Noted;
use late::Late;
pub use late::MakeGuards;
use objects::SharedObject;
pub use objects::{LazyShared, PastCalls};

/// An address space that was built empty and waits for its pages.
#[derive(Debug)]
pub struct LazySpace {
    /// Its number in images.
    pub id: SpaceId,
    /// Its process.
    pub pid: HostPid,
    /// Its process, by descriptor.
    pub pidfd: OwnedFd,
    /// Guards `areas`; see [`guard`].
    pub uffd: Uffd,
    /// What is guarded.
    pub areas: Vec<Area>,
    /// Private pages that must come, by address.
    pub needed: Vec<PageRange>,
    /// What its process has to lock when all is there: [`Filler::locked`].
    pub locked: Vec<PageRange>,
}

/// All that must still come.
#[derive(Debug, Default)]
pub struct Job {
    /// The address spaces.
    pub spaces: Vec<LazySpace>,
    /// Shared objects.
    pub shared: Vec<LazyShared>,
    /// Keeps their userfaultfds open whatever becomes of us.
    pub anchor: Option<Anchor>,
}

/// Agrees with the kernel on a fresh userfaultfd of a task, and guards `areas`.
///
/// # Errors
/// An area that cannot be guarded (private file, SysV: fill those eagerly), EPERM
/// without CAP_SYS_PTRACE.
pub fn guard(fd: OwnedFd, areas: &[Area]) -> Result<Uffd> {
    let features = crate::sys::uffd::feature::LAZY;
    let uffd = Uffd::handshake(fd, features)?;
    for area in areas {
        uffd.register(area.range, mode::MISSING)?;
    }
    Ok(uffd)
}

#[derive(Debug)]
pub(super) struct Guarded {
    pub(super) id: SpaceId,
    uffd: Uffd,
    gate: RwLock<()>,
    over: AtomicBool,
}

/// A thread that waits for a page.
#[derive(Debug, Clone, Copy)]
pub(super) struct PendingFault {
    pub(super) space: SpaceId,
    pub(super) addr: VAddr,
    pub(super) read_at: Instant,
}

/// Who tells when memory has been thrown away.
#[derive(Default)]
struct Past(OnceLock<PastCalls>);

impl fmt::Debug for Past {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Past").finish_non_exhaustive()
    }
}

/// See the head of this file.
#[derive(Debug)]
pub struct Filler {
    residency: Mutex<Residency>,
    spaces: RwLock<HashMap<SpaceId, Arc<Guarded>>>,
    objects: BTreeMap<u32, Mutex<SharedObject>>,
    /// See [`objects`].
    turn: RwLock<()>,
    pub(super) faults: Mutex<VecDeque<PendingFault>>,
    waiting: Mutex<HashMap<Origin, Vec<PendingFault>>>,
    pub(super) epoll: Epoll,
    pub(super) bell: EventFd,
    pub(super) lost: Mutex<Option<Error>>,
    pidfds: Vec<(HostPid, OwnedFd)>,
    locked: Vec<(HostPid, Vec<PageRange>)>,
    past_calls: Past,
    anchor: Option<Anchor>,
    late: Late,
    /// What was done so far.
    pub stats: Stats,
}

/// What fills a page.
#[derive(Debug, Clone, Copy)]
enum Content<'a> {
    Bytes(&'a [u8]),
    Zeros,
    /// An access ends in SIGBUS.
    Poison,
}

/// How one attempt in one address space went.
enum Attempt {
    Done,
    ReadEvents,
    Ended,
}

/// The number by which epoll names the bell.
pub(super) const BELL: u64 = u64::MAX;

impl Filler {
    /// Takes the job on. Nothing is served before a handler runs.
    ///
    /// # Errors
    /// The job contradicts itself; no descriptors are left.
    pub fn new(job: Job) -> Result<Arc<Self>> {
        let mut residency = Residency::new();
        for s in &job.spaces {
            residency.add_space(s.id, &s.areas, &s.needed)?;
        }
        let mut objects = BTreeMap::new();
        for s in job.shared {
            residency.add_shared(s.id, &s.needed);
            let object = SharedObject::new(s.file).context(|| format!("number {}", s.id))?;
            objects.insert(s.id, Mutex::new(object));
        }
        let context = || "epoll for page faults".to_owned();
        let filler = Self {
            residency: Mutex::new(residency),
            spaces: RwLock::default(),
            objects,
            turn: RwLock::default(),
            faults: Mutex::default(),
            waiting: Mutex::default(),
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context(context)?,
            bell: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
                .context(context)?,
            lost: Mutex::default(),
            pidfds: Vec::new(),
            locked: Vec::new(),
            past_calls: Past::default(),
            anchor: job.anchor,
            late: Late::default(),
            stats: Stats::default(),
        };
        let event = EpollEvent::new(EpollFlags::EPOLLIN, BELL);
        filler.epoll.add(&filler.bell, event).context(context)?;
        let mut filler = filler;
        for s in job.spaces {
            filler.pidfds.push((s.pid, s.pidfd));
            if !s.locked.is_empty() {
                filler.locked.push((s.pid, s.locked));
            }
            filler.late.processes.insert(s.id, s.pid);
            filler.admit(s.id, s.uffd)?;
        }
        Ok(Arc::new(filler))
    }

    fn admit(&self, id: SpaceId, uffd: Uffd) -> Result<()> {
        let event = EpollEvent::new(EpollFlags::EPOLLIN, u64::from(id.0));
        self.epoll
            .add(uffd.as_fd(), event)
            .context(|| format!("epoll for address space {id}"))?;
        let guarded = Guarded {
            id,
            uffd,
            gate: RwLock::default(),
            over: AtomicBool::new(false),
        };
        let mut spaces = self.spaces.write().unwrap_or_else(PoisonError::into_inner);
        spaces.insert(id, Arc::new(guarded));
        Ok(())
    }

    pub(super) fn space(&self, id: SpaceId) -> Option<Arc<Guarded>> {
        let spaces = self.spaces.read().unwrap_or_else(PoisonError::into_inner);
        spaces.get(&id).cloned()
    }

    /// The account; do not hold it while anything is placed.
    pub fn residency(&self) -> MutexGuard<'_, Residency> {
        self.residency
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The processes, as they were handed over.
    pub fn processes(&self) -> impl Iterator<Item = (HostPid, &OwnedFd)> {
        self.pidfds.iter().map(|(pid, fd)| (*pid, fd))
    }

    /// What these processes have to lock when all is there: until then pages of it
    /// are locked as they come.
    pub fn locked(&self) -> &[(HostPid, Vec<PageRange>)] {
        &self.locked
    }

    /// Wakes the handler.
    pub(super) fn ring(&self) {
        // It only fails when it rings already.
        let _ = self.bell.write(1);
    }

    fn fill(&self, object: Object, range: PageRange, content: Content<'_>) -> Result<()> {
        loop {
            if let Object::Shared(id) = object {
                // Not between the read of an event and our knowing whose it is: its
                // hole would be taken for that of an earlier suspect.
                let _turn = self.beside_others(object);
                self.look_again(id)?;
            }
            let pieces = self.residency().waiting_for(object, range);
            let Some(first) = pieces.first() else {
                if let Object::Shared(id) = object
                    && self.fill_unmapped(id, range, content)? > 0
                {
                    continue;
                }
                if self.residency().complete() {
                    self.ring();
                }
                return Ok(());
            };
            let mut last = None;
            for id in pieces.iter().map(|p| p.space) {
                if last != Some(id) {
                    self.fill_space(id, object, range, content)?;
                    last = Some(id);
                }
            }
            if self.space(first.space).is_none() {
                self.residency().end(first.space);
            }
        }
    }

    fn fill_space(
        &self,
        id: SpaceId,
        object: Object,
        range: PageRange,
        content: Content<'_>,
    ) -> Result<()> {
        let Some(space) = self.space(id) else {
            return Ok(());
        };
        loop {
            match self.attempt(&space, object, range, content)? {
                Attempt::Done => return Ok(()),
                Attempt::Ended => {
                    self.ended(&space);
                    return Ok(());
                }
                Attempt::ReadEvents => self.step_aside(&space)?,
            }
        }
    }

    /// Fills what `space` still lacks of `range`, until something is in the way.
    fn attempt(
        &self,
        space: &Guarded,
        object: Object,
        range: PageRange,
        content: Content<'_>,
    ) -> Result<Attempt> {
        let _gate = space.gate.read().unwrap_or_else(PoisonError::into_inner);
        let _turn = self.beside_others(object);
        let mut step = u64::MAX;
        let mut doubted = None;
        loop {
            let piece = self.residency().waiting_in(space.id, object, range);
            let Some(piece) = piece.first().copied() else {
                return Ok(Attempt::Done);
            };
            let len = piece.range.len().min(step);
            let Filled { bytes, stop } = fill_once(&space.uffd, piece, range, len, content)?;
            if bytes > 0 {
                self.placed(space, object, piece.at, bytes, content);
            }
            match stop {
                None => {}
                Some(Stop::Again) if bytes > 0 => {}
                Some(Stop::Again) => return Ok(Attempt::ReadEvents),
                Some(Stop::Exists) => {
                    self.placed(space, object, piece.at, PAGE_SIZE, content);
                    if let Some(page) = piece.range.first_page() {
                        space.uffd.wake(page)?;
                    }
                }
                Some(Stop::NoArea) if len > PAGE_SIZE => {
                    // Several areas: mprotect splits without telling.
                    step = (len / 2).next_multiple_of(PAGE_SIZE);
                }
                // An event that was raised meanwhile answers the second try.
                Some(Stop::NoArea) if doubted != Some(piece) => doubted = Some(piece),
                Some(Stop::NoArea) => {
                    if let Some(page) = piece.range.first_page() {
                        self.residency().unmap(space.id, page);
                        space.uffd.wake(page)?;
                    }
                }
                Some(Stop::Gone) => return Ok(Attempt::Ended),
            }
        }
    }

    fn placed(&self, space: &Guarded, object: Object, at: u64, len: u64, content: Content<'_>) {
        if let Some(range) = PageRange::new(at, at + len) {
            self.mark(space.id, object, range, content);
        }
    }

    /// Pages are there: account for them, wake who waits elsewhere, and note how
    /// long they waited.
    fn mark(&self, space: SpaceId, object: Object, range: PageRange, content: Content<'_>) {
        let mut residency = self.residency();
        let pages = residency.placed(space, object, range);
        let others = match object {
            Object::Shared(_) => residency.mappings(object, range),
            Object::Private(_) => Vec::new(),
        };
        drop(residency);
        self.wake_all(&others);
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let mut cause = Cause::Pushed;
        if !waiting.is_empty() {
            let now = Instant::now();
            for page in 0..range.pages() {
                let at = range.start() + page * PAGE_SIZE;
                for fault in waiting.remove(&Origin { object, at }).unwrap_or_default() {
                    cause = Cause::Asked;
                    self.stats.served(now.duration_since(fault.read_at));
                }
            }
        }
        drop(waiting);
        match content {
            Content::Poison => self.stats.poisoned(pages),
            Content::Bytes(_) | Content::Zeros => self.stats.placed(pages, cause),
        }
    }

    fn wake_all(&self, pieces: &[Piece]) {
        for piece in pieces {
            if let Some(s) = self.space(piece.space) {
                // An address space that has ended has nobody to wake.
                let _ = s.uffd.wake(piece.range);
            }
        }
    }

    /// The address space has ended: nobody needs its pages.
    pub(super) fn ended(&self, space: &Guarded) {
        if space.over.swap(true, Ordering::AcqRel) {
            return;
        }
        self.residency().end(space.id);
        let mut spaces = self.spaces.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(s) = spaces.remove(&space.id) {
            let _ = self.epoll.delete(s.uffd.as_fd());
        }
        drop(spaces);
        self.ring();
    }

    /// Kills the processes that were handed over.
    pub fn kill(&self) {
        for (pid, fd) in &self.pidfds {
            if let Err(e) = pidfd::send_signal(fd.as_fd(), libc::SIGKILL)
                && e.raw_os_error() != Some(libc::ESRCH)
            {
                tracing::error!("kill process {pid}: {e}");
            }
        }
    }

    /// Lets go of all address spaces: what is missing there reads as zeros from
    /// now on, so every page must be accounted for.
    /// Waits for threads that have placed the last of them and not yet counted it.
    pub(super) fn release(&self) {
        if let Some(anchor) = &self.anchor {
            anchor.let_go();
        }
        let mut spaces = self.spaces.write().unwrap_or_else(PoisonError::into_inner);
        let all: Vec<_> = spaces.drain().map(|(_, s)| s).collect();
        drop(spaces);
        for s in all {
            let _ = self.epoll.delete(s.uffd.as_fd());
            drop(s.gate.write().unwrap_or_else(PoisonError::into_inner));
        }
    }
}

impl PageSink for Filler {
    fn place(&self, object: Object, at: u64, bytes: &[u8]) -> Result<()> {
        let range = u64::try_from(bytes.len())
            .ok()
            .and_then(|len| PageRange::new(at, at.checked_add(len)?))
            .ok_or_else(|| {
                let what = format!("{} bytes at {at:#x} of {object}", bytes.len());
                Error::peer(what, "not whole pages")
            })?;
        self.fill(object, range, Content::Bytes(bytes))
    }

    fn place_zeros(&self, object: Object, range: PageRange) -> Result<()> {
        self.fill(object, range, Content::Zeros)
    }

    fn never_were(&self, object: Object, range: PageRange) -> Result<()> {
        self.forget(object, range);
        Ok(())
    }

    fn guards(&self, id: SpaceId, ranges: &[PageRange]) -> Result<()> {
        self.guard_late(id, ranges)
    }

    fn lost(&self, why: Error) {
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        lost.get_or_insert(why);
        drop(lost);
        self.ring();
    }
}

/// One ioctl: the first `len` bytes of `piece`; `range` is what `content` holds.
fn fill_once(
    uffd: &Uffd,
    piece: Piece,
    range: PageRange,
    len: u64,
    content: Content<'_>,
) -> Result<Filled> {
    let inner = || Error::bug(format!("fill {piece:?}"), "outside of what there is");
    let target =
        PageRange::new(piece.range.start(), piece.range.start() + len).ok_or_else(inner)?;
    match content {
        Content::Bytes(bytes) => {
            let from = usize::try_from(piece.at - range.start()).map_err(|_| inner())?;
            let len = usize::try_from(len).map_err(|_| inner())?;
            let bytes = bytes.get(from..from + len).ok_or_else(inner)?;
            uffd.copy(VAddr(target.start()), bytes)
        }
        Content::Zeros => uffd.zeropage(target),
        Content::Poison => uffd.poison(target),
    }
}
