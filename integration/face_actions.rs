//! What a caller of `criu dump` and `criu restore` has done at the stages of a
//! job: action scripts, `--leave-stopped`, `--exec-cmd`.

#[path = "harness/mod.rs"]
mod harness;
use harness::*;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use nix::sys::signal::{Signal, kill};

/// A network namespace of its own: without one there is nothing to lock.
const OWN_NETWORK: &[&str] = &["unshare", "-n"];
const EMPTY_NETWORK: &[&str] = &["--empty-ns", "net"];

/// A program, its images, and a script that notes what it is told and fails at
/// the stage that is named in the file `fail`.
struct Job {
    scratch: Scratch,
    held: Held,
    images: PathBuf,
}

impl Job {
    fn start(through: &[&str], facet: &str) -> Self {
        adopt_orphans();
        let scratch = Scratch::new("actions");
        let images = scratch.dir("images");
        let held = Held::start(&scratch, through, &sample("state"), facet);
        Self {
            scratch,
            held,
            images,
        }
    }

    fn pid(&self) -> i32 {
        self.held.pid.as_raw()
    }

    fn script(&self, name: &str) -> PathBuf {
        let path = self.scratch.join(name);
        let images = self.images.display();
        let dir = self.scratch.path().display();
        let text = format!(
            r#"#!/bin/sh
state=- images=elsewhere
[ -z "$CRTOOLS_INIT_PID" ] || read -r _ _ state _ <"/proc/$CRTOOLS_INIT_PID/stat"
[ "$CRTOOLS_IMAGE_DIR" -ef "{images}" ] && images=images
echo "{name} $CRTOOLS_SCRIPT_ACTION ${{CRTOOLS_INIT_PID:--}} $state $images" >>"{dir}/told"
[ "$CRTOOLS_SCRIPT_ACTION" != "$(cat "{dir}/fail" 2>/dev/null)" ]
"#
        );
        fs::write(&path, text).expect("write a script");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
        path
    }

    fn fails_at(&self, stage: &str) {
        fs::write(self.scratch.join("fail"), stage).expect("name the stage");
    }

    /// What the scripts were told since the last call: lines of name, stage, pid,
    /// state of the root task, where the images are.
    fn told(&self) -> Vec<Vec<String>> {
        let path = self.scratch.join("told");
        let text = fs::read_to_string(&path).unwrap_or_default();
        let _ = fs::remove_file(path);
        text.lines()
            .map(|l| l.split(' ').map(str::to_owned).collect())
            .collect()
    }

    fn stages(&self) -> Vec<String> {
        self.told().iter().map(|line| line[1].clone()).collect()
    }

    fn run(&self, verb: &str, scripts: &[&Path], more: &[&str]) -> Outcome {
        let mut command = Command::new(dunlin());
        command.args(["criu", verb, "-v4", "-D"]).arg(&self.images);
        for script in scripts {
            command.arg("--action-script").arg(script);
        }
        run(command.args(more), PATIENCE)
    }

    fn dump(&self, scripts: &[&Path], more: &[&str]) -> Outcome {
        let pid = self.pid().to_string();
        let mut args = vec!["-t", &pid, "-o", "dump.log"];
        args.extend(more);
        self.run("dump", scripts, &args)
    }

    /// Dumps it without scripts, and waits until its pids are free.
    fn is_dumped(&self, more: &[&str]) {
        let pids = descendants(self.pid());
        let outcome = self.dump(&[], more);
        assert!(outcome.ok(), "{outcome:?}");
        Held::are_gone(&pids);
    }

    fn restore(&self, scripts: &[&Path], more: &[&str]) -> Outcome {
        let mut args = vec!["-o", "restore.log", "-d"];
        args.extend(more);
        self.run("restore", scripts, &args)
    }

    fn log(&self, name: &str) -> String {
        fs::read_to_string(self.images.join(name)).unwrap_or_default()
    }

    fn goes_on(&self) {
        assert!(!matches!(state_of(self.pid()), 't' | 'T' | 'Z'));
    }
}

fn state_of(pid: i32) -> char {
    let state = status_field(pid, "State").unwrap_or_default();
    state.chars().next().unwrap_or('-')
}

/// The stages and states of the root task; all of one script and one process.
fn with_states(job: &Job) -> Vec<(String, String)> {
    let pid = job.pid().to_string();
    job.told()
        .into_iter()
        .map(|line| {
            assert_eq!(line[4], "images", "{line:?}");
            assert!(line[2] == pid || line[2] == "-", "{line:?}");
            // on its way to sleep
            let state = if line[3] == "R" { "S" } else { &line[3] };
            (line[1].clone(), state.to_owned())
        })
        .collect()
}

fn all_at(stages: &[&str], state: &str) -> Vec<(String, String)> {
    let pair = |stage: &&str| ((*stage).to_owned(), state.to_owned());
    stages.iter().map(pair).collect()
}

#[test]
fn action_scripts_are_told_of_each_stage_in_order() {
    needs!(root, gcc);
    let job = Job::start(OWN_NETWORK, "family");
    let script = job.script("script");
    let scripts = [script.as_path()];

    let mut expected = all_at(&["pre-dump"], "S");
    expected.extend(all_at(
        &["network-lock", "post-dump", "network-unlock"],
        "t",
    ));
    let left = job.dump(&scripts, &["--empty-ns", "net", "--leave-running"]);
    assert!(left.ok(), "{left:?}");
    assert_eq!(with_states(&job), expected);

    let pids = descendants(job.pid());
    let killed = job.dump(&scripts, EMPTY_NETWORK);
    assert!(killed.ok(), "{killed:?}");
    assert_eq!(with_states(&job), expected[..3]);
    Held::are_gone(&pids);

    let restored = job.restore(&scripts, EMPTY_NETWORK);
    assert!(restored.ok(), "{restored:?}");
    let mut told = with_states(&job);
    let (last, state) = told.pop().expect("many stages");
    assert_eq!(last, "post-resume");
    assert!(state != "t", "post-resume comes before the resume");
    let mut expected = all_at(&["pre-restore"], "-");
    expected.extend(all_at(&["setup-namespaces", "post-setup-namespaces"], "S"));
    expected.extend(all_at(
        &["post-restore", "network-unlock", "pre-resume"],
        "t",
    ));
    assert_eq!(told, expected);
    job.held.is_asked();
}

/// Scripts would lock the host's network, as that is the task's.
#[test]
fn tasks_without_namespaces_of_their_own_have_no_stages_for_them() {
    needs!(root, gcc);
    let job = Job::start(&[], "clock");
    let script = job.script("script");
    let scripts = [script.as_path()];
    let pids = descendants(job.pid());
    assert!(job.dump(&scripts, &[]).ok());
    Held::are_gone(&pids);
    assert_eq!(job.stages(), ["pre-dump", "post-dump"]);
    assert!(job.restore(&scripts, &[]).ok());
    let expected = ["pre-restore", "post-restore", "pre-resume", "post-resume"];
    assert_eq!(job.stages(), expected);
    job.held.is_asked();
}

#[test]
fn a_script_that_fails_fails_the_dump_and_the_program_goes_on() {
    needs!(root, gcc);
    let job = Job::start(OWN_NETWORK, "family");
    let script = job.script("script");
    for stage in ["pre-dump", "network-lock", "post-dump"] {
        job.fails_at(stage);
        let outcome = job.dump(&[&script], EMPTY_NETWORK);
        assert!(!outcome.ok(), "{outcome:?}");
        let log = job.log("dump.log");
        assert!(log.contains("Error (") && log.contains(stage), "{log}");
        job.goes_on();
        let stages = job.stages();
        let after = if stage == "pre-dump" { 0 } else { 1 };
        assert_eq!(stages[stages.len() - 1 - after], stage);
        assert!(after == 0 || stages.ends_with(&["network-unlock".to_owned()]));
    }
    job.held.is_asked();
}

#[test]
fn a_script_that_fails_before_the_resume_leaves_nothing_restored() {
    needs!(root, gcc);
    let job = Job::start(OWN_NETWORK, "family");
    let pids = descendants(job.pid());
    job.is_dumped(EMPTY_NETWORK);
    let script = job.script("script");
    for stage in [
        "pre-restore",
        "setup-namespaces",
        "post-setup-namespaces",
        "post-restore",
    ] {
        job.fails_at(stage);
        let outcome = job.restore(&[&script], EMPTY_NETWORK);
        assert!(!outcome.ok(), "{outcome:?}");
        let log = job.log("restore.log");
        assert!(log.contains("Error (") && log.contains(stage), "{log}");
        assert_eq!(job.stages().last().map(String::as_str), Some(stage));
        Held::are_gone(&pids);
    }
    // too late to turn back
    job.fails_at("pre-resume");
    let outcome = job.restore(&[&script], EMPTY_NETWORK);
    assert!(outcome.ok(), "{outcome:?}");
    job.held.is_asked();
}

#[test]
fn the_log_of_a_restore_tells_its_plan_before_anything_is_made() {
    needs!(root, gcc);
    let job = Job::start(&[], "family");
    let pids = descendants(job.pid());
    assert!(pids.len() > 1, "{pids:?}");
    job.is_dumped(&[]);
    let script = job.script("script");
    job.fails_at("pre-restore");
    assert!(!job.restore(&[&script], &[]).ok());
    let log = job.log("restore.log");
    for pid in &pids[1..] {
        let made = format!(" forks {pid}\n");
        assert!(log.contains(&made), "{made}: {log}");
    }
    let last = log.find("plan: all go on").expect("the plan ends");
    let first_stage = log.find("pre-restore").expect("a stage");
    assert!(last < first_stage, "{log}");
    assert!(job.restore(&[], &[]).ok());
    job.held.is_asked();
}

#[test]
fn of_several_scripts_the_last_named_runs_first_and_all_run() {
    needs!(root, gcc);
    let job = Job::start(&[], "clock");
    let (one, two) = (job.script("one"), job.script("two"));
    job.fails_at("pre-dump");
    assert!(!job.dump(&[&one, &two], &[]).ok());
    let told = job.told();
    let who: Vec<&str> = told.iter().map(|line| line[0].as_str()).collect();
    assert_eq!(who, ["two", "one"]);
    job.held.is_asked();
}

/// Waits until all of the tree that live are stopped.
fn all_stop(root: i32) {
    let end = Instant::now() + PATIENCE;
    while descendants(root)
        .iter()
        .any(|pid| !matches!(state_of(*pid), 'T' | 'Z'))
    {
        assert!(Instant::now() < end, "not all of the tree stop");
        std::thread::yield_now();
    }
}

fn continue_all(root: i32) {
    for pid in descendants(root) {
        let _ = kill(nix::unistd::Pid::from_raw(pid), Signal::SIGCONT);
    }
}

#[test]
fn tasks_are_left_stopped_by_a_dump_and_by_a_restore() {
    needs!(root, gcc);
    let job = Job::start(&[], "timers");
    assert!(job.dump(&[], &["--leave-stopped"]).ok());
    all_stop(job.pid());
    continue_all(job.pid());
    job.is_dumped(&[]);
    let restored = job.restore(&[], &["--leave-stopped"]);
    assert!(restored.ok(), "{restored:?}");
    all_stop(job.pid());
    job.held.is_asked();
}

#[test]
fn a_command_takes_the_place_of_the_restore_as_parent_of_the_tasks() {
    needs!(root, gcc);
    let job = Job::start(&[], "clock");
    job.is_dumped(&[]);
    let look = format!("echo $$; cut -d' ' -f4 /proc/{}/stat", job.pid());
    let outcome = job.run("restore", &[], &["--exec-cmd", "--", "sh", "-c", &look]);
    assert!(outcome.ok(), "{outcome:?}");
    let lines: Vec<&str> = outcome.stdout.lines().collect();
    assert!(lines.len() == 2 && lines[0] == lines[1], "{outcome:?}");
    job.held.is_asked();
}
