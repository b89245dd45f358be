//! Who is told by SIGIO about a file: fcntl(2), F_SETOWN_EX.

use std::os::fd::BorrowedFd;

use crate::base::{Error, HostPid, Result};
use crate::image::records::FownEntry;
use crate::sys::{fdops, procfs};

/// Reads it from a descriptor; its pid is told as the owner itself sees it.
pub(super) fn capture(fd: BorrowedFd<'_>) -> Result<FownEntry> {
    let mut entry = FownEntry {
        signum: u32::try_from(fdops::io_signal(fd)?).unwrap_or(0),
        ..FownEntry::default()
    };
    let owner = fdops::owner(fd)?;
    if owner.pid == 0 {
        return Ok(entry);
    }
    let status = procfs::status(HostPid(owner.pid))
        .map_err(|_| Error::refused(format!("its owner (F_SETOWN {})", owner.pid), "is gone"))?;
    let inner = status.ns_pid.last().copied().unwrap_or(owner.pid);
    (entry.uid, entry.euid) = fdops::owner_uids(fd)?;
    entry.pid_type = u32::try_from(owner.kind).unwrap_or(0);
    entry.pid = u32::try_from(inner).unwrap_or(0);
    Ok(entry)
}

/// Sets the part that does not depend on who sets it.
pub(super) fn rebuild(fd: BorrowedFd<'_>, entry: &FownEntry) -> Result<()> {
    match i32::try_from(entry.signum) {
        Ok(0) => Ok(()),
        Ok(signal) => fdops::set_io_signal(fd, signal),
        Err(_) => Err(Error::image("signal of a file's owner", "is no signal")),
    }
}

/// `struct f_owner_ex` for the call in the task; `None` when nobody owns it.
pub(super) fn call_bytes(entry: &FownEntry) -> Option<Vec<u8>> {
    (entry.pid != 0).then(|| {
        let mut bytes = entry.pid_type.to_ne_bytes().to_vec();
        bytes.extend_from_slice(&entry.pid.to_ne_bytes());
        bytes
    })
}
