//! Options of the migration commands: what was typed, then what it means.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use lexopt::{Parser, ValueExt};
use nix::unistd::{AccessFlags, access};

use crate::base::{Error, ResultExt};
use crate::face::{Failure, address};
use crate::migrate::gate::MAX_BULK;
use crate::migrate::policy::{OWN, Policy};
use crate::migrate::probe::{self, Probe};
use crate::wire::secret::Token;

fn usage(e: lexopt::Error) -> Failure {
    Failure::Usage(Error::caller("command line", e.to_string()))
}

fn missing(what: &'static str) -> Failure {
    Failure::Usage(Error::caller("command line", format!("{what} is missing")))
}

fn text(p: &mut Parser) -> Result<String, Failure> {
    p.value().and_then(|v| v.string()).map_err(usage)
}

fn wrong(what: String, why: impl Into<Cow<'static, str>>) -> Failure {
    Failure::Usage(Error::caller(what, why))
}

fn number(flag: &str, p: &mut Parser, range: RangeInclusive<u64>) -> Result<u64, Failure> {
    let typed = text(p)?;
    let number = typed.parse().ok().filter(|n| range.contains(n));
    number.ok_or_else(|| {
        let (least, most) = (range.start(), range.end());
        wrong(
            format!("--{flag} {typed}"),
            format!("is no number from {least} to {most}"),
        )
    })
}

/// At most a day.
fn seconds(flag: &str, p: &mut Parser) -> Result<Duration, Failure> {
    Ok(Duration::from_secs(number(flag, p, 1..=86_400)?))
}

/// An absolute path, as text.
fn absolute(flag: &str, p: &mut Parser) -> Result<String, Failure> {
    let typed = text(p)?;
    if typed.starts_with('/') {
        return Ok(typed);
    }
    Err(wrong(format!("--{flag} {typed}"), "is no absolute path"))
}

fn path(p: &mut Parser) -> Result<PathBuf, Failure> {
    Ok(PathBuf::from(p.value().map_err(usage)?))
}

fn address(text: &str) -> Result<SocketAddr, Failure> {
    let (host, port) = address::parts(text).map_err(Failure::Usage)?;
    Ok(address::of(&host, port)?)
}

/// What was typed, an argument at a time.
#[derive(Debug, PartialEq, Eq)]
enum Typed<'a> {
    /// `--flag`, without its dashes; a value follows if it wants one.
    Flag(&'a str),
    /// A word of its own.
    Word(String),
}

/// Gives all that is typed to `take`, which says whether it knows it.
fn each(
    args: &[String],
    mut take: impl FnMut(Typed<'_>, &mut Parser) -> Result<bool, Failure>,
) -> Result<(), Failure> {
    let mut p = Parser::from_args(args.iter().cloned());
    loop {
        // Owned: the parser is needed again for a flag's value.
        let (flag, dashes) = match p.next().map_err(usage)? {
            None => return Ok(()),
            Some(lexopt::Arg::Short(c)) => (c.to_string(), "-"),
            Some(lexopt::Arg::Long(l)) => (l.to_owned(), "--"),
            Some(lexopt::Arg::Value(v)) => {
                let word = v.string().map_err(usage)?;
                if !take(Typed::Word(word.clone()), &mut p)? {
                    return Err(wrong(format!("argument {word:?}"), "is one too many"));
                }
                continue;
            }
        };
        if !take(Typed::Flag(&flag), &mut p)? {
            return Err(wrong(format!("option {dashes}{flag}"), "is not known"));
        }
    }
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
    fn take(&mut self, flag: &str, p: &mut Parser) -> Result<bool, Failure> {
        match flag {
            "root" => self.runc_root = path(p)?,
            "state" => self.state = path(p)?,
            "v" | "verbose" => self.verbosity += 1,
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// What may be carried beside the default: asked of both ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Carried {
    pub(super) file_locks: bool,
    pub(super) ext_unix_sk: bool,
}

impl Carried {
    fn by_name(&mut self) -> [(&'static str, &mut bool); 2] {
        [
            ("file-locks", &mut self.file_locks),
            ("ext-unix-sk", &mut self.ext_unix_sk),
        ]
    }

    /// As they are typed here, and for `runc restore`.
    pub(super) fn options(mut self) -> Vec<String> {
        let set = self.by_name().into_iter().filter(|(_, on)| **on);
        set.map(|(name, _)| format!("--{name}")).collect()
    }
}

/// What both ends of a migration share.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) shared: Shared,
    pub(super) token_file: Option<PathBuf>,
    pub(super) plain: bool,
    pub(super) patience: Duration,
    pub(super) answer: Duration,
    pub(super) carried: Carried,
    /// Action scripts, as typed.
    pub(super) scripts: Vec<PathBuf>,
    pub(super) probe: Probe,
    /// The points that this end has.
    points: &'static [&'static str],
}

impl Session {
    fn new(points: &'static [&'static str]) -> Self {
        Self {
            shared: Shared::default(),
            token_file: None,
            plain: false,
            patience: Duration::from_secs(60),
            answer: Duration::from_secs(300),
            carried: Carried::default(),
            scripts: Vec::new(),
            probe: Probe::default(),
            points,
        }
    }

    fn take(&mut self, flag: &str, p: &mut Parser) -> Result<bool, Failure> {
        match flag {
            "token-file" => self.token_file = Some(path(p)?),
            "plain" => self.plain = true,
            "patience" => self.patience = seconds(flag, p)?,
            "answer-time" => self.answer = seconds(flag, p)?,
            "action-script" => {
                // A later process, somewhere else, may have to run it.
                let file = path(p)?;
                let what = || format!("--{flag} {}", file.display());
                let file = std::path::absolute(&file).context(what)?;
                // It may be wanted when there is no way back.
                access(&file, AccessFlags::X_OK).context(what)?;
                self.scripts.push(file);
            }
            "pause-at" => {
                let point = text(p)?;
                if !self.points.contains(&point.as_str()) {
                    let why = format!("is none of {}", self.points.join(", "));
                    return Err(wrong(format!("--{flag} {point}"), why));
                }
                self.probe = Probe::new(Some(point));
            }
            _ => match self.carried.by_name().into_iter().find(|c| c.0 == flag) {
                Some((_, on)) => *on = true,
                None => return self.shared.take(flag, p),
            },
        }
        Ok(true)
    }
}

/// `dunlin migrate`.
#[derive(Debug)]
pub(super) struct Migrate {
    pub(super) session: Session,
    pub(super) id: String,
    pub(super) to: SocketAddr,
    pub(super) token: Token,
    pub(super) report: Option<PathBuf>,
    pub(super) bulk: usize,
    pub(super) max_pause: Duration,
}

/// Reads the command line of `dunlin migrate`.
///
/// # Errors
/// Wrong usage; a token file that cannot be read.
pub(super) fn migrate(args: &[String]) -> Result<Migrate, Failure> {
    let mut words: Vec<String> = Vec::new();
    let mut session = Session::new(probe::SOURCE);
    let (mut report, mut bulk, mut max_pause) = (None, 2, Duration::from_secs(30));
    each(args, |typed, p| {
        match typed {
            Typed::Flag("report") => report = Some(path(p)?),
            Typed::Flag(flag @ "bulk") => bulk = number(flag, p, 1..=MAX_BULK.into())?,
            Typed::Flag(flag @ "max-pause") => max_pause = seconds(flag, p)?,
            Typed::Flag(flag) => return session.take(flag, p),
            Typed::Word(_) if words.len() == 2 => return Ok(false),
            Typed::Word(w) => words.push(w),
        }
        Ok(true)
    })?;
    let [id, to] =
        <[String; 2]>::try_from(words).map_err(|_| missing("container id or HOST:PORT"))?;
    let token = token(&session)?;
    let to = address(&to)?;
    if to.port() == 0 {
        return Err(wrong(format!("address {to}"), "has no port"));
    }
    Ok(Migrate {
        session,
        id,
        to,
        token,
        report,
        bulk: usize::try_from(bulk).unwrap_or(1),
        max_pause,
    })
}

/// The token of the receiver, which must agree on `--plain`.
fn token(session: &Session) -> Result<Token, Failure> {
    let file = session.token_file.as_ref();
    let file = file.ok_or_else(|| missing("--token-file FILE"))?;
    let words = std::fs::read_to_string(file).context(|| format!("read {}", file.display()))?;
    let token = Token::from_text(&words).context(|| format!("token file {}", file.display()))?;
    let why = match (session.plain, token.fingerprint.is_none()) {
        (true, false) => "the receiver was not started with --plain",
        (false, true) => {
            "the receiver was started with --plain; say --plain here too, in so many words"
        }
        _ => return Ok(token),
    };
    Err(Failure::Usage(Error::caller("--plain", why)))
}

/// `dunlin receive`.
#[derive(Debug)]
pub(super) struct Receive {
    pub(super) session: Session,
    pub(super) listen: SocketAddr,
    pub(super) dir: PathBuf,
    pub(super) policy: Policy,
    pub(super) max_bundle: u64,
    pub(super) wait: Option<Duration>,
    pub(super) output: Option<PathBuf>,
}

/// Reads the command line of `dunlin receive`.
///
/// # Errors
/// Wrong usage.
pub(super) fn receive(args: &[String]) -> Result<Receive, Failure> {
    let mut session = Session::new(probe::DESTINATION);
    let mut policy = Policy::default();
    let (mut listen, mut dir, mut wait, mut output) = (None, None, None, None);
    let mut max_bundle = 64 << 30;
    each(args, |typed, p| {
        let Typed::Flag(flag) = typed else {
            return Ok(false);
        };
        match flag {
            "listen" => listen = Some(address(&text(p)?)?),
            "dir" => dir = Some(path(p)?),
            "allow-bind" => policy.binds.push(absolute(flag, p)?),
            "allow-device" => policy.devices.push(absolute(flag, p)?),
            "allow-namespace" => policy.namespaces.push(absolute(flag, p)?),
            "allow-sysctl" => policy.sysctls.push(text(p)?),
            "allow-cgroup" => policy.cgroups.push(text(p)?),
            "host-namespace" => policy.host_namespaces.push(namespace(text(p)?)?),
            "cgroups-path" => policy.cgroups_path = Some(text(p)?),
            "max-bundle" => max_bundle = number(flag, p, 1..=u64::MAX)?,
            "wait" => wait = Some(seconds(flag, p)?),
            "output" => output = Some(path(p)?),
            _ => return session.take(flag, p),
        }
        Ok(true)
    })?;
    Ok(Receive {
        session,
        listen: listen.ok_or_else(|| missing("--listen HOST:PORT"))?,
        dir: dir.ok_or_else(|| missing("--dir DIR"))?,
        policy,
        max_bundle,
        wait,
        output,
    })
}

fn namespace(sort: String) -> Result<String, Failure> {
    if OWN.contains(&sort.as_str()) {
        return Ok(sort);
    }
    let why = format!("is none of {}", OWN.join(", "));
    Err(wrong(format!("--host-namespace {sort}"), why))
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
    let mut shared = Shared::default();
    let (mut list, mut id, mut thaw, mut discard) = (false, None, false, false);
    each(args, |typed, p| {
        match typed {
            Typed::Flag("list") => list = true,
            Typed::Flag("thaw") => thaw = true,
            Typed::Flag("discard") => discard = true,
            Typed::Flag(flag) => return shared.take(flag, p),
            Typed::Word(w) if id.is_none() => id = Some(w),
            Typed::Word(_) => return Ok(false),
        }
        Ok(true)
    })?;
    let decision = match (thaw, discard) {
        (false, false) => Decision::Journal,
        (true, false) => Decision::Thaw,
        (false, true) => Decision::Discard,
        (true, true) => return Err(wrong("--thaw".into(), "contradicts --discard")),
    };
    if list && (id.is_some() || thaw || discard) {
        return Err(wrong("--list".into(), "settles nothing: it stands alone"));
    }
    if !list && id.is_none() {
        return Err(missing("container id, or --list"));
    }
    Ok(Resolve {
        shared,
        id,
        decision,
    })
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
        assert_eq!(
            (m.id.as_str(), m.session.shared.runc_root),
            ("c", "/r".into())
        );
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
    fn what_may_be_carried_is_asked_of_both_ends_in_the_same_words() {
        let r = receive(&words(
            "--listen 127.0.0.1:0 --dir /x --file-locks --ext-unix-sk --patience 7",
        ))
        .unwrap();
        let told = r.session.carried.options();
        assert_eq!(told, ["--file-locks", "--ext-unix-sk"]);
        assert_eq!(r.session.patience, Duration::from_secs(7));
        let e = said(receive(&words("--listen 127.0.0.1:0 --dir /x --pause-at held")).unwrap_err());
        assert!(e.contains("rebuilt"), "{e}");
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_its_name() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), Token::fresh(None).unwrap().to_text()).unwrap();
        let to = format!(
            "c 127.0.0.1:1 --plain --token-file {}",
            file.path().display()
        );
        migrate(&words(&to)).unwrap();
        for (more, says) in [
            ("--frobnicate", "option --frobnicate: is not known"),
            ("-x", "option -x: is not known"),
            ("d", "argument \"d\": is one too many"),
            ("--bulk 0", "--bulk 0: is no number from 1 to 8"),
            ("--bulk 9", "--bulk 9: is no number from 1 to 8"),
            ("--bulk -1", "--bulk -1: is no number from 1 to 8"),
            ("--patience 0", "--patience 0: is no number from 1 to 86400"),
            ("--max-pause 86401", "--max-pause 86401: is no number from"),
            ("--max-pause", "--max-pause"),
            (
                "--action-script /nonexistent",
                "--action-script /nonexistent: No such",
            ),
            (
                "--action-script /etc/passwd",
                "--action-script /etc/passwd: Permission",
            ),
        ] {
            let e = said(migrate(&words(&format!("{to} {more}"))).unwrap_err());
            assert!(e.contains(says), "{more}: {e}");
        }
        let e = said(migrate(&words(&to.replace(":1 ", ":0 "))).unwrap_err());
        assert_eq!(e, "address 127.0.0.1:0: has no port");
        let here = "--listen 127.0.0.1:0 --dir /x";
        for (more, says) in [
            ("extra", "argument \"extra\": is one too many"),
            ("--max-bundle 64G", "--max-bundle 64G: is no number"),
            ("--wait x", "--wait x: is no number from 1 to 86400"),
            ("--allow-bind srv", "--allow-bind srv: is no absolute path"),
            (
                "--host-namespace user",
                "--host-namespace user: is none of pid",
            ),
        ] {
            let e = said(receive(&words(&format!("{here} {more}"))).unwrap_err());
            assert!(e.contains(says), "{more}: {e}");
        }
    }

    #[test]
    fn a_decision_is_one_and_about_one() {
        for wrong in ["", "c --thaw --discard", "--list c", "--list --thaw", "c d"] {
            assert!(resolve(&words(wrong)).is_err(), "{wrong}");
        }
        let decision = |line| resolve(&words(line)).unwrap().decision;
        assert_eq!(decision("c --thaw"), Decision::Thaw);
        assert_eq!(decision("c --discard"), Decision::Discard);
        assert_eq!(decision("c"), Decision::Journal);
        assert_eq!(resolve(&words("--list")).unwrap().id, None);
    }
}
