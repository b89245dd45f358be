//! A plan to living tasks: clone the root, make the tree, fill each task from
//! outside, and let all go at once.
//!
//! Everything until the first detach can be undone: [`Made`]'s drop kills what
//! was made. All tasks are seized with EXITKILL as well, so that nothing
//! half-built outlives this process either.

mod anchor;
mod finish;
mod holder;
mod inherit;
mod memory;
mod root;
mod shared;
mod tasks;
mod terminal;
mod tree;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::fd::RawFd;
use std::sync::Arc;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::plan::Plan;
use crate::base::{Error, HostPid, NsPid, PageRange, Result};
use crate::memory::{Job, PageReader};
use crate::objects::vdso::rebuild::Present;
use crate::sys::ptrace::{self, Options};
use crate::sys::steer::Steered;

pub(super) use finish::Ready;
pub(super) use holder::{Files, free_number};
pub(super) use root::{Origin, own_pidfd};

/// A task that exists.
#[derive(Debug)]
struct Live {
    host: HostPid,
    leader: Steered,
    /// The others, in the order of the plan.
    threads: Vec<Steered>,
    vdso: Present,
}

/// How the new tasks are seized.
const SEIZED: Options = Options {
    kill_on_tracer_death: true,
    follow: true,
    suspend_seccomp: true,
};

/// A restore under way. Dropping it kills all that it made.
pub(super) struct Build<'a> {
    plan: &'a Plan,
    pages: &'a dyn PageReader,
    lazy: bool,
    live: BTreeMap<NsPid, Live>,
    made: Made,
    /// The numbers that the kernel chose for helpers, by what the plan calls them.
    numbers: BTreeMap<NsPid, NsPid>,
    /// The number under which tasks hold the pidfd of this process.
    service: RawFd,
    /// Free in every task: the loop, then room to park the vDSO.
    hole: PageRange,
    shared: BTreeMap<u64, Arc<File>>,
    /// What a lazy restore leaves to be filled later.
    left: Job,
    /// Controlling terminals: session, foreground group, our descriptor.
    terminals: Vec<(NsPid, NsPid, RawFd)>,
    /// Memory that tasks have before their address spaces are built.
    early: BTreeMap<NsPid, inherit::Early>,
}

impl Build<'_> {
    fn live(&mut self, pid: NsPid) -> Result<&mut Live> {
        self.live
            .get_mut(&pid)
            .ok_or_else(|| Error::bug("restore", format!("task {pid} was not made")))
    }
    /// A task as the host sees it.
    pub(super) fn host(&mut self, pid: NsPid) -> Result<HostPid> {
        Ok(self.live(pid)?.host)
    }

    /// The living tasks of the plan, parents first as far as pids tell.
    pub(super) fn living(&self) -> Vec<NsPid> {
        self.plan
            .tasks
            .values()
            .filter(|t| t.body.is_some())
            .map(|t| t.pid)
            .collect()
    }
}

/// Everything that was made, parents before children, and dies with this value.
#[derive(Debug, Default)]
struct Made(Vec<HostPid>);

impl Made {
    /// It is dead, and its number may be another's soon.
    fn forget(&mut self, pid: HostPid) {
        self.0.retain(|made| *made != pid);
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        // parents last: as long as they stand, no number of a dead child is free for
        // somebody else
        for pid in self.0.iter().rev() {
            // dead already is fine
            let _ = kill(Pid::from_raw(pid.0), Signal::SIGKILL);
        }
        reap_all(&self.0);
    }
}

/// Waits until a tracee of ours is gone, as far as we are told.
fn reap(pid: HostPid) {
    loop {
        match waitpid(Pid::from_raw(pid.0), Some(WaitPidFlag::__WALL)) {
            Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) | Err(_) => return,
            Ok(_) => {}
        }
    }
}

/// Waits until tracees of ours are gone, as far as we are told. The first task of
/// a pid namespace ends only when all in it have, also children that it was
/// making when it was killed, whose tracer we are: so whatever this thread may
/// reap is reaped.
fn reap_all(made: &[HostPid]) {
    let mut left: BTreeSet<i32> = made.iter().map(|pid| pid.0).collect();
    let any = Pid::from_raw(-1);
    while !left.is_empty() {
        match waitpid(any, Some(WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD)) {
            Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..)) => {
                left.remove(&pid.as_raw());
            }
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(_) => return,
        }
    }
}

/// Seizes, stops and hands over a task that runs.
fn stop(pid: HostPid) -> Result<ptrace::Stopped> {
    let seized = ptrace::seize(pid, SEIZED)?;
    seized.interrupt()?;
    match seized.wait()? {
        ptrace::Waited::Stopped(s, _) => Ok(s),
        ptrace::Waited::Gone(status) => Err(Error::bug(
            format!("stop new task {pid}"),
            format!("it is gone, wait status {status:#x}"),
        )),
    }
}
