//! A process that outlives a killed migration: it waits for its parent's end of a
//! pipe to close, then settles what the journal allows to be settled without
//! asking: before GRANTED the source goes on, before RESUMING the destination
//! leaves nothing behind. It is the program itself under a hidden command.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use crate::base::{HostPid, Result, ResultExt};
use crate::sys::cgroup;

/// The hidden command's name.
pub const COMMAND: &str = "guard-migration";

/// A guard that waits. Dropping it lets it look at the journal: a settled one is
/// gone, and so is the guard then.
#[derive(Debug)]
pub struct Guard {
    child: Child,
    line: Option<ChildStdin>,
}

impl Guard {
    /// Starts it for the journal at `path`.
    ///
    /// # Errors
    /// Those of fork and exec.
    pub fn spawn(path: &Path) -> Result<Self> {
        let mut child = Command::new("/proc/self/exe")
            .arg(COMMAND)
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .current_dir("/")
            // A Ctrl-C is for the migration, not for its guard.
            .process_group(0)
            .spawn()
            .context(|| "start the migration's guard".to_owned())?;
        let line = child.stdin.take();
        // Who kills our control group is not to kill it too.
        if let Ok(pid) = i32::try_from(child.id()) {
            cgroup::leave(HostPid(pid));
        }
        Ok(Self { child, line })
    }

    /// The journal is settled: lets the guard go and waits for it.
    pub fn dismiss(mut self) {
        self.line = None;
        // It reads the end of the pipe and leaves.
        let _ = self.child.wait();
    }
}
