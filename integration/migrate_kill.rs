//! kill -9 of either end at every point: before GRANTED the source goes on and
//! nothing is left at the destination; after it never two copies, never a zero
//! page in place of one that did not come.

#[path = "harness/mod.rs"]
mod harness;
#[path = "migrate_support/mod.rs"]
mod migrate_support;

use std::process::Child;
use std::time::{Duration, Instant};

use harness::*;
use migrate_support::Move;

/// Waits until the process has stopped itself.
fn wait_stopped(child: &mut Child) {
    let until = Instant::now() + PATIENCE;
    loop {
        if child.try_wait().unwrap().is_some() {
            panic!("it ended before the point");
        }
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        if stat
            .rsplit(')')
            .next()
            .unwrap()
            .trim_start()
            .starts_with('T')
        {
            return;
        }
        assert!(Instant::now() < until, "never came to the point");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Kills one end at `point`; the other may end as it likes.
fn kill_at(name: &str, point: &str, source: bool) -> Move {
    let m = Move::start(name, 4);
    let patience = ["--patience", "3"];
    let at_point = ["--patience", "3", "--pause-at", point];
    let (r, at) = m.receive(if source { &patience } else { &at_point });
    let s = m.migrate(&at, if source { &at_point } else { &patience });
    let (mut victim, other, log) = if source {
        (s, r, "receive.log")
    } else {
        (r, s, "migrate.log")
    };
    wait_stopped(&mut victim);
    victim.kill().unwrap();
    victim.wait().unwrap();
    m.end(other, log);
    m
}

fn until(what: &str, good: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !good() {
        assert!(Instant::now() < end, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_source_killed_before_granted_goes_on_and_leaves_nothing_there() {
    needs!(root, runc);
    for point in [
        "connected",
        "bundle",
        "frozen",
        "captured",
        "held",
        "sent",
        "ready",
    ] {
        let m = kill_at("mig-kill-src", point, true);
        m.goes_on_here(point);
        until("nothing there", || {
            m.landed().is_empty() && m.journals("there").is_empty()
        });
        assert_eq!(m.status_there(), "unknown", "{point}");
        until("journal settled", || m.journals("here").is_empty());
    }
}

#[test]
fn a_receiver_killed_before_granted_leaves_nothing_and_the_source_goes_on() {
    needs!(root, runc);
    for point in ["offered", "bundle-landed", "state-landed", "rebuilt"] {
        let m = kill_at("mig-kill-dst", point, false);
        m.goes_on_here(point);
        until("nothing there", || {
            m.landed().is_empty() && m.journals("there").is_empty()
        });
        assert_eq!(m.status_there(), "unknown", "{point}");
        assert!(m.journals("here").is_empty(), "{point}");
    }
}

#[test]
fn a_source_killed_after_granted_stays_held_until_a_person_decides() {
    needs!(root, runc);
    // GRANTED is in the journal, but GRANT was never said: nothing runs there.
    let m = kill_at("mig-kill-granted", "granted", true);
    let journals = m.journals("here");
    assert_eq!(journals.len(), 1, "{journals:?}");
    assert_ne!(m.status_there(), "running");
    let asked = m.resolve("here", &m.container.runc.clone(), &[]);
    assert!(!asked.ok() && asked.stderr.contains("--thaw"), "{asked:?}");
    let thawed = m.resolve("here", &m.container.runc.clone(), &["--thaw"]);
    assert!(thawed.ok(), "{thawed:?}");
    m.goes_on_here("thawed by decision");
    assert!(m.journals("here").is_empty());
}

#[test]
fn after_the_resume_a_killed_source_is_never_thawed_and_its_pages_never_read_as_zeros() {
    needs!(root, runc);
    let m = kill_at("mig-kill-resumed", "resumed", true);
    // The container there lacked pages: it was stopped, loudly, after the patience.
    until("stopped there", || m.status_there() != "running");
    let data = m
        .scratch
        .join("in")
        .join(&m.container.id)
        .join("bundle/rootfs/data/status");
    let line = std::fs::read_to_string(data).unwrap_or_default();
    assert!(!line.starts_with("wrong"), "{line}");
    let thaw = m.resolve("here", &m.container.runc.clone(), &["--thaw"]);
    assert!(!thaw.ok() && thaw.stderr.contains("two copies"), "{thaw:?}");
    let discard = m.resolve("here", &m.container.runc.clone(), &["--discard"]);
    assert!(discard.ok(), "{discard:?}");
    assert_eq!(m.container.status(), "unknown");
}

#[test]
fn a_receiver_killed_after_resuming_never_leaves_two_copies() {
    needs!(root, runc);
    for point in ["resuming", "running"] {
        let m = kill_at("mig-kill-dst-late", point, false);
        // The guardian stops what runs there without its memory.
        until("nothing runs there", || m.status_there() != "running");
        let journals = m.journals("here");
        assert_eq!(journals.len(), 1, "{point}: the source must stay held");
        let init = m.container.init();
        assert!(init.is_alive());
        let discard = m.resolve("here", &m.container.runc.clone(), &["--discard"]);
        assert!(discard.ok(), "{discard:?}");
        init.wait_gone(PATIENCE);
    }
}
