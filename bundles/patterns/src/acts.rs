//! What disturbs memory that has not all arrived: done by a thread of its own,
//! once for each SIGUSR1.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread;

use crate::memory::{Area, Memory, PAGE};
use crate::report::Report;
use crate::sys;

const SMALL: usize = 1024;
const LARGE: usize = 2048;
const SHARED: usize = 512;

/// The bell of the acting thread.
#[derive(Debug)]
pub struct Acts {
    bell: Mutex<File>,
}

impl Acts {
    /// Starts the thread, which prepares what it will disturb, and waits.
    pub fn start(memory: Arc<Memory>, report: Arc<Report>) -> Self {
        let (mut ear, bell) = sys::pipe();
        let mut moved = Area::anonymous(SMALL, false);
        for page in 0..SMALL {
            moved.write_as(page, page * PAGE, 1);
        }
        let shared = Area::anonymous(SHARED, true);
        for page in 0..SHARED {
            shared.write_as(page, page * PAGE, 1);
        }
        thread::Builder::new()
            .name("acts".into())
            .spawn(move || {
                let mut ring = [0];
                for round in 1_u32.. {
                    if ear.read_exact(&mut ring).is_err() {
                        return;
                    }
                    fork_and_check(&memory, &report);
                    move_and_forget(&mut moved, round, &report);
                    share_with_a_child(&shared, round, &report);
                    start_a_thread(&report);
                    report.acts.fetch_add(1, Ordering::Relaxed);
                    report.say(&format!("acts done: {round}"));
                }
            })
            .expect("start a thread");
        Self {
            bell: Mutex::new(bell),
        }
    }

    /// Asks for a round of acts.
    pub fn ask(&self) {
        let _ = self.bell.lock().expect("the bell is whole").write_all(&[1]);
    }
}

/// A forked child sees all memory as it was at the fork, while the writers go on.
fn fork_and_check(memory: &Memory, report: &Report) {
    let child = memory.while_whole(|| sys::fork(|| i32::from(!memory.is_right())));
    let code = sys::wait_for(child);
    if code != 0 {
        report.wrong(&format!("a forked child judges memory with {code}"));
    }
}

/// Grows, moves, partly forgets, shrinks.
fn move_and_forget(area: &mut Area, round: u32, report: &Report) {
    // A third is not looked at first: its pages move before they have arrived.
    let is = |area: &Area, range: std::ops::Range<usize>, round: u32, when: &str| {
        for page in range {
            if let Some(word) = area.differs(page, page * PAGE, round) {
                let held = area.load(page, word);
                report.wrong(&format!(
                    "word {word} of moved page {page} {when} holds {held:#x}"
                ));
            }
        }
    };
    is(area, 0..SMALL / 3, round, "before it moves");
    area.move_and_resize(LARGE);
    is(area, 0..SMALL, round, "after it moved");
    for page in SMALL..LARGE {
        if area.not_zero(page).is_some() {
            report.wrong(&format!("new page {page} is not zero"));
        }
    }
    area.forget(100, 50);
    for page in 100..150 {
        if area.not_zero(page).is_some() {
            report.wrong(&format!("forgotten page {page} is not zero"));
        }
    }
    is(area, 0..100, round, "beside forgotten ones");
    is(area, 150..SMALL, round, "beside forgotten ones");
    area.move_and_resize(SMALL);
    for page in 0..SMALL {
        area.write_as(page, page * PAGE, round + 1);
    }
    let passing = Area::anonymous(64, false);
    for page in 0..64 {
        if passing.not_zero(page).is_some() {
            report.wrong("fresh memory is not zero");
        }
        passing.write_as(page, 0, round);
    }
    passing.unmap();
}

/// Child and parent see the same shared memory, and each other's writes.
fn share_with_a_child(shared: &Area, round: u32, report: &Report) {
    let child = sys::fork(|| {
        for page in (0..SHARED).step_by(2) {
            if shared.differs(page, page * PAGE, round).is_some() {
                return 1;
            }
        }
        for page in 0..SHARED {
            shared.write_as(page, page * PAGE, round + 1);
        }
        0
    });
    let code = sys::wait_for(child);
    if code != 0 {
        report.wrong("a child finds shared memory changed");
    }
    for page in 0..SHARED {
        if let Some(word) = shared.differs(page, page * PAGE, round + 1) {
            let held = shared.load(page, word);
            report.wrong(&format!(
                "word {word} of shared page {page} holds {held:#x}"
            ));
        }
    }
}

fn start_a_thread(report: &Report) {
    let sum = thread::spawn(|| (0..1000_u64).sum::<u64>()).join();
    if !matches!(sum, Ok(499_500)) {
        report.wrong("a new thread gives a wrong answer");
    }
}
