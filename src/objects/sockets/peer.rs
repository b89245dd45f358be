//! Whom SO_PEERCRED of a Unix socket names: unix(7).
//!
//! The kernel writes it down when the pair is made, and nobody can set it. So
//! the pair is made again by the task that is named, with the ids that it had.
//! CRIU's images have no place for it.

use std::os::fd::{BorrowedFd, OwnedFd};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use crate::base::{HostPid, Result, ResultExt};
use crate::image::records::PeerCredEntry;
use crate::sys::procfs;

/// Makes a pair of this type as the named task would. `None`: it is not there.
pub type MakePair<'a> = dyn FnMut(i32, &PeerCredEntry) -> Result<Option<(OwnedFd, OwnedFd)>> + 'a;

/// How deep in pid namespaces the root task is, seen from us.
pub(super) fn depth(root: HostPid) -> Result<usize> {
    Ok(procfs::status(root)?.ns_tgid.len())
}

/// What the socket behind `fd` tells; `None` for one that has no peer.
pub(super) fn credentials(
    fd: BorrowedFd<'_>,
    file: u32,
    depth: usize,
) -> Result<Option<PeerCredEntry>> {
    let peer = getsockopt(&fd, PeerCredentials).context(|| "getsockopt SO_PEERCRED".into())?;
    if peer.uid() == u32::MAX {
        return Ok(None);
    }
    let pid = match procfs::status(HostPid(peer.pid())) {
        Ok(status) => status.ns_tgid.get(depth - 1).copied().unwrap_or(0),
        // dead: its number in another namespace is lost
        Err(_) if depth == 1 => peer.pid(),
        Err(_) => 0,
    };
    Ok(Some(PeerCredEntry {
        file,
        pid,
        uid: peer.uid(),
        gid: peer.gid(),
    }))
}
