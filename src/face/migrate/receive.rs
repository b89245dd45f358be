//! `dunlin receive`.

use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::args;
use super::host::RuncHost;
use super::resolve;
use crate::base::{Error, Result, ResultExt};
use crate::face::scripts::Scripts;
use crate::face::{Failure, log};
use crate::migrate::{self, destination};
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
            write_token(file, &token)?;
            println!("listening on {at}, token in {}", file.display());
        }
        None => {
            println!("listening on {at}");
            println!("{}", token.to_text());
        }
    }
    // Whoever waits for the token reads it now.
    let _ = std::io::stdout().flush();
    let mut host = RuncHost::new(
        &session.shared.runc_root,
        r.output.clone(),
        session.carried.for_runc(),
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
        probe: session.probe,
    };
    let rt = migrate::runtime()?;
    let got = destination::run(&mut host, &options, rt.handle());
    if let Some(file) = &session.token_file {
        // It opens nothing any more.
        let _ = std::fs::remove_file(file);
    }
    let got = got?;
    println!("{} runs here, bundle {}", got.id, got.bundle.display());
    for (name, value) in &got.figures {
        println!("  {name:<20} {value}");
    }
    Ok(())
}

/// Writes the token where only we may read it; whole or not at all.
fn write_token(file: &Path, token: &Token) -> Result<()> {
    let what = || format!("write {}", file.display());
    let dir = file.parent().filter(|d| !d.as_os_str().is_empty());
    let name = file
        .file_name()
        .ok_or_else(|| Error::caller(what(), "it is no file name"))?;
    let aside = dir.unwrap_or(Path::new(".")).join(format!(
        ".{}.{}",
        name.to_string_lossy(),
        std::process::id()
    ));
    let mut f = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&aside)
        .context(what)?;
    writeln!(f, "{}", token.to_text()).context(what)?;
    std::fs::rename(&aside, file).context(what)
}
