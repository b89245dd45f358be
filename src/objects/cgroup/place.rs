//! Cgroup namespaces: cgroup_namespaces(7).

use crate::base::Result;
use crate::sys::cgroup::{self, Hierarchies, Member};
use crate::sys::ns::{self, Kind};

/// Gives the calling single-threaded task a cgroup namespace of its own whose
/// root lies above it by `below` (hierarchy, path): a namespace pins the
/// cgroups that its maker is in, so the task goes up for a moment.
///
/// # Errors
/// Those of moving and of unshare(2).
pub fn enter_namespace(below: &[(String, String)]) -> Result<()> {
    let mut back = Vec::new();
    let hierarchies = Hierarchies::now();
    for now in cgroup::own_membership()? {
        let Some((_, rest)) = below.iter().find(|(n, _)| *n == now.name) else {
            continue;
        };
        let rest = rest.trim_matches('/');
        if rest.is_empty() {
            continue;
        }
        let Some(up) = now
            .path
            .strip_suffix(rest)
            .and_then(|p| p.strip_suffix('/'))
        else {
            continue;
        };
        let up = Member {
            name: now.name.clone(),
            path: if up.is_empty() { "/" } else { up }.to_owned(),
        };
        back.push(hierarchies.open(&now)?);
        hierarchies.open(&up)?.write("cgroup.procs", "0")?;
    }
    ns::unshare(&[Kind::Cgroup])?;
    for dir in back {
        dir.write("cgroup.procs", "0")?;
    }
    Ok(())
}
