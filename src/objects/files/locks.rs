//! Locks on files: fcntl(2), flock(2).
//!
//! A task takes its locks again itself, when its descriptors stand: those of
//! F_SETLK belong to the process, the others to the open file.

use super::capture::Capture;
use super::fdinfo::{Lock, LockKind};
use super::identity::Spot;
use crate::base::{Error, Result};
use crate::image::Kind as Image;
use crate::image::records::FileLockEntry;
use crate::sys::{fdops, procfs};

pub(super) const POSIX: u32 = 1;
pub(super) const FLOCK: u32 = 2;
pub(super) const OFD: u32 = 4;

const READ: u32 = 0;
const WRITE: u32 = 1;

impl Capture {
    pub(super) fn locks(&mut self, spot: Spot, locks: &[Lock]) -> Result<()> {
        if !self.policy.file_locks {
            return Err(Error::refused(
                "a lock on a file",
                "is carried only with --file-locks",
            ));
        }
        let status = procfs::status(spot.pid)?;
        let pid = status.ns_tgid.last().copied().unwrap_or(spot.pid.0);
        for lock in locks {
            let entry = FileLockEntry {
                flag: match lock.kind {
                    LockKind::Posix => POSIX,
                    LockKind::Flock => FLOCK,
                    LockKind::Ofd => OFD,
                },
                r#type: if lock.write { WRITE } else { READ },
                pid,
                fd: spot.fd,
                start: lock.start,
                len: lock.len,
            };
            self.image.push(Image::Filelocks, 0, &entry);
        }
        Ok(())
    }
}

/// Refuses a lock record that is unknown or makes no sense.
pub(super) fn check(entry: &FileLockEntry) -> Result<()> {
    let known = matches!(entry.flag, POSIX | FLOCK | OFD) && matches!(entry.r#type, READ | WRITE);
    if known && entry.start >= 0 && entry.len >= 0 {
        Ok(())
    } else {
        Err(Error::image(
            format!("lock of task {} fd {}", entry.pid, entry.fd),
            "is of a kind that cannot be taken",
        ))
    }
}

/// The argument of F_SETLK in the task.
pub(super) fn call_bytes(entry: &FileLockEntry) -> Vec<u8> {
    fdops::flock_bytes(entry.r#type == WRITE, entry.start, entry.len)
}
