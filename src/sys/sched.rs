//! sched_setattr(2), sched_getattr(2): policy, nice value, priority of a thread.

use std::mem;

use crate::base::{Error, HostPid, Result};

/// Scheduling of a thread, `struct sched_attr` without deadline and
/// utilisation clamps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Attr {
    /// `SCHED_*`.
    pub policy: u32,
    /// Nice value, -20 to 19.
    pub nice: i32,
    /// Real-time priority, 1 to 99, 0 for the others.
    pub priority: u32,
    /// `SCHED_FLAG_RESET_ON_FORK` and friends.
    pub flags: u64,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Raw {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}
const _: () = assert!(mem::size_of::<Raw>() == 48);
const RAW_SIZE: u32 = 48;

/// How thread `tid` is scheduled.
///
/// # Errors
/// ESRCH if it is gone.
pub fn attr(tid: HostPid) -> Result<Attr> {
    let mut raw = Raw::default();
    // SAFETY: raw is live and RAW_SIZE bytes long.
    let r = unsafe { libc::syscall(libc::SYS_sched_getattr, tid.0, &raw mut raw, RAW_SIZE, 0) };
    if r != 0 {
        return Err(Error::last_os(format!("read the scheduling of task {tid}")));
    }
    Ok(Attr {
        policy: raw.policy,
        nice: raw.nice,
        priority: raw.priority,
        flags: raw.flags,
    })
}

/// Schedules thread `tid` as `attr` says.
///
/// # Errors
/// EPERM without CAP_SYS_NICE, EINVAL for a deadline policy.
pub fn set_attr(tid: HostPid, attr: Attr) -> Result<()> {
    let raw = Raw {
        size: RAW_SIZE,
        policy: attr.policy,
        flags: attr.flags,
        nice: attr.nice,
        priority: attr.priority,
        ..Raw::default()
    };
    // SAFETY: raw is live and RAW_SIZE bytes long.
    let r = unsafe { libc::syscall(libc::SYS_sched_setattr, tid.0, &raw const raw, 0) };
    if r != 0 {
        return Err(Error::last_os(format!("schedule task {tid} as {attr:?}")));
    }
    Ok(())
}

/// The calling thread runs soon after it is woken, for short times: a request for
/// slices of 0.1 ms, which costs no privilege. Kernels before 6.12 ignore it.
pub fn prompt() {
    own(0, SLICE);
}

/// The calling thread leaves the processors to others when they want them.
pub fn patient() {
    own(PATIENT, 0);
}

const SLICE: u64 = 100_000;
const PATIENT: i32 = 5;

/// Best effort: everything works without, only later.
fn own(nice: i32, slice: u64) {
    let me = HostPid(0);
    let Ok(now) = attr(me) else { return };
    if now.policy != libc::SCHED_OTHER.cast_unsigned() {
        return; // somebody has decided otherwise
    }
    let raw = Raw {
        size: RAW_SIZE,
        nice: now.nice.saturating_add(nice).min(19),
        runtime: slice,
        ..Raw::default()
    };
    // SAFETY: raw is live and RAW_SIZE bytes long.
    let _ = unsafe { libc::syscall(libc::SYS_sched_setattr, me.0, &raw const raw, 0) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_is_read_back() {
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let pid = HostPid(i32::try_from(child.id()).unwrap());
        let want = Attr {
            policy: 3, // SCHED_BATCH
            nice: 7,
            ..Attr::default()
        };
        set_attr(pid, want).unwrap();
        assert_eq!(attr(pid).unwrap(), want);
        drop(child.stdin.take());
        child.wait().unwrap();
    }

    #[test]
    fn a_prompt_thread_keeps_its_nice_value_and_a_patient_one_is_nicer_by_five() {
        let before = attr(HostPid(0)).unwrap();
        let after = |change: fn()| {
            let thread = std::thread::spawn(move || {
                change();
                attr(HostPid(0)).unwrap()
            });
            thread.join().unwrap()
        };
        assert_eq!(after(prompt), before);
        let nicer = (before.nice + PATIENT).min(19);
        assert_eq!(
            after(patient),
            Attr {
                nice: nicer,
                ..before
            }
        );
        assert_eq!(attr(HostPid(0)).unwrap(), before);
    }
}
