//! `dunlin receive`.

use std::net::TcpListener;

use super::args;
use super::host::RuncHost;
use super::resolve;
use crate::base::ResultExt;
use crate::face::scripts::Scripts;
use crate::face::{Failure, log, out};
use crate::migrate::{self, destination, journal};
use crate::sys::private;
use crate::wire::secret::Token;
use crate::wire::tls::Identity;

/// Waits for one container and takes it in.
///
/// # Errors
/// Wrong usage, or whatever stopped it.
pub(super) fn main(args: &[String]) -> Result<(), Failure> {
    let r = args::receive(args)?;
    let session = r.session;
    log::start(log::Sink::Stderr, session.shared.verbosity);
    // What an earlier receiver left behind when it was killed.
    resolve::settle_stale(&session.shared.state);
    std::fs::create_dir_all(&r.dir).context(|| format!("make {}", r.dir.display()))?;
    let dir = r
        .dir
        .canonicalize()
        .context(|| format!("find {}", r.dir.display()))?;
    // What would fail only when the container has stopped, fails now.
    journal::make_dir(&session.shared.state)?;
    if let Some(output) = &r.output {
        private::append(output).map_err(|e| e.within("--output"))?;
    }
    let listener = TcpListener::bind(r.listen).context(|| format!("listen on {}", r.listen))?;
    let at = listener
        .local_addr()
        .context(|| format!("listen on {}", r.listen))?;
    let identity = if session.plain {
        None
    } else {
        Some(Identity::fresh()?)
    };
    let token = Token::fresh(identity.as_ref().map(|i| &i.certificate[..]))?;
    match &session.token_file {
        Some(file) => {
            private::replace(file, format!("{}\n", token.to_text()).as_bytes())?;
            out::print(&format!("listening on {at}, token in {}\n", file.display()))?;
        }
        None => out::print(&format!("listening on {at}\n{}\n", token.to_text()))?,
    }
    let mut host = RuncHost::new(
        &session.shared.runc_root,
        r.output.clone(),
        session.carried.options(),
        Scripts::typed(&session.scripts),
    )?;
    let options = destination::Options {
        listener,
        token,
        identity,
        dir,
        state: session.shared.state,
        policy: r.policy,
        max_bundle: r.max_bundle,
        wait: r.wait,
        patience: session.patience,
        answer: session.answer,
        probe: session.probe,
    };
    let rt = migrate::runtime()?;
    let got = destination::run(&mut host, &options, rt.handle());
    if let Some(file) = &session.token_file {
        // It opens nothing any more.
        let _ = std::fs::remove_file(file);
    }
    let got = got?;
    let mut account = format!("{} runs here, bundle {}\n", got.id, got.bundle.display());
    for (name, value) in &got.figures {
        account += &format!("  {name:<20} {value}\n");
    }
    out::tell(&account);
    Ok(())
}
