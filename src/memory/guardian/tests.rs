use super::*;
use crate::base::{PAGE_SIZE, PageRange};
use crate::memory::testing::guarded;
use crate::memory::{
    Area, Handler, Job, LazyShared, Object, OnLoss, PageSink, PageSource, SpaceId, Want,
};
use crate::sys::testing::{self, Child};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

/// Says that somebody waits, and never answers.
struct Silent(Sender<()>);

impl PageSource for Silent {
    fn want(&self, _: Want, _: &dyn PageSink) -> Result<()> {
        let _ = self.0.send(());
        Ok(())
    }
}

/// Not a test of its own: a process that serves pages and is killed while one of
/// its tasks waits for a page. `STATUS` names the status file; without it there
/// is no guardian.
#[test]
#[ignore = "run by the other tests here, as a process of its own"]
fn handler_process() {
    let Ok(mode) = std::env::var("DUNLIN_TEST_GUARDIAN") else {
        return;
    };
    let guardian = (mode != "none").then(|| Guardian::start(Some(Path::new(&mode))).unwrap());
    let child = Child::fork();
    let shared = std::env::var("DUNLIN_TEST_SHARED").is_ok();
    let kind = if shared {
        libc::MAP_SHARED
    } else {
        libc::MAP_PRIVATE
    };
    let pages = 16;
    let at = child.mmap_with(0, pages * PAGE_SIZE, kind | libc::MAP_ANONYMOUS, -1);
    let range = PageRange::with_pages(at, pages).unwrap();
    let areas = vec![Area {
        range,
        object: if shared {
            Object::Shared(4)
        } else {
            Object::Private(SpaceId(1))
        },
        at: if shared { 0 } else { at },
        wipe_on_fork: false,
    }];
    let object = || LazyShared {
        id: 4,
        file: std::fs::File::open(format!(
            "/proc/{}/map_files/{at:x}-{:x}",
            child.pid(),
            range.end()
        ))
        .unwrap()
        .into(),
        needed: vec![PageRange::with_pages(0, pages).unwrap()],
    };
    let needed = if shared { vec![] } else { vec![range] };
    let space = guarded(&child, SpaceId(1), areas, needed);
    let filler = crate::memory::Filler::new(Job {
        spaces: vec![space],
        shared: shared.then(object).into_iter().collect(),
        anchor: None,
    })
    .unwrap();
    let mut guardian = guardian;
    if let Some(g) = &mut guardian {
        g.watch(&filler).unwrap();
    }
    let (said, waits) = channel();
    let policy = Box::new(|_: &crate::base::Error| OnLoss::Wait);
    let _handler = Handler::start(filler, Arc::new(Silent(said)), policy).unwrap();
    let family = std::env::var("DUNLIN_TEST_FAMILY").unwrap_or_default();
    let forked = (!family.is_empty()).then(|| child.spawn());
    let who = forked.as_ref().unwrap_or(&child);
    if family == "orphan" {
        testing::become_subreaper();
        crate::sys::pidfd::send_signal(child.pidfd().as_fd(), libc::SIGKILL).unwrap();
        let end = crate::sys::pidfd::wait_exit(child.pidfd().as_fd(), None);
        assert!(end.unwrap());
    }
    who.start_sum(at, PAGE_SIZE);
    waits.recv().unwrap();
    println!("\nwaiting {}", who.pid());
    // Until killed.
    loop {
        std::thread::park();
    }
}

/// Kills a handler while a task of its waits; returns how that task ended:
/// `Err(signal)` or `Ok(exit code)`. It exits by itself when its read returns.
fn kill_the_handler(mode: &str, shared: bool) -> std::result::Result<i32, i32> {
    let mut command = Command::new(std::env::current_exe().unwrap());
    if shared {
        command.env("DUNLIN_TEST_SHARED", "1");
    }
    ended_with(command, mode)
}

/// The same for a child that the task has forked, and whether that is an orphan.
fn kill_the_handler_of(family: &str, mode: &str) -> std::result::Result<i32, i32> {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env("DUNLIN_TEST_FAMILY", family);
    ended_with(command, mode)
}

fn ended_with(mut command: Command, mode: &str) -> std::result::Result<i32, i32> {
    testing::become_subreaper();
    let mut handler = command
        .args(["--exact", "memory::guardian::tests::handler_process"])
        .args(["--ignored", "--nocapture", "--test-threads=1"])
        .env("DUNLIN_TEST_GUARDIAN", mode)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let out = BufReader::new(handler.stdout.take().unwrap());
    let pid = out
        .lines()
        .find_map(|l| l.unwrap().strip_prefix("waiting ")?.parse::<i32>().ok())
        .expect("it says that a task waits");
    handler.kill().unwrap();
    handler.wait().unwrap();
    let ours = i32::try_from(std::process::id()).unwrap();
    // Its parent has to be gone first.
    until("it is ours", || {
        crate::sys::procfs::stat(HostPid(pid)).unwrap().ppid == ours
    });
    testing::wait_adopted(HostPid(pid))
}

fn until(what: &str, good: impl Fn() -> bool) {
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !good() {
        assert!(std::time::Instant::now() < end, "not in time: {what}");
        std::thread::yield_now();
    }
}

#[test]
fn when_the_handler_is_killed_its_tasks_die_and_never_read_zeros() {
    dies_and_says_so(false);
}

#[test]
fn they_die_too_when_only_shared_memory_was_missing() {
    dies_and_says_so(true);
}

fn dies_and_says_so(shared: bool) {
    let status = tempfile::NamedTempFile::new().unwrap();
    let ended = kill_the_handler(status.path().to_str().unwrap(), shared);
    assert_eq!(ended, Err(libc::SIGKILL));
    let said = std::fs::read_to_string(status.path()).unwrap();
    assert!(
        said.starts_with("20") && said.contains("Z the page handler died; the container is killed"),
        "{said}"
    );
}

#[test]
fn a_child_that_was_forked_dies_with_its_parent() {
    let status = tempfile::NamedTempFile::new().unwrap();
    let mode = status.path().to_str().unwrap();
    assert_eq!(kill_the_handler_of("child", mode), Err(libc::SIGKILL));
}

#[test]
fn a_child_whose_parent_has_ended_dies_of_the_page_that_it_lacks() {
    let status = tempfile::NamedTempFile::new().unwrap();
    let mode = status.path().to_str().unwrap();
    assert_eq!(kill_the_handler_of("orphan", mode), Err(libc::SIGBUS));
    until("it says that all are gone", || {
        let said = std::fs::read_to_string(status.path()).unwrap();
        said.contains("all its processes are gone")
    });
}

#[test]
fn without_a_guardian_the_same_task_does_read_zeros() {
    // The task's read returns, its answer goes nowhere, and it exits.
    assert_eq!(kill_the_handler("none", false), Ok(0));
    assert_eq!(kill_the_handler("none", true), Ok(0));
}

#[test]
fn a_guardian_that_is_dropped_leaves_nothing_behind() {
    let guardian = Guardian::start(None).unwrap();
    let pid = guardian.pid();
    drop(guardian);
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
}

#[test]
fn a_guardian_that_dies_is_replaced() {
    let guardian = Guardian::start(None).unwrap();
    let first = guardian.pid();
    let held = crate::sys::pidfd::open(first).unwrap();
    crate::sys::pidfd::send_signal(held.as_fd(), libc::SIGKILL).unwrap();
    until("somebody took its place", || guardian.pid() != first);
    let second = guardian.pid();
    drop(guardian);
    for pid in [first, second] {
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }
}
