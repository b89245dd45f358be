//! The thread that hears of faults and answers them.
//!
//! It does not know where pages come from: [`PageSource`]. When every page is
//! accounted for it lets go of the address spaces and ends. When the source is
//! lost, those who wait go on waiting, or die, as the caller's policy says; they
//! never read zeros. It must be another thread than a ptracer of the same tasks
//! (an injected call may fault).

use std::fmt;
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;

use nix::errno::Errno;
use nix::sys::epoll::{EpollEvent, EpollTimeout};

use crate::base::{Error, HostPid, PAGE_SIZE, PageRange, Result, ResultExt};
use crate::memory::filler::{BELL, Filler, Noted, PendingFault};
use crate::memory::stats::Summary;
use crate::memory::{Count, Object, PageReader, PageSink, PageSource, SpaceId, Want};

/// Bytes asked for around a page that somebody waits for.
pub const WINDOW: u64 = 16 * PAGE_SIZE;

/// What becomes of those who wait when the source is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnLoss {
    /// They wait: the source comes back, and [`Asker::ask_again`] tells it who waits.
    Wait,
    /// Whoever touches a missing page dies of SIGBUS.
    Poison,
    /// As `Poison`, and the processes are killed.
    Kill,
}

/// Decides; asked on the handler's thread.
pub type LossPolicy = Box<dyn Fn(&Error) -> OnLoss + Send>;

/// How it ended.
#[derive(Debug)]
pub struct Outcome {
    /// What it cost.
    pub summary: Summary,
    /// What became of the pages.
    pub count: Count,
    /// Why the source was lost, if it was.
    pub lost: Option<Error>,
    /// What processes have to lock now.
    pub locked: Vec<(HostPid, Vec<PageRange>)>,
}

/// A running handler. Dropping it does not stop it: that would make zeros.
pub struct Handler {
    filler: Arc<Filler>,
    source: Arc<dyn PageSource>,
    thread: JoinHandle<Result<Outcome>>,
}

impl fmt::Debug for Handler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handler").finish_non_exhaustive()
    }
}

/// Tells a source that came back who waits.
pub struct Asker {
    filler: Arc<Filler>,
    source: Arc<dyn PageSource>,
}

impl fmt::Debug for Asker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asker").finish_non_exhaustive()
    }
}

impl Asker {
    /// Asks once more for all that somebody waits for.
    ///
    /// # Errors
    /// Those of [`PageSource::want`].
    pub fn ask_again(&self) -> Result<()> {
        for want in self.filler.ask_again(WINDOW) {
            self.source.want(want, self.filler.as_ref())?;
        }
        Ok(())
    }
}

impl Handler {
    /// Starts to serve.
    ///
    /// # Errors
    /// No thread can be made.
    pub fn start(
        filler: Arc<Filler>,
        source: Arc<dyn PageSource>,
        policy: LossPolicy,
    ) -> Result<Self> {
        let (f, s) = (Arc::clone(&filler), Arc::clone(&source));
        let thread = std::thread::Builder::new()
            .name("page-faults".to_owned())
            .spawn(move || {
                crate::sys::sched::prompt();
                // Whatever goes wrong, the descriptors stay open: see `serve`.
                let f = ManuallyDrop::new(f);
                let served = catch_unwind(AssertUnwindSafe(|| serve(&f, s.as_ref(), &policy)));
                match served {
                    Ok(Ok(outcome)) => {
                        drop(ManuallyDrop::into_inner(f));
                        Ok(outcome)
                    }
                    Ok(Err(e)) => Err(e),
                    Err(_) => {
                        f.kill();
                        Err(Error::bug("page fault thread", "panicked"))
                    }
                }
            })
            .context(|| "start the page fault thread".to_owned())?;
        Ok(Self {
            filler,
            source,
            thread,
        })
    }

    /// Where pages are put.
    pub fn sink(&self) -> Arc<Filler> {
        Arc::clone(&self.filler)
    }

    /// For when the source comes back.
    pub fn asker(&self) -> Asker {
        Asker {
            filler: Arc::clone(&self.filler),
            source: Arc::clone(&self.source),
        }
    }

    /// The figures so far.
    pub fn summary(&self) -> Summary {
        self.filler.stats.summary()
    }

    /// It has ended; [`Self::wait`] returns at once.
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits until every page is accounted for.
    ///
    /// # Errors
    /// What stopped it. The container was killed then.
    pub fn wait(self) -> Result<Outcome> {
        self.thread
            .join()
            .unwrap_or_else(|_| Err(Error::bug("page fault thread", "panicked")))
    }
}

fn serve(filler: &Filler, source: &dyn PageSource, policy: &LossPolicy) -> Result<Outcome> {
    let result = run(filler, source, policy);
    match result {
        Ok(lost) => {
            filler.release();
            Ok(Outcome {
                summary: filler.stats.summary(),
                count: filler.residency().count(),
                lost,
                locked: filler.locked().to_vec(),
            })
        }
        Err(e) => {
            // Better dead than wrong: nothing may see a page that did not come.
            // The descriptors stay open until the process ends.
            tracing::error!("serve page faults: {e}; the container is killed");
            filler.kill();
            Err(e.within("serve page faults"))
        }
    }
}

fn run(filler: &Filler, source: &dyn PageSource, policy: &LossPolicy) -> Result<Option<Error>> {
    let mut ready = [EpollEvent::empty(); 64];
    let mut loss = None;
    loop {
        while let Some(fault) = next_fault(filler) {
            answer(filler, source, fault)?;
        }
        if let Some(why) = take_lost(filler) {
            tracing::error!("the source of memory pages is lost: {why}");
            match policy(&why) {
                OnLoss::Wait => {}
                OnLoss::Poison => filler.poison_missing()?,
                OnLoss::Kill => {
                    filler.kill();
                    filler.poison_missing()?;
                }
            }
            loss.get_or_insert(why);
        }
        if filler.residency().complete() {
            return Ok(loss);
        }
        let n = match filler.epoll.wait(&mut ready, EpollTimeout::NONE) {
            Ok(n) => n,
            Err(Errno::EINTR) => 0,
            Err(e) => return Err(e).context(|| "epoll_wait".to_owned()),
        };
        for event in &ready[..n] {
            if event.data() == BELL {
                let _ = filler.bell.read();
                continue;
            }
            let space = u32::try_from(event.data())
                .ok()
                .and_then(|id| filler.space(SpaceId(id)));
            if let Some(space) = space {
                filler.drain(&space)?;
            }
        }
    }
}

fn next_fault(filler: &Filler) -> Option<PendingFault> {
    filler
        .faults
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .pop_front()
}

fn take_lost(filler: &Filler) -> Option<Error> {
    filler
        .lost
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take()
}

fn answer(filler: &Filler, source: &dyn PageSource, fault: PendingFault) -> Result<()> {
    let Some(space) = filler.space(fault.space) else {
        return Ok(());
    };
    let again = |served: bool| {
        if !served {
            let mut faults = filler.faults.lock().unwrap_or_else(PoisonError::into_inner);
            faults.push_back(fault);
        }
    };
    match filler.note_waiting(fault, WINDOW) {
        Noted::Zero => again(filler.zero(&space, fault.addr)?),
        Noted::Beyond(end) => again(filler.beyond(&space, end, fault.addr)?),
        Noted::Present => filler.wake(&space, fault.addr)?,
        Noted::Asked => {}
        Noted::Ask(want) => {
            if let Err(e) = source.want(want, filler) {
                filler.lost(e);
            }
        }
    }
    Ok(())
}

/// A source on this machine that can be read at once: the page that somebody
/// waits for first, then its neighbours.
#[derive(Debug)]
pub struct Direct<R>(pub R);

impl<R: PageReader> Direct<R> {
    fn piece(&self, object: Object, at: u64, end: u64, sink: &dyn PageSink) -> Result<()> {
        let len = usize::try_from(end - at)
            .map_err(|_| Error::bug(format!("read {object}"), "a window beyond memory"))?;
        let mut buf = vec![0; len];
        self.0.read(object, at, &mut buf)?;
        sink.place(object, at, &buf)
    }
}

impl<R: PageReader> PageSource for Direct<R> {
    fn want(&self, want: Want, sink: &dyn PageSink) -> Result<()> {
        let (object, at) = (want.object(), want.page.at);
        self.piece(object, at, at + PAGE_SIZE, sink)?;
        if want.window.start() < at {
            self.piece(object, want.window.start(), at, sink)?;
        }
        if at + PAGE_SIZE < want.window.end() {
            self.piece(object, at + PAGE_SIZE, want.window.end(), sink)?;
        }
        Ok(())
    }
}

impl<R: PageReader + ?Sized> PageReader for Arc<R> {
    fn read(&self, object: Object, at: u64, buf: &mut [u8]) -> Result<()> {
        self.as_ref().read(object, at, buf)
    }
}

#[cfg(test)]
#[path = "handler/tests.rs"]
mod tests;
