//! What a process is beside its memory, files and signals: small facts from
//! /proc and a few injected prctl(2) calls.

use crate::base::{Error, HostPid, Result};
use crate::image::records::{TaskCoreEntry, ThreadCoreEntry};
use crate::sys::procfs::{self, Stat};
use crate::sys::sched;
use crate::sys::steer::{Batch, Buf, CallId, Results};

/// `task_state` of an image.
pub mod state {
    /// Runs.
    pub const ALIVE: u32 = 1;
    /// A zombie.
    pub const DEAD: u32 = 2;
    /// Stopped by a signal.
    pub const STOPPED: u32 = 3;
}

const PR_GET_THP_DISABLE: i32 = 42;
const MEMBARRIER_CMD_GET_REGISTRATIONS: i32 = 1 << 9;
const SCHED_DEADLINE: u32 = 6;

/// Calls that a process answers about itself.
#[derive(Debug)]
pub struct Questions {
    brk: CallId,
    securebits: CallId,
    dumpable: CallId,
    thp: CallId,
    subreaper: Buf,
    membarrier: CallId,
}

/// Calls that each thread answers about itself.
#[derive(Debug)]
pub struct ThreadQuestions {
    clear_tid: Buf,
    pdeath: Buf,
}

/// What a process answered.
#[derive(Debug, Clone, Copy)]
pub struct Answers {
    /// The end of the heap.
    pub brk: u64,
    /// PR_GET_SECUREBITS.
    pub securebits: u32,
    /// PR_GET_DUMPABLE.
    pub dumpable: i32,
    /// PR_GET_THP_DISABLE.
    pub thp_disabled: bool,
    /// PR_GET_CHILD_SUBREAPER.
    pub subreaper: bool,
    /// Registered membarrier commands, 0 if the kernel does not tell.
    pub membarrier: u32,
}

/// Adds the questions to a process's leader.
pub fn ask(b: &mut Batch) -> Questions {
    let subreaper = b.buffer(8);
    Questions {
        brk: b.call("brk", libc::SYS_brk, &[0u64.into()]),
        securebits: b.call("prctl", libc::SYS_prctl, &[libc::PR_GET_SECUREBITS.into()]),
        dumpable: b.call("prctl", libc::SYS_prctl, &[libc::PR_GET_DUMPABLE.into()]),
        thp: b.try_call("prctl", libc::SYS_prctl, &[PR_GET_THP_DISABLE.into()]),
        membarrier: b.try_call(
            "membarrier",
            libc::SYS_membarrier,
            &[MEMBARRIER_CMD_GET_REGISTRATIONS.into()],
        ),
        subreaper: {
            b.call(
                "prctl",
                libc::SYS_prctl,
                &[libc::PR_GET_CHILD_SUBREAPER.into(), subreaper.into()],
            );
            subreaper
        },
    }
}

/// Adds the questions to a thread.
pub fn ask_thread(b: &mut Batch) -> ThreadQuestions {
    let (clear_tid, pdeath) = (b.buffer(8), b.buffer(8));
    b.call(
        "prctl",
        libc::SYS_prctl,
        &[libc::PR_GET_TID_ADDRESS.into(), clear_tid.into()],
    );
    b.call(
        "prctl",
        libc::SYS_prctl,
        &[libc::PR_GET_PDEATHSIG.into(), pdeath.into()],
    );
    ThreadQuestions { clear_tid, pdeath }
}

impl Questions {
    /// What it answered.
    pub fn answers(&self, r: &Results) -> Answers {
        Answers {
            brk: r.ret(self.brk).cast_unsigned(),
            securebits: u32::try_from(r.ret(self.securebits)).unwrap_or(0),
            dumpable: i32::try_from(r.ret(self.dumpable)).unwrap_or(0),
            thp_disabled: r.ret(self.thp) == 1,
            subreaper: r.u32_at(self.subreaper, 0) != 0,
            membarrier: u32::try_from(r.ret(self.membarrier)).unwrap_or(0),
        }
    }
}

impl ThreadQuestions {
    /// Address that the kernel clears when the thread ends.
    pub fn clear_tid(&self, r: &Results) -> u64 {
        r.u64_at(self.clear_tid, 0)
    }

    /// Signal sent when the parent dies, `None` for none.
    pub fn pdeath(&self, r: &Results) -> Option<u32> {
        Some(r.u32_at(self.pdeath, 0)).filter(|s| *s != 0)
    }
}

/// The parts of a process's core record that /proc tells.
///
/// # Errors
/// If /proc cannot be read.
pub fn core(pid: HostPid, stat: &Stat) -> Result<TaskCoreEntry> {
    let number = |what: &str, radix: u32| -> Result<i64> {
        let raw = procfs::file(pid, what)?;
        let text = String::from_utf8_lossy(&raw);
        i64::from_str_radix(text.trim(), radix)
            .map_err(|_| Error::bug(format!("parse /proc/{pid}/{what}"), text.into_owned()))
    };
    Ok(TaskCoreEntry {
        task_state: state::ALIVE,
        personality: u32::try_from(number("personality", 16)?).unwrap_or(0),
        flags: u32::try_from(stat.flags).unwrap_or(0),
        comm: String::from_utf8_lossy(&stat.comm).into_owned(),
        // absent without audit in the kernel
        loginuid: number("loginuid", 10)
            .ok()
            .and_then(|v| u32::try_from(v).ok()),
        oom_score_adj: Some(i32::try_from(number("oom_score_adj", 10)?).unwrap_or(0)),
        ..Default::default()
    })
}

/// The core record of a zombie.
pub fn zombie(stat: &Stat) -> TaskCoreEntry {
    TaskCoreEntry {
        task_state: state::DEAD,
        exit_code: stat.exit_code.unsigned_abs(),
        comm: String::from_utf8_lossy(&stat.comm).into_owned(),
        flags: u32::try_from(stat.flags).unwrap_or(0),
        ..Default::default()
    }
}

/// Scheduling of a thread, into its core record.
///
/// # Errors
/// A deadline policy is refused.
pub fn sched(tid: HostPid, core: &mut ThreadCoreEntry) -> Result<()> {
    let attr = sched::attr(tid)?;
    if attr.policy >= SCHED_DEADLINE {
        return Err(Error::refused(
            format!("task {tid}"),
            format!("its scheduling policy {} is not carried", attr.policy),
        ));
    }
    core.sched_policy = Some(attr.policy);
    core.sched_nice = Some(attr.nice);
    core.sched_prio = (attr.priority != 0).then_some(attr.priority);
    Ok(())
}
