//! Options of the migration commands: what was typed, then what it means.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use lexopt::prelude::*;

use crate::base::{Error, ResultExt};
use crate::face::Failure;
use crate::migrate::policy::Policy;
use crate::wire::secret::Token;

fn usage(e: lexopt::Error) -> Failure {
    Failure::Usage(Error::caller("command line", e.to_string()))
}

fn missing(what: &'static str) -> Failure {
    Failure::Usage(Error::caller("command line", format!("{what} is missing")))
}

fn text(p: &mut lexopt::Parser) -> Result<String, Failure> {
    p.value().and_then(|v| v.string()).map_err(usage)
}

fn seconds(p: &mut lexopt::Parser) -> Result<Duration, Failure> {
    let n: u64 = p.value().and_then(|v| v.parse()).map_err(usage)?;
    Ok(Duration::from_secs(n.clamp(1, 86_400)))
}

fn path(p: &mut lexopt::Parser) -> Result<PathBuf, Failure> {
    Ok(PathBuf::from(p.value().map_err(usage)?))
}

fn address(s: &str) -> Result<SocketAddr, Failure> {
    s.to_socket_addrs()
        .context(|| format!("address {s:?}"))?
        .next()
        .ok_or_else(|| Failure::Usage(Error::caller(format!("address {s:?}"), "is none")))
}

/// What all three share.
#[derive(Debug, Clone)]
pub(super) struct Shared {
    pub(super) runc_root: PathBuf,
    pub(super) state: PathBuf,
    pub(super) verbosity: u32,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            runc_root: crate::runtime::runc::DEFAULT_ROOT.into(),
            state: crate::migrate::journal::DEFAULT_DIR.into(),
            verbosity: super::super::log::DEFAULT_VERBOSITY,
        }
    }
}

impl Shared {
    /// Takes an option that all share; false: it is none of them.
    fn take(&mut self, arg: &lexopt::Arg<'_>, p: &mut lexopt::Parser) -> Result<bool, Failure> {
        match arg {
            Long("root") => self.runc_root = path(p)?,
            Long("state") => self.state = path(p)?,
            Short('v') | Long("verbose") => self.verbosity += 1,
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// `dunlin migrate`.
#[derive(Debug)]
pub(super) struct Migrate {
    pub(super) shared: Shared,
    pub(super) id: String,
    pub(super) to: SocketAddr,
    pub(super) token: Token,
    pub(super) report: Option<PathBuf>,
    pub(super) bulk: usize,
    pub(super) patience: Duration,
    pub(super) max_pause: Duration,
    pub(super) pause_at: Option<String>,
    pub(super) tcp_established: bool,
    pub(super) file_locks: bool,
    pub(super) ext_unix_sk: bool,
}

/// Reads the command line of `dunlin migrate`.
///
/// # Errors
/// Wrong usage; a token file that cannot be read.
pub(super) fn migrate(args: &[String]) -> Result<Migrate, Failure> {
    let mut p = lexopt::Parser::from_args(args.iter().cloned());
    let mut shared = Shared::default();
    let mut words: Vec<String> = Vec::new();
    let mut token = None;
    let mut plain = false;
    let mut m = (None, 2usize, 60u64, 30u64, None);
    let mut flags = (false, false, false);
    while let Some(arg) = p.next().map_err(usage)? {
        // The parser is needed again for the option's value.
        let owned = owned(&arg);
        let arg = borrowed(&owned);
        if shared.take(&arg, &mut p)? {
            continue;
        }
        match arg {
            Long("token-file") => token = Some(path(&mut p)?),
            Long("plain") => plain = true,
            Long("report") => m.0 = Some(path(&mut p)?),
            Long("bulk") => m.1 = p.value().and_then(|v| v.parse()).map_err(usage)?,
            Long("patience") => m.2 = seconds(&mut p)?.as_secs(),
            Long("max-pause") => m.3 = seconds(&mut p)?.as_secs(),
            Long("pause-at") => m.4 = Some(text(&mut p)?),
            Long("tcp-established") => flags.0 = true,
            Long("file-locks") => flags.1 = true,
            Long("ext-unix-sk") => flags.2 = true,
            Value(v) => words.push(v.string().map_err(usage)?),
            other => return Err(usage(other.unexpected())),
        }
    }
    let [id, to] =
        <[String; 2]>::try_from(words).map_err(|_| missing("container id or HOST:PORT"))?;
    let file = token.ok_or_else(|| missing("--token-file FILE"))?;
    let words = std::fs::read_to_string(&file).context(|| format!("read {}", file.display()))?;
    let token = Token::from_text(&words)?;
    if token.fingerprint.is_none() != plain {
        let why = if plain {
            "the receiver was not started with --plain"
        } else {
            "the receiver was started with --plain; say --plain here too, in so many words"
        };
        return Err(Failure::Usage(Error::caller("--plain", why)));
    }
    Ok(Migrate {
        shared,
        id,
        to: address(&to)?,
        token,
        report: m.0,
        bulk: m.1,
        patience: Duration::from_secs(m.2),
        max_pause: Duration::from_secs(m.3),
        pause_at: m.4,
        tcp_established: flags.0,
        file_locks: flags.1,
        ext_unix_sk: flags.2,
    })
}

/// `dunlin receive`.
#[derive(Debug)]
pub(super) struct Receive {
    pub(super) shared: Shared,
    pub(super) listen: SocketAddr,
    pub(super) dir: PathBuf,
    pub(super) token_file: Option<PathBuf>,
    pub(super) plain: bool,
    pub(super) policy: Policy,
    pub(super) max_bundle: u64,
    pub(super) wait: Option<Duration>,
    pub(super) patience: Duration,
    pub(super) output: Option<PathBuf>,
    pub(super) runc_options: Vec<String>,
    pub(super) pause_at: Option<String>,
}

/// Reads the command line of `dunlin receive`.
///
/// # Errors
/// Wrong usage.
pub(super) fn receive(args: &[String]) -> Result<Receive, Failure> {
    let mut p = lexopt::Parser::from_args(args.iter().cloned());
    let mut shared = Shared::default();
    let (mut listen, mut dir) = (None, None);
    let mut r = Receive {
        shared: Shared::default(),
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        dir: PathBuf::new(),
        token_file: None,
        plain: false,
        policy: Policy::default(),
        max_bundle: 64 << 30,
        wait: None,
        patience: Duration::from_secs(60),
        output: None,
        runc_options: Vec::new(),
        pause_at: None,
    };
    while let Some(arg) = p.next().map_err(usage)? {
        let owned = owned(&arg);
        let arg = borrowed(&owned);
        if shared.take(&arg, &mut p)? {
            continue;
        }
        match arg {
            Long("listen") => listen = Some(address(&text(&mut p)?)?),
            Long("dir") => dir = Some(path(&mut p)?),
            Long("token-file") => r.token_file = Some(path(&mut p)?),
            Long("plain") => r.plain = true,
            Long("allow-bind") => r.policy.binds.push(text(&mut p)?),
            Long("allow-device") => r.policy.devices.push(text(&mut p)?),
            Long("allow-namespace") => r.policy.namespaces.push(text(&mut p)?),
            Long("allow-sysctl") => r.policy.sysctls.push(text(&mut p)?),
            Long("allow-cgroup") => r.policy.cgroups.push(text(&mut p)?),
            Long("cgroups-path") => r.policy.cgroups_path = Some(text(&mut p)?),
            Long("max-bundle") => {
                r.max_bundle = p.value().and_then(|v| v.parse()).map_err(usage)?;
            }
            Long("patience") => r.patience = seconds(&mut p)?,
            Long("wait") => r.wait = Some(seconds(&mut p)?),
            Long("output") => r.output = Some(path(&mut p)?),
            Long(o @ ("tcp-established" | "ext-unix-sk" | "file-locks")) => {
                r.runc_options.push(format!("--{o}"));
            }
            Long("pause-at") => r.pause_at = Some(text(&mut p)?),
            other => return Err(usage(other.unexpected())),
        }
    }
    r.shared = shared;
    r.listen = listen.ok_or_else(|| missing("--listen HOST:PORT"))?;
    r.dir = dir.ok_or_else(|| missing("--dir DIR"))?;
    Ok(r)
}

/// What `dunlin resolve` shall do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    /// Only what the journal allows without asking.
    Journal,
    /// The source's copy runs on: the other never ran.
    Thaw,
    /// The copy of this host goes.
    Discard,
}

/// `dunlin resolve`.
#[derive(Debug)]
pub(super) struct Resolve {
    pub(super) shared: Shared,
    /// `None`: `--list`.
    pub(super) id: Option<String>,
    pub(super) decision: Decision,
}

/// Reads the command line of `dunlin resolve`.
///
/// # Errors
/// Wrong usage.
pub(super) fn resolve(args: &[String]) -> Result<Resolve, Failure> {
    let mut p = lexopt::Parser::from_args(args.iter().cloned());
    let mut shared = Shared::default();
    let (mut list, mut id, mut decision) = (false, None, Decision::Journal);
    while let Some(arg) = p.next().map_err(usage)? {
        let owned = owned(&arg);
        let arg = borrowed(&owned);
        if shared.take(&arg, &mut p)? {
            continue;
        }
        match arg {
            Long("list") => list = true,
            Long("thaw") => decision = Decision::Thaw,
            Long("discard") => decision = Decision::Discard,
            Value(v) if id.is_none() => id = Some(v.string().map_err(usage)?),
            other => return Err(usage(other.unexpected())),
        }
    }
    if !list && id.is_none() {
        return Err(missing("container id, or --list"));
    }
    Ok(Resolve {
        shared,
        id: id.filter(|_| !list),
        decision,
    })
}

/// An argument that does not borrow its parser.
enum Owned {
    Short(char),
    Long(String),
    Value(std::ffi::OsString),
}

fn owned(a: &lexopt::Arg<'_>) -> Owned {
    match a {
        Short(c) => Owned::Short(*c),
        Long(l) => Owned::Long((*l).to_owned()),
        Value(v) => Owned::Value(v.clone()),
    }
}

fn borrowed(o: &Owned) -> lexopt::Arg<'_> {
    match o {
        Owned::Short(c) => Short(*c),
        Owned::Long(l) => Long(l),
        Owned::Value(v) => Value(v.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(s: &str) -> Vec<String> {
        s.split_whitespace().map(str::to_owned).collect()
    }

    fn said(f: Failure) -> String {
        match f {
            Failure::Usage(e) | Failure::Failed(e) => e.to_string(),
            Failure::Told => String::new(),
        }
    }

    #[test]
    fn a_plain_receiver_is_used_only_when_told_in_so_many_words() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("t");
        std::fs::write(&file, Token::fresh(None).unwrap().to_text()).unwrap();
        let line = format!("c 127.0.0.1:7 --token-file {}", file.display());
        assert!(said(migrate(&words(&line)).unwrap_err()).contains("--plain"));
        let m = migrate(&words(&format!("{line} --plain --root /r"))).unwrap();
        assert_eq!((m.id.as_str(), m.shared.runc_root), ("c", "/r".into()));
        std::fs::write(&file, Token::fresh(Some(b"cert")).unwrap().to_text()).unwrap();
        migrate(&words(&line)).unwrap();
        assert!(said(migrate(&words(&format!("{line} --plain"))).unwrap_err()).contains("plain"));
    }

    #[test]
    fn a_receiver_listens_only_where_it_is_told() {
        assert!(said(receive(&words("--dir /x")).unwrap_err()).contains("--listen"));
        assert!(said(receive(&words("--listen 127.0.0.1:0")).unwrap_err()).contains("--dir"));
        let r = receive(&words(
            "--listen 127.0.0.1:0 --dir /x --allow-bind /srv --plain",
        ))
        .unwrap();
        assert_eq!(r.policy.binds, ["/srv"]);
    }

    #[test]
    fn unknown_words_are_refused() {
        assert!(migrate(&words("c h:1 --frobnicate")).is_err());
        assert!(receive(&words("--listen 127.0.0.1:0 --dir /x extra")).is_err());
        assert!(resolve(&words("")).is_err());
        assert_eq!(
            resolve(&words("c --thaw")).unwrap().decision,
            Decision::Thaw
        );
    }
}
