//! Containers under runc, removed whatever happens.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::program::{Outcome, ends, must, pipe, run};
use super::{Lines, PATIENCE, Proc, Scratch, busybox_rootfs, criu_dir, descendants, top};

/// A runc with its own state directory and a `criu` of our choice.
#[derive(Debug, Clone)]
pub struct Runc {
    pub root: PathBuf,
    pub criu: PathBuf,
    pub log: PathBuf,
}

impl Runc {
    /// runc whose `criu` is the binary under test.
    pub fn new(scratch: &Scratch) -> Self {
        Self::with_criu(scratch, &criu_dir(scratch).join("criu"))
    }

    /// runc with another `criu`.
    pub fn with_criu(scratch: &Scratch, criu: &Path) -> Self {
        Self {
            root: scratch.dir("runc"),
            criu: criu.to_owned(),
            log: scratch.join("runc.log"),
        }
    }

    /// `runc --root .. --criu .. --log ..`, ready for a verb.
    pub fn command(&self) -> Command {
        let mut command = Command::new("runc");
        command.arg("--root").arg(&self.root);
        command.arg("--criu").arg(&self.criu);
        command.arg("--log").arg(&self.log);
        command
    }
}

/// A bundle: `rootfs` and `config.json`.
#[derive(Debug, Clone)]
pub struct Bundle {
    pub dir: PathBuf,
    pub config: Value,
}

impl Bundle {
    /// A bundle `DIR/NAME` on busybox that runs `args`; `programs` lie in its
    /// `/bin`. As `runc spec` makes it: own pid, network, ipc, uts, mount
    /// (and no user) namespaces, no rlimits, no terminal, a rootfs that can be written.
    pub fn new(scratch: &Scratch, name: &str, programs: &[&Path], args: &[&str]) -> Self {
        let dir = scratch.dir(name);
        fs::create_dir_all(dir.join("rootfs")).expect("make the rootfs");
        busybox_rootfs(&dir.join("rootfs"), programs);
        let template = top().join("bundles/config.json");
        let text = fs::read_to_string(&template).expect("read bundles/config.json");
        let config = serde_json::from_str(&text).expect("parse bundles/config.json");
        let mut bundle = Self { dir, config };
        bundle.edit(|config| config["process"]["args"] = json!(args));
        bundle
    }

    /// Changes `config.json`.
    pub fn edit(&mut self, change: impl FnOnce(&mut Value)) {
        change(&mut self.config);
        let text = serde_json::to_string_pretty(&self.config).expect("write json");
        fs::write(self.dir.join("config.json"), text).expect("write config.json");
    }

    /// Lets the container live in the network namespace of the host.
    pub fn host_network(&mut self) {
        self.edit(|config| {
            let list = config["linux"]["namespaces"]
                .as_array_mut()
                .expect("namespaces");
            list.retain(|ns| ns["type"] != "network");
        });
    }

    /// Puts its cgroups at `path`, which the container's guard removes.
    pub fn cgroups_path(&mut self, path: &str) {
        self.edit(|config| config["linux"]["cgroupsPath"] = json!(path));
    }

    pub fn rootfs(&self) -> PathBuf {
        self.dir.join("rootfs")
    }
}

/// A container; killed, deleted and its cgroups removed when dropped.
#[derive(Debug)]
pub struct Container {
    pub runc: Runc,
    pub id: String,
    pub bundle: Bundle,
    /// What it (and `runc run`) writes to stdout and stderr.
    pub lines: Lines,
}

impl Container {
    /// `runc run -d` of the bundle, in cgroups of its own.
    ///
    /// # Panics
    /// When it does not start.
    pub fn run(runc: &Runc, mut bundle: Bundle, id: &str) -> Self {
        if bundle.config["linux"]["cgroupsPath"].is_null() {
            bundle.cgroups_path(&format!("/dunlin-tests-{id}"));
        }
        let (read, write) = pipe();
        let mut container = Self {
            runc: runc.clone(),
            id: id.to_owned(),
            bundle,
            lines: Lines::new(read),
        };
        let mut command = runc.command();
        command.args(["run", "--detach", "--bundle"]);
        command.arg(&container.bundle.dir).arg(id);
        let status = detached(&mut command, write);
        assert!(status, "runc run fails: {}", container.logs());
        assert_eq!(container.status(), "running");
        container.lines.seen();
        container
    }

    /// `runc state`, or `None` when runc does not know it.
    pub fn state(&self) -> Option<Value> {
        let outcome = run(self.runc.command().args(["state", &self.id]), PATIENCE);
        outcome
            .ok()
            .then(|| serde_json::from_str(&outcome.stdout).expect("parse runc state"))
    }

    /// `running`, `stopped`, `paused`, `created`, or `unknown`.
    pub fn status(&self) -> String {
        self.state()
            .and_then(|state| Some(state["status"].as_str()?.to_owned()))
            .unwrap_or_else(|| "unknown".to_owned())
    }

    /// The pid of its first process, as the host counts.
    pub fn pid(&self) -> i32 {
        let state = self.state().expect("runc does not know the container");
        let pid = state["pid"].as_i64().expect("a pid in runc's state");
        i32::try_from(pid).expect("a pid")
    }

    /// Its first process, and all below it.
    pub fn pids(&self) -> Vec<i32> {
        descendants(self.pid())
    }

    /// Its first process, held.
    pub fn init(&self) -> Proc {
        Proc::of(self.pid()).expect("the container's first process is gone")
    }

    /// `runc exec`.
    pub fn exec(&self, args: &[&str]) -> Outcome {
        run(
            self.runc.command().arg("exec").arg(&self.id).args(args),
            PATIENCE,
        )
    }

    /// `runc kill ID SIGNAL`.
    pub fn signal(&self, signal: &str) {
        must(self.runc.command().args(["kill", &self.id, signal]));
    }

    /// `runc checkpoint --image-path IMAGES --work-path IMAGES/../work ...`; judge the outcome yourself,
    /// or let [`Container::dumped`] do it.
    pub fn checkpoint(&self, images: &Path, more: &[&str]) -> Outcome {
        let work = work_of(images);
        fs::create_dir_all(&work).expect("make the work directory");
        let mut command = self.runc.command();
        command.arg("checkpoint").arg("--image-path").arg(images);
        command
            .arg("--work-path")
            .arg(&work)
            .args(more)
            .arg(&self.id);
        run(&mut command, PATIENCE)
    }

    /// A checkpoint that must succeed, and (without `--leave-running`) end the container.
    ///
    /// # Panics
    /// With the logs when it does not.
    pub fn dumped(&self, images: &Path, more: &[&str]) {
        let init = self.init();
        let outcome = self.checkpoint(images, more);
        assert!(outcome.ok(), "{outcome:?}\n{}", self.logs_of(images));
        if !more.contains(&"--leave-running") {
            init.wait_gone(PATIENCE);
        }
    }

    /// `runc restore --detach` from `images` under the same id; the stopped container
    /// is deleted first. True when runc says it runs.
    pub fn restore(&mut self, images: &Path, more: &[&str]) -> bool {
        must(self.runc.command().args(["delete", "--force", &self.id]));
        let work = work_of(images);
        fs::create_dir_all(&work).expect("make the work directory");
        let (read, write) = pipe();
        self.lines = Lines::new(read);
        let mut command = self.runc.command();
        command
            .args(["restore", "--detach", "--bundle"])
            .arg(&self.bundle.dir);
        command
            .arg("--image-path")
            .arg(images)
            .arg("--work-path")
            .arg(&work);
        command.args(more).arg(&self.id);
        detached(&mut command, write)
    }

    /// A restore that must succeed.
    ///
    /// # Panics
    /// With the logs when it does not.
    pub fn restored(&mut self, images: &Path, more: &[&str]) {
        assert!(self.restore(images, more), "{}", self.logs_of(images));
        assert_eq!(self.status(), "running", "{}", self.logs_of(images));
    }

    /// runc's log and what came out of it, for messages.
    pub fn logs(&mut self) -> String {
        while self.lines.next(Duration::from_millis(1)).is_some() {}
        format!(
            "--- runc's log\n{}--- output\n{}",
            tail(&self.runc.log),
            self.lines.seen().join("\n")
        )
    }

    /// The logs of a checkpoint into, or restore from, `images`.
    pub fn logs_of(&self, images: &Path) -> String {
        let work = work_of(images);
        let mut text = format!("--- runc's log\n{}", tail(&self.runc.log));
        for dir in [work.as_path(), images] {
            for name in ["dump.log", "restore.log", "lazy-pages.log"] {
                let path = dir.join(name);
                if path.exists() {
                    text += &format!("--- {}\n{}", path.display(), tail(&path));
                }
            }
        }
        text
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let pids = self
            .state()
            .and_then(|state| i32::try_from(state["pid"].as_i64()?).ok())
            .filter(|pid| *pid > 0)
            .map(descendants)
            .unwrap_or_default();
        let held: Vec<Proc> = pids.iter().filter_map(|pid| Proc::of(*pid)).collect();
        for pid in &pids {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        for process in &held {
            process.gone_within(Duration::from_secs(5));
        }
        let mut delete = self.runc.command();
        let _ = delete
            .args(["delete", "--force", &self.id])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        let path = self.bundle.config["linux"]["cgroupsPath"].as_str();
        if let Some(path) = path {
            remove_cgroups(path.trim_start_matches('/'));
        }
    }
}

fn detached(command: &mut Command, output: std::os::fd::OwnedFd) -> bool {
    let words = format!("{command:?}");
    let err = output.try_clone().expect("dup a pipe");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(err)
        .spawn()
        .unwrap_or_else(|e| panic!("start {words}: {e}"));
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let ended = ends(&child, PATIENCE);
    if !ended {
        let _ = child.kill();
    }
    let status = child.wait().expect("wait for runc");
    assert!(ended, "does not end in {PATIENCE:?}: {words}");
    status.success()
}

fn work_of(images: &Path) -> PathBuf {
    let name = images
        .file_name()
        .and_then(|n| n.to_str())
        .unwrap_or("images");
    images.with_file_name(format!("{name}.work"))
}

fn tail(path: &Path) -> String {
    let text = String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(60);
    lines[from..]
        .iter()
        .map(|line| format!("{line}\n"))
        .collect()
}

/// Kills what is left in the cgroups of `path` in every hierarchy and removes them.
pub fn remove_cgroups(path: &str) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for line in mounts.lines() {
        let mut words = line.split(' ');
        let (at, kind) = (words.nth(1).unwrap_or(""), words.next().unwrap_or(""));
        if !matches!(kind, "cgroup" | "cgroup2") {
            continue;
        }
        let dir = Path::new(at).join(path);
        if dir.is_dir() && !path.is_empty() {
            remove_cgroup(&dir);
        }
    }
}

fn remove_cgroup(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_cgroup(&entry.path());
        }
    }
    let procs = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    let pids: Vec<i32> = procs.lines().filter_map(|pid| pid.parse().ok()).collect();
    let held: Vec<Proc> = pids.iter().filter_map(|pid| Proc::of(*pid)).collect();
    for pid in pids {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    let _ = fs::write(dir.join("freezer.state"), "THAWED");
    let _ = fs::write(dir.join("cgroup.freeze"), "0");
    for process in &held {
        process.gone_within(Duration::from_secs(5));
    }
    let _ = fs::remove_dir(dir);
}
