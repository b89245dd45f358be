//! A bare program that is saved, killed, restored, and asked whether all is as
//! it was.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use super::{PATIENCE, Scratch};

/// A program in a session of its own, which writes to a file.
#[derive(Debug)]
pub struct Held {
    pub pid: Pid,
    pub out: PathBuf,
}

impl Held {
    /// Starts `program facet` below `through` (a command that becomes it, such as
    /// unshare(1)), and waits until it says "ready".
    pub fn start(scratch: &Scratch, through: &[&str], program: &Path, facet: &str) -> Self {
        let out = scratch.join(format!("{facet}.out"));
        let file = File::create(&out).expect("create the output");
        // setsid(1) executes the probe in its own place
        let mut command = Command::new("setsid");
        command
            .args(through)
            .arg(program)
            .arg(facet)
            .env("STATE_PROBE", "kept")
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("dup"))
            .stderr(file);
        let child = command.spawn().expect("start the probe");
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
        let held = Self { pid, out };
        // dropping a Child neither kills nor waits; `reap` below waits
        drop(child);
        held.says("ready");
        held
    }

    /// The first line that begins with `word`, or with "wrong".
    ///
    /// # Panics
    /// When it does not come in time.
    pub fn says(&self, word: &str) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            let text = fs::read_to_string(&self.out).expect("read the output");
            if let Some(line) = text
                .lines()
                .find(|l| l.starts_with(word) || l.starts_with("wrong"))
            {
                return line.to_owned();
            }
            assert!(Instant::now() < end, "no {word:?} in {text:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Asks it, and lets it go on if it has been stopped: all is as it was.
    pub fn is_asked(&self) {
        kill(self.pid, Signal::SIGUSR1).expect("ask the probe");
        kill(self.pid, Signal::SIGCONT).expect("let the probe go on");
        assert_eq!(self.says("right"), "right", "{}", self.out.display());
    }

    /// Waits until these processes have been waited for: their ids are free.
    pub fn are_gone(pids: &[i32]) {
        let end = Instant::now() + PATIENCE;
        while let Some(left) = pids
            .iter()
            .find(|p| Path::new(&format!("/proc/{p}")).exists())
        {
            assert!(Instant::now() < end, "process {left} stays");
            // ours, or an orphan that came to us
            let _ = waitpid(Pid::from_raw(*left), Some(WaitPidFlag::WNOHANG));
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        for pid in session(self.pid) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

fn session_of(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?
        .1
        .split_whitespace()
        .nth(3)?
        .parse()
        .ok()
}

fn session(sid: Pid) -> Vec<i32> {
    fs::read_dir("/proc")
        .expect("list /proc")
        .flatten()
        .filter_map(|e| e.file_name().to_string_lossy().parse::<i32>().ok())
        .filter(|p| session_of(*p) == Some(sid.as_raw()))
        .collect()
}

/// Orphans of a dumped tree come to us, so that they are waited for at once.
pub fn adopt_orphans() {
    nix::sys::prctl::set_child_subreaper(true).expect("become a subreaper");
}
