//! A migration between two runc roots on one kernel, for tests: the sample
//! program in a container, a receiver, a source.

// Each test file uses its part of this module.
#![allow(dead_code, unreachable_pub)]
#![allow(missing_docs, missing_debug_implementations)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::harness::*;

/// The container, and where it may go.
pub struct Move {
    /// Here it runs first; declared first, so that it is dropped first.
    pub container: Container,
    /// The destination's runc.
    pub there: Runc,
    pub scratch: Scratch,
    /// Where both ends run, if not where we do; goes last.
    pub ends_in: Option<Cgroup>,
}

/// A cgroup for processes of ours: v2, or the freezer's.
pub struct Cgroup(PathBuf);

impl Cgroup {
    pub fn new(name: &str) -> Self {
        let tops = [
            "/sys/fs/cgroup/freezer",
            "/sys/fs/cgroup/unified",
            "/sys/fs/cgroup",
        ];
        let top = tops
            .iter()
            .find(|t| Path::new(t).join("cgroup.procs").exists());
        let dir = Path::new(top.expect("a cgroup hierarchy")).join(format!("dunlin-tests-{name}"));
        fs::create_dir_all(&dir).expect("make a cgroup");
        Self(dir)
    }

    fn pids(&self) -> Vec<u32> {
        let text = fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|l| l.parse().ok()).collect()
    }

    /// Kills all in it, until none is left.
    pub fn kill(&self) {
        let end = Instant::now() + PATIENCE;
        loop {
            let pids = self.pids();
            if pids.is_empty() {
                return;
            }
            assert!(Instant::now() < end, "they do not die: {pids:?}");
            for pid in pids {
                let _ = kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL);
            }
        }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for pid in self.pids() {
            let _ = kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL);
        }
        let end = Instant::now() + PATIENCE;
        // Dead ones leave it a moment later.
        while fs::remove_dir(&self.0).is_err() && self.0.exists() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// What became of one command.
#[derive(Debug)]
pub struct Ended {
    pub ok: bool,
    pub text: String,
}

impl Move {
    /// The sample program with `mib` MiB, ready, one round done.
    pub fn start(name: &str, mib: u32) -> Self {
        Self::start_with(name, mib, |_| ())
    }

    /// The same in a bundle that is changed before.
    pub fn start_with(name: &str, mib: u32, change: impl FnOnce(&mut Bundle)) -> Self {
        let mib = mib.to_string();
        let args = ["/bin/patterns", "--mib", &mib, "--port", "7070"];
        let m = Self::of(name, &patterns_program(), &args, change);
        m.goes_on_here("before anything");
        m
    }

    /// Any program, ready.
    pub fn of(
        name: &str,
        program: &std::path::Path,
        args: &[&str],
        change: impl FnOnce(&mut Bundle),
    ) -> Self {
        let scratch = Scratch::new(name);
        let mut bundle = Bundle::new(&scratch, "bundle", &[program], args);
        change(&mut bundle);
        let runc = Runc::new(&scratch);
        let there = Runc {
            root: scratch.dir("runc-there"),
            ..runc.clone()
        };
        let mut container = Container::run(&runc, bundle, scratch.name());
        container.lines.expect("ready", PATIENCE);
        Self {
            container,
            there,
            scratch,
            ends_in: None,
        }
    }

    pub fn state(&self, side: &str) -> PathBuf {
        self.scratch.join(format!("state-{side}"))
    }

    pub fn journals(&self, side: &str) -> Vec<String> {
        names(&self.state(side))
    }

    pub fn signal_there(&self, signal: &str) {
        must(
            self.there
                .command()
                .args(["kill", &self.container.id, signal]),
        );
    }

    /// What lies at the destination.
    pub fn landed(&self) -> Vec<String> {
        names(&self.scratch.join("in"))
    }

    fn data_here(&self) -> PathBuf {
        self.container.bundle.rootfs().join("data")
    }

    pub fn data_there(&self) -> PathBuf {
        let top = self.scratch.join("in").join(&self.container.id);
        top.join("bundle/rootfs/data")
    }

    /// Two containers of one machine need two paths, else they would be one.
    fn cgroups_there(&self) -> String {
        format!("/dunlin-tests-{}-there", self.container.id)
    }

    /// The program, in the cgroup of both ends.
    fn dunlin(&self) -> Command {
        let Some(cgroup) = &self.ends_in else {
            return Command::new(dunlin());
        };
        let mut c = Command::new("sh");
        c.args(["-ec", "echo $$ >\"$0/cgroup.procs\"; exec \"$@\""]);
        c.arg(&cgroup.0).arg(dunlin());
        c
    }

    /// The receiver, listening; its token lies in `token`.
    pub fn receive(&self, more: &[&str]) -> (Child, String) {
        self.receive_by(self.dunlin(), more)
    }

    /// The same, with programs in `bin` found before all others.
    pub fn receive_with(&self, bin: &Path, more: &[&str]) -> (Child, String) {
        let path = std::env::var("PATH").unwrap();
        let mut c = self.dunlin();
        c.env("PATH", format!("{}:{path}", bin.display()));
        self.receive_by(c, more)
    }

    fn receive_by(&self, mut command: Command, more: &[&str]) -> (Child, String) {
        let token = self.scratch.join("token");
        let _ = fs::remove_file(&token);
        let log = fs::File::create(self.scratch.join("receive.log")).unwrap();
        let child = command
            .args(["receive", "--listen", "127.0.0.1:0", "--wait", "60", "-v"])
            .args(["--cgroups-path", &self.cgroups_there()])
            .arg("--dir")
            .arg(self.scratch.join("in"))
            .arg("--token-file")
            .arg(&token)
            .arg("--root")
            .arg(&self.there.root)
            .arg("--state")
            .arg(self.state("there"))
            .args(more)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("start dunlin receive");
        let said = wait_file(&self.scratch.join("receive.log"), PATIENCE, |t| {
            t.contains("token in")
        });
        let at = said
            .split_whitespace()
            .skip_while(|w| *w != "listening")
            .nth(2)
            .unwrap()
            .trim_end_matches(',')
            .to_owned();
        (child, at)
    }

    pub fn migrate_command(&self, to: &str, more: &[&str]) -> Command {
        let mut c = self.dunlin();
        c.args(["migrate", &self.container.id, to, "-v"])
            .arg("--token-file")
            .arg(self.scratch.join("token"))
            .arg("--root")
            .arg(&self.container.runc.root)
            .arg("--state")
            .arg(self.state("here"))
            .arg("--report")
            .arg(self.scratch.join("report.json"))
            .args(more)
            .stdin(Stdio::null());
        c
    }

    /// The source's end, started.
    pub fn migrate(&self, to: &str, more: &[&str]) -> Child {
        let log = fs::File::create(self.scratch.join("migrate.log")).unwrap();
        self.migrate_command(to, more)
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("start dunlin migrate")
    }

    /// A migration to its end; the receiver stands at `point` while `meanwhile` acts.
    pub fn with_receiver_at(&self, point: &str, meanwhile: impl FnOnce()) -> (Ended, Ended) {
        let (mut r, at) = self.receive(&["--pause-at", point]);
        let m = self.migrate(&at, &[]);
        go_on_after(&mut r, meanwhile);
        (self.end(m, "migrate.log"), self.end(r, "receive.log"))
    }

    /// The same with the source.
    pub fn with_source_at(&self, point: &str, meanwhile: impl FnOnce()) -> (Ended, Ended) {
        let (r, at) = self.receive(&["--patience", "2"]);
        let mut m = self.migrate(&at, &["--pause-at", point]);
        go_on_after(&mut m, meanwhile);
        (self.end(m, "migrate.log"), self.end(r, "receive.log"))
    }

    /// Both ends to their end.
    pub fn both(&self, receive: &[&str], migrate: &[&str]) -> (Ended, Ended) {
        let (r, at) = self.receive(receive);
        let m = self.migrate(&at, migrate);
        (self.end(m, "migrate.log"), self.end(r, "receive.log"))
    }

    /// Waits for one end.
    pub fn end(&self, mut child: Child, log: &str) -> Ended {
        let until = Instant::now() + Duration::from_secs(90);
        let status = loop {
            match child.try_wait().unwrap() {
                Some(s) => break s,
                None if Instant::now() > until => {
                    let _ = child.kill();
                    break child.wait().unwrap();
                }
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        Ended {
            ok: status.success(),
            text: fs::read_to_string(self.scratch.join(log)).unwrap_or_default(),
        }
    }

    /// The last words of everybody, for a test that has failed.
    fn tell(&self) {
        let logs = ["migrate.log", "receive.log", "said"].map(|name| self.scratch.join(name));
        let words = ["status", "log"].map(|name| self.data_there().join(name));
        let id = &self.container.id;
        let criu = self.scratch.join("in").join(id).join("work/restore.log");
        for path in logs.iter().chain(&words).chain([&criu]) {
            let text = fs::read_to_string(path).unwrap_or_default();
            let lines: Vec<_> = text.lines().collect();
            let last = &lines[lines.len().saturating_sub(12)..];
            eprintln!("--- {}\n{}", path.display(), last.join("\n"));
        }
    }

    pub fn report(&self) -> Value {
        let text = fs::read_to_string(self.scratch.join("report.json")).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    /// Two more rounds of the sample, nothing wrong.
    pub fn goes_on_here(&self, when: &str) {
        goes_on(
            &self.container.runc,
            &self.container.id,
            &self.data_here(),
            when,
        );
    }

    pub fn goes_on_there(&self, when: &str) {
        goes_on(&self.there, &self.container.id, &self.data_there(), when);
    }

    /// How often the program was started, by its log at the destination.
    pub fn starts_there(&self) -> usize {
        let log = fs::read_to_string(self.data_there().join("log")).unwrap();
        log.lines().filter(|l| l.ends_with(" ready")).count()
    }

    /// What runc says of it there: running, stopped, or unknown.
    pub fn status_there(&self) -> String {
        let o = run(
            self.there.command().args(["state", &self.container.id]),
            PATIENCE,
        );
        if !o.ok() {
            return "unknown".into();
        }
        let v: Value = serde_json::from_str(&o.stdout).unwrap();
        v["status"].as_str().unwrap_or("unknown").to_owned()
    }

    /// What `dunlin resolve --list` says of a side.
    pub fn list(&self, side: &str) -> String {
        must(
            Command::new(dunlin())
                .args(["resolve", "--list", "--state"])
                .arg(self.state(side)),
        )
        .stdout
    }

    /// `dunlin resolve` on a side.
    pub fn resolve(&self, side: &str, root: &Runc, more: &[&str]) -> Outcome {
        run(
            Command::new(dunlin())
                .args(["resolve", &self.container.id])
                .arg("--state")
                .arg(self.state(side))
                .arg("--root")
                .arg(&root.root)
                .args(more),
            PATIENCE,
        )
    }

    /// Waits until runc there says that it runs.
    pub fn wait_running_there(&self) {
        let end = Instant::now() + PATIENCE;
        while self.status_there() != "running" {
            assert!(Instant::now() < end, "it never ran there");
        }
    }

    /// The program looks at all its memory, and writes what it saw.
    pub fn no_wrong_page_there(&self) {
        let line = fs::read_to_string(self.data_there().join("status")).unwrap_or_default();
        assert!(!line.starts_with("wrong"), "{line}");
    }

    /// Ends the copy at the destination.
    pub fn delete_there(&self) {
        must(
            self.there
                .command()
                .args(["delete", "--force", &self.container.id]),
        );
    }
}

fn go_on_after(child: &mut Child, meanwhile: impl FnOnce()) {
    wait_stopped(child);
    meanwhile();
    send(child.id(), Signal::SIGCONT);
}

/// Waits until the process has stopped itself at a point.
pub fn wait_stopped(child: &mut Child) {
    let end = Instant::now() + PATIENCE;
    let stopped = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let state = stat.rsplit(')').next().unwrap_or_default().trim_start();
        state.starts_with('T')
    };
    while !stopped(child.id()) {
        let ended = child.try_wait().unwrap();
        assert!(ended.is_none(), "it ended before the point");
        assert!(Instant::now() < end, "never came to the point");
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub fn send(pid: u32, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
}

/// Waits for something good.
pub fn until(what: &str, good: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !good() {
        assert!(Instant::now() < end, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The children of a process whose command line or name holds `word`.
pub fn children(pid: u32, word: &str) -> Vec<u32> {
    let pid = i32::try_from(pid).unwrap();
    let named = |p: &i32| {
        let read = |f: &str| std::fs::read(format!("/proc/{p}/{f}")).unwrap_or_default();
        let text = [read("cmdline"), read("comm")].concat();
        String::from_utf8_lossy(&text)
            .replace('\0', " ")
            .contains(word)
    };
    let all = descendants(pid).into_iter().skip(1).filter(named);
    all.map(|p| u32::try_from(p).unwrap()).collect()
}

/// Kills the first such child: those below it may have its command line still.
pub fn kill_child(pid: u32, word: &str) {
    let found = children(pid, word);
    assert!(!found.is_empty(), "no {word} below {pid}");
    let held = Proc::of(i32::try_from(found[0]).unwrap()).unwrap();
    send(found[0], Signal::SIGKILL);
    held.wait_gone(PATIENCE);
}

impl Drop for Move {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.tell();
        }
        // A copy there, and one that is held here, must not outlive the test.
        let bound = self.there.root.join(&self.container.id).join("criu-root");
        let _ = nix::mount::umount2(&bound, nix::mount::MntFlags::MNT_DETACH);
        let _ = run(
            self.there
                .command()
                .args(["delete", "--force", &self.container.id]),
            PATIENCE,
        );
        remove_cgroups(self.cgroups_there().trim_start_matches('/'));
        if !self.journals("here").is_empty() {
            let _ = self.resolve("here", &self.container.runc.clone(), &["--discard"]);
        }
    }
}

fn names(dir: &std::path::Path) -> Vec<String> {
    fs::read_dir(dir)
        .map(|d| {
            d.map(|e| e.unwrap().file_name().into_string().unwrap())
                .collect()
        })
        .unwrap_or_default()
}

fn counter(line: &str, name: &str) -> Option<u64> {
    line.split_whitespace()
        .find_map(|word| word.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
}

fn goes_on(runc: &Runc, id: &str, data: &std::path::Path, when: &str) {
    let status = data.join("status");
    let before = fs::read_to_string(&status).unwrap_or_default();
    let of = |name| counter(&before, name).unwrap_or(0);
    let (rounds, acts) = (of("rounds"), of("acts"));
    must(runc.command().args(["kill", id, "USR1"]));
    let line = wait_file(&status, PATIENCE, |l| {
        l.starts_with("wrong")
            || (counter(l, "rounds") >= Some(rounds + 2) && counter(l, "acts") > Some(acts))
    });
    assert!(line.starts_with("ok "), "{when}: {line}");
}
