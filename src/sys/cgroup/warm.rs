//! Moves between cgroups that do not wait.
//!
//! A move takes the kernel's one semaphore between forks and moves for writing.
//! When nobody has done so for a while, that waits for an RCU grace period: 8 to
//! 18 ms were measured, against 0.03 ms right after another move. Inside a freeze
//! this is a third of the pause. So somebody moves all the time while it lasts,
//! to where it is already.

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{Hierarchies, own_membership};

/// Between two moves: less than any grace period.
const PERIOD: Duration = Duration::from_millis(2);
/// Nobody keeps forks on their slow path for longer.
const LIMIT: Duration = Duration::from_secs(10);

/// While this lives, and for ten seconds at most, moves do not wait.
#[derive(Debug)]
pub struct Warm {
    // both always there until the drop
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Warm {
    /// Returns once moves are fast; `None` where this process may not move itself:
    /// they are slow then, and that is all.
    pub fn start() -> Option<Self> {
        let hierarchies = Hierarchies::now();
        let dir = own_membership().ok()?.iter().find_map(|m| {
            let dir = hierarchies.open(m).ok()?;
            dir.write("cgroup.procs", "0").ok().map(|()| dir)
        })?;
        let (stop, stopped) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("warm".to_owned())
            .spawn(move || {
                let end = Instant::now() + LIMIT;
                while Instant::now() < end
                    && stopped.recv_timeout(PERIOD) == Err(RecvTimeoutError::Timeout)
                    && dir.write("cgroup.procs", "0").is_ok()
                {}
            })
            .ok()?;
        Some(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Warm {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // It can only have ended.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeping_moves_fast_leaves_this_process_where_it_is_and_ends_with_it() {
        let before = own_membership().unwrap();
        let Some(warm) = Warm::start() else {
            return; // no cgroup can be written here: nothing to keep
        };
        assert_eq!(own_membership().unwrap(), before);
        let stop = warm.stop.clone().unwrap();
        drop(warm);
        assert!(stop.send(()).is_err(), "its thread goes on");
        assert_eq!(own_membership().unwrap(), before);
    }
}
