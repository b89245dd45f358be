//! The destination's end of a migration. One place undoes: [`run`], before
//! RESUMING is in the journal.
//!
//! ```text
//! OFFER                        refuse: nothing to undo
//! bundle, restorer begun       failure: discard, ABORTED; the source still runs
//! state, rebuild               failure: discard, ABORTED
//! READY                        failure, or the link is lost: discard, journal ABORTED;
//!                              the source is told until it says FORGET
//! RESUMING in the journal      the commit point: from here it may have run
//! RESUMED                      pages; a lost link is waited for, then it fails loudly
//! COMPLETE                     kept until FORGET
//! ```

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::mpsc::Receiver;
use tracing::{info, warn};

use super::budget::micros;
use super::bundle::land::Landing;
use super::control::Control;
use super::destination_pages;
use super::gate::{self, Gate};
use super::guard::Guard;
use super::images::{Images, Room};
use super::journal::{self, Facts, Journal, Phase};
use super::loss;
use super::policy::{self, Policy};
use super::ports::{Host, Landed, Serving};
use super::probe::Probe;
use super::remote::Remote;
use super::source::JUDGE;
use crate::base::{Error, Result, ResultExt};
use crate::sys::private;
use crate::wire::frame::{Frame, Kind};
use crate::wire::message::{self, Entry, Figure, Lane, Offer, Reasons, Remove, Step};
use crate::wire::secret::{Side, Token, hex};
use crate::wire::tls::Identity;
use crate::wire::transport::{Opened, printable, told};

/// What a receiver is told.
#[derive(Debug)]
pub struct Options {
    /// Listening already, so that its address is known.
    pub listener: std::net::TcpListener,
    /// The session's token.
    pub token: Token,
    /// For TLS; `None`: `--plain`.
    pub identity: Option<Identity>,
    /// Where containers are put: `DIR/ID`.
    pub dir: PathBuf,
    /// Where the journal lies.
    pub state: PathBuf,
    /// What a bundle may bring.
    pub policy: Policy,
    /// Most bytes of a bundle.
    pub max_bundle: u64,
    /// How long the source may take to come at all; `None`: for ever.
    pub wait: Option<Duration>,
    /// How long a lost source is waited for while pages are missing.
    pub patience: Duration,
    /// How long the other end may take for a word, as long as nothing is granted.
    pub answer: Duration,
    /// Where to stop, for tests.
    pub probe: Probe,
}

/// What was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// The container's id.
    pub id: String,
    /// Its bundle.
    pub bundle: PathBuf,
    /// Figures by name.
    pub figures: Vec<(String, u64)>,
}

/// What stands while a container is received.
pub(super) struct Job<'a> {
    pub(super) host: &'a mut dyn Host,
    pub(super) o: &'a Options,
    pub(super) rt: Handle,
    pub(super) gate: Gate,
    pub(super) lanes: Receiver<Opened>,
    pub(super) early: Vec<Opened>,
    pub(super) landed: Landed,
    /// Where the images are.
    _room: Room,
    pub(super) journal: Journal,
    pub(super) remote: Arc<Remote>,
    pub(super) figures: Vec<(String, u64)>,
}

/// Waits for the source of this session, and receives its container.
///
/// # Errors
/// Whatever stopped it. Before RESUMING nothing of the container is left here
/// then; after it the error says what to do.
pub fn run(host: &mut dyn Host, o: &Options, rt: &Handle) -> Result<Received> {
    let listener = o
        .listener
        .try_clone()
        .and_then(|l| l.set_nonblocking(true).map(|()| l))
        .context(|| "listen".to_owned())?;
    let gate = Gate::default();
    let mut lanes = rt.block_on(async {
        tokio::net::TcpListener::from_std(listener)
            .map(|l| gate::listen(l, o.token.clone(), o.identity.clone(), gate.clone()))
            .context(|| "listen".to_owned())
    })?;
    let mut early = Vec::new();
    let until = o.wait.map(|w| Instant::now() + w);
    let first = loop {
        let left = until.map_or(Duration::MAX, |t| {
            t.saturating_duration_since(Instant::now())
        });
        match rt.block_on(async { tokio::time::timeout(left, lanes.recv()).await }) {
            Ok(Some(l)) if l.lane == Lane::Control => break l,
            Ok(Some(l)) => early.push(l),
            Ok(None) => return Err(Error::bug("wait for the source", "the listener ended")),
            Err(_) => {
                return Err(Error::peer(
                    "wait for the source",
                    "it did not come in time",
                ));
            }
        }
    };
    let mut control = Control::new(rt.clone(), first, Side::Receiver);
    let asked = control.hear(o.answer.min(JUDGE))?;
    let offer: Offer = message::parse(Kind::Offer, &asked.body)?;
    let started = Instant::now();
    let (journal, landed, room) = match judge(host, o, &offer, &control) {
        Ok(x) => x,
        Err(reasons) => {
            let e = Error::caller(
                format!("receive {}", printable(&offer.id)),
                reasons.join("; "),
            );
            control.say(Kind::Refused, &Reasons { reasons })?;
            return Err(e);
        }
    };
    let path = journal.path().to_owned();
    let job = Job {
        host,
        o,
        rt: rt.clone(),
        gate,
        lanes,
        early,
        landed,
        _room: room,
        journal,
        remote: Arc::new(Remote::new()),
        figures: vec![("waited_us".into(), micros(started.elapsed()))],
    };
    let guard = Guard::spawn(&path);
    let done = job.through(control, guard.as_ref().err());
    if let Ok(g) = guard {
        g.dismiss();
    }
    done
}

/// Judges the offer; makes journal and directories.
fn judge(
    host: &mut dyn Host,
    o: &Options,
    offer: &Offer,
    control: &Control,
) -> std::result::Result<(Journal, Landed, Room), Vec<String>> {
    let one = |e: Error| vec![e.to_string()];
    // Also the proof that the id is a plain file name.
    journal::path_of(&o.state, journal::Side::Destination, &offer.id).map_err(one)?;
    let top = o.dir.join(&offer.id);
    let room = Room::make().map_err(one)?;
    let landed = Landed {
        id: offer.id.clone(),
        bundle: top.join("bundle"),
        images: room.path(),
        work: top.join("work"),
    };
    let mut reasons = Vec::new();
    if offer.machine != std::env::consts::ARCH {
        reasons.push(format!(
            "it runs on {}, this host is {}",
            printable(&offer.machine),
            std::env::consts::ARCH
        ));
    }
    let admitted = policy::admit(&offer.config, &o.policy);
    if let Err(r) = &admitted {
        reasons.extend(r.iter().cloned());
    }
    if offer.bundle_bytes > o.max_bundle {
        reasons.push(format!(
            "its bundle has {} bytes, at most {} are taken",
            offer.bundle_bytes, o.max_bundle
        ));
    }
    if top.exists() {
        reasons.push(format!("{} is there already", top.display()));
    }
    if let Err(r) = host.fit(offer, &landed) {
        reasons.extend(r);
    }
    let Ok(admitted) = admitted else {
        return Err(reasons);
    };
    if !reasons.is_empty() {
        return Err(reasons);
    }
    let facts = Facts {
        side: journal::Side::Destination,
        id: offer.id.clone(),
        session: hex(&o.token.session),
        peer: control.reader.peer().to_string(),
        port: host.place(&landed),
    };
    let journal = Journal::create(&o.state, facts).map_err(one)?;
    if let Err(e) = make_dirs(&landed, offer, &admitted.config) {
        let _ = fs::remove_dir_all(&top);
        let _ = fs::remove_file(journal.path());
        return Err(one(e));
    }
    Ok((journal, landed, room))
}

fn make_dirs(l: &Landed, offer: &Offer, config: &serde_json::Value) -> Result<()> {
    let dir = |p: &Path, mode: u32| {
        DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(p)
            .context(|| format!("make {}", p.display()))
    };
    dir(&l.work, 0o700)?;
    // Tasks of the container walk through these as other users.
    dir(&l.bundle.join("rootfs"), 0o755)?;
    let json = serde_json::to_vec(config)
        .map_err(|e| Error::other(crate::base::Blame::Us, "write config.json", e))?;
    private::write(&l.bundle.join("config.json"), &json)?;
    let d = serde_json::to_vec(&offer.descriptors)
        .map_err(|e| Error::other(crate::base::Blame::Us, "write descriptors.json", e))?;
    private::write(&l.images.join("descriptors.json"), &d)
}

impl Job<'_> {
    fn through(mut self, mut control: Control, no_guard: Option<&Error>) -> Result<Received> {
        let prepared = match no_guard {
            Some(e) => Err(Error::bug("start the guard", e.to_string())),
            None => self.prepare(&mut control),
        };
        let serving = match prepared {
            Ok(s) => s,
            Err(e) => return Err(self.give_up(Some(control), e)),
        };
        self.gate.allow_again();
        let granted = match control.hear(self.o.patience) {
            Ok(f) if f.kind == Kind::Grant => self.check_grant(&f),
            Ok(f) => return Err(self.give_up(Some(control), told(&f))),
            Err(e) => Err(e),
        };
        // The commit point of the whole migration.
        let begun = Instant::now();
        let committed = granted
            .and_then(|()| self.host.stands())
            .and_then(|()| self.journal.note(self.host.place(&self.landed)))
            .and_then(|()| self.journal.advance(Phase::Resuming));
        if let Err(e) = committed {
            return Err(self.give_up_ready(control, e));
        }
        self.figure("journal_us", micros(begun.elapsed()));
        self.o.probe.at("resuming");
        let begun = Instant::now();
        self.host.resume().map_err(|e| {
            control.part(Kind::Failure, &e);
            e.within(format!(
                "{0} may have run here; see dunlin resolve {0}",
                self.landed.id
            ))
        })?;
        self.figure("resume_us", micros(begun.elapsed()));
        self.o.probe.at("running");
        destination_pages::serve(self, control, serving)
    }

    /// Everything up to READY.
    fn prepare(&mut self, control: &mut Control) -> Result<Arc<dyn Serving>> {
        control.say(Kind::Fit, &Step::default())?;
        self.o.probe.at("offered");
        let rootfs = self.landed.bundle.join("rootfs");
        let mut landing = Landing::new(&rootfs, self.o.max_bundle)?;
        loop {
            let f = control.hear(self.o.answer)?;
            match f.kind {
                Kind::BundleEnd => break,
                _ => take_file(&mut landing, &f)?,
            }
        }
        landing.settle()?;
        self.host.begin(&self.landed)?;
        self.o.probe.at("bundle-landed");
        control.say(Kind::Taken, &Step::default())?;
        let mut images = Images::new(&self.landed.images);
        loop {
            let f = control.hear(self.o.answer)?;
            match f.kind {
                Kind::Image => images.begin(&message::parse(f.kind, &f.body)?)?,
                Kind::ImageData => images.data(&f.body)?,
                Kind::StateEnd => {
                    images.end(&message::parse(f.kind, &f.body)?)?;
                    break;
                }
                _ => take_file(&mut landing, &f)?,
            }
        }
        landing.settle()?;
        self.o.probe.at("state-landed");
        let begun = Instant::now();
        let serving = self.host.rebuild(&self.landed, Arc::clone(&self.remote))?;
        self.figure("rebuild_us", micros(begun.elapsed()));
        self.o.probe.at("rebuilt");
        let ready = self.step(1);
        control.say(Kind::Ready, &ready)?;
        Ok(serving)
    }

    fn check_grant(&self, f: &Frame) -> Result<()> {
        let step: Step = message::parse(f.kind, &f.body)?;
        if step.session == self.o.token.session {
            Ok(())
        } else {
            Err(Error::peer("receive GRANT", "for another session"))
        }
    }

    pub(super) fn figure(&mut self, name: &str, value: u64) {
        self.figures.push((name.to_owned(), value));
    }

    pub(super) fn step(&self, epoch: u64) -> Step {
        Step {
            session: self.o.token.session.to_vec(),
            epoch,
            times: self
                .figures
                .iter()
                .map(|(name, value)| Figure {
                    name: name.clone(),
                    value: *value,
                })
                .collect(),
        }
    }

    /// Nothing of the container stays here; the journal says so before the peer
    /// is told.
    fn give_up(&mut self, control: Option<Control>, e: Error) -> Error {
        self.host.discard();
        // As true, and may be said, if it cannot be written: what stays Prepared is
        // discarded, never resumed, by whoever finds it.
        self.journal.tell(Phase::Aborted);
        if let Some(mut c) = control {
            c.part(Kind::Aborted, &e);
        }
        self.clean();
        e
    }

    /// READY was said: GRANT may be in the source's journal, or on its way. So the
    /// source must have heard that it was refused, on this connection or another.
    fn give_up_ready(mut self, control: Control, e: Error) -> Error {
        self.host.discard();
        // As true, and may be said, if it cannot be written: what stays Prepared is
        // discarded, never resumed, by whoever finds it.
        self.journal.tell(Phase::Aborted);
        let until = Instant::now() + self.o.patience;
        let mut next = Some(control);
        while let Some(mut c) = next {
            let left = || until.saturating_duration_since(Instant::now());
            let why = Reasons {
                reasons: vec![e.to_string()],
            };
            let heard = c
                .say(Kind::Aborted, &why)
                .and_then(|()| c.hear_forget(left()));
            match heard {
                Ok(()) => break,
                Err(lost) => info!("given up, and the source does not know: {lost}"),
            }
            next = self.next_control(left());
        }
        self.clean();
        e
    }

    /// The control lane of a new epoch, if one is opened in time.
    pub(super) fn next_control(&mut self, left: Duration) -> Option<Control> {
        let lanes = &mut self.lanes;
        let rt = &self.rt;
        let found = rt.block_on(async {
            tokio::time::timeout(left, async {
                loop {
                    match lanes.recv().await {
                        Some(l) if l.lane == Lane::Control => return Some(l),
                        Some(_) => {}
                        None => return None,
                    }
                }
            })
            .await
            .ok()
            .flatten()
        });
        let state = crate::wire::session::State::Granted;
        found.map(|l| Control::again(rt.clone(), l, Side::Receiver, state))
    }

    /// Says beside the bundle that memory was lost.
    pub(super) fn note_loss(&self, e: &Error) {
        loss::say(&self.landed.loss(), e);
    }

    fn clean(&mut self) {
        self.clean_files();
        if let Err(e) = fs::remove_file(self.journal.path()) {
            warn!("remove journal: {e}");
        }
    }

    fn clean_files(&self) {
        if let Some(top) = self.landed.bundle.parent()
            && let Err(e) = fs::remove_dir_all(top)
        {
            warn!("remove {}: {e}", top.display());
        }
    }
}

fn take_file(landing: &mut Landing, f: &Frame) -> Result<()> {
    match f.kind {
        Kind::Entry => landing.entry(&message::parse::<Entry>(f.kind, &f.body)?),
        Kind::Remove => landing.remove(&message::parse::<Remove>(f.kind, &f.body)?.path),
        Kind::Data => match f.body.split_first_chunk::<8>() {
            Some((at, bytes)) => landing.data(u64::from_le_bytes(*at), bytes),
            None => Err(Error::peer("bundle data", "has no offset")),
        },
        _ => Err(told(f)),
    }
}
