//! `criu restore` and RPC `RESTORE`.

use super::job::Job;
use super::meaning;
use crate::base::{HostPid, Result};
use crate::engine::restore::{ImagePages, Plan};
use crate::image::Set;

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
    plan.apply(&pages, &mut notices)?.resume(&mut notices)
}

/// [`run`] for the command line.
///
/// # Errors
/// As [`run`].
pub(crate) fn from_command_line(job: &mut Job<'_>, _command: &[String]) -> Result<()> {
    let pid = run(job)?;
    super::write_pidfile(&job.typed, pid)
}
