//! kill -9 of either end at every point at which the program can be stopped, of
//! what restores and of what guards: before GRANTED the source goes on and
//! nothing is left at the destination; after it never two copies, never a zero
//! page in place of one that did not come, and `dunlin resolve` says and settles
//! what a person has to.

#[path = "harness/mod.rs"]
mod harness;
#[path = "migrate_support/mod.rs"]
mod migrate_support;

use std::process::{Child, Command};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use harness::*;
use migrate_support::{Cgroup, Move, children, kill_child, send, until, wait_stopped};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Source,
    Destination,
}

/// Seconds that either end waits for the other.
const SECONDS: [&str; 2] = ["--patience", "2"];

/// What has become of the container when one end was killed at a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// It goes on at the source; nothing is at the destination.
    Here,
    /// Held at the source; it never ran at the destination, where nothing is left.
    HeldNeverRan,
    /// Held at the source; the destination's journal says that it may have run.
    HeldMayHaveRun,
    /// Held at the source, which knows that it has run at the destination.
    HeldHasRun,
    /// It runs at the destination with all its pages; the copy at the source is gone.
    There,
    /// It runs at the destination with all its pages; the source does not know
    /// and holds its copy.
    ThereAndHeld,
}

const SOURCE: &[(&str, End)] = &[
    ("connected", End::Here),
    ("bundle", End::Here),
    ("frozen", End::Here),
    ("captured", End::Here),
    ("held", End::Here),
    ("sent", End::Here),
    ("ready", End::Here),
    ("granted", End::HeldNeverRan),
    ("grant-sent", End::HeldMayHaveRun),
    ("resumed", End::HeldHasRun),
    ("complete", End::There),
    ("killed", End::There),
];

const DESTINATION: &[(&str, End)] = &[
    ("offered", End::Here),
    ("bundle-landed", End::Here),
    ("state-landed", End::Here),
    ("rebuilt", End::Here),
    ("resuming", End::HeldMayHaveRun),
    ("running", End::HeldMayHaveRun),
    ("resumed-said", End::HeldHasRun),
    ("all-pages", End::ThereAndHeld),
];

/// A migration of which one end stands still at a point.
struct Still {
    source: Child,
    receiver: Child,
    side: Side,
}

fn stop_at(m: &Move, side: Side, point: &str) -> Still {
    let at_point = [SECONDS[0], SECONDS[1], "--pause-at", point];
    let of = |s| if s == side { &at_point[..] } else { &SECONDS };
    let (receiver, at) = m.receive(of(Side::Destination));
    let source = m.migrate(&at, of(Side::Source));
    let mut still = Still {
        source,
        receiver,
        side,
    };
    wait_stopped(still.victim());
    still
}

impl Still {
    fn victim(&mut self) -> &mut Child {
        match self.side {
            Side::Source => &mut self.source,
            Side::Destination => &mut self.receiver,
        }
    }

    /// Kills the end that stands still; the other ends as it likes.
    fn kill(mut self, m: &Move) {
        self.victim().kill().unwrap();
        self.victim().wait().unwrap();
        match self.side {
            Side::Source => m.end(self.receiver, "receive.log"),
            Side::Destination => m.end(self.source, "migrate.log"),
        };
    }

    /// Both go on to their ends: source, receiver.
    fn go_on(mut self, m: &Move) -> (migrate_support::Ended, migrate_support::Ended) {
        send(self.victim().id(), Signal::SIGCONT);
        let source = m.end(self.source, "migrate.log");
        (source, m.end(self.receiver, "receive.log"))
    }
}

/// Nothing of it is at the destination, in no place that a migration uses.
fn nothing_there(m: &Move, when: &str) {
    let id = &m.container.id;
    until(&format!("{when}: no journal there"), || {
        m.journals("there").is_empty()
    });
    assert_eq!(m.landed(), Vec::<String>::new(), "{when}");
    assert!(!m.there.root.join(id).exists(), "{when}: runc's state");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let below = m.scratch.join("in").display().to_string();
    assert!(!mounts.contains(&below), "{when}: mounts\n{mounts}");
    let cgroups = cgroups(&format!("{id}-there"));
    assert!(cgroups.is_empty(), "{when}: {cgroups:?}");
}

/// The control groups of a container of the tests, and below.
fn cgroups(name: &str) -> Vec<String> {
    let found = Command::new("find")
        .args(["/sys/fs/cgroup", "-type", "d", "-path"])
        .arg(format!("*/dunlin-tests-{name}*"))
        .output()
        .unwrap();
    let found = String::from_utf8(found.stdout).unwrap();
    let own = format!("dunlin-tests-{name}");
    let named = |l: &&str| l.split('/').any(|part| part == own);
    found.lines().filter(named).map(str::to_owned).collect()
}

/// Who is in a cgroup of the container and not one of its tasks.
fn strangers(m: &Move) -> Vec<i32> {
    let own = m
        .container
        .state()
        .map_or(Vec::new(), |_| m.container.pids());
    let mut all: Vec<i32> = Vec::new();
    for name in [m.container.id.clone(), format!("{}-there", m.container.id)] {
        for dir in cgroups(&name) {
            let text = std::fs::read_to_string(format!("{dir}/cgroup.procs")).unwrap_or_default();
            all.extend(text.lines().filter_map(|l| l.parse::<i32>().ok()));
        }
    }
    all.retain(|pid| !own.contains(pid));
    all
}

/// `dunlin resolve --list` says this of the container on that side.
fn list_says(m: &Move, side: &str, words: &[&str]) {
    let listed = m.list(side);
    for word in words {
        assert!(listed.contains(word), "{side}: {word:?} in {listed}");
    }
}

/// A decision on a side: it is taken, or refused with these words.
fn resolve(m: &Move, side: &str, decision: &[&str], refused: Option<&str>) {
    let root = if side == "here" {
        m.container.runc.clone()
    } else {
        m.there.clone()
    };
    let o = m.resolve(side, &root, decision);
    match refused {
        None => assert!(o.ok(), "{side} {decision:?}: {o:?}"),
        Some(w) => assert!(
            !o.ok() && o.stderr.contains(w),
            "{side} {decision:?}: {o:?}"
        ),
    }
}

/// Holds what was promised for `end`, and settles what is left to a person.
fn judge(m: &Move, point: &str, end: End) {
    let init = m.container.state().map(|_| m.container.init());
    let held = |listed: &[&str]| {
        list_says(m, "here", listed);
        assert!(init.as_ref().unwrap().is_alive(), "{point}: its last copy");
        resolve(m, "here", &[], Some("--discard"));
    };
    let gone_here = || {
        if let Some(init) = &init {
            init.wait_gone(PATIENCE);
        }
        until(&format!("{point}: forgotten here"), || {
            m.journals("here").is_empty() && m.container.status() == "unknown"
        });
    };
    match end {
        End::Here => {
            m.goes_on_here(point);
            nothing_there(m, point);
            until("journal settled", || m.journals("here").is_empty());
            assert!(strangers(m).is_empty(), "{point}: {:?}", strangers(m));
        }
        End::HeldNeverRan => {
            held(&["Granted", "--thaw"]);
            nothing_there(m, point);
            resolve(m, "here", &["--thaw"], None);
            m.goes_on_here("thawed by decision");
            assert!(m.journals("here").is_empty());
        }
        End::HeldMayHaveRun => {
            held(&["Granted", "--thaw", "--discard"]);
            // What ran there without its memory was stopped, and the list says why.
            until("nothing runs there", || m.status_there() != "running");
            list_says(m, "there", &["may have run", "--discard"]);
            m.no_wrong_page_there();
            resolve(m, "there", &[], Some("--discard"));
            resolve(m, "there", &["--discard"], None);
            nothing_there(m, point);
            resolve(m, "here", &["--thaw"], None);
            m.goes_on_here("thawed by decision");
        }
        End::HeldHasRun => {
            held(&["Resumed", "--discard"]);
            until("nothing runs there", || m.status_there() != "running");
            list_says(m, "there", &["Resumed", "loss: 20"]);
            m.no_wrong_page_there();
            resolve(m, "here", &["--thaw"], Some("two copies"));
            resolve(m, "here", &["--discard"], None);
            gone_here();
            resolve(m, "there", &["--discard"], None);
            nothing_there(m, point);
        }
        End::There => {
            gone_here();
            m.goes_on_there(point);
            resolve(m, "there", &[], None);
            m.goes_on_there("after its tombstone is gone");
            m.delete_there();
        }
        End::ThereAndHeld => {
            m.goes_on_there(point);
            held(&["Resumed", "--discard"]);
            list_says(m, "there", &["Complete"]);
            resolve(m, "here", &["--discard"], None);
            gone_here();
            resolve(m, "there", &[], None);
            m.goes_on_there("after its tombstone is gone");
            m.delete_there();
        }
    }
    assert!(strangers(m).is_empty(), "{point}: {:?}", strangers(m));
}

/// Every point of the table is tried; a container that goes on here goes on to
/// be moved at the next.
fn each_point(name: &str, side: Side, table: &[(&str, End)]) {
    let mut kept: Option<Move> = None;
    for (point, end) in table {
        let m = kept.take().unwrap_or_else(|| Move::start(name, 4));
        let begun = Instant::now();
        stop_at(&m, side, point).kill(&m);
        judge(&m, point, *end);
        eprintln!("{side:?} {point}: {end:?}, {:?}", begun.elapsed());
        let on = [End::Here, End::HeldNeverRan, End::HeldMayHaveRun].contains(end);
        kept = on.then_some(m);
    }
}

#[test]
fn a_source_killed_at_any_point_never_makes_two_copies_nor_none_unsaid() {
    needs!(root, runc);
    each_point("mig-kill-src", Side::Source, SOURCE);
}

#[test]
fn a_receiver_killed_at_any_point_never_makes_two_copies_nor_none_unsaid() {
    needs!(root, runc);
    each_point("mig-kill-dst", Side::Destination, DESTINATION);
}

/// The tables above name all points that there are, in their order.
#[test]
fn no_point_is_left_out() {
    let known = dunlin::migrate::probe::SOURCE;
    assert!(SOURCE.iter().map(|p| p.0).eq(known.iter().copied()));
    let known = dunlin::migrate::probe::DESTINATION;
    assert!(DESTINATION.iter().map(|p| p.0).eq(known.iter().copied()));
}

#[test]
fn whoever_restores_is_killed_before_the_resume_and_the_source_goes_on() {
    needs!(root, runc);
    let m = Move::start("mig-kill-restore", 4);
    for word in ["restore --lazy-pages", "criu swrk"] {
        let still = stop_at(&m, Side::Destination, "rebuilt");
        kill_child(still.receiver.id(), word);
        let (source, receiver) = still.go_on(&m);
        assert!(!source.ok && !receiver.ok, "{word}: {source:?}");
        assert!(
            source.text.contains("runc restore") && receiver.text.contains("runc restore"),
            "{word}: {source:?} {receiver:?}"
        );
        judge(&m, word, End::Here);
    }
}

#[test]
fn whoever_restores_is_killed_after_the_resume_and_nothing_is_lost_unsaid() {
    needs!(root, runc);
    for word in ["restore --lazy-pages", "criu swrk"] {
        let m = Move::start("mig-kill-restored", 4);
        let init = m.container.init();
        let still = stop_at(&m, Side::Destination, "running");
        // It may have ended by itself.
        if let Some(pid) = children(still.receiver.id(), word).first() {
            let _ = kill(Pid::from_raw(i32::try_from(*pid).unwrap()), Signal::SIGKILL);
        }
        let (source, receiver) = still.go_on(&m);
        if receiver.ok {
            // It is whole, and runc has it.
            assert!(source.ok, "{source:?}");
            m.goes_on_there(word);
            init.wait_gone(PATIENCE);
            let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
            assert!(!mounts.contains(&m.container.id), "{word}: {mounts}");
            m.delete_there();
        } else {
            // runc ended it: the source has the last copy.
            assert!(!source.ok, "{source:?}");
            list_says(&m, "there", &["Resumed", "loss: 20"]);
            judge(&m, word, End::HeldHasRun);
        }
    }
}

#[test]
fn whoever_restores_is_killed_in_the_resume_and_nobody_assumes_anything() {
    needs!(root, runc);
    let m = Move::start("mig-kill-resume", 4);
    let still = stop_at(&m, Side::Destination, "rebuilt");
    let criu = children(still.receiver.id(), "criu swrk")[0];
    // It is granted the resume, and dies before it says that it did.
    send(criu, Signal::SIGSTOP);
    send(still.receiver.id(), Signal::SIGCONT);
    until("granted", || m.list("there").contains("Resuming"));
    send(criu, Signal::SIGKILL);
    let source = m.end(still.source, "migrate.log");
    let receiver = m.end(still.receiver, "receive.log");
    assert!(!source.ok && !receiver.ok, "{source:?}");
    assert!(source.text.contains("dunlin resolve") && receiver.text.contains("may have run"));
    judge(&m, "in the resume", End::HeldMayHaveRun);
}

#[test]
fn guards_killed_with_their_end_leave_it_to_resolve() {
    needs!(root, runc);
    let m = Move::start("mig-kill-guards", 4);
    // The source's: its tasks stay held, with nobody to let them go.
    let still = stop_at(&m, Side::Source, "held");
    kill_child(still.source.id(), "guard-migration");
    still.kill(&m);
    list_says(&m, "here", &["Prepared", "resolve"]);
    resolve(&m, "here", &[], None);
    judge(&m, "both of the source", End::Here);
    // The receiver's: what it had rebuilt dies, its files stay.
    let still = stop_at(&m, Side::Destination, "rebuilt");
    kill_child(still.receiver.id(), "guard-migration");
    still.kill(&m);
    m.goes_on_here("both of the receiver");
    list_says(&m, "there", &["Prepared", "resolve"]);
    resolve(&m, "there", &[], None);
    judge(&m, "both of the receiver", End::Here);
}

/// As a service manager stops a service, and whatever else kills all at once.
#[test]
fn a_kill_of_the_whole_cgroup_of_an_end_does_not_take_its_guards_along() {
    needs!(root, runc);
    let mut m = Move::start("mig-kill-cgroup", 4);
    for (side, point, end) in [
        (Side::Source, "held", End::Here),
        (Side::Destination, "rebuilt", End::Here),
        (Side::Destination, "resumed-said", End::HeldHasRun),
    ] {
        m.ends_in = Some(Cgroup::new(&format!("{}-ends", m.container.id)));
        // Both ends are in it, with runc and its criu: all die at once.
        let mut still = stop_at(&m, side, point);
        if end == End::HeldHasRun {
            until("the source knows", || m.list("here").contains("Resumed"));
        }
        m.ends_in.as_ref().unwrap().kill();
        for child in [&mut still.source, &mut still.receiver] {
            assert!(!child.wait().unwrap().success());
        }
        judge(&m, point, end);
        m.ends_in = None;
    }
}

#[test]
fn a_memory_guardian_that_is_killed_is_replaced_before_anything_is_lost() {
    needs!(root, runc);
    let m = Move::start("mig-kill-memory", 4);
    let at = |point| [SECONDS[0], SECONDS[1], "--pause-at", point];
    let (mut receiver, to) = m.receive(&at("rebuilt"));
    let mut source = m.migrate(&to, &at("resumed"));
    wait_stopped(&mut receiver);
    kill_child(receiver.id(), "dunlin-guardian");
    send(receiver.id(), Signal::SIGCONT);
    // It runs there now, without its pages, and the receiver dies.
    wait_stopped(&mut source);
    until("another guardian", || {
        children(receiver.id(), "dunlin-guardian").len() == 1
    });
    receiver.kill().unwrap();
    receiver.wait().unwrap();
    until("stopped there", || m.status_there() != "running");
    list_says(&m, "there", &["Resumed", "loss: 20"]);
    m.no_wrong_page_there();
    send(source.id(), Signal::SIGCONT);
    m.end(source, "migrate.log");
    judge(&m, "both", End::HeldHasRun);
}
