//! `criu lazy-pages`: serves the memory of a tree that is being restored with
//! `--lazy-pages` from the same images, in the same work directory, and ends
//! when every page is there.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::daemon;
use tracing::info;

use super::job::Job;
use super::write_pidfile;
use crate::base::{Error, HostPid, Result, ResultExt};
use crate::engine::restore::ImagePages;
use crate::image::Set;
use crate::memory::handoff::Server;
use crate::memory::serve::serve_one;
use crate::sys::inherited;

/// How long a message of the handoff may take. Between the first and the last
/// lies the whole restore.
const HANDOFF: Duration = Duration::from_secs(600);
/// Where it is said, in the work directory, that the container had to be killed.
const STATUS: &str = "lazy-pages.status";

/// Serves one restore.
///
/// # Errors
/// The images cannot be read, the restorer failed, or pages could not be had: the
/// tree is killed then.
pub(crate) fn run(job: &mut Job<'_>) -> Result<()> {
    let typed = &job.typed;
    if typed.page_server || typed.address.is_some() {
        return Err(Error::caller(
            "lazy-pages from a page server is not supported",
            "dunlin migrate and dunlin receive move a container with its memory following",
        ));
    }
    let set = Set::load(job.images.path())?;
    let pages = Arc::new(ImagePages::open(&set, job.images.path())?);
    drop(set);
    let server = Server::bind(job.work.path())?;
    if typed.detach {
        // Before any thread; who listens goes on, its parent ends.
        daemon(true, false).context(|| "detach".to_owned())?;
    }
    let pid = std::process::id();
    let pid = i32::try_from(pid).map_err(|_| Error::bug("own pid", format!("is {pid}")))?;
    write_pidfile(typed, HostPid(pid))?;
    if let Some(number) = typed.status_fd {
        File::from(inherited::duplicate(number)?)
            .write_all(&[0])
            .context(|| format!("write to descriptor {number}"))?;
        inherited::close(number)?;
    }
    let status = job.work.path().join(STATUS);
    let Some(outcome) = serve_one(&server, pages, Some(&status), None, HANDOFF)? else {
        return Ok(());
    };
    let (s, c) = (outcome.summary, outcome.count);
    info!(
        "{} pages came, {} were not needed any more; {} faults, median {} us, 99 of 100 below {} us",
        c.present,
        c.gone,
        s.faults,
        s.p50_ns / 1000,
        s.p99_ns / 1000
    );
    outcome.lost.map_or(Ok(()), Err)
}
