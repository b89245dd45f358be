//! What the typed options mean: `Typed` becomes the engine's options.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use super::typed::{Afterwards, Typed};
use crate::base::{Error, HostPid, Result};
use crate::engine::options::{CgroupMode, Common, Dump, Restore};
use crate::sys::inherited;

/// CLONE_NEWNET of clone(2).
const NEWNET: u64 = 0x4000_0000;

fn common(typed: &Typed) -> Result<Common> {
    Ok(Common {
        ext_unix_sk: typed.ext_unix_sk,
        shell_job: typed.shell_job,
        file_locks: typed.file_locks,
        orphan_pts_master: typed.orphan_pts_master,
        external: typed.external.clone(),
        ext_mnt: typed.ext_mnt.clone(),
        skip_mnt: typed.skip_mnt.iter().map(PathBuf::from).collect(),
        root: typed.root.as_ref().map(PathBuf::from),
        cgroups: cgroup_mode(typed.manage_cgroups.as_deref())?,
        cg_root: typed.cgroup_root.clone(),
        empty_ns: if typed.empty_net { NEWNET } else { 0 },
    })
}

fn cgroup_mode(typed: Option<&str>) -> Result<CgroupMode> {
    Ok(match typed {
        None => CgroupMode::default(),
        Some("ignore") => CgroupMode::Ignore,
        Some("none") => CgroupMode::None,
        Some("props") => CgroupMode::Props,
        Some("soft") => CgroupMode::Soft,
        Some("full") => CgroupMode::Full,
        Some("strict") => CgroupMode::Strict,
        Some(other) => {
            return Err(Error::caller(
                format!("option --manage-cgroups {other}"),
                "is none of none, props, soft, full, strict, ignore",
            ));
        }
    })
}

/// A dump of `typed`.
///
/// # Errors
/// No pid, options of a restore, or contradictions.
pub(crate) fn dump(typed: &Typed) -> Result<Dump> {
    let pid = typed
        .tree
        .filter(|pid| *pid > 0)
        .ok_or_else(|| Error::caller("dump", "needs the pid of a task (--tree)"))?;
    if !typed.inherit_fd.is_empty() {
        return Err(Error::caller("option --inherit-fd", "is for a restore"));
    }
    if typed.page_server && !typed.lazy_pages {
        return Err(Error::caller(
            "option --page-server is not supported for this dump",
            "only a lazy dump (--lazy-pages) serves its pages; dunlin migrate needs no disk either",
        ));
    }
    Ok(Dump {
        common: common(typed)?,
        pid: HostPid(pid),
        lazy: typed.lazy_pages,
        list_later: false,
    })
}

/// A restore of `typed`. Takes over the descriptors that it inherits.
///
/// # Errors
/// A descriptor that is not open, or contradictions.
pub(crate) fn restore(typed: &Typed) -> Result<Restore> {
    if typed.restore_sibling && !typed.detach {
        return Err(Error::caller(
            "option --restore-sibling",
            "only makes sense with --restore-detached",
        ));
    }
    if typed.exec_cmd && typed.detach {
        return Err(Error::caller(
            "option --exec-cmd",
            "contradicts --restore-detached",
        ));
    }
    let mut inherit: Vec<(String, OwnedFd)> = Vec::new();
    for (key, number) in &typed.inherit_fd {
        // Two keys may name one descriptor: a terminal is three streams.
        let fd = inherited::duplicate(*number).map_err(|e| e.within(format!("resource {key}")))?;
        inherit.push((key.clone(), fd));
    }
    // For a standard stream that was a file of the host: whoever restores gives
    // its own instead, as a runtime does with the container's.
    for number in 0..3 {
        if let Ok(fd) = inherited::duplicate(number) {
            inherit.push((format!("stdio[{number}]"), fd));
        }
    }
    Ok(Restore {
        common: common(typed)?,
        sibling: typed.restore_sibling,
        inherit,
        join_ns: typed.join_ns.clone(),
        lazy: typed.lazy_pages,
        stopped: typed.afterwards == Afterwards::Stopped,
    })
}
