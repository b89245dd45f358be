//! Ends that are connected and say nothing: both ends of a migration give such a
//! peer up in the time that they were told, and the container goes on where it may.
//! Who says nothing here is the program itself, stopped at each of its points, so
//! that its host still answers for it; or somebody who takes connections only.

#[path = "harness/mod.rs"]
mod harness;
#[path = "migrate_support/mod.rs"]
mod migrate_support;

use std::net::TcpListener;
use std::process::Child;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use migrate_support::{Ended, Move, send, until, wait_stopped};

/// What both ends are told: seconds.
const TIMES: [&str; 4] = ["--answer-time", "3", "--patience", "2"];
/// Handshakes that are waited for after that, and a slow machine.
const MORE: Duration = Duration::from_secs(30);

/// Waits for an end that has to give up by itself.
fn gives_up(m: &Move, child: Child, log: &str, when: &str) -> Ended {
    let begun = Instant::now();
    let ended = m.end(child, log);
    let took = begun.elapsed();
    assert!(took < MORE, "{when}: {took:?}\n{}", ended.text);
    assert!(!ended.ok, "{when}: {}", ended.text);
    eprintln!("{when}: given up after {took:?}");
    ended
}

#[test]
fn a_receiver_that_says_nothing_before_the_grant_lets_the_container_go_on() {
    needs!(root, runc);
    let m = Move::start("mig-mute-dst", 4);
    for point in ["offered", "bundle-landed", "state-landed", "rebuilt"] {
        let (mut receiver, to) = m.receive(&[&TIMES[..], &["--pause-at", point]].concat());
        let source = m.migrate(&to, &[&TIMES[..], &["--max-pause", "3"]].concat());
        wait_stopped(&mut receiver);
        let said = gives_up(&m, source, "migrate.log", point);
        assert!(said.text.contains("no answer within"), "{}", said.text);
        m.goes_on_here(point);
        assert!(m.journals("here").is_empty(), "{point}");
        // Nothing is there either, as soon as it can see.
        send(receiver.id(), Signal::SIGCONT);
        gives_up(&m, receiver, "receive.log", point);
        assert!(m.landed().is_empty() && m.journals("there").is_empty());
        assert_eq!(m.status_there(), "unknown", "{point}");
    }
}

#[test]
fn whoever_takes_connections_only_is_given_up_after_the_handshakes_time() {
    needs!(root, runc);
    let m = Move::start("mig-mute-tcp", 4);
    let (mut receiver, _) = m.receive(&[]);
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = mute.local_addr().unwrap().to_string();
    let said = gives_up(&m, m.migrate(&to, &TIMES), "migrate.log", "connect");
    assert!(said.text.contains("no answer within 10 s"), "{}", said.text);
    m.goes_on_here("after nobody answered");
    receiver.kill().unwrap();
    receiver.wait().unwrap();
}

#[test]
fn a_receiver_that_says_nothing_after_the_grant_is_given_up_and_the_copy_here_held() {
    needs!(root, runc);
    for (point, phase) in [
        ("resuming", "Granted"),
        ("resumed-said", "Resumed"),
        ("all-pages", "Resumed"),
    ] {
        let m = Move::start("mig-mute-after", 4);
        let init = m.container.init();
        let (mut receiver, to) = m.receive(&[&TIMES[..], &["--pause-at", point]].concat());
        let source = m.migrate(&to, &TIMES);
        wait_stopped(&mut receiver);
        let said = gives_up(&m, source, "migrate.log", point);
        assert!(said.text.contains("dunlin resolve"), "{}", said.text);
        assert!(m.list("here").contains(phase), "{}", m.list("here"));
        assert!(init.is_alive(), "{point}: its last copy");
        receiver.kill().unwrap();
        receiver.wait().unwrap();
        until("no owner there", || !m.list("there").contains("under way"));
        let o = m.resolve("here", &m.container.runc, &["--discard"]);
        assert!(o.ok(), "{o:?}");
        let there: &[&str] = if point == "all-pages" {
            &[]
        } else {
            &["--discard"]
        };
        let o = m.resolve("there", &m.there, there);
        assert!(o.ok(), "{o:?}");
    }
}

#[test]
fn a_source_that_says_nothing_before_it_grants_leaves_nothing_at_the_destination() {
    needs!(root, runc);
    let m = Move::start("mig-mute-src", 4);
    for point in ["connected", "bundle", "frozen", "held", "sent", "ready"] {
        let (receiver, to) = m.receive(&TIMES);
        let mut source = m.migrate(&to, &[&TIMES[..], &["--pause-at", point]].concat());
        wait_stopped(&mut source);
        gives_up(&m, receiver, "receive.log", point);
        assert!(m.landed().is_empty() && m.journals("there").is_empty());
        assert_eq!(m.status_there(), "unknown", "{point}");
        send(source.id(), Signal::SIGCONT);
        let source = m.end(source, "migrate.log");
        assert!(!source.ok, "{point}: {}", source.text);
        // Also when it had heard READY: that it was given up stands in its connection.
        m.goes_on_here(point);
        assert!(m.journals("here").is_empty(), "{point}");
    }
}
