//! `criu dump` and RPC `DUMP`.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tracing::{debug, info};

use super::job::Job;
use super::lazy::PageServer;
use super::meaning;
use super::notices::Notices;
use super::stats::{self, micros};
use super::typed::Afterwards;
use crate::base::{HostPid, PAGE_SIZE, Result, ResultExt};
use crate::engine::dump::{self, Captured, Frozen};
use crate::engine::options::{Dump, Observer, Stage};
use crate::image::records::{DumpStatsEntry, StatsEntry};
use crate::sys::ns;

/// What a dump took, for statistics.
#[derive(Debug, Default)]
struct Cost {
    freezing: Duration,
    writing: Duration,
    scanned: u64,
    written: u64,
    lazy: u64,
}

/// Dumps what `job` says.
///
/// # Errors
/// Nothing was changed: the tasks run on.
pub(crate) fn run(job: &mut Job<'_>) -> Result<()> {
    let options = meaning::dump(&job.typed)?;
    let server = options
        .lazy
        .then(|| PageServer::bind(&job.typed, options.pid))
        .transpose()?;
    let (images, work) = (job.images.path(), job.work.path());
    debug!("images in {}, work in {}", images.display(), work.display());
    let mut notices = job.notices()?;
    let network = ns::inode(options.pid, ns::Kind::Net)
        .map_err(|e| e.within(format!("task {} (--tree)", options.pid)))?;
    notices.of_tasks(network != ns::own_inode(ns::Kind::Net)?, true);
    notices.at(Stage::PreDump, Some(options.pid))?;
    let mut frozen = dump::freeze(&options)?;
    let began = frozen.tree().since;
    let saved = save(job, &options, &mut frozen, &mut notices, server.as_ref());
    let (captured, cost) = match saved {
        Ok(saved) => saved,
        Err(e) => {
            // It says its own errors; the first one is what counts.
            let _ = notices.at(Stage::NetworkUnlock, Some(options.pid));
            return Err(e);
        }
    };
    match server {
        Some(server) => {
            server.serve(job, &mut notices, frozen, captured.pages, options.pid)?;
        }
        None => finish(job.typed.afterwards, frozen, &mut notices, options.pid)?,
    }
    let frozen_for = began.elapsed();
    info!("dumped task {} in {frozen_for:?}", options.pid);
    write_stats(job, &cost, frozen_for);
    Ok(())
}

fn save(
    job: &Job<'_>,
    options: &Dump,
    frozen: &mut Frozen,
    notices: &mut Notices<'_>,
    server: Option<&PageServer>,
) -> Result<(Captured, Cost)> {
    let mut captured = frozen.capture(options, notices)?;
    if let Some(server) = server {
        server.prepare(&mut captured)?;
    }
    let began = Instant::now();
    let dir = job.images.path();
    let written = captured.pages.write(dir, &mut captured.set, options.lazy)?;
    captured.set.store(dir)?;
    let cost = Cost {
        freezing: captured.times.freezing,
        writing: began.elapsed(),
        scanned: captured.pages.bytes() / PAGE_SIZE,
        written: written.bytes / PAGE_SIZE,
        lazy: written.left / PAGE_SIZE,
    };
    notices.at(Stage::PostDump, Some(options.pid))?;
    Ok((captured, cost))
}

fn finish(
    afterwards: Afterwards,
    frozen: Frozen,
    notices: &mut Notices<'_>,
    root: HostPid,
) -> Result<()> {
    match afterwards {
        Afterwards::Killed => frozen.kill(),
        Afterwards::Running => {
            notices.at(Stage::NetworkUnlock, Some(root))?;
            frozen.resume()
        }
        Afterwards::Stopped => {
            for process in frozen.tree().processes() {
                if process.alive().is_some() {
                    kill(Pid::from_raw(process.pid.0), Signal::SIGSTOP)
                        .context(|| format!("stop task {}", process.pid))?;
                }
            }
            frozen.resume()
        }
    }
}

fn write_stats(job: &Job<'_>, cost: &Cost, frozen: Duration) {
    let entry = StatsEntry {
        dump: Some(DumpStatsEntry {
            freezing_time: micros(cost.freezing),
            frozen_time: micros(frozen),
            memdump_time: micros(cost.writing),
            memwrite_time: micros(cost.writing),
            pages_scanned: cost.scanned,
            pages_skipped_parent: 0,
            pages_written: cost.written,
            irmap_resolve: Some(0),
            pages_lazy: cost.lazy,
            page_pipes: Some(0),
            page_pipe_bufs: Some(0),
            shpages_scanned: Some(0),
            shpages_skipped_parent: Some(0),
            shpages_written: Some(0),
        }),
        restore: None,
    };
    stats::tell(job.work.path(), &entry, job.typed.display_stats);
}
