//! Resource limits by injected prlimit64(2): a task may always lower its own.

use crate::base::{Error, NsPid, Result};
use crate::image::records::TaskRlimitsEntry;
use crate::sys::steer::Batch;

/// Adds the calls that set all limits. They come after what makes memory and
/// descriptors. A hard limit above the present one needs CAP_SYS_RESOURCE, and is
/// tried, so that its failure is named.
///
/// # Errors
/// More limits than this kernel knows.
pub fn set(pid: NsPid, batch: &mut Batch, limits: &TaskRlimitsEntry) -> Result<()> {
    if limits.rlimits.len() > NAMES.len() {
        return Err(Error::image(
            format!("core of task {pid}"),
            format!("{} resource limits", limits.rlimits.len()),
        ));
    }
    for ((number, what), l) in (0i32..).zip(NAMES).zip(&limits.rlimits) {
        let mut raw = [0u8; 16];
        raw[..8].copy_from_slice(&l.cur.to_le_bytes());
        raw[8..].copy_from_slice(&l.max.to_le_bytes());
        let new = batch.bytes(&raw);
        batch.call(
            what,
            libc::SYS_prlimit64,
            &[0.into(), number.into(), new.into(), 0u64.into()],
        );
    }
    Ok(())
}

const NAMES: [&str; 16] = [
    "prlimit64 RLIMIT_CPU",
    "prlimit64 RLIMIT_FSIZE",
    "prlimit64 RLIMIT_DATA",
    "prlimit64 RLIMIT_STACK",
    "prlimit64 RLIMIT_CORE",
    "prlimit64 RLIMIT_RSS",
    "prlimit64 RLIMIT_NPROC",
    "prlimit64 RLIMIT_NOFILE",
    "prlimit64 RLIMIT_MEMLOCK",
    "prlimit64 RLIMIT_AS",
    "prlimit64 RLIMIT_LOCKS",
    "prlimit64 RLIMIT_SIGPENDING",
    "prlimit64 RLIMIT_MSGQUEUE",
    "prlimit64 RLIMIT_NICE",
    "prlimit64 RLIMIT_RTPRIO",
    "prlimit64 RLIMIT_RTTIME",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::records::RlimitEntry;

    #[test]
    fn more_limits_than_there_are_is_refused() {
        let l = TaskRlimitsEntry {
            rlimits: vec![RlimitEntry::default(); 17],
        };
        assert!(set(NsPid(1), &mut Batch::new(), &l).is_err());
    }
}
