//! Commands that end, and programs that go on.

use std::fmt;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Lines, PATIENCE, Proc, descendants};

/// How a command ended, and what it said.
pub struct Outcome {
    pub command: String,
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl fmt::Debug for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {}\n--- stdout\n{}--- stderr\n{}",
            self.command, self.status, self.stdout, self.stderr
        )
    }
}

impl Outcome {
    pub fn ok(&self) -> bool {
        self.status.success()
    }
}

/// Runs a command to its end, at most `patience` long; its output is collected.
///
/// # Panics
/// When it cannot be started or does not end.
pub fn run(command: &mut Command, patience: Duration) -> Outcome {
    let words = format!("{command:?}");
    let dir = tempfile::tempdir().expect("a directory for the output");
    let (out, err) = (dir.path().join("out"), dir.path().join("err"));
    let file = |path: &Path| std::fs::File::create(path).expect("make an output file");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(file(&out))
        .stderr(file(&err))
        .spawn()
        .unwrap_or_else(|e| panic!("start {words}: {e}"));
    let ended = ends(&child, patience);
    if !ended {
        let _ = child.kill();
    }
    let status = child.wait().expect("wait for a command");
    let read = |path: &Path| {
        let said = std::fs::read(path).expect("read what a command said");
        String::from_utf8_lossy(&said).into_owned()
    };
    let outcome = Outcome {
        command: words,
        status,
        stdout: read(&out),
        stderr: read(&err),
    };
    assert!(ended, "does not end in {patience:?}: {outcome:?}");
    outcome
}

/// Runs a command that must succeed; gives what it said.
///
/// # Panics
/// When it fails.
pub fn must(command: &mut Command) -> Outcome {
    let outcome = run(command, PATIENCE);
    assert!(outcome.ok(), "{outcome:?}");
    outcome
}

pub(super) fn ends(child: &Child, patience: Duration) -> bool {
    let pid = i32::try_from(child.id()).expect("a pid");
    Proc::of(pid).is_none_or(|held| held.gone_within(patience))
}

/// A program that runs beside the test, in a session of its own, its standard
/// input `/dev/null`, its output a pipe to us.
#[derive(Debug)]
pub struct Program {
    child: Child,
    pub lines: Lines,
}

impl Program {
    pub fn start(command: &mut Command) -> Self {
        let words = format!("{command:?}");
        let (read, write) = pipe();
        let err = write.try_clone().expect("dup a pipe");
        command.stdin(Stdio::null()).stdout(write).stderr(err);
        in_own_session(command);
        let child = command
            .spawn()
            .unwrap_or_else(|e| panic!("start {words}: {e}"));
        // The command keeps copies of the pipe's writing end until it is reused.
        command.stdout(Stdio::null()).stderr(Stdio::null());
        Self {
            child,
            lines: Lines::new(read),
        }
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a pid")
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).expect("signal a program");
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn wait(&mut self, patience: Duration) -> ExitStatus {
        assert!(
            ends(&self.child, patience),
            "the program does not end; it said:\n{}",
            self.lines.seen().join("\n")
        );
        self.child.wait().expect("wait for a program")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Also those below it that made a session of their own.
        let mut all = descendants(self.pid());
        all.extend(session(self.pid()));
        for pid in all {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A pipe, closed on exec.
pub(super) fn pipe() -> (OwnedFd, OwnedFd) {
    nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).expect("pipe")
}

#[allow(unsafe_code)]
fn in_own_session(command: &mut Command) {
    // SAFETY: setsid(2) is async-signal-safe and touches no memory.
    unsafe {
        command.pre_exec(|| {
            nix::unistd::setsid()?;
            Ok(())
        });
    }
}

/// All processes of session `sid`.
fn session(sid: i32) -> Vec<i32> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| {
            nix::unistd::getsid(Some(Pid::from_raw(*pid))).is_ok_and(|s| s.as_raw() == sid)
        })
        .collect()
}
