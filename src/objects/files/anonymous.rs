//! eventfd(2), timerfd_create(2), signalfd(2).

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::capture::Open;
use super::fdinfo;
use crate::base::{Error, Result};
use crate::image::records::{EventfdFileEntry, FdTypes, FileEntry, SignalfdEntry, TimerfdEntry};
use crate::sys::fdops::{self, Timer};

fn missing(what: &'static str) -> impl FnOnce() -> Error {
    move || Error::bug("fdinfo", format!("tells no {what}"))
}

/// The bit by which `flags` tells EFD_SEMAPHORE. An eventfd is always O_RDWR,
/// so the bit is free, and CRIU, which has no place for this, ignores it.
const EFD_SEMAPHORE: u32 = libc::EFD_SEMAPHORE.cast_unsigned();

pub(super) fn eventfd(open: &Open<'_>) -> Result<FileEntry> {
    let counter = open.info.count.ok_or_else(missing("eventfd-count"))?;
    let semaphore = if open.info.semaphore {
        EFD_SEMAPHORE
    } else {
        0
    };
    Ok(FileEntry {
        r#type: FdTypes::Eventfd.into(),
        id: open.id,
        efd: Some(EventfdFileEntry {
            id: open.id,
            flags: open.flags() | semaphore,
            fown: open.fown.clone(),
            counter,
        }),
        ..FileEntry::default()
    })
}

pub(super) fn make_eventfd(entry: &EventfdFileEntry) -> Result<OwnedFd> {
    let semaphore = entry.flags & libc::O_ACCMODE.cast_unsigned() == 3;
    let flags = libc::EFD_NONBLOCK | if semaphore { libc::EFD_SEMAPHORE } else { 0 };
    let fd = fdops::eventfd(flags)?;
    if entry.counter > 0 {
        let file = File::from(fd);
        (&file)
            .write_all(&entry.counter.to_ne_bytes())
            .map_err(|e| Error::os(format!("set eventfd to {}", entry.counter), e))?;
        return Ok(file.into());
    }
    Ok(fd)
}

pub(super) fn signalfd(open: &Open<'_>) -> Result<FileEntry> {
    let sigmask = open.info.sigmask.ok_or_else(missing("sigmask"))?;
    Ok(FileEntry {
        r#type: FdTypes::Signalfd.into(),
        id: open.id,
        sgfd: Some(SignalfdEntry {
            id: open.id,
            flags: open.flags(),
            fown: open.fown.clone(),
            sigmask,
        }),
        ..FileEntry::default()
    })
}

pub(super) fn make_signalfd(entry: &SignalfdEntry) -> Result<OwnedFd> {
    fdops::signalfd(entry.sigmask)
}

const SECOND: u64 = 1_000_000_000;

/// The time left is asked for first: that folds missed expiries of an interval
/// timer into its ticks, as a read would, so that what fdinfo tells afterwards
/// is complete. (Without it an expired interval timer reads "0 left", which
/// would come back as disarmed.)
pub(super) fn timerfd(open: &Open<'_>) -> Result<FileEntry> {
    let left = fdops::timerfd_get(open.fd)?;
    let info = fdinfo::read(open.spot.pid, open.spot.fd)?;
    let timer = info.timer.ok_or_else(missing("clockid"))?;
    Ok(FileEntry {
        r#type: FdTypes::Timerfd.into(),
        id: open.id,
        tfd: Some(TimerfdEntry {
            id: open.id,
            flags: open.flags(),
            fown: open.fown.clone(),
            clockid: timer.clock,
            ticks: timer.ticks,
            settime_flags: timer.flags,
            vsec: left.value / SECOND,
            vnsec: left.value % SECOND,
            isec: left.interval / SECOND,
            insec: left.interval % SECOND,
        }),
        ..FileEntry::default()
    })
}

fn nanos(sec: u64, nsec: u64) -> Result<u64> {
    sec.checked_mul(SECOND)
        .and_then(|n| n.checked_add(nsec))
        .filter(|n| *n <= i64::MAX.cast_unsigned())
        .ok_or_else(|| Error::image("timerfd", format!("holds the time {sec}.{nsec}")))
}

/// Checks what [`make_timerfd`] will set.
pub(super) fn check_timerfd(entry: &TimerfdEntry) -> Result<()> {
    nanos(entry.vsec, entry.vnsec)?;
    nanos(entry.isec, entry.insec)?;
    match i32::try_from(entry.clockid) {
        Ok(
            libc::CLOCK_REALTIME
            | libc::CLOCK_MONOTONIC
            | libc::CLOCK_BOOTTIME
            | libc::CLOCK_REALTIME_ALARM
            | libc::CLOCK_BOOTTIME_ALARM,
        ) => Ok(()),
        _ => Err(Error::image(
            "timerfd",
            format!("has clock {}", entry.clockid),
        )),
    }
}

/// Arms it with what was left, from now on.
pub(super) fn make_timerfd(entry: &TimerfdEntry) -> Result<OwnedFd> {
    let clock =
        i32::try_from(entry.clockid).map_err(|_| Error::image("timerfd", "has no clock"))?;
    let fd = fdops::timerfd(clock)?;
    arm(fd.as_fd(), clock, entry)?;
    Ok(fd)
}

fn arm(fd: BorrowedFd<'_>, clock: i32, entry: &TimerfdEntry) -> Result<()> {
    let mut flags = i32::try_from(entry.settime_flags)
        .map_err(|_| Error::image("timerfd", "has unknown flags"))?;
    let mut timer = Timer {
        value: nanos(entry.vsec, entry.vnsec)?,
        interval: nanos(entry.isec, entry.insec)?,
    };
    if timer.value == 0 {
        // Disarmed, or expired once: the flags matter no more.
        if timer.interval != 0 && entry.ticks > 0 {
            // An interval timer that another tool saved just as it expired.
            timer.value = timer.interval;
        }
        flags &= !libc::TFD_TIMER_ABSTIME;
    } else if flags & libc::TFD_TIMER_ABSTIME != 0 {
        timer.value = timer.value.saturating_add(fdops::now(clock)?);
    }
    fdops::timerfd_set(fd, flags, timer)?;
    if entry.ticks > 0 {
        fdops::timerfd_set_ticks(fd, entry.ticks)?;
    }
    Ok(())
}
