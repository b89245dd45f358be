//! Pages alone: a page server that reads held tasks, and its client, for those
//! who carry images and container by themselves (`--page-server`). The same
//! lanes and the same words as a migration from RESUMED on; here the client, who
//! has the container, connects.
//!
//! The session's token lies beside the images ([`SESSION_FILE`]): whoever was
//! given the images may fetch the pages, once.

use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tracing::{info, warn};

use super::control::Control;
use super::gate::{self, Gate};
use super::pump::Pump;
use super::remote::Remote;
use super::source_pages;
use crate::base::{Blame, Error, PageRange, Result, ResultExt};
use crate::memory::{Object, PageReader, PageSink};
use crate::wire::batch;
use crate::wire::frame::Kind;
use crate::wire::message::{Lane, Missing, Reasons, Step};
use crate::wire::ranges;
use crate::wire::secret::{Side, Token, hex};
use crate::wire::session::State;
use crate::wire::tls::Identity;
use crate::wire::transport::{Opened, open, told};

/// The file in the image directory that holds the token, as text. A file of
/// ours: CRIU does not know it.
pub const SESSION_FILE: &str = "dunlin-session.img";

/// A page server's identity: made before the dump ends, so that the token can go
/// with the images.
#[derive(Debug)]
pub struct Ticket {
    identity: Identity,
    token: Token,
}

impl Ticket {
    /// A fresh one, with TLS.
    ///
    /// # Errors
    /// Key or random bytes cannot be made.
    pub fn fresh() -> Result<Self> {
        let identity = Identity::fresh()?;
        let token = Token::fresh(Some(&identity.certificate))?;
        Ok(Self { identity, token })
    }

    /// Which session it opens, in hexadecimal.
    pub fn session(&self) -> String {
        hex(&self.token.session)
    }

    /// The content of [`SESSION_FILE`].
    pub fn file(&self) -> Vec<u8> {
        format!("{}\n", self.token.to_text()).into_bytes()
    }
}

/// Who holds the tasks whose pages are served, and keeps their journal.
pub trait Keeper {
    /// A client stands, and may let its tree go on from now on: ours must stay
    /// stopped whatever happens to us.
    ///
    /// # Errors
    /// It could not be held or written down; the client gets nothing then.
    fn granted(&mut self) -> Result<()>;

    /// The client says that its tree goes on.
    fn resumed(&mut self);
}

/// How serving ended.
#[derive(Debug)]
pub enum Ended {
    /// No client came.
    Nobody,
    /// The client has all pages.
    All(Served),
    /// The client gave up before its tree went on, and why.
    Refused(Error),
}

/// What a page server sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Served {
    /// Bytes of page content.
    pub bytes: u64,
    /// Faults answered.
    pub faults: u64,
}

/// Serves `objects`, read from `pages`, to the one client that has the token;
/// returns when it has all, or none came within `patience`. A lost client may come
/// back within `patience`.
///
/// # Errors
/// Those of `keeper`; the client did not come back in time, or says that it failed.
pub fn serve(
    rt: &Handle,
    listener: TcpListener,
    ticket: &Ticket,
    pages: Arc<dyn PageReader>,
    objects: &[(Object, Vec<PageRange>)],
    patience: Duration,
    keeper: &mut dyn Keeper,
) -> Result<Ended> {
    let gate = Gate::default();
    gate.allow_again();
    let what = || "serve pages".to_owned();
    listener.set_nonblocking(true).context(what)?;
    let mut lanes = rt.block_on(async {
        tokio::net::TcpListener::from_std(listener)
            .map(|l| {
                gate::listen(
                    l,
                    ticket.token.clone(),
                    Some(ticket.identity.clone()),
                    gate.clone(),
                )
            })
            .context(what)
    })?;
    let pump = Arc::new(Pump::new(pages, objects, None));
    let mut why: Option<Error> = None;
    let mut first = true;
    loop {
        let Some((control, fault, bulk)) = gather(rt, &mut lanes, patience) else {
            return why.map_or(Ok(Ended::Nobody), |why| Err(why.within("serve pages")));
        };
        if std::mem::take(&mut first) {
            keeper.granted()?;
        }
        match one_epoch(rt, control, fault, bulk, &pump, patience, keeper) {
            Ok(None) => {
                return Ok(Ended::All(Served {
                    bytes: pump.bytes(),
                    faults: pump.faults(),
                }));
            }
            Ok(Some(refused)) => return Ok(Ended::Refused(refused)),
            // It says that it failed, or we did: no other connection helps.
            Err(e) if e.blame() != Blame::Link => return Err(e.within("serve pages")),
            Err(e) => {
                warn!("page client: {e}");
                why = Some(e);
            }
        }
    }
}

/// All lanes of one epoch: control, fault, at least one bulk lane.
fn gather(
    rt: &Handle,
    lanes: &mut tokio::sync::mpsc::Receiver<Opened>,
    patience: Duration,
) -> Option<(Opened, Opened, Vec<Opened>)> {
    let until = Instant::now() + patience;
    let (mut control, mut fault, mut bulk): (Option<Opened>, Option<Opened>, Vec<Opened>) =
        (None, None, Vec::new());
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let lane = rt.block_on(async { tokio::time::timeout(left, lanes.recv()).await.ok()? })?;
        match lane.lane {
            Lane::Control => {
                (control, fault, bulk) = (Some(lane), None, Vec::new());
                continue;
            }
            Lane::Fault => fault = Some(lane),
            Lane::Bulk => bulk.push(lane),
        }
        let epoch = control.as_ref().map(|c| c.epoch);
        bulk.retain(|l| Some(l.epoch) == epoch);
        if !bulk.is_empty() && fault.as_ref().map(|l| l.epoch) == epoch {
            return Some((control?, fault?, bulk));
        }
    }
}

fn one_epoch(
    rt: &Handle,
    control: Opened,
    fault: Opened,
    bulk: Vec<Opened>,
    pump: &Arc<Pump>,
    patience: Duration,
    keeper: &mut dyn Keeper,
) -> Result<Option<Error>> {
    let mut control = Control::again(rt.clone(), control, Side::Source, State::Granted);
    let f = control.hear(RESTORE)?;
    match f.kind {
        Kind::Resumed => keeper.resumed(),
        Kind::Aborted => {
            // Whether it hears that it was heard changes nothing here.
            let _ = control.say(Kind::Forget, &Step::default());
            return Ok(Some(told(&f)));
        }
        other => return Err(Error::peer(format!("receive {other:?}"), "out of order")),
    }
    let missing = source_pages::hear_missing(&mut control)?;
    pump.queue().restart(&missing)?;
    let served = source_pages::serve(&mut control, pump, fault, bulk, patience);
    let f = rt.block_on(served)?;
    if control.check(f)?.kind != Kind::Complete {
        return Err(Error::peer("serve pages", "out of order"));
    }
    if let Err(e) = control.say(Kind::Forget, &Step::default()) {
        info!("the client was not told that all is done: {e}");
    }
    Ok(None)
}

/// A client of a page server: a source of pages for a handler on this host.
#[derive(Debug)]
pub struct Client {
    rt: Handle,
    to: SocketAddr,
    token: Token,
    remote: Arc<Remote>,
    patience: Duration,
    first: Mutex<Option<(Opened, Vec<Opened>)>>,
}

/// How long a client may take to restore, between its connection and the resume.
const RESTORE: Duration = Duration::from_secs(3600);
/// How many bulk lanes a client opens.
const BULK: usize = 2;

impl Client {
    /// Connects to the page server at `to`; `session` is the content of
    /// [`SESSION_FILE`].
    ///
    /// # Errors
    /// Not a token; no connection; another server or another session.
    pub fn connect(
        rt: &Handle,
        to: SocketAddr,
        session: &[u8],
        patience: Duration,
    ) -> Result<Self> {
        let text = std::str::from_utf8(session)
            .map_err(|_| Error::image(SESSION_FILE, "is no token of a page server"))?;
        let token = Token::from_text(text)?;
        let lanes = connect_all(rt, to, &token, 1)?;
        Ok(Self {
            rt: rt.clone(),
            to,
            token,
            remote: Arc::new(Remote::new()),
            patience,
            first: Mutex::new(Some(lanes)),
        })
    }

    /// The source for a handler.
    pub fn source(&self) -> Arc<Remote> {
        Arc::clone(&self.remote)
    }

    /// Nothing goes on here: says so. If nothing ever did (`may_have_run` false), the
    /// tree goes on where it is; else it stays held. Only before [`Client::run`].
    pub fn give_up(&self, may_have_run: bool, why: &Error) {
        let lanes = self
            .first
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .take();
        let Some((lane, _pages)) = lanes else { return };
        let mut control = Control::again(self.rt.clone(), lane, Side::Receiver, State::Granted);
        if may_have_run {
            return control.part(Kind::Failure, why);
        }
        let reasons = Reasons {
            reasons: vec![why.to_string()],
        };
        let told = control
            .say(Kind::Aborted, &reasons)
            .and_then(|()| control.hear_forget(Duration::from_secs(30)));
        if let Err(e) = told {
            warn!("the page server was not told that nothing runs here: {e}");
        }
    }

    /// Takes pages into `sink` until `missing` gives none; a lost server is
    /// sought again for the time given to [`Client::connect`], then `sink` is told
    /// that the source is lost. Blocks: call it in a thread of its own.
    /// `complete` returns once every page is accounted for; it is called in yet
    /// another thread.
    ///
    /// # Errors
    /// The server is lost for good.
    pub fn run(
        &self,
        sink: &Arc<dyn PageSink>,
        missing: impl Fn() -> Result<Vec<(Object, PageRange)>>,
        complete: impl FnOnce() -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let (tx, mut done) = tokio::sync::oneshot::channel();
        std::thread::Builder::new()
            .name("all-pages".into())
            .spawn(move || {
                // Nobody waits any more only when the process ends.
                let _ = tx.send(complete());
            })
            .context(|| "start a thread".to_owned())?;
        let mut epoch = 1;
        let mut lanes = self
            .first
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .take();
        let mut until = Instant::now() + self.patience;
        loop {
            let attempt = match lanes.take() {
                Some(l) => Ok(l),
                None => {
                    epoch += 1;
                    connect_all(&self.rt, self.to, &self.token, epoch)
                }
            };
            // What the server says on a lane that is open is its last word; who does
            // not open one may still do so.
            let mut fatal = false;
            let ended = attempt.and_then(|l| {
                until = Instant::now() + self.patience;
                self.epoch(l, sink, &missing()?, &mut done)
                    .inspect_err(|e| fatal = e.blame() != Blame::Link)
            });
            match ended {
                Ok(result) => return result,
                Err(e) if fatal || Instant::now() >= until => {
                    self.remote.give_up();
                    sink.lost(Error::link("wait for pages", e.to_string()));
                    return Err(e.within("the page server is lost"));
                }
                Err(e) => {
                    info!("page server: {e}; trying again");
                    self.rt
                        .block_on(async { tokio::time::sleep(Duration::from_millis(200)).await });
                }
            }
        }
    }

    /// One epoch: `Ok` when all is over, `Err` when the link is lost.
    fn epoch(
        &self,
        (control, pages): (Opened, Vec<Opened>),
        sink: &Arc<dyn PageSink>,
        missing: &[(Object, PageRange)],
        done: &mut tokio::sync::oneshot::Receiver<Result<()>>,
    ) -> Result<Result<()>> {
        let mut control = Control::again(self.rt.clone(), control, Side::Receiver, State::Granted);
        control.say(Kind::Resumed, &Step::default())?;
        for m in missing_messages(missing) {
            control.say(Kind::Missing, &m)?;
        }
        let mut tasks: JoinSet<Result<()>> = JoinSet::new();
        for lane in pages {
            let (remote, sink) = (Arc::clone(&self.remote), Arc::clone(sink));
            let asker = Arc::clone(&self.remote);
            let (reader, writer) = (lane.reader, lane.writer);
            if lane.lane == Lane::Fault {
                tasks.spawn_on(async move { asker.ask(writer).await }, &self.rt);
                tasks.spawn_on(async move { remote.take(reader, sink).await }, &self.rt);
            } else {
                tasks.spawn_on(
                    async move {
                        let _open = writer; // both directions stay open
                        remote.take(reader, sink).await
                    },
                    &super::threads::background(&self.rt),
                );
            }
        }
        let all = self.rt.clone().block_on(async {
            tokio::select! {
                biased;
                d = done => Ok(d.unwrap_or_else(|_| Err(Error::bug("wait for all pages", "the waiting thread ended")))),
                Some(t) = tasks.join_next() => Err(match t {
                    Ok(Err(e)) => e,
                    Ok(Ok(())) => Error::link("take pages", "a lane was closed"),
                    Err(e) => Error::other(crate::base::Blame::Us, "take pages", e),
                }),
            }
        })?;
        if let Err(e) = &all {
            control.part(Kind::Failure, e);
            return Ok(all);
        }
        // All pages are here: whether the server hears of it changes nothing here.
        let told = control
            .say(Kind::Complete, &Step::default())
            .and_then(|()| control.hear(Duration::from_secs(30)));
        if let Err(e) = told {
            warn!("the page server was not told that all is done: {e}");
        }
        Ok(all)
    }
}

fn connect_all(
    rt: &Handle,
    to: SocketAddr,
    token: &Token,
    epoch: u64,
) -> Result<(Opened, Vec<Opened>)> {
    rt.block_on(async {
        let control = open(to, token, Lane::Control, epoch).await?;
        let mut pages = vec![open(to, token, Lane::Fault, epoch).await?];
        for _ in 0..BULK {
            pages.push(open(to, token, Lane::Bulk, epoch).await?);
        }
        Ok((control, pages))
    })
}

/// MISSING messages for what is missing; the last says so.
pub(super) fn missing_messages(missing: &[(Object, PageRange)]) -> Vec<Missing> {
    let part = |(object, part): (Object, Vec<PageRange>)| {
        let (sort, id) = batch::numbers(object);
        let (starts, pages) = ranges::columns(&part);
        Missing {
            id,
            sort,
            starts,
            pages,
            last: false,
        }
    };
    let last = Missing {
        last: true,
        ..Missing::default()
    };
    let parts = ranges::parts(missing).into_iter().map(part);
    parts.chain([last]).collect()
}
