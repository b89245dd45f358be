//! A child process, heard by its heart: numbers through a pipe, the same
//! numbers in shared memory, every ten milliseconds.

use std::fs::File;
use std::io::{Read as _, Write as _};

use crate::memory::{Area, PAGE};
use crate::report::Report;
use crate::sys;

const SHARED_PAGES: usize = 256;

/// The parent's side.
#[derive(Debug)]
pub struct Family {
    /// Where the beats come from.
    pub beats: File,
    /// Shared with the child: word 0 of page 0 is its last beat, the other pages
    /// are patterned.
    shared: Area,
    child: i32,
    next: u64,
}

impl Family {
    /// Forks the child.
    pub fn start() -> Self {
        let shared = Area::anonymous(SHARED_PAGES, true);
        for page in 1..SHARED_PAGES {
            shared.write_as(page, page * PAGE, 7);
        }
        let (beats, mut heart) = sys::pipe();
        let me = i32::try_from(std::process::id()).unwrap_or(0);
        let child = sys::fork(|| beat(&mut heart, &shared, me));
        Self {
            beats,
            shared,
            child,
            next: 1,
        }
    }

    /// Takes one beat, which must be the next one.
    pub fn hear(&mut self, report: &Report) {
        let mut beat = [0; 8];
        if let Err(e) = self.beats.read_exact(&mut beat) {
            let code = sys::wait_for(self.child);
            report.wrong(&format!("the child's heart: {e}; its exit code: {code}"));
        }
        let (beat, shared) = (u64::from_le_bytes(beat), self.shared.load(0, 0));
        if beat != self.next {
            report.wrong(&format!("heartbeat {beat} where {} is due", self.next));
        }
        if shared < beat {
            report.wrong(&format!(
                "shared memory holds beat {shared}, the pipe {beat}"
            ));
        }
        let page = 1 + usize::try_from(beat).unwrap_or(0) % (SHARED_PAGES - 1);
        if let Some(word) = self.shared.differs(page, page * PAGE, 7) {
            report.wrong(&format!("word {word} of shared page {page}"));
        }
        self.next += 1;
        report
            .beats
            .store(beat, std::sync::atomic::Ordering::Relaxed);
    }
}

/// The child's life; ends when nobody hears it any more.
fn beat(heart: &mut File, shared: &Area, parent: i32) -> i32 {
    let mut timer = sys::timerfd(10_000, 10_000);
    let mut late = [0; 8];
    for number in 1_u64.. {
        if timer.read_exact(&mut late).is_err() {
            return 3;
        }
        if sys::parent() != parent {
            return 4;
        }
        let page = 1 + usize::try_from(number).unwrap_or(0) % (SHARED_PAGES - 1);
        if shared.differs(page, page * PAGE, 7).is_some() {
            return 5;
        }
        shared.store(0, 0, number);
        if heart.write_all(&number.to_le_bytes()).is_err() {
            return 0;
        }
    }
    0
}
