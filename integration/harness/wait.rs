//! Waiting for what happens, with a deadline, woken by the kernel.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd, FromRawFd as _, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

/// A moment after which waiting is a failure.
#[derive(Debug, Clone, Copy)]
pub struct Deadline(Instant);

impl Deadline {
    pub fn after(patience: Duration) -> Self {
        Self(Instant::now() + patience)
    }

    fn timeout(self) -> Option<PollTimeout> {
        let left = self.0.checked_duration_since(Instant::now())?;
        let millis = left.as_millis().saturating_add(1).min(60_000);
        Some(PollTimeout::try_from(i32::try_from(millis).unwrap_or(60_000)).unwrap())
    }

    pub fn is_over(self) -> bool {
        Instant::now() >= self.0
    }

    /// True when `fd` is readable (or hung up), false when time is over.
    pub fn readable(self, fd: impl AsFd) -> bool {
        while let Some(timeout) = self.timeout() {
            let mut set = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
            match poll(&mut set, timeout) {
                Ok(0) | Err(nix::errno::Errno::EINTR) => {}
                Ok(_) => return true,
                Err(errno) => panic!("poll: {errno}"),
            }
        }
        false
    }
}

/// The lines that come out of a pipe.
#[derive(Debug)]
pub struct Lines {
    from: File,
    buffer: Vec<u8>,
    ready: VecDeque<String>,
    seen: Vec<String>,
    ended: bool,
}

impl Lines {
    pub fn new(from: OwnedFd) -> Self {
        Self {
            from: File::from(from),
            buffer: Vec::new(),
            ready: VecDeque::new(),
            seen: Vec::new(),
            ended: false,
        }
    }

    /// The next line; `None` at the end of the stream or of `patience`.
    pub fn next(&mut self, patience: Duration) -> Option<String> {
        let deadline = Deadline::after(patience);
        loop {
            if let Some(line) = self.ready.pop_front() {
                self.seen.push(line.clone());
                return Some(line);
            }
            if self.ended || !deadline.readable(&self.from) {
                return None;
            }
            let mut piece = [0; 4096];
            match self.from.read(&mut piece) {
                Ok(0) => {
                    self.ended = true;
                    if !self.buffer.is_empty() {
                        let rest = std::mem::take(&mut self.buffer);
                        self.ready
                            .push_back(String::from_utf8_lossy(&rest).into_owned());
                    }
                }
                Ok(n) => self.take(&piece[..n]),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => panic!("read the output of a program: {e}"),
            }
        }
    }

    fn take(&mut self, piece: &[u8]) {
        for &byte in piece {
            if byte == b'\n' {
                let line = std::mem::take(&mut self.buffer);
                self.ready
                    .push_back(String::from_utf8_lossy(&line).into_owned());
            } else {
                self.buffer.push(byte);
            }
        }
    }

    /// The first coming line that starts with `prefix`.
    ///
    /// # Panics
    /// When none comes in time; the message tells what came.
    pub fn expect(&mut self, prefix: &str, patience: Duration) -> String {
        let deadline = Deadline::after(patience);
        while !deadline.is_over() {
            match self.next(deadline.0.saturating_duration_since(Instant::now())) {
                Some(line) if line.starts_with(prefix) => return line,
                Some(_) => {}
                None => break,
            }
        }
        let how = if self.ended {
            "the stream ended"
        } else {
            "time is over"
        };
        panic!("no line {prefix:?}: {how}; seen:\n{}", self.seen.join("\n"));
    }

    /// Everything up to the end of the stream.
    ///
    /// # Panics
    /// When the stream does not end in time.
    pub fn rest(&mut self, patience: Duration) -> Vec<String> {
        let deadline = Deadline::after(patience);
        let mut lines = Vec::new();
        while let Some(line) = self.next(deadline.0.saturating_duration_since(Instant::now())) {
            lines.push(line);
        }
        assert!(
            self.ended,
            "the stream does not end; seen:\n{}",
            self.seen.join("\n")
        );
        lines
    }

    /// What has been read so far.
    pub fn seen(&self) -> &[String] {
        &self.seen
    }
}

/// A process that need not be our child, held by pidfd.
#[derive(Debug)]
pub struct Proc {
    pid: i32,
    fd: OwnedFd,
}

impl Proc {
    /// Holds `pid`; `None` if it is gone.
    #[allow(unsafe_code)]
    pub fn of(pid: i32) -> Option<Self> {
        // SAFETY: pidfd_open(2) takes two integers and gives a descriptor or -1.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0)?;
        // SAFETY: the kernel just gave us this descriptor, nobody else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Some(Self { pid, fd })
    }

    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// True when it has ended within `patience` (a zombie has ended).
    pub fn gone_within(&self, patience: Duration) -> bool {
        Deadline::after(patience).readable(&self.fd)
    }

    pub fn is_alive(&self) -> bool {
        !self.gone_within(Duration::ZERO)
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn wait_gone(&self, patience: Duration) {
        assert!(
            self.gone_within(patience),
            "process {} does not end",
            self.pid
        );
    }
}

/// Waits until `path` exists and `good` says yes to its content; gives the content.
///
/// # Panics
/// When that does not come in time.
pub fn wait_file(path: &Path, patience: Duration, good: impl Fn(&str) -> bool) -> String {
    let dir = path.parent().expect("a file has a directory");
    let content = || std::fs::read_to_string(path).ok();
    wait_dir(dir, patience, || content().is_some_and(|text| good(&text)));
    content().expect("it was there")
}

/// Waits until `good` says yes; it is asked again after each change in `dir`.
///
/// # Panics
/// When that does not come in time; the message lists what files there hold.
pub fn wait_dir(dir: &Path, patience: Duration, good: impl Fn() -> bool) {
    let deadline = Deadline::after(patience);
    let notify = Inotify::init(InitFlags::IN_CLOEXEC).expect("inotify");
    let changes = AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_MODIFY
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_CLOSE_WRITE;
    notify
        .add_watch(dir, changes)
        .unwrap_or_else(|e| panic!("watch {}: {e}", dir.display()));
    while !good() {
        if !deadline.readable(&notify) {
            let listing = super::run(
                std::process::Command::new("tail")
                    .args(["-v", "-n", "3"])
                    .args(
                        std::fs::read_dir(dir)
                            .into_iter()
                            .flatten()
                            .flatten()
                            .map(|entry| entry.path()),
                    ),
                Duration::from_secs(5),
            );
            panic!(
                "waited in vain for a change in {}:\n{}",
                dir.display(),
                listing.stdout
            );
        }
        let _ = notify.read_events();
    }
}
