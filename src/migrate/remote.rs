//! The destination's page source: pages come over the fault and bulk lanes, asked
//! for or not, and go straight into the sink.
//!
//! What a task waits for is remembered until it has come, so that a new epoch
//! asks again. Nothing here ever makes up a page.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tracing::info;

use crate::base::{Error, PageRange, Result};
use crate::memory::{Object, PageSink, PageSource, Want};
use crate::wire::batch::{self, Batch};
use crate::wire::frame::Kind;
use crate::wire::message::{self, Reasons};
use crate::wire::ranges;
use crate::wire::transport::{Reader, Writer, told};

/// Most fault latencies that are kept for the account.
const MAX_LATENCIES: usize = 1 << 20;

/// Figures of what came.
#[derive(Debug, Default, Clone)]
pub struct Arrived {
    /// Pages with bytes.
    pub pages: u64,
    /// Pages of zeros, sent as such.
    pub zeros: u64,
    /// Microseconds from a task's fault to its page in place.
    pub latencies: VecDeque<u32>,
    /// Faults asked for.
    pub faults: u64,
}

impl Arrived {
    /// Of all latencies, that which `percent` per cent do not exceed, microseconds.
    pub fn percentile(&self, percent: u64) -> u64 {
        let mut all: Vec<u32> = self.latencies.iter().copied().collect();
        all.sort_unstable();
        let last = all.len().saturating_sub(1) as u64;
        let at = usize::try_from((last * percent).div_ceil(100)).unwrap_or(0);
        all.get(at).copied().map_or(0, u64::from)
    }
}

#[derive(Default)]
struct State {
    /// By page: since when, and what else is welcome.
    waiting: BTreeMap<(Object, u64), (Instant, PageRange)>,
    lane: Option<UnboundedSender<message::Fault>>,
    arrived: Arrived,
    lost: bool,
}

impl State {
    /// Nobody waits for these pages any more.
    fn answered(&mut self, object: Object, range: PageRange) {
        let (from, to) = ((object, range.start()), (object, range.end()));
        while let Some(key) = self.waiting.range(from..to).next().map(|(k, _)| *k) {
            if let Some((since, _)) = self.waiting.remove(&key) {
                let us = u32::try_from(since.elapsed().as_micros()).unwrap_or(u32::MAX);
                if self.arrived.latencies.len() < MAX_LATENCIES {
                    self.arrived.latencies.push_back(us);
                }
            }
        }
    }
}

/// The other end's pages. Clones are the same source.
#[derive(Clone, Default)]
pub struct Remote {
    state: Arc<Mutex<State>>,
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = self.state();
        f.debug_struct("Remote")
            .field("waiting", &s.waiting.len())
            .field("connected", &s.lane.is_some())
            .finish_non_exhaustive()
    }
}

fn request(object: Object, at: u64, window: PageRange) -> message::Fault {
    let (sort, id) = batch::numbers(object);
    message::Fault {
        id,
        address: at,
        pages: 1,
        window_start: window.start(),
        window_pages: u32::try_from(window.pages()).unwrap_or(0),
        sort,
    }
}

impl Remote {
    /// Not connected yet: who wants a page waits.
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The state is whole between any two statements that could panic.
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Figures so far.
    pub fn arrived(&self) -> Arrived {
        self.state().arrived.clone()
    }

    /// A new fault lane: what is waited for is asked again over it.
    fn connect(&self) -> UnboundedReceiver<message::Fault> {
        let (tx, rx) = unbounded_channel();
        let mut s = self.state();
        for ((object, at), (_, window)) in &s.waiting {
            // The receiver stands: it is returned below.
            let _ = tx.send(request(*object, *at, *window));
        }
        s.lane = Some(tx);
        rx
    }

    /// Sends requests over a fault lane until it fails.
    ///
    /// # Errors
    /// The connection.
    pub async fn ask(&self, mut lane: Writer) -> Result<()> {
        let mut rx = self.connect();
        while let Some(fault) = rx.recv().await {
            lane.send(Kind::Fault, &fault).await?;
        }
        Ok(()) // a newer lane has taken over
    }

    /// Takes pages from a fault or bulk lane until it ends.
    ///
    /// # Errors
    /// The connection; what the peer sends; what the sink says.
    pub async fn take(&self, mut lane: Reader, sink: Arc<dyn PageSink>) -> Result<()> {
        while let Some(f) = lane.next().await? {
            match f.kind {
                Kind::Pages => {
                    let b = Batch::parse(f.body)?;
                    self.place(&b, &*sink)?;
                    lane.recycle(b.into_body());
                }
                Kind::Absent => self.absent(&message::parse(f.kind, &f.body)?, &*sink)?,
                Kind::Failure => return Err(told(&f)),
                other => {
                    return Err(Error::peer(
                        format!("receive {other:?}"),
                        "not on a lane for pages",
                    ));
                }
            }
        }
        Ok(())
    }

    fn place(&self, b: &Batch, sink: &dyn PageSink) -> Result<()> {
        for run in &b.runs {
            match b.content(run) {
                Some(bytes) => sink.place(b.object, run.range.start(), bytes)?,
                None => sink.place_zeros(b.object, run.range)?,
            }
            let mut s = self.state();
            let pages = run.range.pages();
            if run.bytes.is_some() {
                s.arrived.pages += pages;
            } else {
                s.arrived.zeros += pages;
            }
            s.answered(b.object, run.range);
        }
        Ok(())
    }

    fn absent(&self, m: &message::Absent, sink: &dyn PageSink) -> Result<()> {
        let (object, ranges) = ranges::read(m.sort, m.id, &m.starts, &m.pages)?;
        match object {
            Object::Private(id) if m.guards => {
                let count = ranges.len();
                info!(
                    ranges = count,
                    "guard pages that were made just before the freeze"
                );
                sink.guards(id, &ranges)?;
            }
            Object::Shared(_) if m.guards => {
                return Err(Error::peer("receive Absent", "guard pages of no task"));
            }
            _ => {
                for range in &ranges {
                    sink.never_were(object, *range)?;
                }
            }
        }
        for range in ranges {
            self.state().answered(object, range);
        }
        Ok(())
    }

    /// Nothing more comes, for good: whoever wants a page is told so.
    pub fn give_up(&self) {
        let mut s = self.state();
        s.lost = true;
        s.lane = None;
    }
}

impl PageSource for Remote {
    fn want(&self, want: Want, _sink: &dyn PageSink) -> Result<()> {
        let mut s = self.state();
        if s.lost {
            return Err(Error::link("ask for a page", "the source is lost"));
        }
        let key = (want.page.object, want.page.at);
        let mut fresh = false;
        s.waiting.entry(key).or_insert_with(|| {
            fresh = true;
            (Instant::now(), want.window)
        });
        if fresh {
            s.arrived.faults += 1;
            if let Some(lane) = &s.lane {
                // A broken lane is noticed by its task; the new one asks again.
                let _ = lane.send(request(want.page.object, want.page.at, want.window));
            }
        }
        Ok(())
    }
}

/// Says why, before a lane is closed.
pub async fn say_why(lane: &mut Writer, kind: Kind, e: &Error) {
    let why = Reasons {
        reasons: vec![e.to_string()],
    };
    // The lane is given up in any case.
    let _ = lane.send(kind, &why).await;
}
