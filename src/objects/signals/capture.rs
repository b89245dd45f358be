//! Signal actions by injected rt_sigaction(2), pending queues by ptrace.

use super::super::thread::capture::Delivery;
use crate::base::Result;
use crate::image::records::{SaEntry, SiginfoEntry, SignalQueueEntry, ThreadSasEntry};
use crate::sys::ptrace::Stopped;
use crate::sys::steer::{Batch, Buf, Results};

const SIGNALS: i32 = 64;
const SIGSET_LEN: u64 = 8;
const SA_RESTART: u64 = 0x1000_0000;

/// The calls that read all actions of a process.
#[derive(Debug)]
pub struct Actions(Vec<Buf>);

/// Signals whose action can be set: all but SIGKILL and SIGSTOP, in the order
/// in which an image lists them.
pub fn settable() -> impl Iterator<Item = i32> {
    (1..=SIGNALS).filter(|s| *s != libc::SIGKILL && *s != libc::SIGSTOP)
}

/// Adds the calls that read all signal actions.
pub fn ask_actions(batch: &mut Batch) -> Actions {
    let bufs = settable()
        .map(|signal| {
            let out = batch.buffer(32);
            batch.call(
                "rt_sigaction",
                libc::SYS_rt_sigaction,
                &[signal.into(), 0u64.into(), out.into(), SIGSET_LEN.into()],
            );
            out
        })
        .collect();
    Actions(bufs)
}

impl Actions {
    /// The actions as records, in the order of [`settable`]. `ignored_trap`:
    /// SIGTRAP was ignored before the task was steered (steering resets that).
    pub fn records(&self, results: &Results, ignored_trap: bool) -> Vec<SaEntry> {
        settable()
            .zip(&self.0)
            .map(|(signal, buf)| {
                let mut sa = SaEntry {
                    sigaction: results.u64_at(*buf, 0),
                    flags: results.u64_at(*buf, 1),
                    restorer: results.u64_at(*buf, 2),
                    mask: results.u64_at(*buf, 3),
                    compat_sigaction: None,
                    mask_extended: None,
                };
                if signal == libc::SIGTRAP && ignored_trap {
                    sa.sigaction = libc::SIG_IGN as u64;
                }
                sa
            })
            .collect()
    }
}

/// What the next deliverable signal of a thread will do: `pending` and `caught`
/// are masks of /proc/PID/status, `blocked` the thread's mask. The flags of the
/// action are not known yet, so `restarting` tells which signals restart calls.
pub fn delivery(pending: u64, blocked: u64, caught: u64, restarting: u64) -> Delivery {
    let ready = pending & !blocked & caught;
    if ready == 0 {
        Delivery::None
    } else if ready & !restarting == 0 {
        Delivery::RestartingHandler
    } else {
        Delivery::Handler
    }
}

/// Which signals have SA_RESTART, bit n-1 for signal n.
pub fn restarting(actions: &[SaEntry]) -> u64 {
    settable()
        .zip(actions)
        .filter(|(_, sa)| sa.flags & SA_RESTART != 0)
        .fold(0, |m, (s, _)| m | (1 << (s - 1)))
}

/// The pending queue of a thread, or of its process.
///
/// # Errors
/// If the task died.
pub fn queue(task: &Stopped, shared: bool) -> Result<SignalQueueEntry> {
    let signals = task
        .pending(shared)?
        .iter()
        .map(|info| SiginfoEntry {
            siginfo: info.to_vec(),
        })
        .collect();
    Ok(SignalQueueEntry { signals })
}

/// Adds the call that reads the alternate stack.
pub fn ask_altstack(batch: &mut Batch) -> Buf {
    let out = batch.buffer(24);
    batch.call(
        "sigaltstack",
        libc::SYS_sigaltstack,
        &[0u64.into(), out.into()],
    );
    out
}

/// The alternate stack as a record.
pub fn altstack(results: &Results, buf: Buf) -> ThreadSasEntry {
    ThreadSasEntry {
        ss_sp: results.u64_at(buf, 0),
        ss_flags: results.u32_at(buf, 2),
        ss_size: results.u64_at(buf, 2),
    }
}
