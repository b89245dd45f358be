//! Memory that a family shares since fork(2) is shared after a restore as well.

#[path = "harness/mod.rs"]
mod harness;
use harness::*;

use std::fs;
use std::path::Path;
use std::process::Command;

/// What the tree under `root` takes of the machine's memory, KiB: shared pages
/// count in parts.
fn proportional(root: i32) -> u64 {
    let of = |pid: &i32| -> u64 {
        let path = format!("/proc/{pid}/smaps_rollup");
        let text = fs::read_to_string(&path).expect("read smaps_rollup");
        text.lines()
            .find_map(|l| l.strip_prefix("Pss:")?.split_whitespace().next())
            .and_then(|n| n.parse().ok())
            .expect("a number")
    };
    descendants(root).iter().map(of).sum()
}

fn criu_command(verb: &str, images: &Path) -> Command {
    let mut command = Command::new(dunlin());
    command.args(["criu", verb, "-v4", "-D"]).arg(images);
    command
}

#[test]
fn what_a_family_shares_since_fork_it_shares_after_a_restore() {
    needs!(root, gcc);
    adopt_orphans();
    let scratch = Scratch::new("forked");
    let images = scratch.dir("images");
    let held = Held::start(&scratch, &[], &sample("forked"), "32");
    let pid = held.pid.as_raw();
    let pids = descendants(pid);
    assert_eq!(pids.len(), 4);
    let before = proportional(pid);
    must(criu_command("dump", &images).args(["-o", "dump.log", "-t", &pid.to_string()]));
    Held::are_gone(&pids);
    must(criu_command("restore", &images).args(["-o", "restore.log", "-d"]));
    let after = proportional(pid);
    assert!(
        after < before + before / 4,
        "{before} KiB before, {after} KiB after"
    );
    held.is_asked();
}
