//! Points at which a test can stop this process: it raises SIGSTOP there, so
//! that a harness can look at the world, kill it, cut its link, or let it go on.

use nix::sys::signal::{Signal, raise};
use tracing::info;

/// Where to stop, if anywhere. For tests.
#[derive(Debug, Clone, Default)]
pub struct Probe {
    at: Option<String>,
}

/// Every point of the source, in order.
pub const SOURCE: &[&str] = &[
    "connected",
    "bundle",
    "frozen",
    "captured",
    "held",
    "sent",
    "ready",
    "granted",
    "grant-sent",
    "resumed",
    "complete",
    "killed",
];

/// Every point of the destination, in order.
pub const DESTINATION: &[&str] = &[
    "offered",
    "bundle-landed",
    "state-landed",
    "rebuilt",
    "resuming",
    "running",
    "resumed-said",
    "all-pages",
];

impl Probe {
    /// Stops at the point of this name.
    pub fn new(at: Option<String>) -> Self {
        Self { at }
    }

    /// This process is at a point.
    pub fn at(&self, point: &str) {
        if self.at.as_deref() == Some(point) {
            info!(point, "stopped for a test");
            // Only a wrong number could fail.
            let _ = raise(Signal::SIGSTOP);
        }
    }
}
