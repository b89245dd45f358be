//! What the monotonic and the boot clock show in the container, which goes on
//! from there: time_namespaces(7).
//!
//! An image has it for every container, also for one in our own time
//! namespace (as number 0), because the clocks of the next host differ.

use crate::base::{Error, HostPid, Result};
use crate::image::records::{TimensEntry, Timespec};
use crate::sys::ns::{self, Clocks};

const SECOND: i128 = 1_000_000_000;

/// The clocks as `pid` sees them now.
pub(super) fn capture(pid: HostPid) -> Result<TimensEntry> {
    let (ours, here, there) = (
        ns::clocks()?,
        ns::clock_offsets(None)?,
        ns::clock_offsets(Some(pid))?,
    );
    Ok(TimensEntry {
        monotonic: record(ours.monotonic - here.monotonic + there.monotonic)?,
        boottime: record(ours.boottime - here.boottime + there.boottime)?,
    })
}

/// Moves the single-threaded caller into a new time namespace in which the
/// clocks go on from these values.
pub(super) fn rebuild(want: &TimensEntry) -> Result<()> {
    let (ours, here) = (ns::clocks()?, ns::clock_offsets(None)?);
    ns::enter_new_time(Clocks {
        monotonic: value(&want.monotonic)? - (ours.monotonic - here.monotonic),
        boottime: value(&want.boottime)? - (ours.boottime - here.boottime),
    })
}

fn record(nanoseconds: i128) -> Result<Timespec> {
    let odd = || Error::bug("clock of the container", "is before its boot");
    Ok(Timespec {
        tv_sec: u64::try_from(nanoseconds.div_euclid(SECOND)).map_err(|_| odd())?,
        tv_nsec: u64::try_from(nanoseconds.rem_euclid(SECOND)).map_err(|_| odd())?,
    })
}

/// Nanoseconds of a record.
pub(super) fn value(t: &Timespec) -> Result<i128> {
    if t.tv_nsec >= 1_000_000_000 || t.tv_sec > u64::MAX / 2_000_000_000 {
        return Err(Error::image(
            "timens",
            format!("{} s {} ns is no time", t.tv_sec, t.tv_nsec),
        ));
    }
    Ok(i128::from(t.tv_sec) * SECOND + i128::from(t.tv_nsec))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_clocks_are_captured_as_they_are() {
        let me = HostPid(i32::try_from(std::process::id()).unwrap());
        let before = ns::clocks().unwrap();
        let t = capture(me).unwrap();
        let after = ns::clocks().unwrap();
        let m = value(&t.monotonic).unwrap();
        assert!(before.monotonic <= m && m <= after.monotonic);
    }

    #[test]
    fn times_that_are_none_are_refused() {
        assert!(
            value(&Timespec {
                tv_sec: 1,
                tv_nsec: 1_000_000_000
            })
            .is_err()
        );
        assert!(
            value(&Timespec {
                tv_sec: u64::MAX,
                tv_nsec: 0
            })
            .is_err()
        );
    }
}
