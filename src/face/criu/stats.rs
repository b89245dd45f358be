//! `stats-dump` and `stats-restore`: what callers show as the figures of a
//! job. Times are microseconds.

use std::path::Path;
use std::time::Duration;

use tracing::warn;

use crate::base::{Error, Result};
use crate::face::out;
use crate::image::records::StatsEntry;
use crate::image::{Kind, Set};
use crate::sys::private;

/// Writes `stats` into the work directory `dir`, and to standard output if `show`.
/// The job is done by then, its tasks run or are gone: a disk that is full does
/// not make it fail, which would make its caller undo it.
pub(crate) fn tell(dir: &Path, stats: &StatsEntry, show: bool) {
    if let Err(e) = write(dir, stats) {
        warn!("{e}");
    }
    if show {
        out::tell(&shown(stats));
    }
}

fn write(dir: &Path, stats: &StatsEntry) -> Result<()> {
    let kind = if stats.dump.is_some() {
        Kind::StatsDump
    } else {
        Kind::StatsRestore
    };
    let mut set = Set::new();
    set.put(kind, 0, stats);
    let name = kind.file_name(0);
    let bytes = set
        .raw(&name)
        .ok_or_else(|| Error::bug(name.clone(), "was not encoded"))?;
    private::replace(&dir.join(&name), bytes).map_err(|e| e.within("statistics"))
}

fn shown(stats: &StatsEntry) -> String {
    let mut lines = Vec::new();
    if let Some(dump) = &stats.dump {
        lines.extend([
            "Displaying dump stats:".to_owned(),
            format!("Freezing time: {} us", dump.freezing_time),
            format!("Frozen time: {} us", dump.frozen_time),
            format!("Memory dump time: {} us", dump.memdump_time),
            format!("Memory write time: {} us", dump.memwrite_time),
            format!("Memory pages scanned: {}", dump.pages_scanned),
            format!("Memory pages written: {}", dump.pages_written),
            format!("Lazy memory pages: {}", dump.pages_lazy),
        ]);
    }
    if let Some(restore) = &stats.restore {
        lines.push("Displaying restore stats:".to_owned());
        lines.extend(
            restore
                .pages_restored
                .map(|n| format!("Pages restored: {n}")),
        );
        lines.push(format!("Restore time: {} us", restore.restore_time));
        lines.push(format!("Forking time: {} us", restore.forking_time));
    }
    lines.join("\n") + "\n"
}

/// Whole microseconds of `time`, at most `u32::MAX`.
pub(crate) fn micros(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
}
