//! The source's end of a migration. One place undoes: [`run`] before GRANTED.
//!
//! ```text
//! offer, bundle (it runs)      failure: nothing to undo
//! freeze .. READY              failure: thaw, tell the destination
//! GRANTED in the journal       from here only the destination's ABORTED thaws
//! RESUMED                      pages; a lost link is made again in a new epoch
//! COMPLETE                     kill, forget
//! ```

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tracing::{info, warn};

use super::budget::{Clock, Pause, Report, micros};
use super::bundle::walk::{Sent, Tree};
use super::control::Control;
use super::guard::Guard;
use super::journal::{self, Facts, Journal, Phase};
use super::ports::{Capture, Container};
use super::probe::Probe;
use super::pump::Pump;
use super::source_pages;
use crate::base::{Error, Result, ResultExt};
use crate::engine::hold::Verdict;
use crate::wire::frame::{DATA_CHUNK, Kind};
use crate::wire::message::{Image, Lane, StateEnd, Step};
use crate::wire::secret::{Side, Token, hex};
use crate::wire::transport::{Opened, open, told};

/// What a migration is told.
#[derive(Debug, Clone)]
pub struct Options {
    /// The receiver.
    pub to: SocketAddr,
    /// Its token.
    pub token: Token,
    /// Where the journal lies.
    pub state: PathBuf,
    /// Bulk lanes, at least 1.
    pub bulk: usize,
    /// How long a lost link is tried again after GRANTED.
    pub patience: Duration,
    /// How long the container may stand still before it is given up (before GRANTED).
    pub max_pause: Duration,
    /// How long the other end may take for a word, as long as nothing is granted.
    pub answer: Duration,
    /// Where to stop, for tests.
    pub probe: Probe,
}

/// How long the destination may take to judge an offer.
pub(super) const JUDGE: Duration = Duration::from_secs(60);

/// What stands while a migration runs.
pub(super) struct Job<'a> {
    pub(super) c: &'a mut dyn Container,
    pub(super) o: &'a Options,
    pub(super) rt: Handle,
    pub(super) journal: Journal,
    pub(super) report: Report,
    pub(super) started: Instant,
}

/// Lanes of one epoch beside the control lane.
pub(super) struct Lanes {
    pub(super) fault: Opened,
    pub(super) bulk: Vec<Opened>,
}

pub(super) fn open_lanes(rt: &Handle, o: &Options, epoch: u64) -> Result<Lanes> {
    rt.block_on(async {
        let fault = open(o.to, &o.token, Lane::Fault, epoch).await?;
        let mut bulk = Vec::new();
        for _ in 0..o.bulk.clamp(1, 8) {
            bulk.push(open(o.to, &o.token, Lane::Bulk, epoch).await?);
        }
        Ok(Lanes { fault, bulk })
    })
}

/// Moves the container away. On an error before GRANTED it runs on here; the
/// error says so if it does not.
///
/// # Errors
/// Whatever stopped the migration.
pub fn run(c: &mut dyn Container, o: &Options, rt: &Handle) -> Result<Report> {
    let started = Instant::now();
    let offer = c.offer()?;
    let lane = rt.block_on(open(o.to, &o.token, Lane::Control, 1))?;
    let mut control = Control::new(rt.clone(), lane, Side::Source);
    o.probe.at("connected");
    control.say(Kind::Offer, &offer)?;
    let answer = control.hear(o.answer.min(JUDGE))?;
    if answer.kind != Kind::Fit {
        return Err(told(&answer).within(format!("offer {} to {}", offer.id, o.to)));
    }
    let facts = Facts {
        side: journal::Side::Source,
        id: offer.id.clone(),
        session: hex(&o.token.session),
        peer: o.to.to_string(),
        port: c.place(),
    };
    let journal = match Journal::create(&o.state, facts) {
        Ok(j) => j,
        Err(e) => {
            control.part(Kind::Abort, &e);
            return Err(e);
        }
    };
    let path = journal::path_of(&o.state, journal::Side::Source, &offer.id)?;
    let report = Report {
        id: offer.id.clone(),
        to: o.to.to_string(),
        session: hex(&o.token.session),
        tls: o.token.fingerprint.is_some(),
        ..Report::default()
    };
    let mut job = Job {
        c,
        o,
        rt: rt.clone(),
        journal,
        report,
        started,
    };
    let guard = match Guard::spawn(&path) {
        Ok(g) => g,
        Err(e) => return Err(job.give_up(&mut control, Verdict::NeverGranted, e)),
    };
    let done = through(job, control);
    // The journal's lock is free by now: the guard may look at it.
    guard.dismiss();
    done
}

fn through(mut job: Job<'_>, mut control: Control) -> Result<Report> {
    match job.prepare(&mut control) {
        Ok((lanes, pump, clock)) => source_pages::commit(job, control, lanes, pump, clock),
        Err(e) => Err(job.give_up(&mut control, Verdict::NeverGranted, e)),
    }
}

/// Looks up which pages exist, on a thread of its own: the pause does not wait for it.
fn start_listing(pump: &Arc<Pump>) -> Result<()> {
    let pump = Arc::clone(pump);
    std::thread::Builder::new()
        .name("list-pages".to_owned())
        .spawn(move || {
            crate::sys::sched::patient();
            pump.list();
        })
        .map(drop)
        .context(|| "start a thread".to_owned())
}

impl Job<'_> {
    /// Everything up to READY and GRANTED in the journal.
    fn prepare(&mut self, control: &mut Control) -> Result<(Lanes, Arc<Pump>, Clock)> {
        let probe = self.o.probe.clone();
        let lanes = open_lanes(&self.rt, self.o, 1)?;
        let mut tree = Tree::open(self.c.rootfs())?;
        let first = self.send_bundle(&mut tree, control)?;
        info!(?first, "bundle sent");
        self.report.bundle_entries = first.entries;
        control.say(Kind::BundleEnd, &Step::default())?;
        let answer = control.hear(self.o.answer)?;
        if answer.kind != Kind::Taken {
            return Err(told(&answer));
        }
        probe.at("bundle");

        let before = control.sent();
        let mut pause = Pause::default();
        let begun = self.c.freeze()?;
        // A destination that takes nothing any more must not make it longer.
        control.until(begun.checked_add(self.o.max_pause));
        let mut clock = Clock::since(begun);
        pause.freeze = clock.lap();
        probe.at("frozen");
        let (capture, delta) = self.capture(&mut tree, control)?;
        probe.at("captured");
        self.c.hold()?;
        let place = self.c.place();
        self.journal.note(place)?;
        pause.capture = clock.lap();
        probe.at("held");
        self.send_state(control, &capture, begun)?;
        pause.transfer = clock.lap();
        probe.at("sent");
        let pump = Arc::new(Pump::new(capture.pages, &capture.objects, capture.lister));
        start_listing(&pump)?;
        let left = self.o.max_pause.saturating_sub(begun.elapsed());
        let ready = control.hear(left)?;
        if ready.kind != Kind::Ready {
            return Err(told(&ready));
        }
        control.until(None);
        self.figures(&ready.body);
        pause.rebuild = clock.lap();
        probe.at("ready");
        self.report.bundle_entries_in_pause = delta.entries;
        self.report.bytes_before_resume = control.sent();
        self.report.bytes_in_pause = control.sent() - before;
        pump.check()?;
        // The commit of this end: from here on only ABORTED thaws.
        self.journal.advance(Phase::Granted)?;
        pause.journal = clock.lap();
        self.report.pause_us = pause;
        probe.at("granted");
        Ok((lanes, pump, clock))
    }

    /// The bundle, again and again until little changes.
    fn send_bundle(&mut self, tree: &mut Tree, control: &mut Control) -> Result<Sent> {
        tree.distrust(self.c.mapped_files()?);
        let mut all = tree.send(control)?;
        for _ in 0..3 {
            tree.distrust(self.c.mapped_files()?);
            let more = tree.send(control)?;
            all.entries += more.entries;
            all.bytes += more.bytes;
            all.removed += more.removed;
            if more.bytes < 1 << 20 && more.entries < 64 {
                break;
            }
        }
        Ok(all)
    }

    /// Captures while another thread sends what changed in the bundle: all tasks
    /// stand, so both see the last state.
    fn capture(&mut self, tree: &mut Tree, control: &mut Control) -> Result<(Capture, Sent)> {
        tree.distrust(self.c.mapped_files()?);
        std::thread::scope(|s| {
            let bundle = s.spawn(|| tree.send(control));
            let capture = self.c.capture();
            let sent = bundle
                .join()
                .unwrap_or_else(|_| Err(Error::bug("send the bundle's changes", "it panicked")));
            Ok((capture?, sent?))
        })
    }

    fn send_state(
        &mut self,
        control: &mut Control,
        capture: &Capture,
        begun: Instant,
    ) -> Result<()> {
        let mut total = 0u64;
        for (name, bytes) in &capture.images {
            let size = bytes.len() as u64;
            total += size;
            let name = name.clone();
            control.say(Kind::Image, &Image { name, size })?;
            for chunk in bytes.chunks(DATA_CHUNK) {
                control.say_built(Kind::ImageData, |b| {
                    b.extend_from_slice(chunk);
                    Ok(())
                })?;
            }
        }
        control.say(
            Kind::StateEnd,
            &StateEnd {
                images: capture.images.len() as u64,
                bytes: total,
                frozen_us: micros(begun.elapsed()),
            },
        )
    }

    /// Lets the container run on, tells the destination, settles the journal.
    pub(super) fn give_up(&mut self, control: &mut Control, verdict: Verdict, e: Error) -> Error {
        if self.journal.phase() != Phase::Prepared && verdict == Verdict::NeverGranted {
            return e; // a journal that could not be written: a person has to look
        }
        // First it runs again, then the rest.
        if let Err(thaw) = self.c.thaw(verdict) {
            return e.within(format!(
                "and it could not be thawed ({thaw}); see dunlin resolve {}",
                self.report.id
            ));
        }
        if !matches!(
            control.state(),
            crate::wire::session::State::Aborted | crate::wire::session::State::Open
        ) {
            control.part(Kind::Abort, &e);
        }
        self.journal.tell(Phase::Aborted);
        if let Err(j) = std::fs::remove_file(self.journal.path()) {
            warn!("remove journal: {j}");
        }
        // Until it has heard that it was heard, the destination says it again.
        if control.state() == crate::wire::session::State::Aborted
            && let Err(lost) = control.say(Kind::Forget, &Step::default())
        {
            info!("the destination was not told: {lost}");
        }
        e
    }

    /// Takes the destination's figures into the account.
    pub(super) fn figures(&mut self, body: &[u8]) {
        if let Ok(step) = crate::wire::message::parse::<Step>(Kind::Ready, body) {
            for f in step.times.into_iter().take(64) {
                let name = crate::wire::transport::printable(&f.name);
                self.report.destination.insert(name, f.value);
            }
        }
    }
}
