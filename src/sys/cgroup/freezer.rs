//! Both freezers of control groups: freezer.state (v1), cgroup.freeze (v2).

use std::fs;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::{Dir, Hierarchies, Member, membership};
use crate::base::{Error, HostPid, Result, ResultExt};

/// How long a freeze may take before it is given up. A v1 freezer does not
/// complete while a task is in an uninterruptible kernel-mode fault.
pub const FREEZE_LIMIT: Duration = Duration::from_secs(10);

impl Dir {
    /// Starts freezing it and all below; does not wait.
    ///
    /// # Errors
    /// Those of writing freezer.state or cgroup.freeze.
    pub fn freeze_begin(&self) -> Result<()> {
        if self.is_v2() {
            self.write("cgroup.freeze", "1")
        } else {
            self.write("freezer.state", "FROZEN")
        }
    }

    /// Waits until everything in it is frozen.
    ///
    /// # Errors
    /// ETIMEDOUT after `limit`.
    pub fn freeze_wait(&self, limit: Duration) -> Result<()> {
        let end = Instant::now() + limit;
        let events = if self.is_v2() {
            Some(self.events()?)
        } else {
            None
        };
        let mut pause = Duration::from_micros(20);
        loop {
            let frozen = match &events {
                Some(events) => frozen_event(events).context(|| self.subject("cgroup.events"))?,
                None => self.is_frozen()?,
            };
            if frozen {
                return Ok(());
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let what = format!("freeze {}", self.subject(""));
                return Err(Error::errno(what, libc::ETIMEDOUT));
            }
            if let Some(events) = &events {
                wait_for_change(events, left);
            } else {
                // v1 has no notification: only reading the state moves it on.
                std::thread::sleep(pause.min(left));
                pause = (pause * 2).min(Duration::from_millis(2));
            }
        }
    }

    /// Lets everything in it run (if no cgroup above is frozen).
    ///
    /// # Errors
    /// Those of writing freezer.state or cgroup.freeze.
    pub fn thaw(&self) -> Result<()> {
        if self.is_v2() {
            self.write("cgroup.freeze", "0")
        } else {
            self.write("freezer.state", "THAWED")
        }
    }

    /// Whether all tasks in it are frozen now, by it or by a cgroup above.
    ///
    /// # Errors
    /// Those of reading its state.
    pub fn is_frozen(&self) -> Result<bool> {
        if self.is_v2() {
            Ok(self.read("cgroup.events")?.lines().any(|l| l == "frozen 1"))
        } else {
            Ok(self.read("freezer.state")? == "FROZEN")
        }
    }

    /// Whether it was itself told to freeze (not only a cgroup above).
    ///
    /// # Errors
    /// Those of reading its state. A root, which has none, is not frozen.
    pub fn is_told_to_freeze(&self) -> Result<bool> {
        let file = if self.is_v2() {
            "cgroup.freeze"
        } else {
            "freezer.self_freezing"
        };
        Ok(self.property(file)?.as_deref() == Some("1"))
    }

    fn events(&self) -> Result<fs::File> {
        fs::File::open(format!("{}/cgroup.events", self.own_path()))
            .context(|| self.subject("cgroup.events"))
    }
}

/// Reads the event file anew, which also arms the next poll(2).
fn frozen_event(events: &fs::File) -> std::io::Result<bool> {
    use std::os::unix::fs::FileExt;
    let mut text = [0; 256];
    let n = events.read_at(&mut text, 0)?;
    let lines = String::from_utf8_lossy(text.get(..n).unwrap_or_default()).into_owned();
    Ok(lines.lines().any(|l| l == "frozen 1"))
}

/// Waits until cgroup.events changes: kernfs says so by POLLPRI.
fn wait_for_change(events: &fs::File, limit: Duration) {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut fds = [PollFd::new(events.as_fd(), PollFlags::POLLPRI)];
    let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
    // A failure here only means that the state is read again sooner.
    let _ = poll(&mut fds, limit);
}

/// The cgroup in which a task can be frozen, and whose child can hold it: its
/// v1 freezer cgroup unless that is the root, else its v2 cgroup.
///
/// # Errors
/// As [`membership`]; a task that is in the root of both.
pub fn freezer_of(pid: HostPid) -> Result<Member> {
    let all = membership(pid)?;
    let v1 = all
        .iter()
        .find(|m| m.name.split(',').any(|c| c == "freezer") && m.path != "/");
    let v2 = all.iter().find(|m| m.name.is_empty() && m.path != "/");
    v1.or(v2).cloned().ok_or_else(|| {
        Error::refused(
            format!("task {pid}"),
            "it has no cgroup of its own in which it could be frozen",
        )
    })
}

/// A freeze that was there before we came.
#[derive(Debug)]
pub struct Prefrozen {
    dir: Dir,
}

impl Prefrozen {
    /// Lets the tasks run: v1-frozen tasks reach no ptrace stop, v2-frozen ones
    /// execute no injected call. All threads must have been interrupted before,
    /// so that they stop instead of running on.
    ///
    /// # Errors
    /// Those of writing the state.
    pub fn thaw(&self) -> Result<()> {
        self.dir.thaw()
    }

    /// Makes it as it was found, and waits until it is.
    ///
    /// # Errors
    /// Those of writing the state, ETIMEDOUT.
    pub fn refreeze(&self) -> Result<()> {
        self.dir.freeze_begin()?;
        self.dir.freeze_wait(FREEZE_LIMIT)
    }

    /// Starts to make it as it was found, but does not wait: tasks that a
    /// tracer still holds count as frozen only once they are detached.
    ///
    /// # Errors
    /// Those of writing the state.
    pub fn refreeze_begin(&self) -> Result<()> {
        self.dir.freeze_begin()
    }

    /// The frozen cgroup.
    pub fn dir(&self) -> &Dir {
        &self.dir
    }
}

/// The freeze that `pid` is under, if any: the highest cgroup that was told
/// to freeze, of the v1 or the v2 freezer.
///
/// # Errors
/// As [`membership`] and those of reading states.
pub fn prefrozen(pid: HostPid) -> Result<Option<Prefrozen>> {
    let hierarchies = Hierarchies::now();
    for member in membership(pid)? {
        if !member.name.is_empty() && !member.name.split(',').any(|c| c == "freezer") {
            continue;
        }
        let mut dir = hierarchies.root(&member.name)?;
        for part in member.path.split('/').filter(|p| !p.is_empty()) {
            dir = dir.descend(part)?;
            if dir.is_told_to_freeze()? {
                return Ok(Some(Prefrozen { dir }));
            }
        }
    }
    Ok(None)
}
