//! A copy at the destination that lost more than one of those who look after it,
//! in the same instant: it never reads a zero page in place of one that did not
//! come, and whoever of ours comes next stops it and says so.

#[path = "harness/mod.rs"]
mod harness;
#[path = "migrate_support/mod.rs"]
mod migrate_support;

use std::process::{Child, Command};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use harness::*;
use migrate_support::{Move, children, send, until, wait_stopped};

/// It runs at the destination, without its pages: the source stands still before
/// it sends any.
fn without_pages(m: &Move) -> (Child, Child) {
    let (receiver, to) = m.receive(&["--patience", "2"]);
    let mut source = m.migrate(&to, &["--patience", "2", "--pause-at", "resumed"]);
    wait_stopped(&mut source);
    (source, receiver)
}

/// Kills the receiver with those of its children that have these names, at once:
/// none of them runs any more when the first one dies.
fn kill_at_once(mut receiver: Child, names: &[&str]) {
    let mut all = vec![receiver.id()];
    for name in names {
        let found = children(receiver.id(), name);
        assert_eq!(found.len(), 1, "{name} of the receiver");
        all.extend(found);
    }
    let held: Vec<Proc> = all
        .iter()
        .map(|p| Proc::of(i32::try_from(*p).unwrap()).unwrap())
        .collect();
    for signal in [Signal::SIGSTOP, Signal::SIGKILL] {
        all.iter().for_each(|pid| send(*pid, signal));
    }
    receiver.wait().unwrap();
    held.iter().for_each(|p| p.wait_gone(PATIENCE));
}

/// The source has the last copy, and a person lets it go.
fn ends(m: &Move, source: Child) {
    send(source.id(), Signal::SIGCONT);
    let source = m.end(source, "migrate.log");
    assert!(!source.ok && source.text.contains("dunlin resolve"));
    let init = m.container.init();
    assert!(init.is_alive(), "its last copy");
    for (side, root) in [("there", &m.there), ("here", &m.container.runc)] {
        let o = m.resolve(side, root, &["--discard"]);
        assert!(o.ok(), "{side}: {o:?}");
        assert!(m.journals(side).is_empty());
    }
    init.wait_gone(PATIENCE);
    assert_eq!(m.status_there(), "unknown");
    assert!(m.landed().is_empty());
}

#[test]
fn receiver_and_memory_guardian_killed_at_once_stop_the_container_and_show_it_no_zeros() {
    needs!(root, runc);
    let m = Move::start("mig-orphan-two", 4);
    let (source, receiver) = without_pages(&m);
    kill_at_once(receiver, &["dunlin-guardian"]);
    // The migration's guard sees that nobody serves its memory.
    until("stopped there", || m.status_there() != "running");
    let listed = m.list("there");
    for word in ["Resumed", "loss: 20", "together with its guardian"] {
        assert!(listed.contains(word), "{word:?} in {listed}");
    }
    m.no_wrong_page_there();
    ends(&m, source);
}

#[test]
fn with_everybody_of_ours_killed_at_once_it_waits_for_whoever_comes_next() {
    needs!(root, runc);
    let m = Move::start("mig-orphan-all", 4);
    let (source, receiver) = without_pages(&m);
    kill_at_once(receiver, &["dunlin-guardian", "guard-migration"]);
    // It looks at its memory all the time, and there is nobody to stop it.
    let end = Instant::now() + Duration::from_millis(500);
    while Instant::now() < end {
        m.no_wrong_page_there();
        assert_eq!(m.status_there(), "running");
    }
    let listed = m.list("there");
    assert!(listed.contains("waits for pages that nobody"), "{listed}");
    let asked = m.resolve("there", &m.there, &[]);
    assert!(
        !asked.ok() && asked.stderr.contains("--discard"),
        "{asked:?}"
    );
    assert_ne!(m.status_there(), "running");
    assert!(m.list("there").contains("loss: 20"));
    m.no_wrong_page_there();
    ends(&m, source);
}

/// A runc that restores as it should, and forgets the container all the same, as it
/// does when its criu dies before the last word; then it does `then`.
fn forgetful_runc(m: &Move, then: &str) -> std::path::PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let bin = m.scratch.dir("bin");
    let real = must(Command::new("sh").args(["-c", "command -v runc"])).stdout;
    let state = m.there.root.join(&m.container.id);
    let text = format!(
        r#"#!/bin/sh
case " $* " in
*" restore "*) ;;
*) exec {real} "$@" ;;
esac
{real} "$@" || exit
rm {state}/state.json && rmdir {state}/criu-root {state} 2>/dev/null
{then}
"#,
        real = real.trim(),
        state = state.display()
    );
    let path = bin.join("runc");
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    bin
}

#[test]
fn a_runc_that_forgets_what_it_has_restored_is_given_it_back() {
    needs!(root, runc);
    let m = Move::start("mig-forgets", 4);
    let init = m.container.init();
    let (receiver, to) = m.receive_with(&forgetful_runc(&m, "exit 1"), &[]);
    let source = m.end(m.migrate(&to, &[]), "migrate.log");
    let receiver = m.end(receiver, "receive.log");
    assert!(source.ok && receiver.ok, "{}", receiver.text);
    assert!(receiver.text.contains("runc knows it"), "{}", receiver.text);
    assert_eq!(m.status_there(), "running");
    m.goes_on_there("known again");
    init.wait_gone(PATIENCE);
    m.delete_there();
    assert_eq!(m.status_there(), "unknown");
}

#[test]
fn a_receiver_that_dies_with_all_pages_there_leaves_a_whole_container_to_resolve() {
    needs!(root, runc);
    let m = Move::start("mig-complete", 4);
    let (mut receiver, to) = m.receive_with(&forgetful_runc(&m, "exec sleep 1000"), &[]);
    let source = m.migrate(&to, &["--patience", "2"]);
    let journal = m
        .state("there")
        .join(format!("{}.destination", m.container.id));
    until("all pages", || {
        let text = std::fs::read_to_string(&journal);
        text.is_ok_and(|t| t.contains("\"whole\":true"))
    });
    let hanging = || children(receiver.id(), "sleep 1000");
    until("it forgot", || !hanging().is_empty());
    let runc = hanging();
    assert_eq!(m.status_there(), "unknown");
    receiver.kill().unwrap();
    receiver.wait().unwrap();
    send(runc[0], Signal::SIGKILL);
    let source = m.end(source, "migrate.log");
    assert!(!source.ok && source.text.contains("dunlin resolve"));
    until("it has no owner", || {
        m.list("there").contains("with all its pages")
    });
    let o = m.resolve("there", &m.there, &[]);
    assert!(o.ok() && o.stdout.contains("--discard"), "{o:?}");
    assert!(m.journals("there").is_empty());
    m.goes_on_there("by decision");
    let o = m.resolve("here", &m.container.runc, &["--discard"]);
    assert!(o.ok(), "{o:?}");
    m.goes_on_there("alone");
    m.delete_there();
}
