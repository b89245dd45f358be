//! `criu restore` and RPC `RESTORE`.

use super::job::Job;
use super::meaning;
use crate::base::{HostPid, Result};
use crate::engine::restore::{ImagePages, Plan};
use crate::image::Set;
use crate::memory::handoff::Client;
use std::time::Duration;

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
    let set = Set::load(job.images.path())?;
    let pages = ImagePages::open(&set, job.images.path())?;
    let mut notices = job.notices()?;
    let plan = Plan::read(&set, options)?;
    let lazy = meaning::restore(&job.typed)?.lazy;
    let client = lazy
        .then(|| Client::connect(job.work.path(), HANDOFF))
        .transpose()?;
    let mut rebuilt = plan.apply(&pages, &mut notices)?;
    let Some(mut client) = client else {
        return rebuilt.resume(&mut notices);
    };
    let spaces = rebuilt.take_lazy();
    for space in &spaces {
        client.space(space)?;
    }
    client.ready(rebuilt.root(), GRANT)?;
    drop(spaces);
    let root = rebuilt.resume(&mut notices)?;
    client.resumed()?;
    Ok(root)
}

/// [`run`] for the command line.
///
/// # Errors
/// As [`run`].
pub(crate) fn from_command_line(job: &mut Job<'_>, _command: &[String]) -> Result<()> {
    let pid = run(job)?;
    super::write_pidfile(&job.typed, pid)
}
