//! A real program holds each facet of a task, is saved and killed, restored from
//! its image, and asked whether all is as it was.
//!
//! The image is made by dunlin, and, crossed, by CRIU.

#[path = "harness/mod.rs"]
mod harness;
use harness::*;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Every facet of `bundles/probes/state.c`.
const FACETS: [&str; 12] = [
    "signals",
    "timers",
    "credentials",
    "seccomp",
    "rlimits",
    "memory",
    "waits",
    "family",
    "threads",
    "vectors",
    "properties",
    "clock",
];
/// What CRIU's own dumps lose or refuse: an ignored SIGTRAP, the test's
/// capabilities, interrupted waits, the personality.
const LOST_BY_CRIU: [&str; 4] = ["signals", "credentials", "waits", "properties"];

fn dump(criu: &Path, by: &[&str], pid: Pid, images: &Path) {
    let mut command = Command::new(criu);
    command
        .args(by)
        .args([
            "dump",
            "-v4",
            "-o",
            "dump.log",
            "-t",
            &pid.to_string(),
            "-D",
        ])
        .arg(images);
    must(&mut command);
}

fn restore(images: &Path) {
    must(&mut restoring(images));
}

fn restoring(images: &Path) -> Command {
    let mut command = Command::new(dunlin());
    command
        .args(["criu", "restore", "-v4", "-o", "restore.log", "-d", "-D"])
        .arg(images);
    command
}

fn comes_back(scratch: &Scratch, facet: &str, criu: &Path, by: &[&str]) {
    program_comes_back(scratch, &sample("state"), facet, criu, by);
}

/// Tasks, in whatever session; killed when dropped.
struct Tasks(Vec<i32>);

impl Drop for Tasks {
    fn drop(&mut self) {
        for pid in &self.0 {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
    }
}

fn program_comes_back(scratch: &Scratch, program: &Path, facet: &str, criu: &Path, by: &[&str]) {
    let held = Held::start(scratch, &[], program, facet);
    let images = scratch.dir(format!("{facet}.img"));
    let tasks = Tasks(descendants(held.pid.as_raw()));
    dump(criu, by, held.pid, &images);
    Held::are_gone(&tasks.0);
    restore(&images);
    held.is_asked();
}

#[test]
fn every_facet_of_a_task_comes_back() {
    needs!(root, gcc);
    adopt_orphans();
    let scratch = Scratch::new("restore-facets");
    for facet in FACETS {
        comes_back(&scratch, facet, &dunlin(), &["criu"]);
    }
}

/// A handler that is pending decides how the call that it interrupts ends; an
/// rseq section that was interrupted is aborted. Where the program goes on itself,
/// and where it is restored.
#[test]
fn interrupted_calls_and_sections_end_as_the_kernel_would_end_them() {
    needs!(root, gcc);
    adopt_orphans();
    let program = sample("interrupted");
    for facet in ["calls", "sections"] {
        let scratch = Scratch::new("restore-interrupted");
        program_comes_back(&scratch, &program, facet, &dunlin(), &["criu"]);
        let scratch = Scratch::new("left-interrupted");
        let held = Held::start(&scratch, &[], &program, facet);
        let by = ["criu", "--leave-running"];
        dump(&dunlin(), &by, held.pid, &scratch.dir("images"));
        held.is_asked();
    }
}

/// A signal that comes while the program is stopped, after all has been looked at:
/// where it is left running, and where it is restored.
#[test]
fn a_signal_that_comes_in_the_pause_ends_the_call_that_it_finds() {
    needs!(root, gcc);
    adopt_orphans();
    let program = compile("late", LATE);
    for facet in [
        "pause", "poll", "epoll", "sleep", "suspend", "read", "restart",
    ] {
        let scratch = Scratch::new("late-signal");
        let script = action(&scratch, "kill -USR1 $CRTOOLS_INIT_PID");
        let through = |mut command: Command, stage| {
            must(
                command
                    .env("STAGE", stage)
                    .arg("--action-script")
                    .arg(&script),
            );
        };

        let stays = asleep(&scratch, &program, facet);
        let images = scratch.dir("stays");
        let dump = [
            "criu",
            "dump",
            "-R",
            "-o",
            "log",
            "-t",
            &stays.pid.to_string(),
            "-D",
        ];
        let mut command = Command::new(dunlin());
        command.args(dump).arg(&images);
        through(command, "post-dump");
        assert_eq!(stays.says("right"), "right", "{facet}, left running");

        let comes = asleep(&scratch, &program, facet);
        let images = images_of(&scratch, &comes);
        self::dump(&dunlin(), &["criu"], comes.pid, &images);
        Held::are_gone(&[comes.pid.as_raw()]);
        through(restoring(&images), "post-restore");
        assert_eq!(comes.says("right"), "right", "{facet}, restored");
    }
}

/// The program, when it is in the call.
fn asleep(scratch: &Scratch, program: &Path, facet: &str) -> Held {
    let held = Held::start(scratch, &[], program, facet);
    let stat = PathBuf::from(format!("/proc/{}/stat", held.pid));
    wait_file(&stat, PATIENCE, |text| text.contains(") S "));
    held
}

/// As if it had been killed the moment after: its parent is told, and the restore is
/// none that failed while others run already.
#[test]
fn a_task_that_is_killed_before_it_goes_on_ends_alone() {
    needs!(root, gcc);
    adopt_orphans();
    let scratch = Scratch::new("killed-early");
    let program = compile("mourner", MOURNER);
    let held = Held::start(&scratch, &[], &program, "mourner");
    let images = images_of(&scratch, &held);
    let tasks = Tasks(descendants(held.pid.as_raw()));
    dump(&dunlin(), &["criu"], held.pid, &images);
    Held::are_gone(&tasks.0);
    let script = action(
        &scratch,
        "kill -KILL $(cat /proc/$CRTOOLS_INIT_PID/task/$CRTOOLS_INIT_PID/children)",
    );
    let mut command = restoring(&images);
    must(
        command
            .env("STAGE", "post-restore")
            .arg("--action-script")
            .arg(script),
    );
    held.is_asked();
}

/// Asked, it waits for its child, which must have been killed.
const MOURNER: &str = r#"
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

int main(void) {
	sigset_t asked;
	int status = 0;

	sigemptyset(&asked);
	sigaddset(&asked, SIGUSR1);
	sigprocmask(SIG_BLOCK, &asked, NULL);
	if (!fork())
		for (;;)
			pause();
	printf("ready\n");
	fflush(stdout);
	while (sigwaitinfo(&asked, NULL) != SIGUSR1)
		;
	wait(&status);
	printf(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL ? "right\n" : "wrong\n");
	fflush(stdout);
	return 0;
}
"#;

/// An action script that does something at the stage `$STAGE`.
fn action(scratch: &Scratch, what: &str) -> PathBuf {
    let script = scratch.join("script");
    let text = format!("#!/bin/sh\n[ $CRTOOLS_SCRIPT_ACTION != $STAGE ] || {what}\n");
    fs::write(&script, text).expect("write a script");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("make it a program");
    script
}

/// In one system call, for SIGUSR1; "restart" is a read(2) that goes on after it.
const LATE: &str = r#"
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

static int ends[2];
static volatile sig_atomic_t handled;

static void on_signal(int signal) {
	handled++;
	write(ends[1], "x", 1);
}

int main(int argc, char **argv) {
	const char *facet = argv[1];
	int restarts = !strcmp(facet, "restart");
	struct sigaction act = { .sa_handler = on_signal, .sa_flags = restarts ? SA_RESTART : 0 };
	struct timespec long_time = { 1000, 0 };
	struct epoll_event event;
	sigset_t none, only;
	char byte;
	long told;

	sigemptyset(&none);
	sigemptyset(&only);
	sigaddset(&only, SIGUSR1);
	pipe(ends);
	sigaction(SIGUSR1, &act, NULL);
	printf("ready\n");
	fflush(stdout);
	errno = 0;
	if (!strcmp(facet, "pause"))
		told = pause();
	else if (!strcmp(facet, "poll"))
		told = poll(NULL, 0, 1000000);
	else if (!strcmp(facet, "epoll"))
		told = epoll_wait(epoll_create1(0), &event, 1, -1);
	else if (!strcmp(facet, "sleep"))
		told = nanosleep(&long_time, &long_time);
	else if (!strcmp(facet, "suspend")) {
		sigprocmask(SIG_BLOCK, &only, NULL);
		told = sigsuspend(&none);
	}
	else
		told = read(ends[0], &byte, 1);
	if (handled == 1 && (restarts ? told == 1 : told == -1 && errno == EINTR))
		printf("right\n");
	else
		printf("wrong: handled %d, returned %ld, errno %d\n", handled, told, errno);
	fflush(stdout);
	pause();
}
"#;

#[test]
fn what_criu_dumped_is_restored_crossed() {
    needs!(root, gcc, crossed);
    let criu = criu().expect("needed above");
    adopt_orphans();
    let scratch = Scratch::new("restore-crossed");
    for facet in FACETS.iter().filter(|f| !LOST_BY_CRIU.contains(f)) {
        comes_back(&scratch, facet, &criu, &[]);
    }
}

#[test]
fn sessions_and_groups_outlive_their_leaders() {
    needs!(root, gcc);
    adopt_orphans();
    let scratch = Scratch::new("restore-orphans");
    let program = compile("orphans", ORPHANS);
    program_comes_back(&scratch, &program, "orphans", &dunlin(), &["criu"]);
    if let Some(criu) = criu() {
        program_comes_back(&scratch, &program, "orphans-crossed", &criu, &[]);
    }
}

/// Numbers of trees that were made one after the other are mixed, and those of the
/// killed ones are free until their restores get to them.
#[test]
fn restores_at_once_in_one_pid_namespace_do_not_take_each_others_numbers() {
    needs!(root, gcc);
    adopt_orphans();
    let program = compile("orphans", ORPHANS);
    for round in 0..10 {
        let scratch = Scratch::new("restores-at-once");
        let names = ["one", "two", "three"];
        let held = names.map(|name| Held::start(&scratch, &[], &program, name));
        let tasks = Tasks(
            held.iter()
                .flat_map(|h| descendants(h.pid.as_raw()))
                .collect(),
        );
        for h in &held {
            dump(&dunlin(), &["criu"], h.pid, &images_of(&scratch, h));
        }
        Held::are_gone(&tasks.0);
        let restores = held.each_ref().map(|h| {
            let mut command = restoring(&images_of(&scratch, h));
            command.spawn().expect("start a restore")
        });
        for mut restore in restores {
            let status = restore.wait().expect("wait for a restore");
            assert!(status.success(), "round {round}: {status}");
        }
        for h in &held {
            h.is_asked();
        }
    }
}

fn images_of(scratch: &Scratch, held: &Held) -> PathBuf {
    scratch.dir(format!("{}.img", held.pid))
}

/// The kernel gives the next numbers behind the last one: here to helpers, and all
/// are needed by tasks that are made later.
#[test]
fn a_helper_that_gets_a_number_that_is_needed_later_gives_way() {
    needs!(root, gcc);
    let scratch = Scratch::new("restore-numbers");
    // Nothing is forked while the tree grows, so that its numbers have no gaps. Each
    // /bin/true lets the shell, which is process 1, wait for orphans too.
    let script = r#"
        setsid "$2" </dev/null >out 2>&1 & root=$!
        until read ready <out; do :; done
        tree=$(echo /proc/[0-9]*)
        "$1" criu dump -t $root -D . -o dump.log || exit
        for task in $tree; do
            until [ $task = /proc/1 ] || [ ! -e $task ]; do /bin/true; done
        done
        ( echo $((root - 1)) > /proc/sys/kernel/ns_last_pid
          exec "$1" criu restore -d -D . -o restore.log ) || exit
        kill -USR1 $root
        until { read ready; read told; } <out; do :; done
        [ "$told" = right ]"#;
    let mut command = Command::new("unshare");
    command
        .args([
            "-p",
            "-f",
            "--mount-proc",
            "--kill-child",
            "sh",
            "-c",
            script,
            "sh",
        ])
        .args([dunlin(), compile("orphans", ORPHANS)])
        .current_dir(scratch.dir("images"));
    must(&mut command);
}

#[test]
fn a_restore_that_fails_leaves_nothing_and_can_be_tried_again() {
    needs!(root, gcc);
    adopt_orphans();
    let scratch = Scratch::new("restore-fails");
    let held = Held::start(&scratch, &[], &sample("state"), "family");
    let images = scratch.dir("images");
    let pids = descendants(held.pid.as_raw());
    dump(&dunlin(), &["criu"], held.pid, &images);
    Held::are_gone(&pids);

    let away = scratch.join("away");
    fs::rename(&held.out, &away).expect("move the output away");
    let mut command = Command::new(dunlin());
    command.args(["criu", "restore", "-d", "-D"]).arg(&images);
    let outcome = run(&mut command, PATIENCE);
    assert!(!outcome.ok(), "{outcome:?}");
    assert!(outcome.stderr.contains("family.out"), "{outcome:?}");
    Held::are_gone(&pids);

    fs::rename(&away, &held.out).expect("move the output back");
    restore(&images);
    held.is_asked();
}

/// Children of dead session and group leaders, adopted by the root, and one that
/// is in the session that its parent has left. SIGUSR1: are sessions and groups
/// what they were?
const ORPHANS: &str = r#"
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static int out[2];

static void tell_and_sleep(void) {
	int me = getpid();
	write(out[1], &me, sizeof me);
	for (;;)
		pause();
}

int main(void) {
	int pid[5], sid[5], pgid[5];
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	sigset_t asked;
	sigemptyset(&asked);
	sigaddset(&asked, SIGUSR1);
	sigprocmask(SIG_BLOCK, &asked, NULL);
	pipe(out);
	if (!fork()) {
		setsid();
		if (!fork()) {
			if (!fork()) {
				setpgid(0, 0);
				tell_and_sleep();
			}
			tell_and_sleep();
		}
		_exit(0);
	}
	wait(NULL);
	if (!fork()) {
		if (!fork())
			tell_and_sleep();
		setsid();
		tell_and_sleep();
	}
	pid_t leader = fork();
	if (!leader) {
		setpgid(0, 0);
		if (!fork())
			tell_and_sleep();
		_exit(0);
	}
	waitpid(leader, NULL, 0);
	for (int i = 0; i < 5; i++) {
		read(out[0], &pid[i], sizeof pid[i]);
		sid[i] = getsid(pid[i]);
		pgid[i] = getpgid(pid[i]);
	}
	printf("ready\n");
	fflush(stdout);
	while (sigwaitinfo(&asked, NULL) != SIGUSR1)
		;
	for (int i = 0; i < 5; i++)
		if (getsid(pid[i]) != sid[i] || getpgid(pid[i]) != pgid[i]) {
			printf("wrong session or group of %d\n", pid[i]);
			return 1;
		}
	printf("right\n");
	fflush(stdout);
	return 0;
}
"#;
