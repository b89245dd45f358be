//! Interval timers by injected getitimer(2); POSIX timers by
//! /proc/PID/timers and injected timer_gettime(2), timer_getoverrun(2).

use crate::base::{Error, HostPid, Result};
use crate::image::records::{ItimerEntry, PosixTimerEntry, TaskTimersEntry};
use crate::sys::procfs;
use crate::sys::steer::{Batch, Buf, CallId, Results};

const SIGEV_SIGNAL: u32 = 0;
const SIGEV_NONE: u32 = 1;
const SIGEV_THREAD: u32 = 2;
const SIGEV_THREAD_ID: u32 = 4;

/// The calls that read a process's timers.
#[derive(Debug)]
pub struct Timers {
    interval: [Buf; 3],
    posix: Vec<(PosixTimerEntry, Buf, CallId)>,
}

/// Adds the calls that read all timers of `pid`.
///
/// # Errors
/// If /proc/PID/timers does not parse.
pub fn ask(batch: &mut Batch, pid: HostPid) -> Result<Timers> {
    let interval = [libc::ITIMER_REAL, libc::ITIMER_VIRTUAL, libc::ITIMER_PROF].map(|which| {
        let out = batch.buffer(32);
        batch.call(
            "getitimer",
            libc::SYS_getitimer,
            &[which.into(), out.into()],
        );
        out
    });
    let text = procfs::file(pid, "timers")?;
    let posix = parse(&String::from_utf8_lossy(&text))
        .ok_or_else(|| {
            Error::bug(
                format!("parse /proc/{pid}/timers"),
                String::from_utf8_lossy(&text).into_owned(),
            )
        })?
        .into_iter()
        .map(|t| {
            let out = batch.buffer(32);
            batch.call(
                "timer_gettime",
                libc::SYS_timer_gettime,
                &[t.it_id.into(), out.into()],
            );
            let overrun = batch.call(
                "timer_getoverrun",
                libc::SYS_timer_getoverrun,
                &[t.it_id.into()],
            );
            (t, out, overrun)
        })
        .collect();
    Ok(Timers { interval, posix })
}

fn parse(text: &str) -> Option<Vec<PosixTimerEntry>> {
    let mut timers: Vec<PosixTimerEntry> = Vec::new();
    for line in text.lines() {
        let (key, value) = line.split_once(": ")?;
        if key == "ID" {
            timers.push(PosixTimerEntry {
                it_id: value.parse().ok()?,
                ..Default::default()
            });
            continue;
        }
        let t = timers.last_mut()?;
        match key {
            "signal" => {
                let (signo, value) = value.split_once('/')?;
                t.si_signo = signo.parse().ok()?;
                t.sival_ptr = u64::from_str_radix(value.trim_start_matches("0x"), 16).ok()?;
            }
            "notify" => {
                let (how, whom) = value.split_once('/')?;
                t.it_sigev_notify = match how {
                    "signal" => SIGEV_SIGNAL,
                    "none" => SIGEV_NONE,
                    "thread" => SIGEV_THREAD,
                    _ => return None,
                };
                if let Some(tid) = whom.strip_prefix("tid.") {
                    t.it_sigev_notify = SIGEV_THREAD_ID;
                    t.notify_thread_id = Some(tid.parse().ok()?);
                }
            }
            "ClockID" => t.clock_id = u32::from_ne_bytes(value.parse::<i32>().ok()?.to_ne_bytes()),
            _ => {}
        }
    }
    Some(timers)
}

impl Timers {
    /// The timers as records.
    pub fn record(self, results: &Results) -> TaskTimersEntry {
        let it = |b: Buf| ItimerEntry {
            isec: results.u64_at(b, 0),
            iusec: results.u64_at(b, 1),
            vsec: results.u64_at(b, 2),
            vusec: results.u64_at(b, 3),
        };
        let [real, virt, prof] = self.interval.map(it);
        let posix = self
            .posix
            .into_iter()
            .map(|(mut t, b, overrun)| {
                t.isec = results.u64_at(b, 0);
                t.insec = results.u64_at(b, 1);
                t.vsec = results.u64_at(b, 2);
                t.vnsec = results.u64_at(b, 3);
                t.overrun = u32::try_from(results.ret(overrun)).unwrap_or(0);
                t
            })
            .collect();
        TaskTimersEntry {
            real,
            virt,
            prof,
            posix,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_of_proc_keep_signal_value_target_and_clock() {
        let t = parse("ID: 3\nsignal: 34/00007ffc12345678\nnotify: signal/tid.77\nClockID: -6\n")
            .unwrap();
        assert_eq!(t.len(), 1);
        assert_eq!(
            (t[0].it_id, t[0].si_signo, t[0].sival_ptr),
            (3, 34, 0x7ffc_1234_5678)
        );
        assert_eq!(
            (t[0].it_sigev_notify, t[0].notify_thread_id),
            (SIGEV_THREAD_ID, Some(77))
        );
        assert_eq!(t[0].clock_id, (-6i32).cast_unsigned());
        assert!(parse("ID: 3\nnotify: smoke/pid.1\n").is_none());
    }
}
