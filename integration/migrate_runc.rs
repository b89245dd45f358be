//! A runc container moves between two runc roots: with TLS and without, with its
//! bundle, its memory following; and what is refused leaves it as it was.

#[path = "harness/mod.rs"]
mod harness;
#[path = "migrate_support/mod.rs"]
mod migrate_support;

use harness::*;
use migrate_support::{Ended, Move, send, wait_stopped};
use nix::sys::signal::Signal;

#[test]
fn a_running_container_moves_and_nothing_is_left() {
    needs!(root, runc);
    let m = Move::start("mig-move", 24);
    let init = m.container.init();
    let (source, destination) = m.both(&[], &[]);
    assert!(
        source.ok,
        "{}\n--- receive\n{}",
        source.text, destination.text
    );
    assert!(destination.ok, "{}", destination.text);
    assert!(source.text.contains("pause"), "{}", source.text);
    // There: it goes on where it was, and runc knows it.
    m.goes_on_there("after the move");
    assert_eq!(m.starts_there(), 1, "it was started again");
    assert_eq!(m.status_there(), "running");
    let list = must(m.there.command().arg("list"));
    assert!(list.stdout.contains(&m.container.id), "{}", list.stdout);
    let exec = must(
        m.there
            .command()
            .args(["exec", &m.container.id, "echo", "hello"]),
    );
    assert_eq!(exec.stdout.trim(), "hello");
    // Up, as runc made it; runc does not do so again.
    let lo = ["exec", &m.container.id, "cat", "/sys/class/net/lo/flags"];
    assert_eq!(must(m.there.command().args(lo)).stdout.trim(), "0x9");
    // Here: nothing.
    init.wait_gone(PATIENCE);
    assert_eq!(m.container.status(), "unknown");
    assert!(m.journals("here").is_empty() && m.journals("there").is_empty());
    let hold = format!(
        "/sys/fs/cgroup/freezer/dunlin-tests-{}/dunlin-hold",
        m.container.id
    );
    assert!(!std::path::Path::new(&hold).exists(), "{hold}");
    // The account.
    let r = m.report();
    let sum: u64 = r["pause_us"]
        .as_object()
        .unwrap()
        .values()
        .map(|v| v.as_u64().unwrap())
        .sum();
    assert_eq!(r["pause_total_us"], sum);
    assert!(r["bytes_after_resume"].as_u64().unwrap() > 1 << 20, "{r}");
    assert!(r["pages"].as_u64().unwrap() > 24 * 256);
    assert!(r["faults"].as_u64().unwrap() > 0, "nothing was lazy: {r}");
    // And runc ends it there.
    m.delete_there();
    assert_eq!(m.status_there(), "unknown");
}

/// What a probe writes at the destination.
fn says(m: &Move, turn: &str) {
    let said = m.scratch.join("said");
    let text = wait_file(&said, PATIENCE, |t| t.contains(turn) || t.contains("wrong"));
    assert!(!text.contains("wrong"), "{text}");
}

/// Moves a probe. It runs there, and nothing comes: it is told to do its turn before
/// its memory is there. Gives what the receiver said.
fn disturbed_before_its_memory_is_there(m: &Move) -> Ended {
    let said = m.scratch.join("said");
    let (receiver, at) = m.receive(&["--output", said.to_str().unwrap()]);
    let mut source = m.migrate(&at, &["--pause-at", "resumed"]);
    wait_stopped(&mut source);
    m.wait_running_there();
    m.signal_there("USR1");
    send(source.id(), Signal::SIGCONT);
    let (source, receiver) = (m.end(source, "migrate.log"), m.end(receiver, "receive.log"));
    assert!(source.ok, "{}\n{}", source.text, receiver.text);
    receiver
}

fn eighty_mib_followed(m: &Move) {
    let r = m.report();
    assert!(r["pages"].as_u64().unwrap() >= 80 * 256, "{r}");
    assert!(r["bytes_in_pause"].as_u64().unwrap() < 1 << 20, "{r}");
    assert!(r["faults"].as_u64().unwrap() > 0, "nothing was lazy: {r}");
}

#[test]
fn shared_memory_follows_a_container_that_has_moved() {
    needs!(root, runc, gcc);
    let args = ["/bin/shared", "64", "plain"];
    let mut m = Move::of("mig-shared", &sample("shared"), &args, |_| ());
    m.container.signal("USR1");
    m.container.lines.expect("turn 1", PATIENCE);
    disturbed_before_its_memory_is_there(&m);
    says(&m, "turn 2");
    m.signal_there("USR1");
    says(&m, "turn 3");
    eighty_mib_followed(&m);
}

/// Until all of it is there, its pages are locked as they come.
#[test]
fn locked_memory_follows_and_is_locked_as_it_was() {
    needs!(root, runc, gcc);
    let may_lock = |bundle: &mut Bundle| {
        let all = serde_json::json!(["CAP_IPC_LOCK"]);
        let sets = serde_json::json!({ "bounding": all, "effective": all, "permitted": all });
        bundle.edit(|config| config["process"]["capabilities"] = sets);
    };
    let m = Move::of(
        "mig-locked",
        &sample("locked"),
        &["/bin/locked", "64"],
        may_lock,
    );
    disturbed_before_its_memory_is_there(&m);
    says(&m, "turn 1");
    m.signal_there("USR1");
    says(&m, "turn 2");
    eighty_mib_followed(&m);
}

/// Which pages exist is told after the resume. A guard page that nobody knew of before
/// is one there all the same, to the program and to the kernel.
#[test]
fn guard_pages_that_are_made_in_the_moment_of_the_freeze_move_too() {
    needs!(root, runc, gcc);
    // On a busy machine none may be made in just that moment: then it is not tried yet.
    let told = (0..5).any(|_| guard_pages_move());
    assert!(told, "none was made just before a freeze");
}

/// Whether some were told late.
fn guard_pages_move() -> bool {
    let m = Move::of("mig-guards", &sample("guards"), &["/bin/guards"], |_| ());
    // It meets the newest guard pages first.
    let receiver = disturbed_before_its_memory_is_there(&m);
    says(&m, "turn 1");
    m.signal_there("USR1");
    says(&m, "turn 2");
    assert!(!receiver.text.contains("SIGBUS"), "{}", receiver.text);
    // Of a terabyte that is not there nothing is said to be there.
    let pages = m.report()["pages"].as_u64().unwrap();
    assert!((4096..20_000).contains(&pages), "{pages} pages");
    let told = "guard pages that were made just before the freeze";
    receiver.text.contains(told)
}

/// Areas that come in the last moment are told by what they join with, or read anew:
/// either way the program finds them as it made them.
#[test]
fn areas_that_come_and_go_all_the_time_move_as_they_are() {
    needs!(root, runc, gcc);
    let args = ["/bin/churn", "96"];
    let m = Move::of("mig-churn", &sample("churn"), &args, |_| ());
    let said = m.scratch.join("said");
    let (source, receiver) = m.both(&["--output", said.to_str().unwrap()], &[]);
    assert!(source.ok, "{}\n{}", source.text, receiver.text);
    for turn in ["turn 1", "turn 2"] {
        m.signal_there("USR1");
        says(&m, turn);
    }
}

#[test]
fn a_container_moves_without_tls_when_both_ends_say_so() {
    needs!(root, runc);
    let m = Move::start("mig-plain", 8);
    let (source, destination) = m.both(&["--plain"], &["--plain"]);
    assert!(source.ok, "{}\n{}", source.text, destination.text);
    m.goes_on_there("after a plain move");
}

#[test]
fn a_refused_or_impossible_move_leaves_the_container_as_it_was() {
    needs!(root, runc);
    let m = Move::start("mig-refused", 4);
    let init = m.container.init();

    // Nobody listens.
    let (r, at) = m.receive(&[]);
    let wrong = run(&mut m.migrate_command("127.0.0.1:1", &[]), PATIENCE);
    assert!(
        !wrong.ok() && wrong.stderr.contains("connect to 127.0.0.1:1"),
        "{wrong:?}"
    );
    // Another session's token, another certificate.
    let token = m.scratch.join("token");
    let right = std::fs::read_to_string(&token).unwrap();
    let mut bytes = right.trim().to_owned().into_bytes();
    let at_secret = "dunlin1-".len() + 40;
    bytes[at_secret] = if bytes[at_secret] == b'0' { b'1' } else { b'0' };
    std::fs::write(&token, &bytes).unwrap();
    let wrong = run(&mut m.migrate_command(&at, &[]), PATIENCE);
    assert!(!wrong.ok() && wrong.stderr.contains("secret"), "{wrong:?}");
    std::fs::write(&token, &right).unwrap();
    let plain = run(&mut m.migrate_command(&at, &["--plain"]), PATIENCE);
    assert!(!plain.ok() && plain.stderr.contains("--plain"), "{plain:?}");
    // The receiver is still there for the right source, whose container it has not.
    let none = run(
        std::process::Command::new(dunlin())
            .args(["migrate", "nobody", &at, "--token-file"])
            .arg(&token)
            .arg("--root")
            .arg(&m.container.runc.root),
        PATIENCE,
    );
    assert!(!none.ok() && none.stderr.contains("nobody"), "{none:?}");
    m.goes_on_here("after refusals");
    let source = m.end(m.migrate(&at, &[]), "migrate.log");
    let destination = m.end(r, "receive.log");
    assert!(
        source.ok && destination.ok,
        "{}\n{}",
        source.text,
        destination.text
    );
    init.wait_gone(PATIENCE);
    m.goes_on_there("after all");
}

#[test]
fn what_only_the_source_was_told_to_carry_is_refused_before_anything_is_frozen() {
    needs!(root, runc);
    let m = Move::start("mig-carried", 4);
    let (source, receiver) = m.both(&[], &["--file-locks", "--ext-unix-sk"]);
    assert!(!source.ok && !receiver.ok);
    for option in ["--file-locks", "--ext-unix-sk"] {
        let why = format!("its source carries {option}, which receive was not told");
        assert!(source.text.contains(&why), "{}", source.text);
    }
    m.goes_on_here("after the refusal");
    assert!(m.landed().is_empty());
    assert!(m.journals("here").is_empty() && m.journals("there").is_empty());
}

#[test]
fn a_bundle_with_a_bind_is_denied_by_name_before_anything_is_frozen() {
    needs!(root, runc);
    let scratch = Scratch::new("mig-bind");
    let mut bundle = Bundle::new(&scratch, "bundle", &[], &["/bin/sleep", "1000"]);
    let data = scratch.dir("secret-data");
    bundle.edit(|c| {
        c["mounts"].as_array_mut().unwrap().push(serde_json::json!({
            "destination": "/mnt", "type": "bind", "source": data, "options": ["bind"]
        }));
    });
    let runc = Runc::new(&scratch);
    let there = Runc {
        root: scratch.dir("runc-there"),
        ..runc.clone()
    };
    let container = Container::run(&runc, bundle, scratch.name());
    let m = Move {
        container,
        there,
        scratch,
        ends_in: None,
    };
    let (source, destination) = m.both(&[], &[]);
    assert!(
        !source.ok && source.text.contains("secret-data"),
        "{}",
        source.text
    );
    assert!(!destination.ok);
    assert_eq!(m.container.status(), "running");
    assert!(m.landed().is_empty());
    assert!(m.journals("here").is_empty() && m.journals("there").is_empty());
}

/// A script that notes its stage, and whether the container's init is there and
/// stopped; it fails at the stage that the file `fail` names.
fn script(m: &Move, side: &str) -> String {
    use std::os::unix::fs::PermissionsExt;
    let dir = m.scratch.path().display();
    let path = m.scratch.join(format!("script-{side}"));
    let text = format!(
        r#"#!/bin/sh
state=gone
[ ! -e "/proc/$CRTOOLS_INIT_PID" ] || read -r _ _ state _ <"/proc/$CRTOOLS_INIT_PID/stat"
case $state in t) state=stopped ;; R | S) state=runs ;; esac
echo "$CRTOOLS_SCRIPT_ACTION $state" >>"{dir}/told-{side}"
[ "$CRTOOLS_SCRIPT_ACTION" != "$(cat "{dir}/fail" 2>/dev/null)" ]
"#
    );
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}

fn told(m: &Move, side: &str) -> Vec<String> {
    let path = m.scratch.join(format!("told-{side}"));
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    let _ = std::fs::remove_file(path);
    text.lines().map(str::to_owned).collect()
}

#[test]
fn action_scripts_are_told_on_both_sides_and_one_that_fails_stops_the_move() {
    needs!(root, runc);
    let m = Move::start("mig-scripts", 4);
    let (here, there) = (script(&m, "here"), script(&m, "there"));
    std::fs::write(m.scratch.join("fail"), "network-lock").unwrap();
    let (source, _) = m.both(&["--action-script", &there], &["--action-script", &here]);
    assert!(
        !source.ok && source.text.contains("script-here at network-lock"),
        "{}",
        source.text
    );
    m.goes_on_here("after a script failed");
    let stages = [
        "pre-dump runs",
        "network-lock stopped",
        "network-unlock runs",
    ];
    assert_eq!(told(&m, "here"), stages);
    assert_eq!(told(&m, "there"), [""; 0]);
    assert!(m.journals("here").is_empty() && m.journals("there").is_empty());

    std::fs::remove_file(m.scratch.join("fail")).unwrap();
    let (source, receiver) = m.both(&["--action-script", &there], &["--action-script", &here]);
    assert!(
        source.ok && receiver.ok,
        "{}\n{}",
        source.text,
        receiver.text
    );
    m.goes_on_there("with scripts");
    assert_eq!(told(&m, "here"), stages[..2]);
    assert_eq!(
        told(&m, "there"),
        ["network-unlock runs", "post-resume runs"]
    );
}

#[test]
fn what_a_script_has_locked_is_unlocked_when_the_source_is_killed() {
    needs!(root, runc);
    let m = Move::start("mig-unlock", 4);
    let here = script(&m, "here");
    let (receiver, at) = m.receive(&[]);
    let mut source = m.migrate(&at, &["--action-script", &here, "--pause-at", "held"]);
    wait_file(&m.scratch.join("migrate.log"), PATIENCE, |t| {
        t.contains("held")
    });
    source.kill().unwrap();
    source.wait().unwrap();
    wait_file(&m.scratch.join("told-here"), PATIENCE, |t| {
        t.contains("network-unlock")
    });
    m.goes_on_here("after the guard settled it");
    assert!(!m.end(receiver, "receive.log").ok);
}
