//! The control groups of a container that is received: where runc puts them, that
//! nobody else is in them, and that none is left.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use tracing::warn;

use crate::base::{Error, HostPid, Result, ResultExt};
use crate::sys::cgroup::{self, Hierarchies, Member};

/// How long tasks that were killed may take to leave a cgroup.
const EMPTY: Duration = Duration::from_secs(2);

/// Our own cgroups, below which runc puts those of a container that names no
/// absolute path; for a journal.
pub(super) fn below() -> Value {
    let own = cgroup::own_membership().unwrap_or_default();
    own.into_iter().map(|m| (m.name, m.path)).collect()
}

/// Where runc puts the container of a bundle, started by a process in the cgroups
/// `below`.
fn of(bundle: &Path, id: &str, below: &Value) -> Result<Vec<Member>> {
    let file = bundle.join("config.json");
    let what = || format!("read {}", file.display());
    let bytes = std::fs::read(&file).context(what)?;
    let config: Value =
        serde_json::from_slice(&bytes).map_err(|e| Error::caller(what(), e.to_string()))?;
    let named = config.pointer("/linux/cgroupsPath").and_then(Value::as_str);
    let path = named.filter(|p| !p.is_empty()).unwrap_or(id);
    let at = |base: &Value| {
        if path.starts_with('/') {
            return path.to_owned();
        }
        let base = base.as_str().unwrap_or_default();
        format!("{}/{path}", base.trim_end_matches('/'))
    };
    let members = below.as_object().into_iter().flatten();
    Ok(members
        .map(|(name, base)| Member {
            name: name.clone(),
            path: at(base),
        })
        .collect())
}

/// The container's cgroup here must be its own: runc's criu is put into it too, and
/// whoever else is in it would be taken for a part of the container.
///
/// # Errors
/// Somebody is in it, or its bundle cannot be read.
pub(super) fn alone(bundle: &Path, id: &str) -> Result<()> {
    let hierarchies = Hierarchies::now();
    for member in of(bundle, id, &below())? {
        let Ok(dir) = hierarchies.open(&member) else {
            continue; // to be made
        };
        if let Some(pid) = dir.procs_below()?.first() {
            return Err(Error::caller(
                format!("cgroup {} ({})", member.path, member.name),
                format!("task {pid} is in it already; name another one: --cgroups-path"),
            ));
        }
    }
    Ok(())
}

/// Who is in the container's cgroups, or below them.
pub(super) fn members(bundle: &Path, id: &str, below: &Value) -> BTreeSet<HostPid> {
    // No bundle, no cgroup: nobody.
    let all = of(bundle, id, below).unwrap_or_default();
    let hierarchies = Hierarchies::now();
    let procs = |m: &Member| hierarchies.open(m).and_then(|d| d.procs_below()).ok();
    all.iter().filter_map(procs).flatten().collect()
}

/// Removes what a runc that was killed left: empty cgroups. One with somebody in it
/// is not the container's, and stays.
pub(super) fn remove(bundle: &Path, id: &str, below: &Value) {
    let Ok(members) = of(bundle, id, below) else {
        return; // no bundle: runc was never started
    };
    let until = Instant::now() + EMPTY;
    let hierarchies = Hierarchies::now();
    for member in members {
        let (parent, name) = member.path.rsplit_once('/').unwrap_or(("", &member.path));
        let parent = Member {
            name: member.name.clone(),
            path: parent.to_owned(),
        };
        let Ok(parent) = hierarchies.open(&parent) else {
            continue; // gone, or never made
        };
        loop {
            match parent.remove(name) {
                Ok(()) => break,
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) => break,
                Err(e) if e.raw_os_error() == Some(libc::EBUSY) && Instant::now() < until => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                Err(e) => {
                    warn!("{e}");
                    break;
                }
            }
        }
    }
}
