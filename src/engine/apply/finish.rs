//! The last steps: timers run, registers are set, the loop goes, all go on.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::tasks::body;
use super::{Build, Made};
use crate::base::{Error, NsPid, PAGE_SIZE, Result, ResultExt, VAddr};
use crate::engine::plan::task::Thread;
use crate::memory::Job;
use crate::objects::task::rebuild::State;
use crate::objects::{signals, thread, timers};
use crate::sys::ptrace::{self, Stopped};
use crate::sys::steer::{Batch, Steered, done};
use crate::sys::vm;

const RSEQ_CS_AT: u64 = 8;
/// How long killed tasks may take to end.
const DEATH: Duration = Duration::from_secs(10);

/// All tasks as they were, stopped only by us.
#[derive(Debug)]
pub(in crate::engine) struct Ready {
    threads: Vec<Stopped>,
    stop: Vec<(Pid, Signal)>,
    made: Made,
    /// What a lazy restore has to hand over.
    pub(in crate::engine) lazy: Job,
}

impl Build<'_> {
    /// Arms timers, sets registers and masks, and takes the loop out. `stopped`:
    /// all will be stopped when they go on.
    ///
    /// # Errors
    /// The task that it failed for.
    pub(in crate::engine) fn settle(mut self, stopped: bool) -> Result<Ready> {
        let mut ready = Ready {
            threads: Vec::new(),
            stop: Vec::new(),
            made: Made::default(),
            lazy: Job::default(),
        };
        for pid in self.living() {
            self.settle_task(pid, &mut ready, stopped)
                .context(|| format!("registers of task {pid}"))?;
        }
        ready.made = self.made;
        ready.lazy = self.left;
        Ok(ready)
    }

    fn settle_task(&mut self, pid: NsPid, ready: &mut Ready, stopped: bool) -> Result<()> {
        let plan = self.plan;
        let task = plan.task(pid)?;
        let body = body(task)?;
        let mut live = self
            .live
            .remove(&pid)
            .ok_or_else(|| Error::bug("restore", format!("task {pid} was not made")))?;
        if let Some(t) = &task.core.timers {
            let mut b = Batch::new();
            timers::rebuild::arm(&mut b, t);
            if !b.is_empty() {
                live.leader.run(&b)?;
            }
        }
        // what is pending for the process was counted on the first thread that
        // can take it: the leader goes on before the others
        let at = ready.threads.len();
        let mut plans = body.threads.iter();
        let first = plans
            .next()
            .ok_or_else(|| Error::bug("restore", "a task without threads"))?;
        for (t, mut steered) in plans.zip(live.threads) {
            prepare(&mut steered, t)?;
            ready.threads.push(steered.forget()?);
        }
        prepare(&mut live.leader, first)?;
        if let Some(action) = signals::rebuild::ignores_trap(&task.core.sigactions) {
            let at = live.leader.mapping().start() + PAGE_SIZE;
            vm::write(live.host, VAddr(at), &action)?;
            let r = live.leader.once(
                libc::SYS_rt_sigaction,
                &[libc::SIGTRAP.unsigned_abs().into(), at, 0, 8],
            )?;
            done("rt_sigaction", r)?;
        }
        let leader = if body.space.vdso.is_some() {
            live.leader.remove()?
        } else {
            // the vDSO goes after the loop, through its own instruction: the
            // task stops at the end of the call and never returns to it
            let m = live.leader.mapping();
            done(
                "munmap",
                live.leader.once(libc::SYS_munmap, &[m.start(), m.len()])?,
            )?;
            let v = live.vdso.whole();
            done(
                "munmap",
                live.leader.once(libc::SYS_munmap, &[v.start(), v.len()])?,
            )?;
            live.leader.forget()?
        };
        ready.threads.insert(at, leader);
        for t in &body.threads {
            if let Some(r) = t.rseq()
                && let Some(cs) = r.rseq_cs_pointer.filter(|p| *p != 0)
            {
                vm::write(
                    live.host,
                    VAddr(r.rseq_abi_pointer.saturating_add(RSEQ_CS_AT)),
                    &cs.to_le_bytes(),
                )?;
            }
        }
        if let State::Stopped(signal) = task.state {
            let signal = Signal::try_from(signal)
                .context(|| format!("signal {signal} that stopped task {pid}"))?;
            ready.stop.push((Pid::from_raw(live.host.0), signal));
        } else if stopped {
            ready
                .stop
                .push((Pid::from_raw(live.host.0), Signal::SIGSTOP));
        }
        Ok(())
    }
}

impl Ready {
    /// Lets all go. After the first one there is no way back: a task that has been
    /// killed meanwhile might as well have been killed the moment after.
    ///
    /// # Errors
    /// None is left to go on; a failure that is not such a death.
    pub(in crate::engine) fn release(mut self) -> Result<()> {
        for (pid, signal) in std::mem::take(&mut self.stop) {
            kill(pid, signal).context(|| format!("stop task {pid} again"))?;
        }
        self.made.0.clear();
        let (mut failed, mut gone) = (None, Vec::new());
        let threads = std::mem::take(&mut self.threads);
        let all = threads.len();
        for t in threads {
            let tid = t.tid();
            match t.detach(0) {
                Err(e) if e.raw_os_error() == Some(libc::ESRCH) => {
                    tracing::warn!("task {tid} was killed before it went on");
                    gone.push(tid);
                }
                Err(e) => drop(failed.get_or_insert(e)),
                Ok(()) => {}
            }
        }
        if gone.len() == all {
            failed.get_or_insert(Error::errno("let the tasks go on", libc::ESRCH));
        }
        // only then are their parents told
        ptrace::reap_all(gone, DEATH);
        failed.map_or(Ok(()), Err)
    }
}

fn prepare(steered: &mut Steered, t: &Thread) -> Result<()> {
    let xstate = match &t.xstate {
        Some(raw) => {
            thread::rebuild::load_tiles(steered, t.tid, raw)?;
            raw.clone()
        }
        None => {
            let len = steered.task.xstate()?.len();
            thread::rebuild::xstate(t.tid, &t.info.fpregs, len)?
        }
    };
    steered
        .task
        .set_xstate(&xstate)
        .context(|| format!("thread {}", t.tid))?;
    steered.saved = t.regs;
    steered.mask = t.mask;
    Ok(())
}
