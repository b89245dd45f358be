//! Credentials of a thread, from its /proc status and the injected
//! `prctl(PR_GET_SECUREBITS)`.

use crate::base::{HostPid, Result};
use crate::image::records::CredsEntry;
use crate::sys::procfs::{self, Status};

fn halves(caps: u64) -> Vec<u32> {
    let b = caps.to_le_bytes();
    b.chunks_exact(4)
        .filter_map(|c| c.try_into().ok())
        .map(u32::from_le_bytes)
        .collect()
}

/// The credentials as a record.
pub fn record(status: &Status, securebits: u32, lsm_profile: Option<String>) -> CredsEntry {
    let ([uid, euid, suid, fsuid], [gid, egid, sgid, fsgid]) = (status.uids, status.gids);
    CredsEntry {
        uid,
        gid,
        euid,
        egid,
        suid,
        sgid,
        fsuid,
        fsgid,
        cap_inh: halves(status.cap_inh),
        cap_prm: halves(status.cap_prm),
        cap_eff: halves(status.cap_eff),
        cap_bnd: halves(status.cap_bnd),
        cap_amb: halves(status.cap_amb),
        secbits: securebits,
        groups: status.groups.clone(),
        lsm_profile,
        lsm_sockcreate: None,
        apparmor_data: None,
        no_new_privs: Some(u32::from(status.no_new_privs)),
    }
}

/// The AppArmor profile or SELinux context that confines a task; `None` when
/// no such module is active, or it is unconfined.
///
/// # Errors
/// If the attribute cannot be read although a module is active.
pub fn lsm_profile(pid: HostPid) -> Result<Option<String>> {
    let raw = match procfs::file(pid, "attr/current") {
        Ok(raw) => raw,
        // no module that keeps the attribute
        Err(e)
            if matches!(
                e.raw_os_error(),
                Some(libc::EINVAL | libc::ENOENT | libc::EOPNOTSUPP)
            ) =>
        {
            return Ok(None);
        }
        Err(e) => return Err(e),
    };
    let text = String::from_utf8_lossy(&raw);
    let text = text.trim_end_matches(['\0', '\n']);
    // AppArmor appends its mode
    let profile = text.rsplit_once(" (").map_or(text, |(p, _)| p);
    Ok(
        (!profile.is_empty() && profile != "unconfined" && profile != "kernel")
            .then(|| profile.to_owned()),
    )
}
