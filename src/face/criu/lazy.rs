//! Memory that follows lazily: `criu lazy-pages`, which fills a tree that is
//! being restored, and the end of a lazy dump, which serves its pages.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::daemon;
use tracing::{info, warn};

use super::job::Job;
use super::notices::Notices;
use super::typed::Typed;
use super::write_pidfile;
use crate::base::{Error, HostPid, Result, ResultExt};
use crate::engine::dump::{Captured, Frozen, Pages};
use crate::engine::hold::{Hold, Place, Verdict};
use crate::engine::restore::ImagePages;
use crate::engine::running;
use crate::face::{address, place};
use crate::image::Set;
use crate::memory::guardian::Guardian;
use crate::memory::handler::{Handler, OnLoss, Outcome};
use crate::memory::handoff::{Ready, Server};
use crate::memory::serve::serve_one;
use crate::memory::{Filler, PageReader, PageSink};
use crate::migrate;
use crate::migrate::journal::{DEFAULT_DIR, Facts, Journal, Phase, Side};
use crate::migrate::pages::{self, Client, Ended, Keeper, SESSION_FILE, Ticket};

/// How long each message of a restorer may take. Between the first and the last
/// lies the whole restore.
const MESSAGE: Duration = Duration::from_secs(600);
/// Where it is said, in the work directory, that the tree had to be killed.
const STATUS: &str = "lazy-pages.status";
/// How long a page server waits for its client, at first or after a loss, if
/// [`CLIENT_WAIT`] says nothing else.
const CLIENT: Duration = Duration::from_secs(3600);
/// The environment's word for that, seconds: CRIU's command line and RPC have none.
const CLIENT_WAIT: &str = "DUNLIN_CLIENT_WAIT";
/// How long a client looks for a page server that it has lost.
const SERVER: Duration = Duration::from_secs(60);

/// The page server of a lazy dump, ready to listen before anything is stopped.
#[derive(Debug)]
pub(crate) struct PageServer {
    listener: TcpListener,
    ticket: Ticket,
    journal: Begun,
    patience: Duration,
}

/// A journal that was begun before anything is stopped: if it does not come to
/// serving, it was about nothing.
#[derive(Debug)]
struct Begun(Option<Journal>);

impl Drop for Begun {
    fn drop(&mut self) {
        if let Some(journal) = self.0.take()
            && let Err(e) = journal.settle()
        {
            warn!("{e}");
        }
    }
}

impl PageServer {
    /// Listens where `typed` says; on the loopback address if it says nothing.
    ///
    /// # Errors
    /// No port was named, or it cannot be had; `root` has no cgroup in which it can
    /// be held; no journal can be kept; the environment names no time.
    pub(crate) fn bind(typed: &Typed, root: HostPid) -> Result<Self> {
        let patience = client_wait()?;
        let at = named(typed)?;
        let listener = TcpListener::bind(at).context(|| format!("listen on {at}"))?;
        let ticket = Ticket::fresh()?;
        let session = ticket.session();
        let facts = Facts {
            side: Side::Source,
            id: format!("pages-{root}-{}", &session[..8]),
            session,
            peer: format!("client of {at}"),
            port: place::to_json(&Place::of(root)?),
        };
        let journal = Journal::create(DEFAULT_DIR.as_ref(), facts)?;
        Ok(Self {
            listener,
            ticket,
            journal: Begun(Some(journal)),
            patience,
        })
    }

    /// Puts what a client must know beside the images.
    ///
    /// # Errors
    /// The images have such a file already.
    pub(crate) fn prepare(&self, captured: &mut Captured) -> Result<()> {
        captured.set.put_raw(SESSION_FILE, self.ticket.file())
    }

    /// Tells that it is ready, serves all pages of the stopped tree, and ends
    /// the tree.
    ///
    /// # Errors
    /// Nobody came for the pages, or the client gave up in so many words: the tree
    /// goes on. Or the client was lost when its copy may have run: then this one
    /// stays held, for a person to decide.
    pub(crate) fn serve(
        mut self,
        job: &mut Job<'_>,
        notices: &mut Notices<'_>,
        frozen: Frozen,
        pages: Pages,
        root: HostPid,
    ) -> Result<()> {
        let objects = pages.lazy();
        let runtime = migrate::runtime()?;
        job.status_ready()?;
        notices.status_ready(root)?;
        let Some(journal) = self.journal.0.take() else {
            return Err(Error::bug("serve pages", "without a journal"));
        };
        let mut tree = Tree {
            frozen: Some(frozen),
            hold: None,
            journal,
        };
        let served = pages::serve(
            runtime.handle(),
            self.listener,
            &self.ticket,
            pages.held,
            &objects,
            self.patience,
            &mut tree,
        );
        match served {
            Ok(Ended::All(served)) => {
                info!(
                    "served {} bytes, {} faults; the tree has moved",
                    served.bytes, served.faults
                );
                tree.end()
            }
            Ok(Ended::Nobody) => tree.goes_on(Error::link("serve pages", "no client came")),
            Ok(Ended::Refused(why)) => tree.goes_on(why),
            Err(e) if tree.hold.is_none() => tree.goes_on(e),
            Err(e) => {
                let id = &tree.journal.facts().id;
                Err(e.within(format!(
                    "the client may run without its pages; the tree is held here, see dunlin resolve {id}"
                )))
            }
        }
    }
}

/// The stopped tree. Until a client stands, it goes on if we end. From then on its
/// copy may run, so it is held in a way that outlives us, and a journal says so.
struct Tree {
    frozen: Option<Frozen>,
    hold: Option<Hold>,
    journal: Journal,
}

impl Keeper for Tree {
    fn granted(&mut self) -> Result<()> {
        let Some(frozen) = self.frozen.take() else {
            return Err(Error::bug("hold the tree", "it is held already"));
        };
        let hold = frozen.hold()?;
        let place = place::to_json(&hold.place());
        let written = self.journal.note(place);
        match written.and_then(|()| self.journal.advance(Phase::Granted)) {
            Ok(()) => {
                self.hold = Some(hold);
                Ok(())
            }
            Err(e) => match hold.release(Verdict::NeverGranted) {
                Ok(()) => Err(e),
                Err(both) => Err(e.within(format!("and it could not be let go ({})", both.1))),
            },
        }
    }

    fn resumed(&mut self) {
        if self.journal.phase() == Phase::Granted {
            self.journal.tell(Phase::Resumed);
        }
    }
}

impl Tree {
    /// Its copy has everything.
    fn end(mut self) -> Result<()> {
        self.journal.tell(Phase::Complete);
        if let Some(hold) = self.hold {
            hold.kill(Verdict::Superseded).map_err(|both| both.1)?;
        }
        self.journal.settle()
    }

    /// No copy of it ran, and none will.
    fn goes_on(mut self, why: Error) -> Result<()> {
        let goes_on = match self.hold.take() {
            Some(hold) => hold
                .release(Verdict::DestinationAborted)
                .map_err(|both| both.1),
            None => self.frozen.take().map_or(Ok(()), Frozen::resume),
        };
        if let Err(e) = goes_on {
            let id = &self.journal.facts().id;
            return Err(why.within(format!(
                "and the tree could not be let go ({e}), see dunlin resolve {id}"
            )));
        }
        self.journal.tell(Phase::Aborted);
        self.journal.settle()?;
        Err(why)
    }
}

fn named(typed: &Typed) -> Result<SocketAddr> {
    let host = typed.address.as_deref().unwrap_or("127.0.0.1");
    let port = typed
        .port
        .ok_or_else(|| Error::caller("lazy pages over the network", "need a port (--port)"))?;
    address::of(host, port)
}

fn client_wait() -> Result<Duration> {
    let Some(said) = std::env::var_os(CLIENT_WAIT) else {
        return Ok(CLIENT);
    };
    let seconds = said.to_str().and_then(|s| s.parse::<u64>().ok());
    let seconds = seconds
        .filter(|s| (1..=86_400).contains(s))
        .ok_or_else(|| {
            Error::caller(
                format!("{CLIENT_WAIT}={}", said.display()),
                "is no number from 1 to 86400",
            )
        })?;
    Ok(Duration::from_secs(seconds))
}

/// `criu lazy-pages`: fills one tree that is restored with this work directory,
/// and returns when all its pages are there.
///
/// # Errors
/// The pages cannot be had. A tree that runs without them has been ended.
pub(crate) fn run(job: &mut Job<'_>) -> Result<()> {
    let remote = if job.typed.page_server {
        let path = job.images.path().join(SESSION_FILE);
        let session = std::fs::read(&path).context(|| format!("session {}", path.display()))?;
        Some((named(&job.typed)?, session))
    } else {
        None
    };
    let set = Set::load(job.images.path())?;
    let images = ImagePages::open(&set, job.images.path())?;
    // Made before there is a second thread or a userfaultfd.
    let server = Server::bind(job.work.path())?;
    if job.typed.detach {
        // Who listens goes on, its parent ends.
        daemon(true, false).context(|| "go to the background".to_owned())?;
    }
    let pid = HostPid(i32::try_from(std::process::id()).unwrap_or(0));
    write_pidfile(&job.typed, pid)?;
    match remote {
        None => {
            ready(job)?;
            let reader: Arc<dyn PageReader> = Arc::new(images);
            let status = job.work.path().join(STATUS);
            let outcome = serve_one(&server, reader, Some(&status), None, MESSAGE, running::help)?;
            outcome.map_or(Ok(()), all_came)
        }
        Some((to, session)) => from_page_server(job, &server, to, &session),
    }
}

fn all_came(outcome: Outcome) -> Result<()> {
    running::lock(&outcome.locked);
    let (summary, count) = (outcome.summary, outcome.count);
    info!(
        "{} pages came, {} were not needed any more; {} faults, median {} us, 99 of 100 below {} us",
        count.present,
        count.gone,
        summary.faults,
        summary.p50_ns / 1000,
        summary.p99_ns / 1000
    );
    outcome.lost.map_or(Ok(()), Err)
}

fn ready(job: &mut Job<'_>) -> Result<()> {
    info!("listening in {}", job.work.path().display());
    job.status_ready()
}

fn from_page_server(
    job: &mut Job<'_>,
    server: &Server,
    to: SocketAddr,
    session: &[u8],
) -> Result<()> {
    let mut guardian = Guardian::start(Some(&job.work.path().join(STATUS)))?;
    let runtime = migrate::runtime()?;
    let client = Client::connect(runtime.handle(), to, session, SERVER)?;
    ready(job)?;
    let begun = take_over(server, &mut guardian, &client);
    let (restorer, filler, handler) = begun.inspect_err(|e| client.give_up(false, e))?;
    if let Err(e) = restorer.grant() {
        // It may have let its tasks go before it died. They must not outlive us, and
        // nobody may think that they have all they need.
        filler.lost(Error::bug("let the tree go on", e.to_string()));
        client.give_up(true, &e);
        std::mem::forget(guardian);
        return handler.wait().and(Err(e));
    }
    let sink: Arc<dyn PageSink> = Arc::clone(&filler) as Arc<dyn PageSink>;
    let fetched = client.run(
        &sink,
        move || Ok(filler.residency().missing_ranges()),
        move || all_came(handler.wait()?),
    );
    if fetched.is_err() {
        // What waits for pages is stopped by the guardian when we are gone.
        std::mem::forget(guardian);
    }
    fetched
}

/// Everything up to the grant.
fn take_over(
    server: &Server,
    guardian: &mut Guardian,
    client: &Client,
) -> Result<(Ready, Arc<Filler>, Handler)> {
    let restorer = server
        .accept(None, MESSAGE)?
        .ok_or_else(|| Error::bug("lazy-pages", "stopped waiting for a restorer"))?;
    let (restored, restorer) = restorer.receive()?;
    let filler = Filler::new(restored)?;
    running::help(&filler);
    guardian.watch(&filler)?;
    let handler = Handler::start(
        Arc::clone(&filler),
        client.source(),
        Box::new(|_| OnLoss::Kill),
    )?;
    Ok((restorer, filler, handler))
}
