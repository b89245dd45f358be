//! `stats-dump` and `stats-restore`: what callers show as the figures of a
//! job. Times are microseconds.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use tracing::warn;

use crate::base::{Error, Result, ResultExt};
use crate::image::records::StatsEntry;
use crate::image::{Kind, Set};

/// Writes `stats` into the work directory `dir`, and to standard output if `show`.
/// The job is done by then, its tasks run or are gone: a disk that is full does
/// not make it fail, which would make its caller undo it.
pub(crate) fn tell(dir: &Path, stats: &StatsEntry, show: bool) {
    if let Err(e) = write(dir, stats) {
        warn!("{e}");
    }
    if show {
        print(stats);
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
    let path = dir.join(&name);
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&path)
        .and_then(|mut file| file.write_all(bytes))
        .context(|| format!("statistics {}", path.display()))
}

fn print(stats: &StatsEntry) {
    if let Some(dump) = &stats.dump {
        println!("Displaying dump stats:");
        println!("Freezing time: {} us", dump.freezing_time);
        println!("Frozen time: {} us", dump.frozen_time);
        println!("Memory dump time: {} us", dump.memdump_time);
        println!("Memory write time: {} us", dump.memwrite_time);
        println!("Memory pages scanned: {}", dump.pages_scanned);
        println!("Memory pages written: {}", dump.pages_written);
        println!("Lazy memory pages: {}", dump.pages_lazy);
    }
    if let Some(restore) = &stats.restore {
        println!("Displaying restore stats:");
        if let Some(pages) = restore.pages_restored {
            println!("Pages restored: {pages}");
        }
        println!("Restore time: {} us", restore.restore_time);
        println!("Forking time: {} us", restore.forking_time);
    }
}

/// Whole microseconds of `time`, at most `u32::MAX`.
pub(crate) fn micros(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
}
