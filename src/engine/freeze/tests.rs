//! Trees that change while they are being stopped.

use std::process::{Child, Command, Stdio};

use super::*;
use crate::sys::ns;

/// Often enough to meet a process at each moment of its end.
const TIMES: usize = 400;

/// A shell, killed when dropped. Orphans below it come to it, as in a container.
struct Shell(Child);

impl Shell {
    fn run(script: &str) -> Self {
        let child = Command::new("unshare")
            .args(["--pid", "--fork", "--kill-child", "sh", "-c", script])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start unshare(1)");
        Self(child)
    }

    /// The first process of the pid namespace.
    fn root(&self) -> HostPid {
        let pid = HostPid(self.0.id().cast_signed());
        loop {
            let inner = procfs::children(pid).unwrap().first().copied();
            let name = inner.and_then(|p| Some(procfs::stat(p).ok()?.comm));
            if let (Some(inner), Some(b"sh")) = (inner, name.as_deref()) {
                return inner;
            }
            std::thread::yield_now();
        }
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// All that is in the pid namespace of `root`, as /proc has it.
fn in_its_namespace(root: HostPid) -> usize {
    let of = |pid: HostPid| ns::inode(pid, ns::Kind::Pid).ok();
    let ours = of(root);
    let all = procfs::processes();
    all.into_iter().filter(|pid| of(*pid) == ours).count()
}

fn stops_whole(script: &str) {
    let shell = Shell::run(script);
    let root = shell.root();
    for _ in 0..TIMES {
        let tree = Tree::stop(root, false).unwrap();
        assert_eq!(tree.processes().len(), in_its_namespace(root), "{script}");
        tree.resume().unwrap();
    }
}

#[test]
fn a_tree_stops_whole_while_children_come_and_go() {
    stops_whole("while :; do (exit 3) & (:) | (:) ; wait; done");
}

#[test]
fn a_tree_stops_whole_while_children_end_that_nobody_waits_for() {
    stops_whole("trap '' CHLD; while :; do (:) & (:); done");
}

#[test]
fn a_tree_stops_whole_while_orphans_find_another_parent() {
    stops_whole("while :; do ( (sleep 0.01 & exit 3) & (:) ); wait; done");
}
