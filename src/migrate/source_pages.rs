//! The source after GRANTED is in its journal: the switch-over, pages, the end.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tracing::{info, warn};

use super::budget::{Clock, Report, micros};
use super::control::Control;
use super::journal::Phase;
use super::pump::Pump;
use super::source::{Job, Lanes, open_lanes};
use super::threads;
use crate::base::{Blame, Error, PageRange, Result};
use crate::engine::hold::Verdict;
use crate::memory::Object;
use crate::wire::frame::{Frame, Kind};
use crate::wire::message::{self, Lane, Missing, Step};
use crate::wire::ranges;
use crate::wire::secret::Side;
use crate::wire::session::State;
use crate::wire::transport::{open, told};

/// Most ranges that a destination may say it lacks.
const MAX_MISSING: usize = 1 << 22;

/// What an epoch ended with.
enum End {
    /// All pages are there.
    Complete(Frame),
    /// The destination gave up before it ran anything.
    Aborted(Error),
}

/// Says GRANT and goes on to the end. `job.journal` is Granted.
pub(super) fn commit(
    mut job: Job<'_>,
    mut control: Control,
    lanes: Lanes,
    pump: Arc<Pump>,
    clock: Clock,
) -> Result<Report> {
    let mut epoch = 1;
    let grant = Step {
        session: job.o.token.session.to_vec(),
        epoch,
        times: Vec::new(),
    };
    let mut lanes = Some(lanes);
    let mut clock = Some(clock);
    let mut resumed_at = None;
    let mut said = control.say(Kind::Grant, &grant);
    job.o.probe.at("grant-sent");
    // Since when nothing has been heard that goes on.
    let mut lost_since: Option<Instant> = None;
    loop {
        let end = std::mem::replace(&mut said, Ok(())).and_then(|()| {
            epoch_run(
                &mut job,
                &mut control,
                &mut lanes,
                &pump,
                &mut clock,
                &mut resumed_at,
                &mut lost_since,
            )
        });
        let lost = match end {
            Ok(End::Complete(f)) => {
                job.figures(&f.body);
                return finish(job, control, &pump, resumed_at);
            }
            Ok(End::Aborted(why)) => {
                return Err(job.give_up(&mut control, Verdict::DestinationAborted, why));
            }
            Err(e) if is_final(&e) => {
                return Err(e.within(format!(
                    "{0} is held here (journal {1:?}), see dunlin resolve {0}",
                    job.report.id,
                    job.journal.phase()
                )));
            }
            Err(e) => e,
        };
        warn!("connection lost: {lost}");
        drop(lanes.take());
        let until = *lost_since.get_or_insert_with(Instant::now) + job.o.patience;
        let (c, l) = reconnect(&job, &mut epoch, until).map_err(|e| {
            e.within(format!(
                "connection lost ({lost}); {0} stays held here (journal {1:?}), see dunlin resolve {0}",
                job.report.id,
                job.journal.phase()
            ))
        })?;
        job.report.reconnections += 1;
        control = c;
        lanes = Some(l);
    }
}

/// Not the link: the other end said that it cannot go on, or this end cannot.
fn is_final(e: &Error) -> bool {
    e.blame() != Blame::Link
}

fn reconnect(job: &Job<'_>, epoch: &mut u64, until: Instant) -> Result<(Control, Lanes)> {
    if Instant::now() >= until {
        // It takes connections, and says nothing there.
        let what = format!("wait for {}", job.o.to);
        let why = format!("it did not go on within {} s", job.o.patience.as_secs());
        return Err(Error::link(what, why));
    }
    let mut wait = Duration::from_millis(50);
    loop {
        *epoch += 1;
        let made = job
            .rt
            .block_on(open(job.o.to, &job.o.token, Lane::Control, *epoch))
            .and_then(|c| Ok((c, open_lanes(&job.rt, job.o, *epoch)?)));
        match made {
            Ok((lane, lanes)) => {
                info!(epoch = *epoch, "connected again");
                let c = Control::again(job.rt.clone(), lane, Side::Source, State::Granted);
                return Ok((c, lanes));
            }
            Err(e) if Instant::now() + wait >= until => return Err(e),
            Err(e) => {
                info!("not yet: {e}");
                job.rt.block_on(async { tokio::time::sleep(wait).await });
                wait = (wait * 2).min(Duration::from_secs(2));
            }
        }
    }
}

fn epoch_run(
    job: &mut Job<'_>,
    control: &mut Control,
    lanes: &mut Option<Lanes>,
    pump: &Arc<Pump>,
    clock: &mut Option<Clock>,
    resumed_at: &mut Option<Instant>,
    lost_since: &mut Option<Instant>,
) -> Result<End> {
    let left = lost_since.map_or(job.o.patience, |t| {
        (t + job.o.patience).saturating_duration_since(Instant::now())
    });
    let first = control.hear(left)?;
    match first.kind {
        Kind::Resumed => *lost_since = None,
        // Once it ran there, it never goes back.
        Kind::Aborted if resumed_at.is_none() => {
            return Ok(End::Aborted(told(&first)));
        }
        other => return Err(Error::peer(format!("receive {other:?}"), "out of order")),
    }
    if let Some(mut c) = clock.take() {
        job.report.pause_us.resume = c.lap();
        job.report.pause_total_us = job.report.pause_us.total();
        info!(pause = ?job.report.pause_us, total_us = job.report.pause_total_us, "resumed there");
        *resumed_at = Some(Instant::now());
    }
    job.figures(&first.body);
    if job.journal.phase() == Phase::Granted {
        job.journal.tell(Phase::Resumed);
    }
    job.o.probe.at("resumed");
    let Some(Lanes { fault, bulk }) = lanes.take() else {
        return Err(Error::bug("serve pages", "no lanes"));
    };
    if fault.epoch > 1 {
        let missing = hear_missing(control)?;
        let pages: u64 = missing.iter().map(|m| m.1.pages()).sum();
        info!(pages, "the destination still lacks");
        pump.queue().restart(&missing)?;
    }
    let served = serve(control, pump, fault, bulk, job.o.patience);
    let f = job.rt.clone().block_on(served)?;
    let f = control.check(f)?;
    if f.kind == Kind::Complete {
        Ok(End::Complete(f))
    } else {
        Err(Error::peer(format!("receive {:?}", f.kind), "out of order"))
    }
}

/// The list of what the other end still lacks.
///
/// # Errors
/// The connection, or a list that does not fit.
pub(super) fn hear_missing(control: &mut Control) -> Result<Vec<(Object, PageRange)>> {
    let mut all = Vec::new();
    loop {
        let f = control.hear(Duration::from_secs(60))?;
        if f.kind != Kind::Missing {
            return Err(Error::peer(format!("receive {:?}", f.kind), "out of order"));
        }
        let m: Missing = message::parse(f.kind, &f.body)?;
        if all.len() + m.starts.len() > MAX_MISSING {
            return Err(Error::peer("missing pages", "the list is too long"));
        }
        if !m.starts.is_empty() {
            let (object, part) = ranges::read(m.sort, m.id, &m.starts, &m.pages)?;
            all.extend(part.into_iter().map(|r| (object, r)));
        }
        if m.last {
            return Ok(all);
        }
    }
}

/// Pushes and answers until the destination says something on the control lane.
///
/// # Errors
/// The link is lost, a page cannot be read, or for `patience` nothing has gone, been
/// asked or been said.
pub(super) async fn serve(
    control: &mut Control,
    pump: &Arc<Pump>,
    fault: crate::wire::transport::Opened,
    bulk: Vec<crate::wire::transport::Opened>,
    patience: Duration,
) -> Result<Frame> {
    let mut silence = pin!(silence(pump, patience));
    let mut tasks: JoinSet<Result<()>> = JoinSet::new();
    // They are not waited for at the end: one may be in the middle of a page.
    let epoch = pump.queue().epoch();
    let p = Arc::clone(pump);
    tasks.spawn(async move {
        p.answer(fault.reader, fault.writer, epoch).await?;
        Err(Error::link("serve faults", "the fault lane was closed"))
    });
    for mut lane in bulk {
        let p = Arc::clone(pump);
        tasks.spawn_on(
            async move {
                p.push(&mut lane.writer, epoch).await?;
                // Open until the other end closes it or all ends: what was sent
                // last must not be cut.
                match lane.reader.next().await? {
                    None => Err(Error::link("push pages", "a bulk lane was closed")),
                    Some(f) if f.kind == Kind::Failure => Err(told(&f)),
                    Some(f) => Err(Error::peer(
                        format!("receive {:?}", f.kind),
                        "not on a bulk lane",
                    )),
                }
            },
            &threads::background(&Handle::current()),
        );
    }
    let (reader, _) = control.halves();
    let mut next = pin!(reader.next());
    let mut broken = None;
    loop {
        tokio::select! {
            biased;
            f = &mut next => {
                return f?.ok_or_else(|| {
                    broken.unwrap_or_else(|| Error::link("wait for COMPLETE", "the peer closed the connection"))
                });
            }
            () = &mut silence => {
                let why = format!("nothing went and nothing was said for {} s", patience.as_secs());
                return Err(Error::link("wait for COMPLETE", why));
            }
            Some(done) = tasks.join_next() => match done {
                Ok(Ok(())) => {}
                // COMPLETE may be on its way already: the other end closes its
                // lanes after saying it. A link that is lost breaks this lane too.
                Ok(Err(e)) if broken.is_none() => {
                    broken = Some(e);
                    let grace = tokio::time::timeout(Duration::from_secs(1), &mut next).await;
                    return match grace {
                        Ok(Ok(Some(f))) => Ok(f),
                        _ => Err(broken.unwrap_or_else(|| Error::bug("serve pages", "no error"))),
                    };
                }
                Ok(Err(_)) => {}
                Err(e) => return Err(Error::other(Blame::Us, "serve pages", e)),
            }
        }
    }
}

/// Returns when for `patience` nothing has gone and nothing was asked.
async fn silence(pump: &Pump, patience: Duration) {
    let mut last = None;
    loop {
        let now = Some((pump.bytes(), pump.faults()));
        if now == last {
            return;
        }
        last = now;
        tokio::time::sleep(patience).await;
    }
}

/// Every page is there: the copy here goes.
fn finish(
    mut job: Job<'_>,
    mut control: Control,
    pump: &Pump,
    resumed_at: Option<Instant>,
) -> Result<Report> {
    let r = &mut job.report;
    r.all_pages_us = resumed_at.map_or(0, |t| micros(t.elapsed()));
    r.bytes_after_resume = pump.bytes();
    r.pages = pump.queue().listed();
    for (name, field) in [
        ("faults", &mut r.faults),
        ("fault_p50_us", &mut r.fault_p50_us),
        ("fault_p99_us", &mut r.fault_p99_us),
    ] {
        *field = r.destination.get(name).copied().unwrap_or(0);
    }
    job.journal.tell(Phase::Complete);
    job.o.probe.at("complete");
    job.c.finish(Verdict::Superseded)?;
    job.o.probe.at("killed");
    let forget = Step {
        session: job.o.token.session.to_vec(),
        epoch: 0,
        times: Vec::new(),
    };
    if let Err(e) = control.say(Kind::Forget, &forget) {
        // The destination has everything; it only keeps its note for longer.
        warn!("the destination was not told that all is settled: {e}");
    }
    job.report.total_us = micros(job.started.elapsed());
    job.journal.settle()?;
    Ok(job.report)
}
