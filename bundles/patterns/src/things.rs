//! One of nearly everything, with content, looked at ten times a second.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::acts::Acts;
use crate::family::Family;
use crate::memory::{Area, PAGE};
use crate::report::Report;
use crate::sys;

const MESSAGE: usize = 512;
const QUEUED: u64 = 8;
const FAR_US: i64 = 3_600_000_000;
/// Between two looks.
const LOOKS_US: i64 = 100_000;
const FILE_PAGES: usize = 16;

/// Looks after which a counter must have moved: ten seconds.
const STILL: u64 = 100;

const SIGNAL: u64 = 1;
const HEART: u64 = 2;
const LOOK: u64 = 0xfeed_0000_0000_0003;

/// A queue in the kernel that always holds [`QUEUED`] messages.
#[derive(Debug)]
struct Queue {
    name: &'static str,
    out: File,
    into: File,
    next: u64,
}

impl Queue {
    fn new(name: &'static str, (out, into): (File, File)) -> Self {
        let mut queue = Self {
            name,
            out,
            into,
            next: 0,
        };
        for number in 0..QUEUED {
            queue
                .into
                .write_all(&message(number))
                .expect("fill a queue");
        }
        queue
    }

    /// Takes the oldest message, puts a new one.
    fn turn(&mut self, report: &Report) {
        let mut got = [0; MESSAGE];
        if let Err(e) = self.out.read_exact(&mut got) {
            report.wrong(&format!("read from {}: {e}", self.name));
        }
        if got != message(self.next) {
            report.wrong(&format!(
                "message {} of {} is another",
                self.next, self.name
            ));
        }
        if let Err(e) = self.into.write_all(&message(self.next + QUEUED)) {
            report.wrong(&format!("write to {}: {e}", self.name));
        }
        self.next += 1;
    }
}

fn message(number: u64) -> [u8; MESSAGE] {
    let mut bytes = [0; MESSAGE];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = (number.wrapping_mul(31).wrapping_add(at as u64 * 7) & 0xff) as u8;
    }
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes
}

/// Everything that is held.
#[derive(Debug)]
pub struct Things {
    epoll: sys::Epoll,
    signals: File,
    family: Family,
    look: File,
    queues: Vec<Queue>,
    event: File,
    event_value: u64,
    far: File,
    far_at: i64,
    /// When the timer was looked at, and how long there were no looks: timers stand
    /// still in a move, CLOCK_MONOTONIC may not.
    looked: i64,
    stood: i64,
    file: File,
    position: i64,
    of_file_private: Area,
    of_file_shared: Area,
    shared_count: u64,
    moving: Vec<Moving>,
}

/// A counter that others must keep moving.
#[derive(Debug)]
struct Moving {
    name: &'static str,
    counter: fn(&Report) -> &AtomicU64,
    last: u64,
    still: u64,
}

impl Moving {
    fn new(name: &'static str, counter: fn(&Report) -> &AtomicU64) -> Self {
        Self {
            name,
            counter,
            last: 0,
            still: 0,
        }
    }

    fn look(&mut self, report: &Report) {
        let now = (self.counter)(report).load(Ordering::Relaxed);
        self.still = if now == self.last { self.still + 1 } else { 0 };
        self.last = now;
        if self.still > STILL {
            report.wrong(&format!("the {} stand still at {now}", self.name));
        }
    }
}

impl Things {
    pub fn new(dir: &Path, signals: File, family: Family) -> Self {
        let epoll = sys::Epoll::new();
        let look = sys::timerfd(LOOKS_US, LOOKS_US);
        epoll.watch(signals.as_raw_fd(), SIGNAL);
        epoll.watch(family.beats.as_raw_fd(), HEART);
        epoll.watch(look.as_raw_fd(), LOOK);
        let queues = vec![
            Queue::new("the pipe", sys::pipe()),
            Queue::new("the stream socket", sys::socketpair(libc::SOCK_STREAM)),
            Queue::new(
                "the seqpacket socket",
                sys::socketpair(libc::SOCK_SEQPACKET),
            ),
        ];
        let mut file = File::options()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .open(dir.join("file"))
            .expect("open the file");
        file.set_len((FILE_PAGES * PAGE) as u64)
            .expect("size the file");
        let of_file_shared = Area::of_file(&file, FILE_PAGES, true);
        for page in 1..FILE_PAGES {
            of_file_shared.write_as(page, page, 3);
        }
        let of_file_private = Area::of_file(&file, FILE_PAGES, false);
        of_file_private.write_as(2, 2, 4);
        file.seek(SeekFrom::Start(12_345)).expect("seek");
        Self {
            epoll,
            signals,
            family,
            look,
            queues,
            event: sys::eventfd(5),
            event_value: 5,
            far: sys::timerfd(FAR_US, 777_000_000),
            far_at: sys::now_us(libc::CLOCK_MONOTONIC) + FAR_US,
            looked: sys::now_us(libc::CLOCK_MONOTONIC),
            stood: 0,
            file,
            position: 12_345,
            of_file_private,
            of_file_shared,
            shared_count: 0,
            moving: vec![
                Moving::new("ticks", |report| &report.ticks),
                Moving::new("heartbeats", |report| &report.beats),
                Moving::new("writers", |report| &report.checked),
            ],
        }
    }

    /// The main thread's life, up to SIGTERM.
    pub fn watch(&mut self, report: &Report, acts: &Acts) -> ExitCode {
        loop {
            for name in self.epoll.wait(-1) {
                match name {
                    SIGNAL => {
                        let mut signal = [0];
                        let _ = self.signals.read_exact(&mut signal);
                        if i32::from(signal[0]) == libc::SIGTERM {
                            report.say("told to end");
                            return ExitCode::SUCCESS;
                        }
                        acts.ask();
                    }
                    HEART => self.family.hear(report),
                    LOOK => {
                        let mut late = [0; 8];
                        let _ = self.look.read_exact(&mut late);
                        self.inspect(report);
                    }
                    other => report.wrong(&format!("epoll gives {other:#x}")),
                }
            }
        }
    }

    fn inspect(&mut self, report: &Report) {
        for queue in &mut self.queues {
            queue.turn(report);
        }
        self.inspect_counters(report);
        self.inspect_file(report);
        for moving in &mut self.moving {
            moving.look(report);
        }
        report.looks.fetch_add(1, Ordering::Relaxed);
        report.store();
    }

    fn inspect_counters(&mut self, report: &Report) {
        let mut value = [0; 8];
        if let Err(e) = self.event.read_exact(&mut value) {
            report.wrong(&format!("read the eventfd: {e}"));
        }
        let value = u64::from_le_bytes(value);
        if value != self.event_value {
            report.wrong(&format!(
                "the eventfd holds {value}, not {}",
                self.event_value
            ));
        }
        self.event_value += 1;
        let _ = self.event.write_all(&self.event_value.to_le_bytes());

        let (left, every) = sys::timer_left(&self.far);
        let now = sys::now_us(libc::CLOCK_MONOTONIC);
        let due = self.far_at - now;
        let since = now - self.looked;
        if since > 2 * LOOKS_US {
            self.stood += since;
        }
        self.looked = now;
        if every != 777_000_000 || (left - due).abs() > 500_000 + self.stood {
            report.wrong(&format!(
                "the far timer has {left} us left, not {due}; every {every}"
            ));
        }
    }

    fn inspect_file(&mut self, report: &Report) {
        let position = sys::position(&self.file);
        if position != self.position {
            report.wrong(&format!(
                "the file stands at {position}, not {}",
                self.position
            ));
        }
        let to = 1000 + (self.position + 77) % 50_000;
        self.position = to;
        if let Err(e) = self.file.seek(SeekFrom::Start(to.unsigned_abs())) {
            report.wrong(&format!("seek: {e}"));
        }
        let mut word = [0; 8];
        if let Err(e) = self.file.read_exact_at(&mut word, 0) {
            report.wrong(&format!("read the file: {e}"));
        }
        let (mapped, read) = (self.of_file_shared.load(0, 0), u64::from_le_bytes(word));
        if mapped != self.shared_count || read != self.shared_count {
            report.wrong(&format!(
                "the mapped file holds {mapped}, the file {read}, not {}",
                self.shared_count
            ));
        }
        self.shared_count += 1;
        self.of_file_shared.store(0, 0, self.shared_count);
        for page in 1..FILE_PAGES {
            let round = if page == 2 { 4 } else { 3 };
            if self.of_file_shared.differs(page, page, 3).is_some() {
                report.wrong(&format!("page {page} of the shared file mapping"));
            }
            if self.of_file_private.differs(page, page, round).is_some() {
                report.wrong(&format!("page {page} of the private file mapping"));
            }
        }
    }
}
