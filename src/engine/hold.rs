//! Tasks that outlive us frozen: the hold cgroup.
//!
//! When a tracer dies, its stopped tasks run again; a freezer does not care
//! who made it. So the captured tasks move into a child of their own cgroup,
//! are frozen there, and only then detached. There they survive our death and
//! a pause and resume of the container (whose cgroup is above), and their
//! memory can still be read.
//!
//! Letting them run again is the one act that could make two copies run. It is
//! done in one place, [`Hold::thaw`], which wants a [`Verdict`].

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use tracing::{debug, info};

use crate::base::{Error, HostPid, Result, ResultExt};
use crate::sys::cgroup::{self, Dir, FREEZE_LIMIT, Member};
use crate::sys::pidfd;

/// Name of the child cgroup.
pub const NAME: &str = "dunlin-hold";

/// How long the killed tasks may take to die.
const DEATH_LIMIT: Duration = Duration::from_secs(30);

/// Why held tasks may be touched; whoever keeps the journal makes it, after
/// having read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The journal holds no grant: the other side cannot have resumed.
    NeverGranted,
    /// The destination has recorded, and proven, that it aborted before its
    /// resume.
    DestinationAborted,
    /// The other copy is complete (or a person said so): these must die.
    Superseded,
}

impl Verdict {
    /// Whether the tasks may run on.
    fn frees(self) -> bool {
        match self {
            Self::NeverGranted | Self::DestinationAborted => true,
            Self::Superseded => false,
        }
    }
}

/// A task that is held: a thread-group leader by its pidfd.
#[derive(Debug)]
pub struct Task {
    /// Its pid as we see it.
    pub pid: HostPid,
    /// Its descriptor.
    pub pidfd: OwnedFd,
}

/// Where held tasks are, in words that a journal can keep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Hierarchy: `freezer` or another v1 name that has it, or empty for v2.
    pub hierarchy: String,
    /// Path of the hold cgroup.
    pub path: String,
    /// Where each task was before, relative to the container's cgroup.
    pub origins: Vec<(HostPid, String)>,
}

impl Place {
    /// Where the tasks of the tree below `root` will be held: known before they are,
    /// so that whoever settles after our death can look there.
    ///
    /// # Errors
    /// Those of [`cgroup::freezer_of`].
    pub fn of(root: HostPid) -> Result<Self> {
        let home = cgroup::freezer_of(root)?;
        Ok(Self {
            path: format!("{}/{NAME}", home.path.trim_end_matches('/')),
            hierarchy: home.name,
            origins: Vec::new(),
        })
    }
}

/// Tasks in the hold cgroup. Dropping it changes nothing: they stay.
#[derive(Debug)]
#[must_use = "held tasks stay frozen until they are released or killed"]
pub struct Hold {
    /// The container's cgroup.
    base: Dir,
    /// The child that freezes.
    dir: Dir,
    tasks: Vec<Task>,
    origins: BTreeMap<HostPid, String>,
}

impl Hold {
    /// Moves `tasks`, all stopped by ptrace, into a child of the cgroup of
    /// `root`, and tells it to freeze. The caller then detaches all of them and
    /// calls [`Hold::confirm`]. On failure all are back where they were.
    ///
    /// # Errors
    /// A task that shares the cgroup root with the host, a hold that exists
    /// already, those of mkdir(2) and of moving.
    pub fn begin(root: HostPid, tasks: Vec<Task>) -> Result<Self> {
        let home = cgroup::freezer_of(root)?;
        if home.path.split('/').any(|part| part == NAME) {
            return Err(Error::refused(
                format!("task {root}"),
                format!("it is held by a migration already, in cgroup {}", home.path),
            ));
        }
        let base = Dir::open(&home)?;
        let mut origins = BTreeMap::new();
        for task in &tasks {
            let at = freezer_path(task.pid, &home.name)?;
            origins.insert(task.pid, below(&home.path, &at).unwrap_or(at));
        }
        let (dir, made) = base.make(NAME)?;
        if !made {
            let held = dir.procs_below()?;
            if !held.is_empty() {
                return Err(Error::refused(
                    format!("cgroup {}", dir.path()),
                    format!("it holds {} tasks of another migration already", held.len()),
                ));
            }
        }
        let hold = Self {
            base,
            dir,
            tasks,
            origins,
        };
        match hold.fill() {
            Ok(()) => Ok(hold),
            Err(e) => {
                // Nothing was granted: this is still our own freeze.
                if let Err(undo) = hold.thaw(Verdict::NeverGranted).and_then(|()| hold.leave()) {
                    return Err(e.within(format!("hold (and moving back failed too: {undo})")));
                }
                Err(e)
            }
        }
    }

    fn fill(&self) -> Result<()> {
        for task in &self.tasks {
            self.dir
                .take(task.pid)
                .context(|| format!("hold task {}", task.pid))?;
        }
        self.dir.freeze_begin()?;
        debug!(
            cgroup = self.dir.path(),
            tasks = self.tasks.len(),
            "tasks moved to hold"
        );
        Ok(())
    }

    /// Takes up tasks that an earlier process of ours left held, by what its
    /// journal says of the place. Pids may have been recycled since, so what
    /// counts is who is in the cgroup.
    ///
    /// # Errors
    /// ENOENT when there is no such cgroup; a cgroup that is not of ours.
    pub fn adopt(place: &Place) -> Result<Self> {
        let Some(home) = place
            .path
            .strip_suffix(NAME)
            .and_then(|p| p.strip_suffix('/'))
        else {
            return Err(Error::caller(
                format!("cgroup {}", place.path),
                "is no hold cgroup",
            ));
        };
        let home = Member {
            name: place.hierarchy.clone(),
            path: home.to_owned(),
        };
        let base = Dir::open(&home)?;
        let dir = base.descend(NAME)?;
        let mut tasks = Vec::new();
        for pid in dir.procs()? {
            tasks.push(Task {
                pid,
                pidfd: pidfd::open(pid)?,
            });
        }
        Ok(Self {
            base,
            dir,
            tasks,
            origins: place.origins.iter().cloned().collect(),
        })
    }

    /// What a journal keeps, for [`Hold::adopt`].
    pub fn place(&self) -> Place {
        Place {
            hierarchy: self.dir.hierarchy().to_owned(),
            path: self.dir.path().to_owned(),
            origins: self.origins.iter().map(|(p, o)| (*p, o.clone())).collect(),
        }
    }

    /// The held tasks.
    pub fn tasks(&self) -> &[Task] {
        &self.tasks
    }

    /// Waits until all are frozen. Without this success there is no commit.
    ///
    /// # Errors
    /// ETIMEDOUT; a task that is not in the cgroup (any more).
    pub fn confirm(&self) -> Result<()> {
        self.dir.freeze_wait(FREEZE_LIMIT)?;
        let there = self.dir.procs()?;
        for task in &self.tasks {
            let zombie = pidfd::has_exited(task.pidfd.as_fd())?;
            if !zombie && !there.contains(&task.pid) {
                return Err(Error::refused(
                    format!("task {}", task.pid),
                    "it left the hold cgroup",
                ));
            }
        }
        info!(cgroup = self.dir.path(), tasks = self.tasks.len(), "held");
        Ok(())
    }

    /// Lets the tasks go on where they were.
    ///
    /// # Errors
    /// A verdict that does not allow it; those of moving and thawing. Then they
    /// are still held, and the hold comes back.
    pub fn release(self, verdict: Verdict) -> Result<(), Box<(Self, Error)>> {
        let done = if verdict.frees() {
            // Thawed first: v1 does not move frozen tasks.
            self.thaw(verdict).and_then(|()| self.leave())
        } else {
            Err(Error::bug(
                "release held tasks",
                format!("the verdict is {verdict:?}"),
            ))
        };
        done.map_err(|e| Box::new((self, e)))
    }

    /// Kills the tasks and removes the cgroup; returns when all are dead. Their
    /// parents have to reap them.
    ///
    /// # Errors
    /// A verdict that does not allow it, ETIMEDOUT when a task does not die.
    /// The hold comes back.
    pub fn kill(self, verdict: Verdict) -> Result<(), Box<(Self, Error)>> {
        self.end(verdict).map_err(|e| Box::new((self, e)))
    }

    fn end(&self, verdict: Verdict) -> Result<()> {
        if !matches!(verdict, Verdict::Superseded) {
            return Err(Error::bug(
                "kill held tasks",
                format!("the verdict is {verdict:?}"),
            ));
        }
        for task in &self.tasks {
            match pidfd::send_signal(task.pidfd.as_fd(), libc::SIGKILL) {
                Err(e) if e.raw_os_error() != Some(libc::ESRCH) => return Err(e),
                _ => debug!(pid = task.pid.0, "killed a held task"),
            }
        }
        // v1-frozen tasks die on thaw, without executing anything of their own.
        self.thaw(verdict)?;
        for task in &self.tasks {
            if !pidfd::wait_exit(task.pidfd.as_fd(), Some(DEATH_LIMIT))? {
                let what = format!("wait for the death of task {}", task.pid);
                return Err(Error::errno(what, libc::ETIMEDOUT));
            }
        }
        self.remove()
    }

    /// The only thaw. Tasks that are about to run must be allowed to; tasks
    /// that were superseded must have SIGKILL pending on each.
    fn thaw(&self, verdict: Verdict) -> Result<()> {
        if !verdict.frees() {
            for task in &self.tasks {
                let dead = pidfd::has_exited(task.pidfd.as_fd())?;
                if !dead && !kill_pending(task.pid)? {
                    let what = format!("thaw superseded task {}", task.pid);
                    return Err(Error::bug(what, "it has no SIGKILL pending"));
                }
            }
        }
        info!(cgroup = self.dir.path(), ?verdict, "thaw");
        self.dir.thaw()
    }

    fn leave(&self) -> Result<()> {
        for pid in self.dir.procs()? {
            let origin = self.origins.get(&pid).map_or("", String::as_str);
            let back = match self.base.descend(origin) {
                Ok(dir) => dir.take(pid),
                Err(_) => self.base.take(pid),
            };
            match back {
                Err(e) if e.raw_os_error() != Some(libc::ESRCH) => return Err(e),
                _ => {}
            }
        }
        self.remove()
    }

    /// Removes the cgroup. Dead tasks leave it only when they are reaped, or
    /// shortly before, so EBUSY is given some time.
    fn remove(&self) -> Result<()> {
        let end = std::time::Instant::now() + Duration::from_secs(2);
        loop {
            match self.base.remove(NAME) {
                Err(e)
                    if e.raw_os_error() == Some(libc::EBUSY) && std::time::Instant::now() < end =>
                {
                    std::thread::sleep(Duration::from_millis(1));
                }
                other => return other,
            }
        }
    }
}

/// Where `at` lies below `base`; `None` if it does not.
fn below(base: &str, at: &str) -> Option<String> {
    let rest = at.strip_prefix(base)?;
    (rest.is_empty() || rest.starts_with('/')).then(|| rest.trim_start_matches('/').to_owned())
}

fn freezer_path(pid: HostPid, hierarchy: &str) -> Result<String> {
    cgroup::membership(pid)?
        .into_iter()
        .find(|m| m.name == hierarchy)
        .map(|m| m.path)
        .ok_or_else(|| Error::refused(format!("task {pid}"), "it is in no freezer cgroup"))
}

/// Whether SIGKILL is pending for the thread group: SigPnd and ShdPnd of
/// /proc/PID/status. Of one that is gone it has been handled: a v2 freezer lets its
/// tasks die at once.
fn kill_pending(pid: HostPid) -> Result<bool> {
    let path = format!("/proc/{pid}/status");
    let text = match std::fs::read_to_string(&path) {
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => return Ok(true),
        read => read.context(|| format!("read {path}"))?,
    };
    Ok(text
        .lines()
        .filter_map(|l| {
            l.strip_prefix("SigPnd:")
                .or_else(|| l.strip_prefix("ShdPnd:"))
        })
        .filter_map(|v| u64::from_str_radix(v.trim(), 16).ok())
        .any(|set| set & (1 << (libc::SIGKILL - 1)) != 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::cgroup::tests::freezers;
    use std::io::{BufRead, BufReader};
    use std::process::{Child, Command, Stdio};

    struct Counter {
        child: Child,
        lines: BufReader<std::process::ChildStdout>,
        parent: Dir,
        name: String,
    }

    impl Counter {
        /// A program that counts as fast as it can, in its own cgroup.
        fn start(hierarchy: &str) -> Self {
            let mut child = Command::new("sh")
                .args(["-c", "i=0; while :; do i=$((i+1)); echo $i; done"])
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let name = format!("dunlin-ns-hold-{}", child.id());
            let parent = Dir::root(hierarchy).unwrap();
            let (dir, _) = parent.make(&name).unwrap();
            dir.take(HostPid(i32::try_from(child.id()).unwrap()))
                .unwrap();
            let lines = BufReader::new(child.stdout.take().unwrap());
            Self {
                child,
                lines,
                parent,
                name,
            }
        }

        fn task(&self) -> Task {
            let pid = HostPid(i32::try_from(self.child.id()).unwrap());
            Task {
                pid,
                pidfd: pidfd::open(pid).unwrap(),
            }
        }

        fn next(&mut self) -> Option<String> {
            let mut l = String::new();
            (self.lines.read_line(&mut l).unwrap() > 0).then_some(l)
        }
    }

    impl Drop for Counter {
        fn drop(&mut self) {
            let _ = self.child.kill();
            if let Ok(d) = self.parent.descend(&self.name) {
                let _ = d.descend(NAME).and_then(|h| h.thaw());
                let _ = d.thaw();
                let _ = self.child.wait();
                let _ = d.remove(NAME);
            }
            let _ = self.parent.remove(&self.name);
        }
    }

    #[test]
    fn held_tasks_stay_frozen_when_the_container_is_paused_and_resumed() {
        for h in freezers() {
            let c = Counter::start(h);
            let task = c.task();
            let hold = Hold::begin(task.pid, vec![task]).unwrap();
            hold.confirm().unwrap();
            let container = c.parent.descend(&c.name).unwrap();
            container.freeze_begin().unwrap();
            container.freeze_wait(FREEZE_LIMIT).unwrap();
            container.thaw().unwrap();
            hold.confirm().unwrap();
            let place = hold.place();
            // Our death: the value is gone, the place is in the journal.
            drop(hold);
            let hold = Hold::adopt(&place).unwrap();
            assert_eq!(hold.tasks().len(), 1);
            hold.confirm().unwrap();
            hold.kill(Verdict::Superseded).unwrap();
        }
    }

    #[test]
    fn released_tasks_run_on_where_they_were_and_the_cgroup_is_gone() {
        for h in freezers() {
            let mut c = Counter::start(h);
            let task = c.task();
            let pid = task.pid;
            let hold = Hold::begin(pid, vec![task]).unwrap();
            hold.confirm().unwrap();
            assert!(c.parent.descend(&c.name).unwrap().descend(NAME).is_ok());
            hold.release(Verdict::NeverGranted).unwrap();
            for _ in 0..100_000 {
                c.next().expect("it counts on");
            }
            let home = c.parent.descend(&c.name).unwrap();
            assert_eq!(home.procs().unwrap(), [pid]);
            assert_eq!(
                home.descend(NAME).unwrap_err().raw_os_error(),
                Some(libc::ENOENT)
            );
        }
    }

    #[test]
    fn killed_tasks_die_without_another_word_and_leave_no_cgroup() {
        for h in freezers() {
            let mut c = Counter::start(h);
            let task = c.task();
            let hold = Hold::begin(task.pid, vec![task]).unwrap();
            hold.confirm().unwrap();
            hold.kill(Verdict::Superseded).unwrap();
            while c.next().is_some() {}
            let home = c.parent.descend(&c.name).unwrap();
            assert!(home.children().unwrap().is_empty());
        }
    }

    #[test]
    fn superseded_tasks_are_never_released_and_others_never_killed() {
        let c = Counter::start(freezers()[0]);
        let task = c.task();
        let hold = Hold::begin(task.pid, vec![task]).unwrap();
        hold.confirm().unwrap();
        let (hold, e) = *hold.release(Verdict::Superseded).unwrap_err();
        assert!(e.to_string().contains("Superseded"), "{e}");
        let (hold, e) = *hold.kill(Verdict::NeverGranted).unwrap_err();
        assert!(e.to_string().contains("NeverGranted"), "{e}");
        // No SIGKILL is pending, so the thaw itself refuses too.
        assert!(hold.thaw(Verdict::Superseded).is_err());
        hold.confirm().unwrap();
        hold.kill(Verdict::Superseded).unwrap();
    }

    #[test]
    fn a_second_hold_of_the_same_container_is_refused() {
        let c = Counter::start(freezers()[0]);
        let first = Hold::begin(c.task().pid, vec![c.task()]).unwrap();
        first.confirm().unwrap();
        // The task's home is the hold cgroup itself now: below it there would
        // be a second one.
        let e = Hold::begin(c.task().pid, vec![c.task()]).unwrap_err();
        assert!(e.to_string().contains("hold"), "{e}");
        first.confirm().unwrap();
        first.kill(Verdict::Superseded).unwrap();
    }
}
