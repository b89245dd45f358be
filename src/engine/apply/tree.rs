//! The tree: forks, sessions, groups, helpers, zombies, one step at a time.

use std::os::fd::AsFd;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Build, Live, SEIZED, reap};
use crate::base::{Error, HostPid, NsPid, Result, ResultExt};
use crate::engine::plan::tree::TreeStep;
use crate::objects::task::rebuild::{self as task, State};
use crate::sys::clone::{SET_TID_AT, args_bytes};
use crate::sys::pidfd;
use crate::sys::ptrace::{Seized, Waited};
use crate::sys::steer::{Arg, Batch, Steered};

/// How often another id is tried for a helper whose id is taken.
const TRIES: i32 = 200;

impl Build<'_> {
    /// Makes all tasks, without memory and descriptors.
    ///
    /// # Errors
    /// The step that failed.
    pub(in crate::engine) fn grow(&mut self) -> Result<()> {
        for step in self.plan.tree.steps.clone() {
            tracing::debug!("{step}");
            self.take(step).context(|| step.to_string())?;
        }
        Ok(())
    }

    fn take(&mut self, step: TreeStep) -> Result<()> {
        match step {
            TreeStep::Fork { parent, child } => self.fork(parent, child),
            TreeStep::Setsid(pid) => {
                self.call(pid, "setsid", libc::SYS_setsid, &[])?;
                self.controlling(pid)
            }
            TreeStep::Setpgid { pid, pgid } => self.call(
                pid,
                "setpgid",
                libc::SYS_setpgid,
                &[0.into(), pgid.0.into()],
            ),
            TreeStep::Subreaper { pid, on } => self.call(
                pid,
                "prctl(PR_SET_CHILD_SUBREAPER)",
                libc::SYS_prctl,
                &[libc::PR_SET_CHILD_SUBREAPER.into(), i32::from(on).into()],
            ),
            TreeStep::Leave(pid) => self.exit(pid, 0),
            TreeStep::Die(pid) => self.die(pid),
            TreeStep::Reap { parent, child } => {
                let real = self.aliases.get(&child).copied().unwrap_or(child);
                let mut b = Batch::new();
                // a parent that ignores SIGCHLD has none to wait for
                b.try_call(
                    "wait4",
                    libc::SYS_wait4,
                    &[real.0.into(), 0u64.into(), 0.into(), 0u64.into()],
                );
                self.live(parent)?.leader.run(&b).map(drop)
            }
        }
    }

    fn call(&mut self, pid: NsPid, what: &'static str, nr: i64, args: &[Arg]) -> Result<()> {
        let mut b = Batch::new();
        b.call(what, nr, args);
        self.live(pid)?.leader.run(&b).map(drop)
    }

    fn fork(&mut self, parent: NsPid, child: NsPid) -> Result<()> {
        let flags = self.shared_with_parent(parent, child)?;
        self.before_fork(parent, child)?;
        let any_id = self.plan.tree.helpers.contains(&child)
            && !self
                .plan
                .members
                .iter()
                .any(|m| m.sid == child || m.pgid == child);
        let mut id = child;
        for _ in 0..TRIES {
            match self.fork_as(parent, id, flags) {
                Err(e) if any_id && e.raw_os_error() == Some(libc::EEXIST) => {
                    id = self.next_free(id)?;
                }
                Err(e) => return Err(e),
                Ok(live) => {
                    if id != child {
                        self.aliases.insert(child, id);
                    }
                    self.live.insert(id, live);
                    return self.after_fork(parent, child);
                }
            }
        }
        Err(Error::errno("find a free id for a helper", libc::EAGAIN))
    }

    /// The next id that no task of the plan needs.
    fn next_free(&self, after: NsPid) -> Result<NsPid> {
        let ids = self.plan.ids();
        (1..i32::MAX)
            .filter_map(|n| after.0.checked_add(n))
            .map(NsPid)
            .find(|id| {
                !ids.contains(id)
                    && !self.live.contains_key(id)
                    && !self
                        .plan
                        .members
                        .iter()
                        .any(|m| m.sid == *id || m.pgid == *id)
            })
            .ok_or_else(|| Error::errno("find a free id for a helper", libc::EAGAIN))
    }

    fn fork_as(&mut self, parent: NsPid, id: NsPid, flags: u64) -> Result<Live> {
        let live = self.live(parent)?;
        let vdso = live.vdso.clone();
        let mut b = Batch::new();
        let tids = b.bytes(&u64::from(id.0.unsigned_abs()).to_le_bytes());
        let args = args_bytes(flags, libc::SIGCHLD, 0, 1);
        let args_len = args.len();
        let args = b.bytes(&args);
        b.patch(args, SET_TID_AT, Arg::Buf(tids));
        b.call("clone3", libc::SYS_clone3, &[args.into(), args_len.into()]);
        let made = live.leader.run(&b)?.made;
        let [host] = made[..] else {
            return Err(Error::bug(
                format!("fork task {id}"),
                format!("{} tasks were made", made.len()),
            ));
        };
        self.made.0.push(host);
        let stopped = first_stop(host)?;
        let live = self.live(parent)?;
        let leader = Steered::inherited(stopped, &live.leader)?;
        Ok(Live {
            host,
            leader,
            threads: Vec::new(),
            vdso,
        })
    }

    /// `CLONE_FILES` and `CLONE_FS` where the image says that a child shares
    /// its parent's.
    fn shared_with_parent(&self, parent: NsPid, child: NsPid) -> Result<u64> {
        let (Some(p), Some(c)) = (self.plan.tasks.get(&parent), self.plan.tasks.get(&child)) else {
            return Ok(0);
        };
        if p.body.is_none() || c.body.is_none() {
            return Ok(0);
        }
        let mut flags = 0;
        if p.ids.files_id == c.ids.files_id {
            flags |= u64::from(libc::CLONE_FILES.unsigned_abs());
        }
        if p.ids.fs_id == c.ids.fs_id {
            flags |= u64::from(libc::CLONE_FS.unsigned_abs());
        }
        Ok(flags)
    }

    fn exit(&mut self, pid: NsPid, code: i32) -> Result<()> {
        let real = self.aliases.get(&pid).copied().unwrap_or(pid);
        let mut live = self
            .live
            .remove(&real)
            .ok_or_else(|| Error::bug("restore", format!("task {pid} was not made")))?;
        let mut b = Batch::new();
        b.call("exit_group", libc::SYS_exit_group, &[code.into()]);
        match live.leader.run(&b) {
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            Err(e) => Err(e),
            Ok(_) => Err(Error::bug(format!("task {pid}"), "survived its exit")),
        }
    }

    /// A task of the plan becomes the zombie that it was.
    fn die(&mut self, pid: NsPid) -> Result<()> {
        let plan = self.plan.task(pid)?;
        let State::Zombie(status) = plan.state else {
            return Err(Error::bug(format!("task {pid}"), "is no zombie"));
        };
        let mut b = Batch::new();
        task::comm(&mut b, pid, &plan.core.comm)?;
        let signal = status & 0x7f;
        if signal == 0 {
            self.live(pid)?.leader.run(&b)?;
            return self.exit(pid, (status >> 8) & 0xff);
        }
        if signal != libc::SIGKILL && signal != libc::SIGSTOP {
            let default = b.buffer(32);
            b.call(
                "rt_sigaction",
                libc::SYS_rt_sigaction,
                &[signal.into(), default.into(), 0u64.into(), 8.into()],
            );
            let no_core = b.buffer(16);
            b.call(
                "prlimit64",
                libc::SYS_prlimit64,
                &[
                    0.into(),
                    libc::RLIMIT_CORE.into(),
                    no_core.into(),
                    0u64.into(),
                ],
            );
        }
        self.live(pid)?.leader.run(&b)?;
        let mut live = self
            .live
            .remove(&pid)
            .ok_or_else(|| Error::bug("restore", format!("task {pid} was not made")))?;
        let handle = pidfd::open(live.host)?;
        if signal == libc::SIGKILL {
            kill(Pid::from_raw(live.host.0), Signal::SIGKILL)
                .context(|| format!("kill zombie {pid}"))?;
            reap(live.host);
            return Ok(());
        }
        // it stands at the trap of the loop: that signal is replaced by this one
        live.leader.task.set_sigmask(0)?;
        live.leader.task.detach(signal)?;
        pidfd::wait_exit(handle.as_fd(), None).map(drop)
    }
}

/// The first stop of a task that was seized by the call that made it.
pub(super) fn first_stop(host: HostPid) -> Result<crate::sys::ptrace::Stopped> {
    match Seized::adopted(host, SEIZED).wait()? {
        Waited::Stopped(s, _) => Ok(s),
        Waited::Gone(status) => Err(Error::bug(
            format!("new task {host}"),
            format!("died at once, wait status {status:#x}"),
        )),
    }
}
