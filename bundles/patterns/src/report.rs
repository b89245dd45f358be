//! What the program says of itself: log, status line, answers by TCP.

use std::fs::File;
use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use crate::sys;

/// Counters and the log; what is wrong ends the program here.
#[derive(Debug)]
pub struct Report {
    log: Mutex<File>,
    status: File,
    steady: Mutex<(usize, usize)>,
    /// Whole passes through memory, of the slowest writer.
    pub rounds: AtomicU64,
    /// Pages compared.
    pub checked: AtomicU64,
    /// Times that the held things were looked at.
    pub looks: AtomicU64,
    /// Heartbeats heard.
    pub beats: AtomicU64,
    /// Acts done.
    pub acts: AtomicU64,
    /// Ticks written.
    pub ticks: AtomicU64,
    /// The largest distance between two ticks in real time, microseconds.
    pub gap_us: AtomicI64,
}

impl Report {
    pub fn new(dir: &Path) -> Self {
        let log = File::options()
            .create(true)
            .append(true)
            .open(dir.join("log"))
            .expect("open the log");
        let status = File::create(dir.join("status")).expect("open the status file");
        Self {
            log: Mutex::new(log),
            status,
            steady: Mutex::new((0, 0)),
            rounds: AtomicU64::new(0),
            checked: AtomicU64::new(0),
            looks: AtomicU64::new(0),
            beats: AtomicU64::new(0),
            acts: AtomicU64::new(0),
            ticks: AtomicU64::new(0),
            gap_us: AtomicI64::new(0),
        }
    }

    pub fn set_steady(&self, address: usize, bytes: usize) {
        *self.steady.lock().expect("the report is whole") = (address, bytes);
    }

    /// A line for the log.
    pub fn say(&self, what: &str) {
        let line = format!("{} {what}\n", sys::now_us(libc::CLOCK_REALTIME));
        let _ = self
            .log
            .lock()
            .expect("the log is whole")
            .write_all(line.as_bytes());
    }

    /// The end: something is not as it must be.
    pub fn wrong(&self, what: &str) -> ! {
        self.say(&format!("wrong: {what}"));
        eprintln!("wrong: {what}");
        let line = format!("wrong {what}\n");
        let _ = self.status.set_len(0);
        let _ = self.status.write_all_at(line.as_bytes(), 0);
        std::process::exit(1);
    }

    /// All counters in a line.
    pub fn line(&self) -> String {
        let (address, bytes) = *self.steady.lock().expect("the report is whole");
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        format!(
            "ok rounds={} checked={} looks={} beats={} acts={} ticks={} gap_us={} steady={address:#x}+{bytes}\n",
            get(&self.rounds),
            get(&self.checked),
            get(&self.looks),
            get(&self.beats),
            get(&self.acts),
            get(&self.ticks),
            self.gap_us.load(Ordering::Relaxed),
        )
    }

    /// Puts the line into the status file, at its full width, so that no reader
    /// sees a shortened number.
    pub fn store(&self) {
        let line = format!("{:<199}\n", self.line().trim_end());
        let _ = self.status.write_all_at(line.as_bytes(), 0);
    }
}

/// Answers every connection with the line.
pub fn answer(listener: &TcpListener, report: &Report) {
    loop {
        match listener.accept() {
            Ok((mut peer, _)) => {
                let _ = peer.write_all(report.line().as_bytes());
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => report.wrong(&format!("accept: {e}")),
        }
    }
}
