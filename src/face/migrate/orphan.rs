//! A copy that was received here, and whatever of it is left. Who received it may
//! have died together with its memory's guardian: then its tasks wait for pages
//! that nobody brings. They have read no zeros (`memory::anchor`), and they are
//! stopped by whoever finds them: the migration's guard, the next `dunlin receive`,
//! `dunlin resolve`.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use serde_json::Value;
use tracing::warn;

use super::cgroups;
use super::resolve::text;
use crate::base::{Error, HostPid, Result};
use crate::migrate::journal::{Phase, Side, Story};
use crate::migrate::loss::{self, LOSS};
use crate::migrate::ports::WHOLE;
use crate::sys::{pidfd, procfs};

/// How long a killed task may take to die.
const DEATH: Duration = Duration::from_secs(30);

/// The tasks of a copy that live, held by descriptor.
#[derive(Debug)]
pub(super) struct Copy(BTreeMap<HostPid, OwnedFd>);

impl Copy {
    /// Those that were rebuilt, what they have forked, and who else is in the
    /// control groups that were made for the container.
    ///
    /// # Errors
    /// The journal names no tasks.
    pub(super) fn find(place: &Value, id: &str) -> Result<Self> {
        let mut copy = Self(BTreeMap::new());
        let tasks = place.get("tasks").and_then(Value::as_array);
        for task in tasks.into_iter().flatten() {
            let pid = task.get(0).and_then(Value::as_i64).unwrap_or(0);
            let started = task.get(1).and_then(Value::as_u64);
            let Some(pid) = i32::try_from(pid).ok().filter(|p| *p > 0).map(HostPid) else {
                return Err(Error::caller("journal", "names no task"));
            };
            // Opened first: from then on it is the same one.
            if let Some(fd) = living(pid)
                && procfs::stat(pid).ok().map(|s| s.start_time) == started
            {
                copy.0.insert(pid, fd);
            }
        }
        copy.add_children();
        if let (Ok(top), Some(below)) = (text(place, "top"), place.get("cgroups_below")) {
            for pid in cgroups::members(&top.join("bundle"), id, below) {
                copy.add(pid);
            }
        }
        Ok(copy)
    }

    fn add(&mut self, pid: HostPid) -> bool {
        if self.0.contains_key(&pid) {
            return false;
        }
        living(pid).is_some_and(|fd| self.0.insert(pid, fd).is_none())
    }

    fn add_children(&mut self) {
        let mut parents: Vec<HostPid> = self.0.keys().copied().collect();
        while let Some(parent) = parents.pop() {
            for child in procfs::children(parent).unwrap_or_default() {
                if self.add(child) {
                    parents.push(child);
                }
            }
        }
    }

    /// Some of its memory is guarded still: pages are missing.
    pub(super) fn lacks_pages(&self) -> bool {
        self.0.keys().any(|pid| {
            let areas = procfs::smaps(*pid).unwrap_or_default();
            areas.iter().any(|a| a.has("um"))
        })
    }

    /// Kills them, and waits until they are dead; some of them take all others of
    /// their pid namespace along.
    ///
    /// # Errors
    /// ETIMEDOUT.
    pub(super) fn kill(&self) -> Result<()> {
        for fd in self.0.values() {
            match pidfd::send_signal(fd.as_fd(), libc::SIGKILL) {
                Err(e) if e.raw_os_error() != Some(libc::ESRCH) => return Err(e),
                _ => {}
            }
        }
        let until = Instant::now() + DEATH;
        for (pid, fd) in &self.0 {
            let left = until.saturating_duration_since(Instant::now());
            if !pidfd::wait_exit(fd.as_fd(), Some(left))? {
                let what = format!("wait for the death of task {pid}");
                return Err(Error::errno(what, libc::ETIMEDOUT));
            }
        }
        Ok(())
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn living(pid: HostPid) -> Option<OwnedFd> {
    let fd = pidfd::open(pid).ok()?;
    // One that nobody has reaped yet is no task any more.
    (!pidfd::has_exited(fd.as_fd()).ok()?).then_some(fd)
}

/// Kills all of a copy, also what it forks meanwhile.
///
/// # Errors
/// As [`Copy::find`], [`Copy::kill`]; ETIMEDOUT when it forks faster than it dies.
pub(super) fn kill_all(place: &Value, id: &str) -> Result<()> {
    let until = Instant::now() + DEATH;
    loop {
        let copy = Copy::find(place, id)?;
        if copy.is_empty() {
            return Ok(());
        }
        if Instant::now() > until {
            return Err(Error::errno(format!("kill {id}"), libc::ETIMEDOUT));
        }
        copy.kill()?;
    }
}

/// What has become of a copy whose journal has no owner any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// Nothing of it lives, or it never ran.
    Gone,
    /// It runs with all its pages.
    Whole,
    /// It waits for pages that nobody brings.
    Orphan,
}

/// Looks, and changes nothing. To be asked by the owner of the journal only, or
/// about one that has none: whoever guards its memory owns it too.
///
/// # Errors
/// The journal names no tasks.
pub(super) fn fate(s: &Story) -> Result<Fate> {
    let may_run = matches!(s.phase, Phase::Resuming | Phase::Resumed | Phase::Complete);
    if s.facts.side != Side::Destination || !may_run {
        return Ok(Fate::Gone);
    }
    let place = s.place();
    let copy = Copy::find(place, &s.facts.id)?;
    if copy.is_empty() {
        return Ok(Fate::Gone);
    }
    // What it guards after its pages came is its own.
    let came = s.phase == Phase::Complete || place.get(WHOLE).is_some();
    if !came && copy.lacks_pages() {
        return Ok(Fate::Orphan);
    }
    Ok(Fate::Whole)
}

/// Stops a copy that waits for pages that nobody brings, and says so beside its
/// bundle. Its journal stays: a person has to know.
///
/// # Errors
/// As [`kill_all`].
pub(super) fn stop(s: &Story) -> Result<Fate> {
    let fate = fate(s)?;
    if fate != Fate::Orphan {
        return Ok(fate);
    }
    let place = s.place();
    let why = "the page handler died together with its guardian; the container is killed: its pages \
               do not come any more";
    warn!("{}: {why}", s.facts.id);
    // Said first: who finds it dead finds out why.
    loss::say(&text(place, "top")?.join(LOSS), why);
    kill_all(place, &s.facts.id)?;
    Ok(Fate::Orphan)
}
