//! `criu dump` and RPC `DUMP`.

use tracing::debug;

use super::job::Job;
use super::meaning;
use crate::base::{Error, Result};
use crate::engine::options::{Observer, Stage};

/// Dumps what `job` says.
///
/// # Errors
/// Nothing was changed: the tasks run on.
pub(crate) fn run(job: &mut Job<'_>) -> Result<()> {
    let options = meaning::dump(&job.typed)?;
    let (images, work) = (job.images.path(), job.work.path());
    debug!("images in {}, work in {}", images.display(), work.display());
    let mut notices = job.notices()?;
    notices.at(Stage::PreDump, None)?;
    let _pidfd = crate::sys::pidfd::open(options.pid)?;
    Err(Error::bug("dump", "the engine is not in place yet"))
}
