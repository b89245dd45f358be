//! What serving pages cost.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::base::PAGE_SIZE;

/// Parts into which each power of two is divided: figures are right to 1/16.
const PARTS: usize = 16;
const BUCKETS: usize = 64 * PARTS;

/// Why a page was placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// Somebody waited for it.
    Asked,
    /// It came by itself, or as a neighbour.
    Pushed,
}

/// Counters; each may be a little ahead of another.
#[derive(Debug)]
pub struct Stats {
    faults: AtomicU64,
    zeroed: AtomicU64,
    asked_pages: AtomicU64,
    pushed_pages: AtomicU64,
    poisoned_pages: AtomicU64,
    forks: AtomicU64,
    latency: Vec<AtomicU64>,
}

impl Default for Stats {
    fn default() -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            faults: zero(),
            zeroed: zero(),
            asked_pages: zero(),
            pushed_pages: zero(),
            poisoned_pages: zero(),
            forks: zero(),
            latency: (0..BUCKETS).map(|_| zero()).collect(),
        }
    }
}

/// A moment of [`Stats`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Faults that waited for a page to come.
    pub faults: u64,
    /// Faults on pages that were never there.
    pub zero_faults: u64,
    /// Bytes placed by pieces that somebody waited for.
    pub asked_bytes: u64,
    /// Bytes placed unasked.
    pub pushed_bytes: u64,
    /// Pages that were lost, and end whoever touches them.
    pub poisoned_pages: u64,
    /// Children that forked while pages were missing.
    pub forks: u64,
    /// Median time from reading a fault to waking its thread, nanoseconds.
    pub p50_ns: u64,
    /// The time that 99 of 100 faults stay below, nanoseconds.
    pub p99_ns: u64,
}

impl Stats {
    pub(super) fn served(&self, after: Duration) {
        self.faults.fetch_add(1, Relaxed);
        let ns = u64::try_from(after.as_nanos()).unwrap_or(u64::MAX);
        self.latency[bucket(ns)].fetch_add(1, Relaxed);
    }

    pub(super) fn zeroed(&self) {
        self.zeroed.fetch_add(1, Relaxed);
    }

    pub(super) fn placed(&self, pages: u64, cause: Cause) {
        match cause {
            Cause::Asked => &self.asked_pages,
            Cause::Pushed => &self.pushed_pages,
        }
        .fetch_add(pages, Relaxed);
    }

    pub(super) fn poisoned(&self, pages: u64) {
        self.poisoned_pages.fetch_add(pages, Relaxed);
    }

    pub(super) fn forked(&self) {
        self.forks.fetch_add(1, Relaxed);
    }

    /// The figures now.
    pub fn summary(&self) -> Summary {
        Summary {
            faults: self.faults.load(Relaxed),
            zero_faults: self.zeroed.load(Relaxed),
            asked_bytes: self.asked_pages.load(Relaxed) * PAGE_SIZE,
            pushed_bytes: self.pushed_pages.load(Relaxed) * PAGE_SIZE,
            poisoned_pages: self.poisoned_pages.load(Relaxed),
            forks: self.forks.load(Relaxed),
            p50_ns: self.quantile(50),
            p99_ns: self.quantile(99),
        }
    }

    fn quantile(&self, percent: u64) -> u64 {
        let counts: Vec<u64> = self.latency.iter().map(|b| b.load(Relaxed)).collect();
        let total: u64 = counts.iter().sum();
        let mut left = (total * percent).div_ceil(100);
        for (i, count) in counts.iter().enumerate() {
            if *count >= left && *count > 0 {
                return upper(i);
            }
            left -= count;
        }
        0
    }
}

/// The bucket of a value: its power of two, and the next four bits.
fn bucket(ns: u64) -> usize {
    let power = ns.max(1).ilog2();
    let part = if power >= 4 {
        ns >> (power - 4) & 15
    } else {
        0
    };
    usize::try_from(u64::from(power) * 16 + part).map_or(BUCKETS - 1, |b| b.min(BUCKETS - 1))
}

/// The largest value of a bucket, roughly.
fn upper(bucket: usize) -> u64 {
    let power = bucket / PARTS;
    let part = u64::try_from(bucket % PARTS).unwrap_or(0);
    let base = 1u64 << power;
    base + (base / 16) * (part + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_right_to_a_sixteenth() {
        let stats = Stats::default();
        for us in 1..=1000 {
            stats.served(Duration::from_micros(us));
        }
        let s = stats.summary();
        assert_eq!(s.faults, 1000);
        assert!((500_000..540_000).contains(&s.p50_ns), "{}", s.p50_ns);
        assert!((990_000..1_060_000).contains(&s.p99_ns), "{}", s.p99_ns);
        assert_eq!(Stats::default().summary().p99_ns, 0);
        stats.served(Duration::MAX);
    }
}
