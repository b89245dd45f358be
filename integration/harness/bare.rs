//! A program without a container, whose lines go into a file: dumped with its
//! tree, and brought back under its pids.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use dunlin::base::{HostPid, Result};
use dunlin::engine::dump::freeze;
use dunlin::engine::options::{Common, Dump, Observer, Stage};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use super::{PATIENCE, Proc, Scratch, criu, criu_dir, descendants, must, wait_file};

/// See the head of this file. Killed with its children when dropped.
#[derive(Debug)]
pub struct Bare {
    pid: i32,
    /// As it was before the first dump.
    first: Child,
    criu: PathBuf,
    out: PathBuf,
    pub images: PathBuf,
    pub work: PathBuf,
}

impl Bare {
    /// Starts it, and waits until it says that it is ready. It should make a
    /// session of its own.
    pub fn start(scratch: &Scratch, command: &mut Command) -> Self {
        // Orphans of its tree become ours, to be waited for.
        nix::sys::prctl::set_child_subreaper(true).expect("become a subreaper");
        let out = scratch.join("out");
        let first = command
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(File::create(&out).expect("create the output"))
            .stderr(Stdio::null())
            .spawn()
            .expect("start a program");
        let bare = Self {
            pid: i32::try_from(first.id()).expect("a pid"),
            first,
            criu: criu_dir(scratch).join("criu"),
            out,
            images: scratch.dir("images"),
            work: scratch.dir("work"),
        };
        bare.says("ready");
        bare
    }

    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Sends SIGUSR1: it is to do what it can.
    pub fn ask(&self) {
        kill(Pid::from_raw(self.pid), Signal::SIGUSR1).expect("signal a program");
    }

    /// Waits until all that it said holds `word`, and nothing of "wrong"; gives all.
    pub fn says(&self, word: &str) -> String {
        let bad = |text: &str| text.to_lowercase().contains("wrong");
        let text = wait_file(&self.out, PATIENCE, |text| text.contains(word) || bad(text));
        assert!(!bad(&text), "{text}");
        text
    }

    /// Dumps it with this very library.
    pub fn dump(&self) {
        self.gone_after(|| dump(self.pid, &self.images).expect("dump a program"));
    }

    /// Dumps it with the CRIU to compare with.
    pub fn dump_by_criu(&self) {
        self.gone_after(|| {
            must(
                Command::new(criu().expect("a CRIU"))
                    .args(["dump", "-v4", "-o", "dump.log", "-t"])
                    .arg(self.pid.to_string())
                    .arg("-D")
                    .arg(&self.images)
                    .arg("-W")
                    .arg(&self.work),
            );
        });
    }

    /// `dump` ends its tree; its pids are free afterwards.
    fn gone_after(&self, dump: impl FnOnce()) {
        let tree = descendants(self.pid);
        dump();
        for pid in tree.into_iter().chain([self.pid]) {
            // Whoever traced it may have waited for it already: both are us.
            let _ = waitpid(Pid::from_raw(pid), None);
        }
    }

    /// Our command `name`, as `criu`, with its directories.
    pub fn command(&self, name: &str) -> Command {
        self.command_of(&self.criu, name)
    }

    fn command_of(&self, criu: &Path, name: &str) -> Command {
        let mut c = Command::new(criu);
        c.args([name, "-v4", "-o"]).arg(format!("{name}.log"));
        c.arg("-D").arg(&self.images).arg("-W").arg(&self.work);
        c
    }

    /// Brings it back.
    pub fn restore(&self, more: &[&str]) {
        must(self.command("restore").arg("-d").args(more));
    }

    /// Our `lazy-pages`, ready in the background.
    pub fn lazy_pages(&self) -> Proc {
        let pidfile = self.work.join("lazy-pages.pid");
        let mut command = self.command("lazy-pages");
        must(command.args(["-d", "--pidfile"]).arg(&pidfile));
        let pid = wait_file(&pidfile, PATIENCE, |text| !text.is_empty());
        Proc::of(pid.trim().parse().expect("a pid")).expect("it serves")
    }

    /// The CRIU to compare with brings it back.
    pub fn restore_by_criu(&self) {
        let criu = criu().expect("a CRIU");
        must(self.command_of(&criu, "restore").arg("-d"));
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        let mut tree = descendants(self.pid);
        tree.push(self.pid);
        for pid in &tree {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        let _ = self.first.wait();
        for pid in tree {
            let _ = waitpid(Pid::from_raw(pid), None);
        }
    }
}

struct Nobody;

impl Observer for Nobody {
    fn at(&mut self, _: Stage, _: Option<HostPid>) -> Result<()> {
        Ok(())
    }
}

fn dump(pid: i32, dir: &Path) -> Result<()> {
    let options = Dump {
        common: Common::default(),
        pid: HostPid(pid),
        lazy: false,
        list_later: false,
    };
    let mut frozen = freeze(&options)?;
    let mut captured = frozen.capture(&options, &mut Nobody)?;
    captured.pages.write(dir, &mut captured.set, false)?;
    captured.set.store(dir)?;
    frozen.kill()
}
