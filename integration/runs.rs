//! The ground that all other tests stand on: sample programs run, bare and
//! under runc, answer, and leave nothing behind.

#[path = "harness/mod.rs"]
mod harness;

use harness::*;
use nix::sys::signal::Signal;

#[test]
fn a_probe_answers_as_its_header_says() {
    needs!(gcc);
    for (name, args, first, answer) in [
        ("spin", &["4"][..], "ready 4", "count "),
        ("threads", &["5"], "ready 5", "turn 1 5"),
        ("tree", &[], "ready", "turn 1"),
    ] {
        let mut command = std::process::Command::new(sample(name));
        let mut program = Program::start(command.args(args));
        program.lines.expect(first, PATIENCE);
        program.signal(Signal::SIGUSR1);
        program.lines.expect(answer, PATIENCE);
    }
}

#[test]
fn a_container_runs_under_runc_and_is_gone_afterwards() {
    needs!(root, runc, gcc);
    let scratch = Scratch::new("runs");
    let runc = Runc::new(&scratch);
    let tree = sample("tree");
    let bundle = Bundle::new(&scratch, "bundle", &[&tree], &["/bin/tree"]);
    let id = scratch.name().to_owned();
    let mut container = Container::run(&runc, bundle, &id);
    container.lines.expect("ready", PATIENCE);
    container.signal("USR1");
    container.lines.expect("turn 1", PATIENCE);
    let held: Vec<Proc> = container.pids().into_iter().filter_map(Proc::of).collect();
    assert_eq!(held.len(), 5, "1 and its four living descendants");
    drop(container);
    for process in held {
        process.wait_gone(PATIENCE);
    }
    let known = must(runc.command().args(["list", "--quiet"]));
    assert_eq!(known.stdout, "");
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    for line in mounts.lines().filter(|line| line.contains("cgroup")) {
        let at = line.split(' ').nth(1).unwrap();
        let left = std::path::Path::new(at).join(format!("dunlin-tests-{id}"));
        assert!(!left.exists(), "{} is left", left.display());
    }
}

#[test]
fn the_sample_program_is_right_about_itself_under_runc() {
    needs!(root, runc);
    let scratch = Scratch::new("patterns");
    let runc = Runc::new(&scratch);
    let program = patterns_program();
    let args = ["/bin/patterns", "--mib", "32", "--port", "7070"];
    let bundle = Bundle::new(&scratch, "bundle", &[&program], &args);
    let status = bundle.rootfs().join("data/status");
    let mut container = Container::run(&runc, bundle, scratch.name());
    container.lines.expect("ready", PATIENCE);
    let init = container.init();
    container.signal("USR1");
    wait_file(&status, PATIENCE, |line| line.contains(" acts=1 "));
    container.signal("TERM");
    init.wait_gone(PATIENCE);
    let log = std::fs::read_to_string(status.with_file_name("log")).unwrap();
    assert!(log.trim_end().ends_with("told to end"), "{log}");
}
