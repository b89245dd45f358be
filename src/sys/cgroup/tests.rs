use super::*;
use std::process::{Child, Command};

/// A sleeping child in a cgroup of its own, removed when dropped.
struct Sleeper {
    child: Child,
    parent: Dir,
    dir: Dir,
    name: String,
}

impl Sleeper {
    fn start(hierarchy: &str) -> Self {
        let child = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = HostPid(i32::try_from(child.id()).unwrap());
        let name = format!("dunlin-ns-test-{pid}");
        let parent = Dir::root(hierarchy).unwrap();
        let (dir, made) = parent.make(&name).unwrap();
        assert!(made);
        dir.take(pid).unwrap();
        Self {
            child,
            parent,
            dir,
            name,
        }
    }

    fn pid(&self) -> HostPid {
        HostPid(i32::try_from(self.child.id()).unwrap())
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.dir.thaw();
        let _ = self.child.wait();
        let _ = self.parent.remove(&self.name);
    }
}

/// Names of the hierarchies of this machine that can freeze.
pub(crate) fn freezers() -> Vec<&'static str> {
    ["freezer", ""]
        .into_iter()
        .filter(|h| Dir::root(h).is_ok())
        .collect()
}

#[test]
fn membership_lines_are_sorted_and_keep_colons_in_paths() {
    let m = parse_membership("9:name=systemd:/a:b\n1:cpu,cpuacct:/x (deleted)\n0::/v2\n").unwrap();
    let names: Vec<_> = m
        .iter()
        .map(|m| (m.name.as_str(), m.path.as_str()))
        .collect();
    assert_eq!(
        names,
        [("", "/v2"), ("cpu,cpuacct", "/x"), ("name=systemd", "/a:b")]
    );
    assert!(parse_membership("nonsense").is_none());
}

#[test]
fn a_task_moved_into_a_cgroup_freezes_and_thaws_with_it() {
    for h in freezers() {
        let s = Sleeper::start(h);
        let f = freezer_of(s.pid()).unwrap();
        assert_eq!((f.name.as_str(), f.path), (h, format!("/{}", s.name)));
        assert!(prefrozen(s.pid()).unwrap().is_none());
        s.dir.freeze_begin().unwrap();
        s.dir.freeze_wait(FREEZE_LIMIT).unwrap();
        assert!(s.dir.is_frozen().unwrap());
        let found = prefrozen(s.pid()).unwrap().expect("found frozen");
        assert_eq!(found.dir().path(), s.dir.path());
        found.thaw().unwrap();
        assert!(!s.dir.is_told_to_freeze().unwrap());
        found.refreeze().unwrap();
        assert!(s.dir.is_frozen().unwrap());
    }
}

#[test]
fn tasks_of_cgroups_below_are_found_too() {
    for h in freezers() {
        let s = Sleeper::start(h);
        let (above, _) = s.dir.make("a").unwrap();
        let (below, _) = above.make("b").unwrap();
        assert_eq!(below.path(), format!("/{}/a/b", s.name));
        below.take(s.pid()).unwrap();
        assert!(s.dir.procs().unwrap().is_empty());
        assert!(s.dir.procs_below().unwrap().contains(&s.pid()));
        s.dir.take(s.pid()).unwrap();
        s.dir.descend("a").unwrap().remove("b").unwrap();
        s.dir.remove("a").unwrap();
    }
}

#[test]
fn a_path_that_leaves_the_hierarchy_is_refused() {
    let h = freezers()[0];
    let e = Dir::root(h).unwrap().descend("/../etc").unwrap_err();
    assert_eq!(e.raw_os_error(), Some(libc::EXDEV));
}
