//! The time, written down every millisecond: the largest hole in it is the
//! pause as a program feels it.
//!
//! Each line of the file is `MONOTONIC REALTIME` in microseconds. A restored
//! container's monotonic clock goes on where it was, so the pause shows in the
//! real time (of two hosts whose clocks agree).

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::Ordering;

use crate::report::Report;
use crate::sys;

/// Writes ticks for ever.
pub fn tick(path: &Path, report: &Report) {
    let mut file = match File::options().create(true).append(true).open(path) {
        Ok(file) => file,
        Err(e) => report.wrong(&format!("open the file of ticks: {e}")),
    };
    let mut timer = sys::timerfd(1000, 1000);
    let mut count = [0; 8];
    let (mut last_mono, mut last_real) = (0, 0);
    loop {
        if let Err(e) = timer.read_exact(&mut count) {
            report.wrong(&format!("the tick timer: {e}"));
        }
        let mono = sys::now_us(libc::CLOCK_MONOTONIC);
        let real = sys::now_us(libc::CLOCK_REALTIME);
        if mono < last_mono {
            report.wrong(&format!(
                "the monotonic clock goes back from {last_mono} to {mono}"
            ));
        }
        if last_real > 0 {
            report.gap_us.fetch_max(real - last_real, Ordering::Relaxed);
        }
        (last_mono, last_real) = (mono, real);
        if let Err(e) = file.write_all(format!("{mono} {real}\n").as_bytes()) {
            report.wrong(&format!("write a tick: {e}"));
        }
        report.ticks.fetch_add(1, Ordering::Relaxed);
    }
}

/// `patterns gaps FILE [SINCE]`: number of ticks, then the five largest distances,
/// each as `GAP_US REALTIME_BEFORE MONOTONIC_GAP_US`; ticks before the real time
/// SINCE (microseconds) are left out.
pub fn gaps(path: Option<String>, since: Option<String>) -> ExitCode {
    let since: i64 = since.and_then(|s| s.parse().ok()).unwrap_or(0);
    let path = path.unwrap_or_default();
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) => {
            eprintln!("patterns: read {path}: {e}");
            return ExitCode::from(2);
        }
    };
    let ticks: Vec<(i64, i64)> = text
        .lines()
        .filter_map(|line| {
            let (mono, real) = line.split_once(' ')?;
            Some((mono.parse().ok()?, real.parse().ok()?))
        })
        .filter(|(_, real)| *real >= since)
        .collect();
    let mut gaps: Vec<(i64, i64, i64)> = ticks
        .windows(2)
        .map(|pair| (pair[1].1 - pair[0].1, pair[0].1, pair[1].0 - pair[0].0))
        .collect();
    gaps.sort_unstable_by(|a, b| b.cmp(a));
    println!("ticks {}", ticks.len());
    for (gap, before, mono) in gaps.iter().take(5) {
        println!("gap {gap} {before} {mono}");
    }
    ExitCode::SUCCESS
}
