//! `dunlin migrate`.

use std::fs::File;
use std::io::Write;

use tracing::warn;

use super::args;
use super::container::RuncContainer;
use crate::base::{Blame, Error, ResultExt};
use crate::face::{Failure, log, out};
use crate::migrate::{self, source};

/// Moves a container away and gives the account.
///
/// # Errors
/// Wrong usage, or whatever stopped it.
pub(super) fn main(args: &[String]) -> Result<(), Failure> {
    let m = args::migrate(args)?;
    let session = m.session;
    log::start(log::Sink::Stderr, session.shared.verbosity);
    // Before anything is moved: afterwards it would be too late to say that it fails.
    let account = match &m.report {
        None => None,
        Some(path) => {
            let what = || format!("--report {}", path.display());
            Some((File::create(path).context(what)?, path))
        }
    };
    let mut container = RuncContainer::load(&session.shared.runc_root, &m.id, &session.scripts)?;
    let common = &mut container.options().common;
    common.file_locks = session.carried.file_locks;
    common.ext_unix_sk = session.carried.ext_unix_sk;
    let rt = migrate::runtime()?;
    let options = source::Options {
        to: m.to,
        token: m.token,
        state: session.shared.state,
        bulk: m.bulk,
        patience: session.patience,
        answer: session.answer,
        max_pause: m.max_pause,
        probe: session.probe,
    };
    let report = source::run(&mut container, &options, rt.handle())?;
    out::tell(&report.text());
    if let Some((mut file, path)) = account {
        let json = serde_json::to_vec_pretty(&report)
            .map_err(|e| Error::other(Blame::Us, "write report", e))?;
        // The container has moved, whatever becomes of the account.
        if let Err(e) = file.write_all(&json) {
            warn!("write {}: {e}", path.display());
        }
    }
    Ok(())
}
