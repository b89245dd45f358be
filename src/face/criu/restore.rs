//! `criu restore` and RPC `RESTORE`.

use super::job::Job;
use super::meaning;
use crate::base::{Error, HostPid, Result};

/// Restores what `job` says; returns the root task's pid.
///
/// # Errors
/// Nothing is left of what was begun.
pub(crate) fn run(job: &mut Job<'_>) -> Result<HostPid> {
    meaning::restore(&job.typed)?;
    Err(Error::bug("restore", "is not built yet"))
}

/// [`run`] for the command line.
///
/// # Errors
/// As [`run`].
pub(crate) fn from_command_line(job: &mut Job<'_>, _command: &[String]) -> Result<()> {
    let pid = run(job)?;
    super::write_pidfile(&job.typed, pid)
}
