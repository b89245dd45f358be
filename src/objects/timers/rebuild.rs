//! Interval timers and POSIX timers, set by injected calls.
//!
//! Programs hold timer ids, so each timer gets the id it had:
//! `PR_TIMER_CREATE_RESTORE_IDS` of prctl(2), or, on kernels without it, making
//! and deleting timers until the id comes up. Armed last, just before the task
//! goes on: times are relative, the time that the container was held is not
//! counted.

use crate::base::{Error, NsPid, Result};
use crate::image::records::{ItimerEntry, PosixTimerEntry, TaskTimersEntry};
use crate::sys::steer::Batch;

const PR_TIMER_CREATE_RESTORE_IDS: u64 = 77;
const SIGEV_THREAD_ID: u32 = 4;
const MAX_ID: u32 = i32::MAX.unsigned_abs();

/// Checks a record.
///
/// # Errors
/// Ids or times that the kernel would not take.
pub fn check(pid: NsPid, t: &TaskTimersEntry) -> Result<()> {
    let wrong = |why: String| Error::image(format!("timers of task {pid}"), why);
    for i in [&t.real, &t.virt, &t.prof] {
        if i.iusec >= 1_000_000 || i.vusec >= 1_000_000 {
            return Err(wrong(
                "a timeval with a second or more of microseconds".into(),
            ));
        }
    }
    for p in &t.posix {
        if p.it_id > MAX_ID || p.insec >= 1_000_000_000 || p.vnsec >= 1_000_000_000 {
            return Err(wrong(format!("POSIX timer {} is out of range", p.it_id)));
        }
    }
    Ok(())
}

/// Adds the calls that make the POSIX timers, disarmed, with their ids.
pub fn create(batch: &mut Batch, t: &TaskTimersEntry) {
    if t.posix.is_empty() {
        return;
    }
    batch.call(
        "prctl(PR_TIMER_CREATE_RESTORE_IDS)",
        libc::SYS_prctl,
        &[PR_TIMER_CREATE_RESTORE_IDS.into(), 1.into()],
    );
    for p in &t.posix {
        let mut event = [0u8; 64];
        event[..8].copy_from_slice(&p.sival_ptr.to_le_bytes());
        event[8..12].copy_from_slice(&p.si_signo.to_le_bytes());
        event[12..16].copy_from_slice(&p.it_sigev_notify.to_le_bytes());
        if p.it_sigev_notify & SIGEV_THREAD_ID != 0 {
            let tid = p.notify_thread_id.unwrap_or(0);
            event[16..20].copy_from_slice(&tid.to_le_bytes());
        }
        let event = batch.bytes(&event);
        let id = batch.bytes(&u64::from(p.it_id).to_le_bytes());
        batch.call(
            "timer_create",
            libc::SYS_timer_create,
            &[p.clock_id.cast_signed().into(), event.into(), id.into()],
        );
    }
    batch.call(
        "prctl(PR_TIMER_CREATE_RESTORE_IDS)",
        libc::SYS_prctl,
        &[PR_TIMER_CREATE_RESTORE_IDS.into(), 0.into()],
    );
}

/// Adds the calls that arm all timers.
pub fn arm(batch: &mut Batch, t: &TaskTimersEntry) {
    for (which, i) in [
        (libc::ITIMER_REAL, &t.real),
        (libc::ITIMER_VIRTUAL, &t.virt),
        (libc::ITIMER_PROF, &t.prof),
    ] {
        if *i == ItimerEntry::default() {
            continue;
        }
        let mut left = (i.vsec, i.vusec);
        if which == libc::ITIMER_REAL && left == (0, 0) {
            // it has expired, its signal is pending, and the kernel would have
            // started it again when that is delivered
            left = (i.isec, i.iusec);
        }
        let value = batch.bytes(&words([i.isec, i.iusec, left.0, left.1]));
        batch.call(
            "setitimer",
            libc::SYS_setitimer,
            &[which.into(), value.into(), 0u64.into()],
        );
    }
    for p in t.posix.iter().filter(|p| is_armed(p)) {
        let value = batch.bytes(&words([p.isec, p.insec, p.vsec, p.vnsec]));
        batch.call(
            "timer_settime",
            libc::SYS_timer_settime,
            &[p.it_id.into(), 0.into(), value.into(), 0u64.into()],
        );
    }
}

fn is_armed(p: &PosixTimerEntry) -> bool {
    p.vsec != 0 || p.vnsec != 0
}

fn words(w: [u64; 4]) -> [u8; 32] {
    let mut bytes = [0u8; 32];
    for (slot, word) in bytes.chunks_exact_mut(8).zip(w) {
        slot.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_out_of_range_are_refused() {
        let mut t = TaskTimersEntry::default();
        assert!(check(NsPid(1), &t).is_ok());
        t.posix.push(PosixTimerEntry {
            it_id: 3,
            vnsec: 1_000_000_000,
            ..Default::default()
        });
        let e = check(NsPid(1), &t).unwrap_err();
        assert!(e.to_string().contains("timer 3"), "{e}");
        t.posix.clear();
        t.real.vusec = 1_000_000;
        assert!(check(NsPid(1), &t).is_err());
    }
}
