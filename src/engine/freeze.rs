//! Stopping a tree of tasks, and letting it go.
//!
//! Tasks are seized and interrupted, and listed again, until nothing new
//! appears: a stopped parent makes no children. A [`Tree`] owns all of them;
//! dropped, it lets them go on as if nothing had been. What is found in a
//! control group or pid namespace of the container but not in the tree is
//! another one's concern ([`crate::objects::cgroup`]).

use std::collections::{BTreeSet, HashMap};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::{Error, HostPid, Result, limits};
use crate::image::records::SaEntry;
use crate::objects::mm::capture::Before;
use crate::objects::signals::capture::restarts;
use crate::objects::thread::capture::Settled;
use crate::sys::cgroup::{self, Prefrozen};
use crate::sys::procfs::{self, Stat, Status};
use crate::sys::ptrace::{self, Stopped};
use crate::sys::{pidfd, steer};

mod catch;
mod collect;
#[cfg(test)]
mod tests;

use catch::catch;
pub(super) use catch::{borrow, pass};

/// A parent in vfork(2) cannot be stopped until its child execs or exits.
const STOP_DEADLINE: Duration = Duration::from_secs(10);

/// A thread of a stopped process.
#[derive(Debug)]
pub struct Thread {
    /// Its id as we see it.
    pub tid: HostPid,
    /// Its /proc status.
    pub status: Status,
    /// Registers to go on from, and rseq.
    pub settled: Settled,
    /// Blocked signals.
    pub mask: u64,
    stopped: Option<Stopped>,
}

impl Thread {
    /// Its id in its own pid namespace.
    pub fn virt(&self) -> i32 {
        self.status.ns_pid.last().copied().unwrap_or(self.tid.0)
    }

    /// Whether its process ignores SIGTRAP, which steering resets.
    pub fn ignores_trap(&self) -> bool {
        self.status.sig_ign & (1 << (libc::SIGTRAP - 1)) != 0
    }

    /// The stopped tracee.
    ///
    /// # Errors
    /// A bug if it is lent out.
    pub fn stopped(&self) -> Result<&Stopped> {
        self.stopped
            .as_ref()
            .ok_or_else(|| Error::bug(format!("task {}", self.tid), "its tracee is in use"))
    }

    /// Runs a batch in this thread by way of its leader's loop.
    ///
    /// # Errors
    /// Those of [`steer::Steered::run`].
    pub fn steer(
        &mut self,
        leader: &steer::Steered,
        batch: &steer::Batch,
    ) -> Result<steer::Results> {
        let mut steered = match steer::Steered::thread(self.take()?, leader) {
            Ok(s) => s,
            Err((task, e)) => {
                self.stopped = Some(task);
                return Err(e);
            }
        };
        let results = steered.run(batch);
        self.stopped = Some(steered.forget()?);
        results
    }

    fn set_settled(&mut self) -> Result<()> {
        let mut stopped = self.take()?;
        let set = stopped.set_regs(&self.settled.regs);
        self.stopped = Some(stopped);
        set
    }

    /// Lets it go on, if that has not been done.
    fn let_go(&mut self) -> Result<()> {
        let Some(mut stopped) = self.stopped.take() else {
            return Ok(());
        };
        let set = match self.settled.last() {
            Some(last) => stopped.set_regs(last),
            None => Ok(()),
        };
        stopped.detach(0).and(set)
    }

    fn take(&mut self) -> Result<Stopped> {
        self.stopped
            .take()
            .ok_or_else(|| Error::bug(format!("task {}", self.tid), "its tracee is in use"))
    }
}

/// A stopped process.
#[derive(Debug)]
pub struct Process {
    /// Its id as we see it.
    pub pid: HostPid,
    /// Index of its parent in the tree; `None` for the root.
    pub parent: Option<usize>,
    /// Its /proc stat.
    pub stat: Stat,
    /// What stands for it.
    pub body: Body,
}

/// A process is alive, or a zombie that its parent has not waited for.
#[derive(Debug)]
pub enum Body {
    /// It is alive.
    Alive(Alive),
    /// It is dead; its /proc status.
    Zombie(Box<Status>),
}

/// A live process, all of whose threads are stopped.
#[derive(Debug)]
pub struct Alive {
    /// Holds on to the very process.
    pub pidfd: OwnedFd,
    /// Its threads, the leader first.
    pub threads: Vec<Thread>,
    /// The signal that stopped it before we came, if any.
    pub stop_signal: Option<i32>,
    /// Areas as they were while it ran.
    pub before: Arc<Before>,
}

impl Process {
    fn status(&self) -> Option<&Status> {
        match &self.body {
            Body::Alive(a) => a.threads.first().map(|t| &t.status),
            Body::Zombie(s) => Some(s),
        }
    }

    /// Its id in its own pid namespace.
    pub fn virt(&self) -> i32 {
        self.status()
            .and_then(|s| s.ns_tgid.last().copied())
            .unwrap_or(self.pid.0)
    }

    /// Its process group and session, likewise; 0 where they lie outside.
    pub fn group_and_session(&self) -> (i32, i32) {
        let last = |v: Option<&Vec<i32>>| v.and_then(|v| v.last().copied()).unwrap_or(0);
        (
            last(self.status().map(|s| &s.ns_pgid)),
            last(self.status().map(|s| &s.ns_sid)),
        )
    }

    /// Its live half.
    pub fn alive(&self) -> Option<&Alive> {
        match &self.body {
            Body::Alive(a) => Some(a),
            Body::Zombie(_) => None,
        }
    }
}

/// A tree of stopped processes, parents before children. Dropped, all go on.
#[derive(Debug)]
pub struct Tree {
    processes: Vec<Process>,
    prefrozen: Option<Prefrozen>,
    /// Time from the first interrupt.
    pub since: Instant,
}

impl Tree {
    /// Stops the tree under `root`. `guards`: notes before where its guard pages are.
    ///
    /// # Errors
    /// No such task; a task that somebody else traces; one that does not stop
    /// within ten seconds; the tree goes on then.
    pub fn stop(root: HostPid, guards: bool) -> Result<Self> {
        if root.0 == std::process::id().cast_signed() {
            return Err(Error::caller(
                format!("task {root}"),
                "dunlin cannot dump itself",
            ));
        }
        let stat = procfs::stat(root).map_err(|e| {
            if e.raw_os_error() == Some(libc::ENOENT) {
                Error::caller(format!("task {root}"), "no such task")
            } else {
                e
            }
        })?;
        if matches!(stat.state, b'Z' | b'X') {
            return Err(Error::caller(format!("task {root}"), "it is dead"));
        }
        // smaps is slow: read it while all run
        let mut before = Vec::new();
        read_before(root, guards, &mut before);
        let mut tree = Self {
            processes: Vec::new(),
            prefrozen: cgroup::prefrozen(root)?,
            since: Instant::now(),
        };
        let mut caught = HashMap::new();
        if let Some(frozen) = &tree.prefrozen {
            // frozen tasks reach no stop, so all are interrupted before the thaw
            catch(root, &mut caught)?;
            tracing::debug!(cgroup = frozen.dir().path(), "was frozen when we came");
            frozen.thaw()?;
        }
        tree.collect(root, &mut before, &mut caught)?;
        Ok(tree)
    }

    /// The processes, parents before children.
    pub fn processes(&self) -> &[Process] {
        &self.processes
    }

    /// The root process.
    ///
    /// # Errors
    /// Never in a tree that [`Tree::stop`] made.
    pub fn root(&self) -> Result<&Process> {
        self.processes
            .first()
            .ok_or_else(|| Error::bug("stopped tree", "it is empty"))
    }

    /// All ids of its threads, as we see them.
    pub fn tids(&self) -> BTreeSet<HostPid> {
        self.processes
            .iter()
            .flat_map(|p| {
                p.alive()
                    .map(|a| a.threads.iter().map(|t| t.tid).collect())
                    .unwrap_or_else(|| vec![p.pid])
            })
            .collect()
    }

    /// Runs `ask` with the call loop in the process number `index`, and takes
    /// the loop out again.
    ///
    /// # Errors
    /// Those of `ask`, of steering, and a process without vDSO.
    pub fn steer<T>(
        &mut self,
        index: usize,
        taken: &[crate::base::PageRange],
        vdso: crate::base::PageRange,
        ask: impl FnOnce(&mut steer::Steered, &mut [Thread]) -> Result<T>,
    ) -> Result<T> {
        let process = self
            .processes
            .get_mut(index)
            .ok_or_else(|| Error::bug("steer", "no such process"))?;
        let pid = process.pid;
        let Body::Alive(alive) = &mut process.body else {
            return Err(Error::bug(format!("steer task {pid}"), "it is a zombie"));
        };
        for t in &mut alive.threads {
            if t.settled.is_undecided() {
                t.set_settled()?;
            }
        }
        let (leader, others) = alive
            .threads
            .split_first_mut()
            .ok_or_else(|| Error::bug(format!("steer task {pid}"), "no threads"))?;
        let insn = steer::find_syscall(pid, vdso)?;
        let hole = procfs::find_hole(taken, steer::MAPPING_LEN).ok_or_else(|| {
            Error::refused(format!("task {pid}"), "its address space has no hole")
        })?;
        let ignores_trap = leader.ignores_trap();
        let mut steered = match steer::Steered::install(leader.take()?, insn, hole) {
            Ok(s) => s,
            Err((task, e)) => {
                leader.stopped = Some(task);
                return Err(e);
            }
        };
        let result = ask(&mut steered, others);
        let reset = if ignores_trap {
            steered.ignore_trap()
        } else {
            Ok(())
        };
        leader.stopped = Some(steered.remove()?);
        reset?;
        result
    }

    /// One call in the process number `index`, without the loop: its result, a negative
    /// errno if it failed. `None` when each of its threads has a signal to handle
    /// first.
    ///
    /// # Errors
    /// It died, or does something else than the call.
    pub fn call(&mut self, index: usize, insn: u64, nr: i64, args: &[u64]) -> Result<Option<i64>> {
        let Some(Body::Alive(alive)) = self.processes.get_mut(index).map(|p| &mut p.body) else {
            return Err(Error::bug("call", "no such live process"));
        };
        let mut threads = alive.threads.iter_mut();
        let free = threads.find(|t| !t.settled.is_undecided());
        match free.and_then(|t| t.stopped.as_mut()) {
            Some(stopped) => steer::once(stopped, insn, nr, args).map(Some),
            None => Ok(None),
        }
    }

    /// Settles the calls in the process number `index` that waited for the signal
    /// actions to be known ([`Settled::decide`]).
    ///
    /// # Errors
    /// No such live process, or it died.
    pub fn decide(&mut self, index: usize, actions: &[SaEntry]) -> Result<()> {
        let Some(Body::Alive(alive)) = self.processes.get_mut(index).map(|p| &mut p.body) else {
            return Err(Error::bug("settle calls", "no such live process"));
        };
        for t in &mut alive.threads {
            if t.settled.decide(|signal| restarts(actions, signal)) {
                t.set_settled()?;
            }
        }
        Ok(())
    }

    /// Lets all go on.
    ///
    /// # Errors
    /// The first failure; the rest is let go all the same.
    pub fn resume(mut self) -> Result<()> {
        self.release()
    }

    fn release(&mut self) -> Result<()> {
        let mut first = Ok(());
        let frozen = self.prefrozen.take();
        if let Some(frozen) = &frozen {
            first = frozen.refreeze_begin();
        }
        // children first: a parent that runs could see a stopped child
        for p in self.processes.iter_mut().rev() {
            let Body::Alive(a) = &mut p.body else {
                continue;
            };
            for t in &mut a.threads {
                // killed meanwhile: nothing left to let go
                if let Err(e) = t.let_go()
                    && e.raw_os_error() != Some(libc::ESRCH)
                    && first.is_ok()
                {
                    first = Err(e);
                }
            }
        }
        match frozen {
            Some(frozen) => first.and(frozen.refreeze()),
            None => first,
        }
    }

    /// Kills the tree, and waits until every process is gone or a zombie.
    ///
    /// # Errors
    /// If one does not die within ten seconds.
    pub fn kill(mut self) -> Result<()> {
        let mut fds = Vec::new();
        for p in self.processes.drain(..) {
            if let Body::Alive(a) = p.body {
                match pidfd::send_signal(a.pidfd.as_fd(), libc::SIGKILL) {
                    Ok(()) => {}
                    Err(e) if e.raw_os_error() == Some(libc::ESRCH) => {}
                    Err(e) => return Err(e),
                }
                let tids: Vec<HostPid> = a.threads.iter().map(|t| t.tid).collect();
                drop(a.threads);
                fds.push((p.pid, a.pidfd, tids));
            }
        }
        // A dead tracee must be waited for by its tracer before anyone else sees
        // it gone.
        let tids = fds.iter().flat_map(|f| f.2.iter().copied()).collect();
        ptrace::reap_all(tids, STOP_DEADLINE);
        for (pid, fd, _) in fds {
            if !pidfd::wait_exit(fd.as_fd(), Some(STOP_DEADLINE))? {
                return Err(Error::bug(
                    format!("kill task {pid}"),
                    "it did not die within ten seconds",
                ));
            }
        }
        Ok(())
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        if let Err(e) = self.release() {
            tracing::error!("let a task go: {e}");
        }
    }
}

fn read_before(root: HostPid, guards: bool, all: &mut Vec<(HostPid, Before)>) {
    let read = if guards {
        Before::with_guards
    } else {
        Before::read
    };
    // what comes and goes meanwhile is read in the freeze
    let each = procfs::tree(root).filter_map(|pid| Some((pid, read(pid).ok()?)));
    all.extend(each.take(limits::MAX_TASKS));
}
