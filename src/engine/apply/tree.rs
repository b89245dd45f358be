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
            TreeStep::Leave(pid) => {
                let helper = self.taken_out(pid)?;
                self.quit(helper, 0)
            }
            TreeStep::Die(pid) => self.die(pid),
            TreeStep::Reap { parent, child } => {
                let number = self.numbers.get(&child).copied().unwrap_or(child);
                self.wait_for(parent, number)
            }
        }
    }

    fn call(&mut self, pid: NsPid, what: &'static str, nr: i64, args: &[Arg]) -> Result<()> {
        let mut b = Batch::new();
        b.call(what, nr, args);
        self.live(pid)?.leader.run(&b).map(drop)
    }

    fn fork(&mut self, parent: NsPid, child: NsPid) -> Result<()> {
        self.before_fork(parent, child)?;
        let live = if self.plan.tree.unnumbered.contains(&child) {
            let (number, live) = self.fork_unneeded(parent)?;
            tracing::debug!("helper {child} has number {number}");
            self.numbers.insert(child, number);
            live
        } else {
            let flags = self.shared_with_parent(parent, child)?;
            self.fork_as(parent, Some(child), flags)?.1
        };
        self.live.insert(child, live);
        self.after_fork(parent, child)
    }

    /// Forks a helper under a number that nobody needs. The kernel chooses it: any
    /// that looked free to us may be the one that another restore in this pid
    /// namespace is about to take. What it chooses may be one that this tree needs
    /// later: then that child holds the number, so that the next one gets another,
    /// and goes when one fits.
    fn fork_unneeded(&mut self, parent: NsPid) -> Result<(NsPid, Live)> {
        let needed = self.plan.ids();
        let mut holding = Vec::new();
        let fits = loop {
            let (number, live) = self.fork_as(parent, None, 0)?;
            if !needed.contains(&number) {
                break (number, live);
            }
            holding.push((number, live));
        };
        for (number, live) in holding {
            self.quit(live, 0)?;
            self.wait_for(parent, number)?;
        }
        Ok(fits)
    }

    /// Forks a child under this number, or under one that the kernel chooses;
    /// returns it, as the parent sees it.
    fn fork_as(
        &mut self,
        parent: NsPid,
        number: Option<NsPid>,
        flags: u64,
    ) -> Result<(NsPid, Live)> {
        let live = self.live(parent)?;
        let vdso = live.vdso.clone();
        let mut b = Batch::new();
        let args = args_bytes(flags, libc::SIGCHLD, 0, usize::from(number.is_some()));
        let args_len = args.len();
        let args = b.bytes(&args);
        if let Some(number) = number {
            let tids = b.bytes(&u64::from(number.0.unsigned_abs()).to_le_bytes());
            b.patch(args, SET_TID_AT, Arg::Buf(tids));
        }
        let clone3 = b.call("clone3", libc::SYS_clone3, &[args.into(), args_len.into()]);
        let told = live.leader.run(&b)?;
        let ([host], Ok(number)) = (&told.made[..], i32::try_from(told.ret(clone3))) else {
            return Err(Error::bug(
                format!("task {parent} forks"),
                format!("{} tasks were made", told.made.len()),
            ));
        };
        let host = *host;
        self.made.0.push(host);
        let stopped = first_stop(host)?;
        let live = self.live(parent)?;
        let leader = Steered::inherited(stopped, &live.leader)?;
        let live = Live {
            host,
            leader,
            threads: Vec::new(),
            vdso,
        };
        Ok((NsPid(number), live))
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

    /// Takes a task out of those that live.
    fn taken_out(&mut self, pid: NsPid) -> Result<Live> {
        self.live
            .remove(&pid)
            .ok_or_else(|| Error::bug("restore", format!("task {pid} was not made")))
    }

    /// It exits; it is a zombie until its parent waits for it.
    fn quit(&mut self, mut live: Live, code: i32) -> Result<()> {
        let mut b = Batch::new();
        b.call("exit_group", libc::SYS_exit_group, &[code.into()]);
        match live.leader.run(&b) {
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => {
                self.made.forget(live.host);
                Ok(())
            }
            Err(e) => Err(e),
            Ok(_) => Err(Error::bug(
                format!("task {}", live.host),
                "survived its exit",
            )),
        }
    }

    /// `parent` waits for its dead child of this number.
    fn wait_for(&mut self, parent: NsPid, number: NsPid) -> Result<()> {
        let mut b = Batch::new();
        // a parent that ignores SIGCHLD has none to wait for
        b.try_call(
            "wait4",
            libc::SYS_wait4,
            &[number.0.into(), 0u64.into(), 0.into(), 0u64.into()],
        );
        self.live(parent)?.leader.run(&b).map(drop)
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
            let dying = self.taken_out(pid)?;
            return self.quit(dying, (status >> 8) & 0xff);
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
        let mut live = self.taken_out(pid)?;
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
