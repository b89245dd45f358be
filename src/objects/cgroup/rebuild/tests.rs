use super::*;
use crate::objects::cgroup::{Cgroups, Outside};
use std::process::{Child, Command};

struct Sleeper(Child);

impl Sleeper {
    fn pid(&self) -> HostPid {
        HostPid(i32::try_from(self.0.id()).unwrap())
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn sleeper() -> Sleeper {
    Sleeper(Command::new("sleep").arg("1000").spawn().unwrap())
}

/// v1 hierarchies with limits that a test can set, and v2.
fn hierarchies() -> Vec<&'static str> {
    ["pids", "cpu", "cpuset", "memory", "devices", "freezer", ""]
        .into_iter()
        .filter(|h| Dir::root(h).is_ok())
        .collect()
}

fn make(name: &str, pid: HostPid) {
    for h in hierarchies() {
        let (dir, _) = Dir::root(h).unwrap().make(name).unwrap();
        inherit_cpuset(&dir).unwrap();
        match h {
            "pids" => dir.write("pids.max", "77").unwrap(),
            "cpu" => dir.write("cpu.shares", "333").unwrap(),
            "devices" => {
                dir.write("devices.deny", "a").unwrap();
                dir.write("devices.allow", "c 1:3 rwm").unwrap();
            }
            _ => {}
        }
        dir.take(pid).unwrap();
    }
}

fn remove(name: &str) {
    for h in hierarchies() {
        let root = Dir::root(h).unwrap();
        for _ in 0..1000 {
            match root.remove(name) {
                Err(e) if e.raw_os_error() == Some(libc::EBUSY) => std::thread::yield_now(),
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) => break,
                other => {
                    other.unwrap();
                    break;
                }
            }
        }
    }
}

#[test]
fn a_cgroup_comes_back_with_its_limits_under_another_name() {
    let first = sleeper();
    let (was, goes) = (
        format!("dunlin-ns-cg-{}", first.pid()),
        format!("dunlin-ns-cg2-{}", first.pid()),
    );
    make(&was, first.pid());
    let got = Cgroups::of(first.pid(), &[first.pid()].into()).unwrap();
    let mut set = Set::new();
    got.capture(Mode::Soft, &mut set).unwrap();
    assert_eq!((got.own_set(), got.set_of(first.pid())), (1, Some(2)));
    drop(first);
    remove(&was);

    let plan = Plan::read(&set, Mode::Soft, &[(None, format!("/{goes}"))])
        .unwrap()
        .unwrap();
    let made = plan.prepare().unwrap();
    let second = sleeper();
    plan.place(second.pid(), 2).unwrap();
    made.finish().unwrap();
    for m in cgroup::membership(second.pid()).unwrap() {
        if hierarchies().contains(&m.name.as_str()) {
            assert_eq!(m.path, format!("/{goes}"), "{}", m.name);
        }
    }
    let limit = |h: &str, f: &str| {
        Dir::root(h)
            .and_then(|r| r.descend(&goes))
            .and_then(|d| d.read(f))
    };
    if hierarchies().contains(&"pids") {
        assert_eq!(limit("pids", "pids.max").unwrap(), "77");
    }
    if hierarchies().contains(&"cpu") {
        assert_eq!(limit("cpu", "cpu.shares").unwrap(), "333");
    }
    if hierarchies().contains(&"devices") {
        assert_eq!(limit("devices", "devices.list").unwrap(), "c 1:3 rwm");
    }
    drop(second);
    remove(&goes);
}

#[test]
fn a_cgroup_that_exists_keeps_its_properties_in_soft_mode() {
    if !hierarchies().contains(&"pids") {
        return;
    }
    let s = sleeper();
    let name = format!("dunlin-ns-cgs-{}", s.pid());
    make(&name, s.pid());
    let mut set = Set::new();
    let got = Cgroups::of(s.pid(), &[s.pid()].into()).unwrap();
    got.capture(Mode::Soft, &mut set).unwrap();
    let dir = Dir::root("pids").unwrap().descend(&name).unwrap();
    dir.write("pids.max", "55").unwrap();
    let plan = Plan::read(&set, Mode::Soft, &[]).unwrap().unwrap();
    plan.prepare().unwrap().finish().unwrap();
    assert_eq!(dir.read("pids.max").unwrap(), "55");
    let full = Plan::read(&set, Mode::Full, &[]).unwrap().unwrap();
    full.prepare().unwrap().finish().unwrap();
    assert_eq!(dir.read("pids.max").unwrap(), "77");
    let strict = Plan::read(&set, Mode::Strict, &[]).unwrap().unwrap();
    assert_eq!(
        strict.prepare().unwrap_err().raw_os_error(),
        Some(libc::EEXIST)
    );
    drop(s);
    remove(&name);
}

#[test]
fn a_path_that_climbs_is_refused() {
    check_path("/a/../b").unwrap_err();
    check_path("a").unwrap_err();
    check_path("/a/b").unwrap();
}

#[test]
fn who_is_in_the_cgroup_but_not_in_the_tree_is_a_stranger() {
    let (a, b) = (sleeper(), sleeper());
    let name = format!("dunlin-ns-str-{}", a.pid());
    make(&name, a.pid());
    for h in hierarchies() {
        Dir::root(h)
            .unwrap()
            .descend(&name)
            .unwrap()
            .take(b.pid())
            .unwrap();
    }
    let found = Outside::now(a.pid())
        .strangers(a.pid(), &[a.pid()].into())
        .unwrap();
    let (pid, all) = (b.pid(), found.clone());
    drop((a, b));
    remove(&name);
    assert_eq!(all, [pid]);
}
