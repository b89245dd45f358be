//! The small attributes of a task and of its threads, set by injected prctl(2).

use crate::base::{Error, NsPid, Result};
use crate::image::records::TaskCoreEntry;
use crate::sys::steer::Batch;

const PR_SET_THP_DISABLE: i32 = 41;
const COMM_LEN: usize = 16;

/// How a task is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It runs or sleeps.
    Alive,
    /// It was stopped by this signal.
    Stopped(i32),
    /// It is dead, with this wait status, and its parent has not waited.
    Zombie(i32),
}

/// The state in a record; CRIU's numbers.
///
/// # Errors
/// An unknown number.
pub fn state(pid: NsPid, tc: &TaskCoreEntry) -> Result<State> {
    match tc.task_state {
        1 => Ok(State::Alive),
        3 => Ok(State::Stopped(
            tc.stop_signo
                .and_then(|s| i32::try_from(s).ok())
                .filter(|s| *s != 0)
                .unwrap_or(libc::SIGSTOP),
        )),
        2 | 6 => Ok(State::Zombie(tc.exit_code.cast_signed())),
        n => Err(Error::image(
            format!("core of task {pid}"),
            format!("unknown task state {n}"),
        )),
    }
}

fn prctl(batch: &mut Batch, what: &'static str, option: i32, value: u64) {
    batch.call(
        what,
        libc::SYS_prctl,
        &[option.into(), value.into(), 0.into(), 0.into(), 0.into()],
    );
}

/// Adds the call that names the running thread (at most 15 bytes).
///
/// # Errors
/// A longer name, or one with a NUL.
pub fn comm(batch: &mut Batch, tid: NsPid, name: &str) -> Result<()> {
    if name.len() >= COMM_LEN || name.contains('\0') {
        return Err(Error::image(
            format!("core of thread {tid}"),
            format!("{name:?} is no name of a thread"),
        ));
    }
    let mut raw = [0u8; COMM_LEN];
    if let Some(dst) = raw.get_mut(..name.len()) {
        dst.copy_from_slice(name.as_bytes());
    }
    let raw = batch.bytes(&raw);
    batch.call(
        "prctl(PR_SET_NAME)",
        libc::SYS_prctl,
        &[libc::PR_SET_NAME.into(), raw.into()],
    );
    Ok(())
}

/// Adds personality(2), membarrier(2) registrations, subreaper and
/// transparent-huge-page settings.
pub fn attributes(batch: &mut Batch, tc: &TaskCoreEntry, thp_disabled: bool) {
    batch.call(
        "personality",
        libc::SYS_personality,
        &[tc.personality.into()],
    );
    let mask = tc.membarrier_registration_mask.unwrap_or(0);
    for bit in (0..32).filter(|b| mask & (1 << b) != 0) {
        batch.call(
            "membarrier",
            libc::SYS_membarrier,
            &[(1u32 << bit).into(), 0.into(), 0.into()],
        );
    }
    prctl(
        batch,
        "prctl(PR_SET_CHILD_SUBREAPER)",
        libc::PR_SET_CHILD_SUBREAPER,
        u64::from(tc.child_subreaper == Some(true)),
    );
    if thp_disabled {
        prctl(batch, "prctl(PR_SET_THP_DISABLE)", PR_SET_THP_DISABLE, 1);
    }
}

/// Adds what changes of credentials reset, and so comes after them: dumpable
/// (0 or 1; 2 is what the kernel itself makes) and the parent-death signal.
pub fn after_credentials(batch: &mut Batch, dumpable: Option<i32>, pdeath_sig: Option<u32>) {
    if let Some(d @ (0 | 1)) = dumpable {
        prctl(
            batch,
            "prctl(PR_SET_DUMPABLE)",
            libc::PR_SET_DUMPABLE,
            u64::from(d == 1),
        );
    }
    if let Some(s) = pdeath_sig.filter(|s| *s != 0) {
        prctl(
            batch,
            "prctl(PR_SET_PDEATHSIG)",
            libc::PR_SET_PDEATHSIG,
            s.into(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_states_and_long_names_are_refused() {
        let mut tc = TaskCoreEntry {
            task_state: 4,
            ..Default::default()
        };
        assert!(state(NsPid(1), &tc).is_err());
        (tc.task_state, tc.exit_code) = (6, 256);
        assert_eq!(state(NsPid(1), &tc).unwrap(), State::Zombie(256));
        assert!(comm(&mut Batch::new(), NsPid(1), "sixteen bytes ok").is_err());
        assert!(comm(&mut Batch::new(), NsPid(1), "fifteen bytes .").is_ok());
    }
}
