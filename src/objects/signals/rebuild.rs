//! Signal actions, alternate stacks and pending queues, set by injected calls.
//!
//! A task may queue any siginfo to itself, whatever its si_code, so that the
//! queue is rebuilt from inside (rt_sigqueueinfo(2)) while all is blocked.

use crate::base::{Error, NsPid, Result};
use crate::image::records::{SaEntry, SignalQueueEntry, ThreadSasEntry};
use crate::sys::steer::Batch;

const SIGNALS: i32 = 64;
const SIGSET_LEN: u64 = 8;
const SIGINFO_LEN: usize = 128;
/// Signals that a task may have got while it was made.
const STRAY: usize = 4;

fn settable() -> impl Iterator<Item = i32> {
    (1..=SIGNALS).filter(|s| *s != libc::SIGKILL && *s != libc::SIGSTOP)
}

/// The calls that set all signal actions, as `(arguments, kernel structure)`.
/// SIGTRAP, where it is ignored, is not among them: the trap at the end of the
/// call loop would set it back. See [`ignores_trap`].
///
/// # Errors
/// A list of another length than the kernel's, or 32-bit actions.
pub fn actions(pid: NsPid, batch: &mut Batch, list: &[SaEntry]) -> Result<()> {
    if list.len() != settable().count() {
        return Err(Error::image(
            format!("core of task {pid}"),
            format!("{} signal actions instead of 62", list.len()),
        ));
    }
    for (signal, sa) in settable().zip(list) {
        if sa.compat_sigaction == Some(true) {
            return Err(Error::refused(
                format!("task {pid}"),
                "it has 32-bit signal actions, which are not carried",
            ));
        }
        if signal == libc::SIGTRAP && sa.sigaction == IGNORE {
            continue;
        }
        let act = batch.bytes(&action_bytes(sa));
        batch.call(
            "rt_sigaction",
            libc::SYS_rt_sigaction,
            &[signal.into(), act.into(), 0u64.into(), SIGSET_LEN.into()],
        );
    }
    Ok(())
}

const IGNORE: u64 = 1;

/// Whether SIGTRAP is to be ignored, which must be set after the last batch.
pub fn ignores_trap(list: &[SaEntry]) -> Option<[u8; 32]> {
    settable()
        .zip(list)
        .find(|(s, sa)| *s == libc::SIGTRAP && sa.sigaction == IGNORE)
        .map(|(_, sa)| action_bytes(sa))
}

fn action_bytes(sa: &SaEntry) -> [u8; 32] {
    let mut bytes = [0u8; 32];
    for (slot, word) in
        bytes
            .chunks_exact_mut(8)
            .zip([sa.sigaction, sa.flags, sa.restorer, sa.mask])
    {
        slot.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// Adds the call that sets the alternate stack, sigaltstack(2).
pub fn altstack(batch: &mut Batch, sas: &ThreadSasEntry) {
    const SS_ONSTACK: u32 = 1;
    let mut raw = [0u8; 24];
    let flags = sas.ss_flags & !SS_ONSTACK;
    for (slot, word) in raw
        .chunks_exact_mut(8)
        .zip([sas.ss_sp, u64::from(flags), sas.ss_size])
    {
        slot.copy_from_slice(&word.to_le_bytes());
    }
    let raw = batch.bytes(&raw);
    batch.call(
        "sigaltstack",
        libc::SYS_sigaltstack,
        &[raw.into(), 0u64.into()],
    );
}

/// Adds calls that take away what arrived while the task was made (SIGCHLD of
/// helpers). All signals must be blocked.
pub fn drain(batch: &mut Batch) {
    let set = batch.bytes(&(!(1u64 << (libc::SIGTRAP - 1))).to_le_bytes());
    let zero = batch.buffer(16);
    for _ in 0..STRAY {
        batch.try_call(
            "rt_sigtimedwait",
            libc::SYS_rt_sigtimedwait,
            &[set.into(), 0u64.into(), zero.into(), SIGSET_LEN.into()],
        );
    }
}

/// Adds the calls that queue pending signals: of the process, or, where `tid`
/// is given, of that thread, which must be the one that runs the batch.
///
/// # Errors
/// A record that is no siginfo.
pub fn queue(
    batch: &mut Batch,
    pid: NsPid,
    tid: Option<NsPid>,
    queue: &SignalQueueEntry,
) -> Result<()> {
    for s in &queue.signals {
        let signo = s
            .siginfo
            .first_chunk::<4>()
            .map_or(0, |b| i32::from_le_bytes(*b));
        if s.siginfo.len() != SIGINFO_LEN || !settable().any(|k| k == signo) {
            return Err(Error::image(
                format!("core of task {pid}"),
                format!(
                    "a pending signal of {} bytes with number {signo}",
                    s.siginfo.len()
                ),
            ));
        }
        let info = batch.bytes(&s.siginfo);
        match tid {
            None => batch.call(
                "rt_sigqueueinfo",
                libc::SYS_rt_sigqueueinfo,
                &[pid.0.into(), signo.into(), info.into()],
            ),
            Some(tid) => batch.call(
                "rt_tgsigqueueinfo",
                libc::SYS_rt_tgsigqueueinfo,
                &[pid.0.into(), tid.0.into(), signo.into(), info.into()],
            ),
        };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::records::SiginfoEntry;

    #[test]
    fn lists_and_signals_of_wrong_length_are_refused() {
        let mut b = Batch::new();
        let e = actions(NsPid(3), &mut b, &[SaEntry::default()]).unwrap_err();
        assert!(e.to_string().contains("1 signal actions"), "{e}");
        let q = |bytes: Vec<u8>| SignalQueueEntry {
            signals: vec![SiginfoEntry { siginfo: bytes }],
        };
        assert!(queue(&mut b, NsPid(3), None, &q(vec![1])).is_err());
        assert!(queue(&mut b, NsPid(3), None, &q(vec![9; 128])).is_err());
        let mut good = vec![0; 128];
        good[0] = 10;
        assert!(queue(&mut b, NsPid(3), None, &q(good)).is_ok());
    }

    #[test]
    fn an_ignored_sigtrap_is_left_for_the_end() {
        let mut list = vec![SaEntry::default(); 62];
        assert_eq!(ignores_trap(&list), None);
        list[4].sigaction = IGNORE;
        assert_eq!(ignores_trap(&list).unwrap()[0], 1);
    }
}
