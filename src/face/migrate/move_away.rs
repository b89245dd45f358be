//! `dunlin migrate`.

use super::args;
use super::container::RuncContainer;
use crate::base::{Blame, Error, ResultExt};
use crate::face::{Failure, log};
use crate::migrate::probe::{self, Probe};
use crate::migrate::{self, source};

/// Moves a container away and gives the account.
///
/// # Errors
/// Wrong usage, or whatever stopped it.
pub(super) fn main(args: &[String]) -> Result<(), Failure> {
    let m = args::migrate(args)?;
    log::start(log::Sink::Stderr, m.shared.verbosity);
    if let Some(p) = &m.pause_at
        && !probe::SOURCE.contains(&p.as_str())
    {
        let why = format!("is none of {}", probe::SOURCE.join(", "));
        return Err(Failure::Usage(Error::caller(
            format!("--pause-at {p}"),
            why,
        )));
    }
    let mut container = RuncContainer::load(&m.shared.runc_root, &m.id)?;
    let common = &mut container.options().common;
    common.tcp_established = m.tcp_established;
    common.file_locks = m.file_locks;
    common.ext_unix_sk = m.ext_unix_sk;
    let rt = migrate::runtime()?;
    let options = source::Options {
        to: m.to,
        token: m.token,
        state: m.shared.state,
        bulk: m.bulk,
        patience: m.patience,
        max_pause: m.max_pause,
        probe: Probe::new(m.pause_at),
    };
    let report = source::run(&mut container, &options, rt.handle())?;
    print!("{}", report.text());
    if let Some(path) = m.report {
        let json = serde_json::to_vec_pretty(&report)
            .map_err(|e| Error::other(Blame::Us, "write report", e))?;
        std::fs::write(&path, json).context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}
