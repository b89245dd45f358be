//! `criu restore` and RPC `RESTORE`.
//!
//! The root task is cloned from this process, which therefore starts no thread
//! before it.

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::wait::wait;
use tracing::{debug, info};

use super::job::Job;
use super::stats::{self, micros};
use super::{meaning, remove_pidfile, write_pidfile};
use crate::base::{Error, HostPid, PAGE_SIZE, Result};
use crate::engine::restore::{ImagePages, Plan, Rebuilt};
use crate::image::records::{RestoreStatsEntry, StatsEntry};
use crate::image::{Kind, Set, pages::Pagemap};
use crate::memory::handoff::Client;

/// How long a message of the handoff may take.
const HANDOFF: Duration = Duration::from_secs(30);
/// How long the grant may take: the switch-over of a migration lies between.
const GRANT: Duration = Duration::from_secs(600);

/// Restores what `job` says; returns the root task's pid.
///
/// # Errors
/// Nothing is left of what was begun.
pub(crate) fn run(job: &mut Job<'_>) -> Result<HostPid> {
    let options = meaning::restore(&job.typed)?;
    let client = options
        .lazy
        .then(|| Client::connect(job.work.path(), HANDOFF))
        .transpose()?;
    let mut notices = job.notices()?;
    if let Some(client) = &client {
        client.images(GRANT)?;
    }
    let began = Instant::now();
    let set = Set::load(job.images.path())?;
    set.verify()?;
    let plan = Plan::read(&set, options)?;
    for step in plan.steps() {
        debug!("plan: {step}");
    }
    notices.of_tasks(plan.has_own_network(), plan.has_own_namespaces());
    let pages = ImagePages::open(&set, job.images.path())?;
    let mut rebuilt = plan.apply(&pages, &mut notices)?;
    let built = began.elapsed();
    let root = rebuilt.root();
    let counted = match client {
        Some(_) => 0,
        None => pages_in(&set)?,
    };
    write_pidfile(&job.typed, root)?;
    match client {
        None => {
            rebuilt.resume(&mut notices)?;
        }
        Some(mut client) => {
            if let Err(e) = hand_over(&mut client, &mut rebuilt) {
                // Nothing has run. Left behind, it would stop the next attempt.
                remove_pidfile(&job.typed);
                return Err(e);
            }
            rebuilt.resume(&mut notices)?;
            client.resumed()?;
        }
    }
    info!("restored task {root} in {:?}", began.elapsed());
    let entry = StatsEntry {
        dump: None,
        restore: Some(RestoreStatsEntry {
            pages_compared: 0,
            pages_skipped_cow: 0,
            forking_time: micros(built),
            restore_time: micros(began.elapsed()),
            pages_restored: Some(counted),
        }),
    };
    stats::tell(job.work.path(), &entry, job.typed.display_stats);
    Ok(root)
}

/// Gives all empty memory to whoever fills it, and waits for the word to go on.
fn hand_over(client: &mut Client, rebuilt: &mut Rebuilt) -> Result<()> {
    let lazy = rebuilt.take_lazy();
    for space in &lazy.spaces {
        client.space(space)?;
    }
    for shared in &lazy.shared {
        client.shared(shared)?;
    }
    if let Some(anchor) = &lazy.anchor {
        client.anchor(anchor)?;
    }
    // From then on only the server holds their userfaultfds.
    client.ready(rebuilt.root(), GRANT)
}

/// Pages that the image holds.
fn pages_in(set: &Set) -> Result<u64> {
    let mut bytes = 0;
    for kind in [Kind::Pagemap, Kind::PagemapShmem] {
        for id in set.ids(kind) {
            bytes += Pagemap::of(set, kind, id)?.map_or(0, |map| map.bytes_here());
        }
    }
    Ok(bytes / PAGE_SIZE)
}

/// [`run`] for the command line: detaches, becomes `command`, or stays until
/// the whole tree has ended.
///
/// # Errors
/// As [`run`].
pub(crate) fn from_command_line(job: &mut Job<'_>, command: &[String]) -> Result<()> {
    run(job)?;
    if let (true, Some((program, args))) = (job.typed.exec_cmd, command.split_first()) {
        let error = Command::new(program).args(args).exec();
        return Err(Error::os(format!("exec {program}"), error));
    }
    if !job.typed.detach {
        // Until there is no child left.
        while let Ok(_) | Err(Errno::EINTR) = wait() {}
    }
    Ok(())
}
