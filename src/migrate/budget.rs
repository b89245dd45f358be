//! The pause as a type: its summands, and the account that is given at the end.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use serde::Serialize;

/// Where the pause went; each in microseconds, as the source's clock saw it.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct Pause {
    /// From the first interrupt until all tasks stood.
    pub freeze: u64,
    /// Registers, descriptors, areas, which pages exist; changed bundle files
    /// travel meanwhile. With moving to the hold.
    pub capture: u64,
    /// Images over the connection.
    pub transfer: u64,
    /// The destination builds until all stands (READY).
    pub rebuild: u64,
    /// GRANTED in the journal, on the medium.
    pub journal: u64,
    /// GRANT until RESUMED, with the destination's own journal.
    pub resume: u64,
}

impl Pause {
    /// From the first interrupt to RESUMED as heard at the source.
    pub fn total(&self) -> u64 {
        self.freeze + self.capture + self.transfer + self.rebuild + self.journal + self.resume
    }
}

/// A clock that gives each phase what passed since the last.
#[derive(Debug)]
pub struct Clock {
    last: Instant,
}

impl Clock {
    /// Starts at `first`: the moment of the first interrupt.
    pub fn since(first: Instant) -> Self {
        Self { last: first }
    }

    /// Microseconds since the last lap.
    pub fn lap(&mut self) -> u64 {
        let now = Instant::now();
        let us = micros(now - self.last);
        self.last = now;
        us
    }
}

/// Whole microseconds.
pub fn micros(d: Duration) -> u64 {
    u64::try_from(d.as_micros()).unwrap_or(u64::MAX)
}

/// The account of a migration.
#[derive(Debug, Default, Clone, Serialize)]
pub struct Report {
    /// The container.
    pub id: String,
    /// Where it went.
    pub to: String,
    /// The session, in hexadecimal.
    pub session: String,
    /// Whether the lanes were encrypted.
    pub tls: bool,
    /// The pause by its summands, microseconds.
    pub pause_us: Pause,
    /// Their sum.
    pub pause_total_us: u64,
    /// Bytes sent before the resume: bundle, images.
    pub bytes_before_resume: u64,
    /// Of these, while the container stood still.
    pub bytes_in_pause: u64,
    /// Bytes of page content sent after the resume.
    pub bytes_after_resume: u64,
    /// Pages that the container had.
    pub pages: u64,
    /// Faults that tasks waited for at the destination.
    pub faults: u64,
    /// Half of them waited no longer, microseconds.
    pub fault_p50_us: u64,
    /// 99 of 100 waited no longer, microseconds.
    pub fault_p99_us: u64,
    /// From the resume until every page had arrived, microseconds.
    pub all_pages_us: u64,
    /// From the command's start to its end, microseconds.
    pub total_us: u64,
    /// Files of the bundle sent while it ran.
    pub bundle_entries: u64,
    /// Files sent again in the pause.
    pub bundle_entries_in_pause: u64,
    /// Connections that were lost and made again.
    pub reconnections: u64,
    /// The destination's own figures.
    pub destination: std::collections::BTreeMap<String, u64>,
}

impl Report {
    /// For people.
    pub fn text(&self) -> String {
        let ms = |us: u64| format!("{}.{:02} ms", us / 1000, us % 1000 / 10);
        let mib = |b: u64| format!("{}.{:01} MiB", b >> 20, ((b & 0xf_ffff) * 10) >> 20);
        let p = &self.pause_us;
        let mut s = String::new();
        // Writing to a String cannot fail.
        let _ = writeln!(s, "{} moved to {}", self.id, self.to);
        let _ = writeln!(s, "  pause                {}", ms(self.pause_total_us));
        for (name, us) in [
            ("freeze", p.freeze),
            ("capture", p.capture),
            ("transfer", p.transfer),
            ("rebuild", p.rebuild),
            ("journal", p.journal),
            ("resume", p.resume),
        ] {
            let _ = writeln!(s, "    {name:<18} {}", ms(us));
        }
        let _ = writeln!(
            s,
            "  sent before resume   {} ({} in the pause)",
            mib(self.bytes_before_resume),
            mib(self.bytes_in_pause)
        );
        let _ = writeln!(
            s,
            "  sent after resume    {} of {} pages",
            mib(self.bytes_after_resume),
            self.pages
        );
        let _ = writeln!(
            s,
            "  page faults          {} (p50 {} us, p99 {} us)",
            self.faults, self.fault_p50_us, self.fault_p99_us
        );
        let _ = writeln!(
            s,
            "  all pages there      {} after the resume",
            ms(self.all_pages_us)
        );
        if self.reconnections > 0 {
            let _ = writeln!(s, "  connections lost     {}", self.reconnections);
        }
        s
    }
}
