//! Directories, descriptors, threads and attributes of one task.

use super::holder::Files;
use super::tree::first_stop;
use std::os::fd::{AsFd, OwnedFd, RawFd};

use super::{Build, Live};
use crate::base::{Error, HostPid, NsPid, Result, ResultExt};
use crate::engine::plan::task::{Body, Task, Thread};
use crate::image::records::PeerCredEntry;
use crate::objects::files::Descriptor;
use crate::objects::{credentials, rlimits, seccomp, signals, task, thread, timers};
use crate::sys::clone::{SET_TID_AT, args_bytes};
use crate::sys::steer::{Arg, Batch, Steered};
use crate::sys::{pidfd, sched};

const THREAD_FLAGS: i32 = libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM;
/// Most descriptors in one batch.
const SLOTS: usize = 512;

impl Build<'_> {
    /// Builds everything of one task but its registers.
    ///
    /// # Errors
    /// The call that failed.
    pub(in crate::engine) fn furnish(
        &mut self,
        pid: NsPid,
        files: &mut Files<'_>,
        with_files: bool,
    ) -> Result<()> {
        let plan = self.plan;
        let task = plan.task(pid)?;
        let body = body(task)?;
        self.space(pid, files)
            .context(|| format!("memory of task {pid}"))?;
        self.directories(pid, body, files)
            .context(|| format!("directories of task {pid}"))?;
        if with_files {
            self.descriptors(pid, task, files)
                .context(|| format!("descriptors of task {pid}"))?;
        }
        Ok(())
    }

    pub(super) fn getfd(&self, b: &mut Batch, ours: i32) -> Arg {
        Arg::Ret(b.call(
            "pidfd_getfd",
            libc::SYS_pidfd_getfd,
            &[self.service.into(), ours.into(), 0.into()],
        ))
    }

    /// Makes a Unix pair in the name of a task that stands, with the ids that it
    /// had then. `None`: there is no such task.
    ///
    /// # Errors
    /// The call that failed.
    pub(in crate::engine) fn pair_by(
        &mut self,
        kind: i32,
        by: &PeerCredEntry,
    ) -> Result<Option<(OwnedFd, OwnedFd)>> {
        let Some(live) = self.live.get_mut(&NsPid(by.pid)) else {
            return Ok(None);
        };
        let mut b = Batch::new();
        let ends = b.buffer(8);
        effective_ids(&mut b, by.uid, by.gid);
        b.call(
            "socketpair",
            libc::SYS_socketpair,
            &[
                libc::AF_UNIX.into(),
                (kind | libc::SOCK_CLOEXEC).into(),
                0.into(),
                ends.into(),
            ],
        );
        effective_ids(&mut b, 0, 0);
        let told = live.leader.run(&b)?;
        let handle = pidfd::open(live.host)?;
        let mut b = Batch::new();
        let mut take = |index| {
            let number = told.u32_at(ends, index).cast_signed();
            b.call("close", libc::SYS_close, &[number.into()]);
            pidfd::getfd(handle.as_fd(), number)
        };
        let pair = (take(0)?, take(1)?);
        live.leader.run(&b)?;
        Ok(Some(pair))
    }

    fn directories(&mut self, pid: NsPid, body: &Body, files: &Files<'_>) -> Result<()> {
        let mut b = Batch::new();
        if !files.is_root(body.fs.root_id) {
            let root = self.getfd(&mut b, files.fd(body.fs.root_id)?);
            b.call("fchdir", libc::SYS_fchdir, &[root]);
            let here = b.cstr(b".");
            b.call("chroot", libc::SYS_chroot, &[here.into()]);
            b.call("close", libc::SYS_close, &[root]);
        }
        let cwd = self.getfd(&mut b, files.fd(body.fs.cwd_id)?);
        b.call("fchdir", libc::SYS_fchdir, &[cwd]);
        b.call("close", libc::SYS_close, &[cwd]);
        if let Some(umask) = body.fs.umask {
            b.call("umask", libc::SYS_umask, &[umask.into()]);
        }
        self.live(pid)?.leader.run(&b).map(drop)
    }

    fn descriptors(&mut self, pid: NsPid, task: &Task, files: &Files<'_>) -> Result<()> {
        let slots = files.table(task.ids.files_id);
        // the lowest free number is what pidfd_getfd returns; the table is empty
        // but for the service descriptor, which lies above all
        let mut b = Batch::new();
        let mut lowest = 0;
        for (n, slot) in slots.iter().enumerate() {
            self.slot(&mut b, slot, files.fd(slot.file)?, &mut lowest);
            if n % SLOTS == SLOTS - 1 {
                self.live(pid)?.leader.run(&b)?;
                b = Batch::new();
            }
        }
        self.live(pid)?.leader.run(&b).map(drop)
    }

    fn slot(&self, b: &mut Batch, slot: &Descriptor, ours: RawFd, lowest: &mut i32) {
        let fd = self.getfd(b, ours);
        if slot.fd == *lowest {
            // it came with FD_CLOEXEC
            b.call(
                "fcntl(F_SETFD)",
                libc::SYS_fcntl,
                &[fd, libc::F_SETFD.into(), i32::from(slot.cloexec).into()],
            );
            *lowest += 1;
            return;
        }
        let flags = if slot.cloexec { libc::O_CLOEXEC } else { 0 };
        b.call("dup3", libc::SYS_dup3, &[fd, slot.fd.into(), flags.into()]);
        b.call("close", libc::SYS_close, &[fd]);
    }

    /// Closes what tasks only had for being built.
    pub(in crate::engine) fn close_service(&mut self, pid: NsPid) -> Result<()> {
        let mut b = Batch::new();
        // of a shared table, the first one closes it
        b.try_call("close", libc::SYS_close, &[self.service.into()]);
        self.live(pid)?.leader.run(&b).map(drop)
    }

    /// What a task must do itself with its descriptors, with its final
    /// credentials: owners, epoll sets, locks.
    pub(in crate::engine) fn own_files(
        &mut self,
        pid: NsPid,
        files: &Files<'_>,
        first: bool,
    ) -> Result<()> {
        let plan = self.plan;
        let calls = files.after(pid, plan.task(pid)?.ids.files_id, first);
        for calls in calls.chunks(SLOTS) {
            let mut b = Batch::new();
            for call in calls {
                call.add_to(&mut b);
            }
            self.live(pid)?
                .leader
                .run(&b)
                .context(|| format!("descriptors of task {pid}"))?;
        }
        Ok(())
    }

    /// Makes the other threads of a task.
    ///
    /// # Errors
    /// The thread that could not be made.
    pub(in crate::engine) fn threads(&mut self, pid: NsPid) -> Result<()> {
        let plan = self.plan;
        let body = body(plan.task(pid)?)?;
        for t in body.threads.iter().skip(1) {
            let host = self
                .thread(pid, t)
                .context(|| format!("make thread {} of task {pid}", t.tid))?;
            tracing::debug!(tid = t.tid.0, host = host.0, "thread made");
        }
        Ok(())
    }

    fn thread(&mut self, pid: NsPid, t: &Thread) -> Result<HostPid> {
        let live = self.live(pid)?;
        let mut b = Batch::new();
        let tids = b.bytes(&u64::from(t.tid.0.unsigned_abs()).to_le_bytes());
        let args = args_bytes(u64::from(THREAD_FLAGS.unsigned_abs()), 0, 0, 1);
        let args_len = args.len();
        let args = b.bytes(&args);
        b.patch(args, SET_TID_AT, Arg::Buf(tids));
        b.call("clone3", libc::SYS_clone3, &[args.into(), args_len.into()]);
        let made = live.leader.run(&b)?.made;
        let [host] = made[..] else {
            return Err(Error::bug(
                format!("thread {}", t.tid),
                format!("{} threads were made", made.len()),
            ));
        };
        let stopped = first_stop(host)?;
        let steered = Steered::thread(stopped, &live.leader).map_err(|(_, e)| e)?;
        live.threads.push(steered);
        Ok(host)
    }

    /// Gives a task and its threads all that they are. `last_cap`: the highest
    /// capability that this kernel knows.
    ///
    /// # Errors
    /// The call that failed.
    pub(in crate::engine) fn attributes(&mut self, pid: NsPid, last_cap: u32) -> Result<()> {
        let plan = self.plan;
        let task = plan.task(pid)?;
        let body = body(task)?;
        let live = self.live(pid)?;
        oom_score(live.host, task.core.oom_score_adj)?;
        let mut b = Batch::new();
        if body.threads.iter().any(|t| t.xstate.is_some()) {
            thread::rebuild::allow_tiles(&mut b);
        }
        let thp = body.space.entry.thp_disabled == Some(true);
        task::rebuild::attributes(&mut b, &task.core, thp);
        if !task.core.sigactions.is_empty() {
            signals::rebuild::actions(pid, &mut b, &task.core.sigactions)?;
        }
        signals::rebuild::drain(&mut b);
        if let Some(q) = &task.core.signals_s {
            signals::rebuild::queue(&mut b, pid, None, q)?;
        }
        if let Some(t) = &task.core.timers {
            timers::rebuild::create(&mut b, t);
        }
        if let Some(l) = &task.core.rlimits {
            rlimits::rebuild::set(pid, &mut b, l)?;
        }
        live.leader.run(&b)?;
        for (index, t) in body.threads.iter().enumerate() {
            let dumpable = (index == 0).then_some(body.space.entry.dumpable).flatten();
            thread_attributes(pid, live, index, t, task, dumpable, last_cap)
                .context(|| format!("thread {} of task {pid}", t.tid))?;
        }
        Ok(())
    }
}

fn thread_attributes(
    pid: NsPid,
    live: &mut Live,
    index: usize,
    t: &Thread,
    task: &Task,
    dumpable: Option<i32>,
    last_cap: u32,
) -> Result<()> {
    let steered = match index.checked_sub(1) {
        None => &mut live.leader,
        Some(i) => live
            .threads
            .get_mut(i)
            .ok_or_else(|| Error::bug("restore", "a thread was not made"))?,
    };
    if let Some(policy) = t.own.sched_policy {
        sched::set_attr(
            steered.task.tid(),
            sched::Attr {
                policy,
                nice: t.own.sched_nice.unwrap_or(0),
                priority: t.own.sched_prio.unwrap_or(0),
                flags: 0,
            },
        )?;
    }
    let mut b = Batch::new();
    thread::rebuild::areas(
        &mut b,
        t.info.clear_tid_addr,
        t.own.futex_rla,
        t.own.futex_rla_len,
    );
    let name = match (&t.own.comm, index) {
        (Some(name), _) => Some(name),
        (None, 0) => Some(&task.core.comm),
        (None, _) => None,
    };
    if let Some(name) = name {
        task::rebuild::comm(&mut b, t.tid, name)?;
    }
    if let Some(sas) = &t.own.sas {
        signals::rebuild::altstack(&mut b, sas);
    }
    if let Some(q) = &t.own.signals_p {
        signals::rebuild::queue(&mut b, pid, Some(t.tid), q)?;
    }
    if let Some(r) = t.rseq() {
        thread::rebuild::rseq(&mut b, r);
    }
    seccomp::rebuild::install(&mut b, &t.seccomp);
    if let Some(c) = &t.own.creds {
        credentials::rebuild::set(&mut b, c, last_cap);
    }
    task::rebuild::after_credentials(&mut b, dumpable, t.own.pdeath_sig);
    steered.run(&b).map(drop)
}

pub(super) fn body(task: &Task) -> Result<&Body> {
    task.body
        .as_ref()
        .ok_or_else(|| Error::bug(format!("task {}", task.pid), "is a zombie"))
}

/// Sets the effective ids, which lets go of the effective capabilities, or takes
/// them again with user 0: the others stay 0. setresuid(2), capabilities(7)
fn effective_ids(b: &mut Batch, uid: u32, gid: u32) {
    let keep = u64::from(u32::MAX);
    let group = [keep.into(), u64::from(gid).into(), keep.into()];
    let user = [keep.into(), u64::from(uid).into(), keep.into()];
    if uid == 0 {
        b.call("setresuid", libc::SYS_setresuid, &user);
        b.call("setresgid", libc::SYS_setresgid, &group);
    } else {
        b.call("setresgid", libc::SYS_setresgid, &group);
        b.call("setresuid", libc::SYS_setresuid, &user);
    }
}

/// Writes /proc/PID/oom_score_adj where it differs: below its present minimum it
/// needs CAP_SYS_RESOURCE.
fn oom_score(host: HostPid, want: Option<i32>) -> Result<()> {
    let Some(want) = want else { return Ok(()) };
    let path = format!("/proc/{host}/oom_score_adj");
    let now = std::fs::read_to_string(&path).context(|| format!("read {path}"))?;
    if now.trim() == want.to_string() {
        return Ok(());
    }
    std::fs::write(&path, want.to_string()).context(|| format!("write {want} to {path}"))
}
