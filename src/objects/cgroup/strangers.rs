//! Who is in a container without being a part of its tree.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::base::{HostPid, Result};
use crate::sys::cgroup::{self, Dir, Member};
use crate::sys::ns::{self, Kind};
use crate::sys::procfs;

/// As long as what was seen before counts: a pid comes again when all others have been
/// given away once.
const FRESH: Duration = Duration::from_millis(500);

/// The processes that were there before a freeze, outside of the container's pid
/// namespace: they stay so. To ask each of them takes 10 us, and hosts have thousands.
#[derive(Debug)]
pub struct Outside {
    pids: BTreeSet<HostPid>,
    /// The youngest process of that time.
    last: Option<i32>,
    at: Instant,
}

impl Outside {
    /// Those that are there now; none if `root` is not, or has no namespace of its own.
    pub fn now(root: HostPid) -> Self {
        let (at, last) = (Instant::now(), procfs::last_pid());
        let space = |pid: HostPid| ns::inode(pid, Kind::Pid).ok();
        let (theirs, ours) = (space(root), ns::own_inode(Kind::Pid).ok());
        let mut pids = BTreeSet::new();
        if theirs.is_some() && theirs != ours {
            pids = procfs::processes();
            pids.retain(|pid| space(*pid).is_some_and(|i| Some(i) != theirs));
        }
        Self { pids, last, at }
    }

    /// Which of the processes that are there now may be inside.
    fn others(&self) -> BTreeSet<HostPid> {
        let mut all = procfs::processes();
        if let (Some(before), Some(now)) = (self.last, procfs::last_pid())
            && self.at.elapsed() < FRESH
        {
            all.retain(|pid| !self.pids.contains(pid) || is_since(pid.0, before, now));
        }
        all
    }

    /// Processes that are in the container's cgroups or pid namespace and are not
    /// in `tree`: exec sessions, health checks.
    ///
    /// # Errors
    /// Those of reading the directories.
    pub fn strangers(&self, root: HostPid, tree: &BTreeSet<HostPid>) -> Result<Vec<HostPid>> {
        let mut found = BTreeSet::new();
        let ours = cgroup::own_membership()?;
        let mut asked = false;
        for member in cgroup::membership(root)? {
            let shared = |o: &Member| {
                o.name == member.name
                    && (o.path == member.path || o.path.starts_with(&format!("{}/", member.path)))
            };
            // The freezer's is the one that counts; any other will do as well.
            if member.path == "/" || ours.iter().any(shared) || (asked && member.name != "freezer")
            {
                continue;
            }
            found.extend(Dir::open(&member)?.procs_below()?);
            asked = true;
        }
        let space = ns::inode(root, Kind::Pid)?;
        if space != ns::own_inode(Kind::Pid)? {
            let mut others = self.others();
            others.retain(|pid| ns::inode(*pid, Kind::Pid).is_ok_and(|i| i == space));
            found.extend(others);
        }
        // 0 is one that we cannot see from our pid namespace.
        found.retain(|pid| !tree.contains(pid) && pid.0 != 0);
        Ok(found.into_iter().collect())
    }
}

/// Whether `pid` was given away between two moments, by the last one of each. Pids
/// rise, and begin again at the top.
fn is_since(pid: i32, before: i32, now: i32) -> bool {
    if before <= now {
        before < pid && pid <= now
    } else {
        before < pid || pid <= now
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::testing::Child;

    #[test]
    fn a_pid_that_was_given_away_since_is_told_from_an_old_one_also_at_the_top() {
        assert!(is_since(12, 10, 12) && is_since(11, 10, 12));
        assert!(!is_since(10, 10, 12) && !is_since(13, 10, 12) && !is_since(10, 10, 10));
        assert!(is_since(32_767, 32_760, 300) && is_since(300, 32_760, 300));
        assert!(!is_since(301, 32_760, 300) && !is_since(32_760, 32_760, 300));
    }

    #[test]
    fn only_who_has_come_since_or_was_inside_is_asked_again() {
        let old = Child::fork();
        let mut outside = Outside::now(old.pid());
        // As if this were another namespace than the container's.
        outside.pids = procfs::processes();
        let new = Child::fork();
        let others = outside.others();
        assert!(!others.contains(&old.pid()) && others.contains(&new.pid()));
        outside.pids.remove(&old.pid());
        assert!(outside.others().contains(&old.pid()));
        outside.at -= FRESH;
        outside.pids.insert(old.pid());
        assert!(outside.others().contains(&old.pid()), "it is long ago");
    }
}
