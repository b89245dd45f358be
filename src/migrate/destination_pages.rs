//! The destination after its resume: pages, lost links, the end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tracing::{info, warn};

use super::budget::micros;
use super::control::Control;
use super::destination::{Job, Received};
use super::journal::Phase;
use super::ports::{Serving, WHOLE};
use crate::base::{Blame, Error, Result};
use crate::wire::frame::Kind;
use crate::wire::message::{Lane, Missing};
use crate::wire::secret::Side;
use crate::wire::session::State;
use crate::wire::transport::Opened;

/// What ended the waiting.
enum Event {
    /// Every page is accounted for.
    Done(Result<()>),
    /// The control lane ended or said something.
    Control(Result<Kind>),
    /// A new lane came in.
    Lane(Opened),
    /// Nobody came back in time.
    Late,
}

/// Serves pages until all are here. RESUMING is in the journal, the container
/// runs.
pub(super) fn serve(
    mut job: Job<'_>,
    control: Control,
    serving: Arc<dyn Serving>,
) -> Result<Received> {
    let resumed_at = Instant::now();
    let (tx, mut done) = oneshot::channel();
    let waiter = Arc::clone(&serving);
    std::thread::Builder::new()
        .name("all-pages".into())
        .spawn(move || {
            // Nobody waits any more only when the process ends.
            let _ = tx.send(waiter.wait());
        })
        .map_err(|e| Error::os("start a thread", e))?;
    let mut tasks: JoinSet<()> = JoinSet::new();
    for lane in std::mem::take(&mut job.early) {
        attach(&mut job, &mut tasks, lane, &serving);
    }
    job.journal.tell(Phase::Resumed);
    let mut control = Some(control);
    say_resumed(&job, &mut control, 1);
    job.o.probe.at("resumed-said");
    let mut lost_at: Option<Instant> = None;
    loop {
        let left = lost_at.map(|t| (t + job.o.patience).saturating_duration_since(Instant::now()));
        match next_event(&mut job, &mut control, &mut done, left) {
            Event::Done(Ok(())) => {
                job.figure("all_pages_us", micros(resumed_at.elapsed()));
                return end(job, control, tasks);
            }
            Event::Done(Err(e)) => {
                if let Some(c) = &mut control {
                    c.part(Kind::Failure, &e);
                }
                let e = e.within(format!("memory of {}", job.landed.id));
                job.note_loss(&e);
                return Err(e);
            }
            Event::Control(why) => {
                let why = match why {
                    Ok(k) => format!("{k:?} came out of order"),
                    Err(e) => e.to_string(),
                };
                warn!("connection to the source lost: {why}; tasks that need a page wait");
                control = None;
                lost_at.get_or_insert_with(Instant::now);
            }
            Event::Lane(l) if l.lane == Lane::Control => {
                let epoch = l.epoch;
                info!(epoch, "the source is back");
                job.figure("reconnections", 1);
                let c = Control::again(job.rt.clone(), l, Side::Receiver, State::Granted);
                control = Some(c);
                lost_at = None;
                say_resumed(&job, &mut control, epoch);
                say_missing(&job, &mut control, &*serving)?;
                if control.is_none() {
                    lost_at = Some(Instant::now());
                }
            }
            Event::Lane(l) => attach(&mut job, &mut tasks, l, &serving),
            Event::Late => {
                let e = Error::link(
                    format!("pages of {}", job.landed.id),
                    format!(
                        "the source did not come back within {} s",
                        job.o.patience.as_secs()
                    ),
                );
                job.note_loss(&e);
                job.remote.give_up();
                serving.fail(Error::link("wait for pages", "the source is lost"));
                return Err(e.within("the container has been stopped"));
            }
        }
    }
}

fn next_event(
    job: &mut Job<'_>,
    control: &mut Option<Control>,
    done: &mut oneshot::Receiver<Result<()>>,
    left: Option<Duration>,
) -> Event {
    let rt = job.rt.clone();
    let lanes = &mut job.lanes;
    rt.block_on(async move {
        let heard = async {
            match control {
                Some(c) => match c.halves().0.next().await {
                    Ok(Some(f)) => match c.check(f) {
                        Ok(f) => Ok(f.kind),
                        Err(e) => Err(e),
                    },
                    Ok(None) => Err(Error::link(
                        "wait for the source",
                        "it closed the connection",
                    )),
                    Err(e) => Err(e),
                },
                None => std::future::pending().await,
            }
        };
        let late = async {
            match left {
                Some(d) => tokio::time::sleep(d).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            d = done => Event::Done(d.unwrap_or_else(|_| {
                Err(Error::bug("wait for all pages", "the waiting thread ended"))
            })),
            Some(l) = lanes.recv() => Event::Lane(l),
            k = heard => Event::Control(k),
            () = late => Event::Late,
        }
    })
}

/// Puts a page lane to work.
fn attach(job: &mut Job<'_>, tasks: &mut JoinSet<()>, lane: Opened, serving: &Arc<dyn Serving>) {
    let (remote, sink) = (Arc::clone(&job.remote), serving.sink());
    let kind = lane.lane;
    let rt = job.rt.clone();
    if kind == Lane::Fault {
        let asker = Arc::clone(&job.remote);
        let writer = lane.writer;
        tasks.spawn_on(
            async move {
                if let Err(e) = asker.ask(writer).await {
                    warn!("fault lane: {e}");
                }
            },
            &rt,
        );
        tasks.spawn_on(take(remote, lane.reader, sink, kind), &rt);
    } else {
        tasks.spawn_on(
            async move {
                let _open = lane.writer; // both directions stay open
                take(remote, lane.reader, sink, kind).await;
            },
            &super::threads::background(&rt),
        );
    }
}

async fn take(
    remote: Arc<super::remote::Remote>,
    reader: crate::wire::transport::Reader,
    sink: Arc<dyn crate::memory::PageSink>,
    kind: Lane,
) {
    if let Err(e) = remote.take(reader, Arc::clone(&sink)).await {
        warn!("{kind:?} lane: {e}");
        if e.blame() != Blame::Link {
            // A page that it cannot read, or we cannot place: that never gets better.
            sink.lost(e);
        }
    }
}

/// Says RESUMED; a link that breaks here is lost like any other.
fn say_resumed(job: &Job<'_>, control: &mut Option<Control>, epoch: u64) {
    if let Some(c) = control
        && let Err(e) = c.say(Kind::Resumed, &job.step(epoch))
    {
        warn!("{e}");
        *control = None;
    }
}

fn say_missing(job: &Job<'_>, control: &mut Option<Control>, serving: &dyn Serving) -> Result<()> {
    let Some(c) = control else { return Ok(()) };
    let messages = super::pages::missing_messages(&serving.missing()?);
    info!(
        id = job.landed.id,
        messages = messages.len(),
        "telling what is missing"
    );
    for m in &messages {
        if let Err(e) = c.say(Kind::Missing, m) {
            warn!("{e}");
            *control = None;
            break;
        }
    }
    Ok(())
}

/// Whoever finds the journal without us knows that nothing is missing here.
fn note_whole(job: &mut Job<'_>) {
    let mut place = job.host.place(&job.landed);
    place[WHOLE] = true.into();
    if let Err(e) = job.journal.note(place) {
        warn!("{e}");
    }
}

/// All pages are here: tells the source, waits until it has forgotten its copy.
fn end(mut job: Job<'_>, mut control: Option<Control>, mut tasks: JoinSet<()>) -> Result<Received> {
    note_whole(&mut job);
    if let Err(e) = job.host.settle() {
        // It is no copy to rely on: the source keeps its own.
        job.note_loss(&e);
        if let Some(c) = &mut control {
            c.part(Kind::Failure, &e);
        }
        return Err(e);
    }
    job.journal.tell(Phase::Complete);
    job.o.probe.at("all-pages");
    let a = job.remote.arrived();
    for (name, value) in [
        ("pages", a.pages),
        ("zero_pages", a.zeros),
        ("faults", a.faults),
        ("fault_p50_us", a.percentile(50)),
        ("fault_p99_us", a.percentile(99)),
    ] {
        job.figure(name, value);
    }
    let until = Instant::now() + job.o.patience;
    let forgotten = loop {
        if let Some(mut c) = control.take()
            && c.say(Kind::Complete, &job.step(0)).is_ok()
        {
            // Nothing more is wanted on the lanes for pages.
            tasks.abort_all();
            // It kills its copy and asks its runtime to forget: that takes time.
            match c.hear_forget(job.o.patience) {
                Ok(()) => break true,
                Err(e) => info!("waiting for FORGET: {e}"),
            }
        }
        let left = until.saturating_duration_since(Instant::now());
        let Some(mut next) = job.next_control(left) else {
            break false;
        };
        let nothing = Missing {
            last: true,
            ..Missing::default()
        };
        let said = next
            .say(Kind::Resumed, &job.step(0))
            .and_then(|()| next.say(Kind::Missing, &nothing));
        match said {
            Ok(()) => control = Some(next),
            Err(e) => info!("waiting for FORGET: {e}"),
        }
    };
    job.gate.close();
    drop(tasks);
    let received = Received {
        id: job.landed.id.clone(),
        bundle: job.landed.bundle.clone(),
        figures: job.figures.clone(),
    };
    // Nothing was lost; the container needs its bundle only.
    let loss = job.landed.loss();
    if let Err(e) = std::fs::remove_file(&loss)
        && e.kind() != std::io::ErrorKind::NotFound
    {
        warn!("remove {}: {e}", loss.display());
    }
    let work = &job.landed.work;
    if let Err(e) = std::fs::remove_dir_all(work) {
        warn!("remove {}: {e}", work.display());
    }
    if forgotten {
        job.journal.settle()?;
    } else {
        warn!("the source never said that it forgot its copy; the journal stays as a tombstone");
    }
    Ok(received)
}
