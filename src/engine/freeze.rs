//! Stopping a tree of tasks, and letting it go.
//!
//! Tasks are seized and interrupted, and listed again, until nothing new
//! appears: a stopped parent makes no children. [`Frozen`] owns all of them;
//! dropped, it lets them go on as if nothing had been. What is found in a
//! control group or pid namespace of the container but not in the tree is
//! another one's concern ([`crate::objects::cgroup`]).

use std::collections::{BTreeSet, HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::base::{Error, HostPid, Result, limits};
use crate::objects::mm::capture::Before;
use crate::objects::signals::capture::delivery;
use crate::objects::thread::capture::{Delivery, Settled, settle};
use crate::sys::cgroup::{self, Prefrozen};
use crate::sys::procfs::{self, Stat, Status};
use crate::sys::ptrace::{self, Options, Seized, Stop, Stopped, Waited};
use crate::sys::{pidfd, steer};

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
    Zombie(Status),
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
    pub before: Before,
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
    /// Stops the tree under `root`.
    ///
    /// # Errors
    /// No such task; a task that somebody else traces; one that does not stop
    /// within ten seconds; the tree goes on then.
    pub fn stop(root: HostPid) -> Result<Self> {
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
        read_before(root, &mut before);
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

    fn collect(
        &mut self,
        root: HostPid,
        before: &mut Vec<(HostPid, Before)>,
        caught: &mut Caught,
    ) -> Result<()> {
        self.add(root, None, before, caught)?;
        let mut at = 0;
        while at < self.processes.len() {
            let Some(p) = self.processes.get(at) else {
                break;
            };
            if matches!(p.body, Body::Alive(_)) {
                for child in procfs::children(p.pid)? {
                    self.add(child, Some(at), before, caught)?;
                }
            }
            at += 1;
        }
        Ok(())
    }

    fn add(
        &mut self,
        pid: HostPid,
        parent: Option<usize>,
        before: &mut Vec<(HostPid, Before)>,
        caught: &mut Caught,
    ) -> Result<()> {
        if self.processes.len() >= limits::MAX_TASKS {
            return Err(Error::refused(
                format!("task {pid}"),
                "too many tasks in the tree",
            ));
        }
        let fd = pidfd::open(pid)?;
        let stat = procfs::stat(pid)?;
        let body = if matches!(stat.state, b'Z' | b'X') {
            if procfs::threads(pid)?.len() > 1 {
                return Err(Error::refused(
                    format!("task {pid}"),
                    "its main thread has exited while others go on",
                ));
            }
            Body::Zombie(procfs::status(pid)?)
        } else {
            let before = before
                .iter()
                .position(|(p, _)| *p == pid)
                .map(|i| before.swap_remove(i).1);
            Body::Alive(stop_process(
                pid,
                fd,
                before.unwrap_or_default(),
                caught.remove(&pid).unwrap_or_default(),
            )?)
        };
        self.processes.push(Process {
            pid,
            parent,
            stat,
            body,
        });
        Ok(())
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
                if let Some(stopped) = t.stopped.take() {
                    let r = stopped.detach(0);
                    // killed meanwhile: nothing left to let go
                    if let Err(e) = r
                        && e.raw_os_error() != Some(libc::ESRCH)
                        && first.is_ok()
                    {
                        first = Err(e);
                    }
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

fn read_before(root: HostPid, all: &mut Vec<(HostPid, Before)>) {
    let mut queue = vec![root];
    while let Some(pid) = queue.pop() {
        // what comes and goes meanwhile is read in the freeze
        if let Ok(before) = Before::read(pid) {
            all.push((pid, before));
        }
        if all.len() < limits::MAX_TASKS {
            queue.extend(procfs::children(pid).unwrap_or_default());
        }
    }
}

/// Threads that have been interrupted and not yet been seen to stop.
type Caught = HashMap<HostPid, Vec<Seized>>;

/// Interrupts the threads of `pid` that are not in `seen` yet.
fn interrupt(pid: HostPid, seen: &mut HashSet<HostPid>) -> Result<Vec<Seized>> {
    let options = Options {
        suspend_seccomp: true,
        ..Options::default()
    };
    let mut fresh = Vec::new();
    for tid in procfs::threads(pid)? {
        if !seen.insert(tid) {
            continue;
        }
        match ptrace::seize(tid, options).and_then(|s| s.interrupt().map(|()| s)) {
            Ok(s) => fresh.push(s),
            // it ended between listing and seizing
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => {}
            Err(e) => return Err(why_not(tid, e)),
        }
    }
    Ok(fresh)
}

/// Interrupts the whole tree under `pid`, waiting for nothing.
fn catch(pid: HostPid, caught: &mut Caught) -> Result<()> {
    let mut queue = vec![pid];
    while let Some(pid) = queue.pop() {
        if matches!(procfs::stat(pid)?.state, b'Z' | b'X') {
            continue;
        }
        caught.insert(pid, interrupt(pid, &mut HashSet::new())?);
        queue.extend(procfs::children(pid)?);
    }
    Ok(())
}

fn stop_process(pid: HostPid, fd: OwnedFd, before: Before, caught: Vec<Seized>) -> Result<Alive> {
    let mut seen: HashSet<HostPid> = caught.iter().map(Seized::tid).collect();
    let mut fresh = caught;
    let mut stopped: Vec<(Stopped, Stop)> = Vec::new();
    let mut stop = || -> Result<()> {
        loop {
            fresh.extend(interrupt(pid, &mut seen)?);
            if fresh.is_empty() {
                return Ok(());
            }
            for s in fresh.drain(..) {
                if let Some(pair) = wait_stopped(s)? {
                    stopped.push(pair);
                }
            }
        }
    };
    if let Err(e) = stop() {
        for (s, _) in stopped {
            let _ = s.detach(0);
        }
        // what does not stop now is let go when this thread ends
        for s in fresh {
            if let Ok(Some((s, _))) = wait_stopped(s) {
                let _ = s.detach(0);
            }
        }
        return Err(e);
    }
    stopped.sort_by_key(|(s, _)| (s.tid() != pid, s.tid()));
    let mut threads = Vec::with_capacity(stopped.len());
    let mut stop_signal = None;
    let mut left = stopped.into_iter();
    for (mut s, reason) in left.by_ref() {
        if let Stop::Event { signal } = reason
            && signal != libc::SIGTRAP
        {
            stop_signal = Some(signal);
        }
        match read_thread(pid, &mut s) {
            Ok((status, settled, mask)) => {
                threads.push(Thread {
                    tid: s.tid(),
                    status,
                    settled,
                    mask,
                    stopped: Some(s),
                });
            }
            Err(e) => {
                let _ = s.detach(0);
                for (s, _) in left.by_ref() {
                    let _ = s.detach(0);
                }
                for mut t in threads {
                    if let Some(s) = t.stopped.take() {
                        let _ = s.detach(0);
                    }
                }
                return Err(e);
            }
        }
    }
    if threads.first().is_none_or(|t| t.tid != pid) {
        for mut t in threads {
            if let Some(s) = t.stopped.take() {
                let _ = s.detach(0);
            }
        }
        return Err(Error::refused(
            format!("task {pid}"),
            "its main thread is gone",
        ));
    }
    Ok(Alive {
        pidfd: fd,
        threads,
        stop_signal,
        before,
    })
}

fn read_thread(pid: HostPid, s: &mut Stopped) -> Result<(Status, Settled, u64)> {
    let status = procfs::thread_status(pid, s.tid())?;
    let mask = s.sigmask()?;
    // the actions' flags are not known yet; a handler without SA_RESTART is the rare case
    let how = delivery(status.shd_pnd | status.sig_pnd, mask, status.sig_cgt, 0);
    let settled = settle(
        s,
        if how == Delivery::None {
            how
        } else {
            Delivery::Handler
        },
    )?;
    Ok((status, settled, mask))
}

fn why_not(tid: HostPid, e: Error) -> Error {
    let tracer = procfs::status(tid).map(|s| s.tracer).unwrap_or(0);
    if tracer == 0 {
        e
    } else {
        Error::refused(format!("task {tid}"), format!("task {tracer} traces it"))
    }
}

/// Waits for the stop; signals that come first are delivered. `None`: it died.
fn wait_stopped(mut seized: Seized) -> Result<Option<(Stopped, Stop)>> {
    let deadline = Instant::now() + STOP_DEADLINE;
    let mut pause = Duration::from_micros(20);
    loop {
        match seized.poll()? {
            Ok(Waited::Stopped(s, stop @ Stop::Event { .. })) => return Ok(Some((s, stop))),
            Ok(Waited::Stopped(s, Stop::Signal(signal))) => seized = s.deliver(signal)?,
            Ok(Waited::Stopped(s, _)) => seized = s.resume()?,
            Ok(Waited::Gone(_)) => return Ok(None),
            Err(s) => {
                seized = s;
                if Instant::now() > deadline {
                    return Err(Error::refused(
                        format!("task {}", seized.tid()),
                        "it does not stop: in vfork, or in an uninterruptible call",
                    ));
                }
                // the kernel has no descriptor to wait on for a ptrace stop
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(1));
            }
        }
    }
}
