//! Signal actions by injected rt_sigaction(2), pending queues by ptrace.

use crate::base::Result;
use crate::image::records::{SaEntry, SiginfoEntry, SignalQueueEntry, ThreadSasEntry};
use crate::sys::procfs::Status;
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

/// The signal whose handler runs as soon as a stopped thread goes on, if any:
/// of what is pending for the thread, then for the process, the faults first,
/// then the lowest, as the kernel takes them. `mask` is what will be blocked
/// after the call that was interrupted; `shared` what is pending for the process
/// and not counted on an earlier thread: only one can take it.
///
/// A signal that only such a call lets in is not deliverable: the call is issued
/// again, and lets it in again.
pub fn deliverable(status: &Status, mask: u64, shared: &mut u64) -> Option<i32> {
    let open = !mask & !status.sig_blk & status.sig_cgt;
    let (own, common) = (status.sig_pnd & open, *shared & open);
    *shared &= !common;
    [own & FAULTS, own, common & FAULTS, common]
        .into_iter()
        .find(|set| *set != 0)
        .and_then(|set| i32::try_from(set.trailing_zeros() + 1).ok())
}

/// SIGILL, SIGTRAP, SIGBUS, SIGFPE, SIGSEGV, SIGSYS: bit n-1 for signal n.
const FAULTS: u64 = bit(libc::SIGILL)
    | bit(libc::SIGTRAP)
    | bit(libc::SIGBUS)
    | bit(libc::SIGFPE)
    | bit(libc::SIGSEGV)
    | bit(libc::SIGSYS);

const fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// Whether the handler of `signal` restarts the call that it interrupts.
pub fn restarts(actions: &[SaEntry], signal: i32) -> bool {
    settable()
        .zip(actions)
        .any(|(s, sa)| s == signal && sa.flags & SA_RESTART != 0)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_handler_is_the_one_that_the_kernel_would_run_next() {
        let mut status = Status {
            sig_cgt: !0,
            ..Status::default()
        };
        let next = |status: &Status, mask| {
            let mut shared = bit(1) | bit(libc::SIGSEGV);
            deliverable(status, mask, &mut shared)
        };
        assert_eq!(next(&status, 0), Some(libc::SIGSEGV));
        status.sig_pnd = bit(40) | bit(38);
        assert_eq!(next(&status, 0), Some(38));
        assert_eq!(next(&status, bit(38)), Some(40));
        status.sig_blk = bit(40);
        assert_eq!(next(&status, bit(38)), Some(libc::SIGSEGV));
        status.sig_cgt = 0;
        assert_eq!(next(&status, 0), None);
    }

    #[test]
    fn what_is_pending_for_the_process_interrupts_one_thread() {
        let status = Status {
            sig_cgt: !0,
            ..Status::default()
        };
        let mut shared = bit(10);
        assert_eq!(deliverable(&status, bit(10), &mut shared), None);
        assert_eq!(deliverable(&status, 0, &mut shared), Some(10));
        assert_eq!(deliverable(&status, 0, &mut shared), None);
    }
}
