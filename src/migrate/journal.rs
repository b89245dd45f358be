//! The journal of a migration: one file on each end, appended and fsynced
//! before the word that makes it true is said. What a person or a restart may do
//! with a container is read from here and from nowhere else.
//!
//! A line is a checksum and a JSON record. A last line that is torn or does not
//! check counts as never written (its word was never said); a damaged line with
//! others behind it makes the journal unreadable, and nothing is done by itself.
//!
//! ```text
//! source:      Prepared -> Granted -> Resumed -> Complete
//!                  \----------\-> Aborted
//! destination: Prepared -> Resuming -> Resumed -> Complete
//!                  \-> Aborted
//! ```
//!
//! Resumed and Complete are told for people: who cannot write them goes on, for
//! stopping there would lose what runs (so Complete may follow without Resumed).
//!
//! The owner holds an flock(2) on the file: while it does, nobody else settles.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::base::{Blame, Error, Result, ResultExt};

/// Where journals lie when nothing else is said. Not on disk on purpose: what
/// they speak of does not survive a reboot either.
pub const DEFAULT_DIR: &str = "/run/dunlin";

/// Largest journal that is read, bytes.
const MAX: u64 = 1 << 20;

/// Which end keeps the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// It had the container.
    Source,
    /// It gets the container.
    Destination,
}

/// How far a migration has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Under way; may be given up at any time.
    Prepared,
    /// Source: the destination may run it; never thaw without its ABORTED.
    Granted,
    /// Destination: may have run from here on.
    Resuming,
    /// It runs at the destination.
    Resumed,
    /// Given up; it runs, if anywhere, at the source.
    Aborted,
    /// All pages have arrived; the source's copy may go, or is gone.
    Complete,
}

impl Phase {
    /// Whether a journal of `side` may go from here to `to`.
    pub fn may_become(self, side: Side, to: Phase) -> bool {
        use Phase::*;
        match side {
            Side::Source => matches!(
                (self, to),
                (Prepared, Granted | Aborted)
                    | (Granted, Resumed | Aborted | Complete)
                    | (Resumed, Complete)
            ),
            Side::Destination => matches!(
                (self, to),
                (Prepared, Resuming | Aborted)
                    | (Resuming, Resumed | Complete)
                    | (Resumed, Complete)
            ),
        }
    }

    /// Whether the source may let its copy run again without asking anyone.
    pub fn source_may_thaw(self) -> bool {
        matches!(self, Phase::Prepared | Phase::Aborted)
    }

    /// Whether the destination may throw its copy away without asking anyone.
    pub fn destination_may_discard(self) -> bool {
        matches!(self, Phase::Prepared | Phase::Aborted)
    }
}

/// What does not change during a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Which end this is.
    pub side: Side,
    /// The container's id.
    pub id: String,
    /// The session, in hexadecimal.
    pub session: String,
    /// The other end's address, as connected.
    pub peer: String,
    /// Whatever thawing, killing or discarding needs; written by the port that
    /// will read it.
    pub port: serde_json::Value,
}

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    phase: Phase,
    /// Milliseconds since 1970, for people.
    at: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    facts: Option<Facts>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    note: Option<serde_json::Value>,
}

/// A journal that this process owns.
#[derive(Debug)]
pub struct Journal {
    file: Flock<File>,
    path: PathBuf,
    facts: Facts,
    phase: Phase,
}

/// What a journal tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Story {
    /// What does not change.
    pub facts: Facts,
    /// The last phase that was recorded.
    pub phase: Phase,
    /// The last note that was recorded.
    pub note: Option<serde_json::Value>,
    /// Milliseconds since 1970 of the last record.
    pub at: u64,
}

impl Story {
    /// Where things are: as noted last, else as known from the beginning.
    pub fn place(&self) -> &serde_json::Value {
        self.note.as_ref().unwrap_or(&self.facts.port)
    }
}

/// The journal's file of one container on one end.
///
/// # Errors
/// An id that cannot be part of a file name.
pub fn path_of(dir: &Path, side: Side, id: &str) -> Result<PathBuf> {
    let plain = !id.is_empty()
        && id.len() <= 200
        // nor what runc would take for an option
        && !id.starts_with(['.', '-'])
        && id
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._+-".contains(&b));
    if !plain {
        return Err(Error::caller(
            format!("container id {id:?}"),
            "only letters, digits and ._+- are allowed, and neither . nor - at its beginning",
        ));
    }
    let side = match side {
        Side::Source => "source",
        Side::Destination => "destination",
    };
    Ok(dir.join(format!("{id}.{side}")))
}

/// Makes the directory of journals (mode 0700) if it is not there.
///
/// # Errors
/// Those of mkdir(2).
pub fn make_dir(dir: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .context(|| format!("make the directory of journals {}", dir.display()))
}

impl Journal {
    /// Starts a journal in phase [`Phase::Prepared`].
    ///
    /// # Errors
    /// There is one already that is not settled; the directory cannot be written.
    pub fn create(dir: &Path, facts: Facts) -> Result<Self> {
        let path = path_of(dir, facts.side, &facts.id)?;
        let what = || format!("start journal {}", path.display());
        make_dir(dir)?;
        // It appears whole and owned: somebody else may look for journals now, and we
        // may be killed.
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let aside = dir.join(format!(".{name}.{}", std::process::id()));
        // Of one that had our number, and was killed here.
        let _ = fs::remove_file(&aside);
        let file = OpenOptions::new()
            .append(true)
            .read(true)
            .create_new(true)
            .mode(0o600)
            .open(&aside)
            .context(what)?;
        let mut j = Self {
            file: lock(file, &aside)?,
            path,
            facts: facts.clone(),
            phase: Phase::Prepared,
        };
        let first = Record {
            phase: Phase::Prepared,
            at: now_ms(),
            facts: Some(facts),
            note: None,
        };
        let begun = j.append(&first).and_then(|()| j.sync());
        let linked = fs::hard_link(&aside, &j.path);
        let _ = fs::remove_file(&aside);
        begun?;
        match linked {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                return Err(Error::caller(
                    format!("start migration of {}", j.facts.id),
                    format!(
                        "an earlier one is not settled ({}); see dunlin resolve --list",
                        j.path.display()
                    ),
                ));
            }
            other => other.context(|| format!("start journal {}", j.path.display()))?,
        }
        let parent = File::open(dir).context(|| format!("open {}", dir.display()))?;
        parent
            .sync_all()
            .context(|| format!("fsync {}", dir.display()))?;
        Ok(j)
    }

    /// Takes over a journal whose owner is gone.
    ///
    /// # Errors
    /// Its owner lives; it cannot be read.
    pub fn take_over(path: &Path) -> Result<(Self, Story)> {
        let file = OpenOptions::new()
            .append(true)
            .read(true)
            .open(path)
            .context(|| format!("open journal {}", path.display()))?;
        let mut file = lock(file, path)?;
        is_there(&file, path)?;
        let story = read_from(&mut file, path)?;
        let j = Self {
            file,
            path: path.to_owned(),
            facts: story.facts.clone(),
            phase: story.phase,
        };
        Ok((j, story))
    }

    /// The phase recorded last.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What does not change.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Records that `to` has been reached; returns when it is on the medium.
    ///
    /// # Errors
    /// Not a legal move (a bug), or it could not be written: then nothing that
    /// depends on it may be done.
    pub fn advance(&mut self, to: Phase) -> Result<()> {
        if !self.phase.may_become(self.facts.side, to) {
            return Err(Error::bug(
                format!("journal {}", self.path.display()),
                format!("{:?} cannot become {to:?}", self.phase),
            ));
        }
        self.append(&Record {
            phase: to,
            at: now_ms(),
            facts: None,
            note: None,
        })?;
        self.sync()?;
        self.phase = to;
        Ok(())
    }

    /// As [`Journal::advance`], for what is true and changes nothing if it is not
    /// written.
    pub fn tell(&mut self, to: Phase) {
        if let Err(e) = self.advance(to) {
            warn!("{e}");
        }
    }

    /// Records something for the one who may have to settle; not fsynced, since
    /// it speaks of things that do not survive this host either.
    ///
    /// # Errors
    /// It could not be written.
    pub fn note(&mut self, note: serde_json::Value) -> Result<()> {
        self.append(&Record {
            phase: self.phase,
            at: now_ms(),
            facts: None,
            note: Some(note),
        })
    }

    /// Forgets the session: all is settled.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn settle(self) -> Result<()> {
        fs::remove_file(&self.path).context(|| format!("remove journal {}", self.path.display()))
    }

    fn append(&mut self, r: &Record) -> Result<()> {
        let json = serde_json::to_string(r)
            .map_err(|e| Error::other(Blame::Us, "write journal record", e))?;
        let line = format!("{:08x} {json}\n", crc32fast::hash(json.as_bytes()));
        let mut file: &File = &self.file;
        file.write_all(line.as_bytes())
            .context(|| format!("write journal {}", self.path.display()))
    }

    fn sync(&self) -> Result<()> {
        self.file
            .sync_data()
            .context(|| format!("fsync journal {}", self.path.display()))
    }
}

/// Reads a journal that somebody else may own.
///
/// # Errors
/// It is missing, too long, damaged before its last line, or tells an illegal story.
pub fn read(path: &Path) -> Result<Story> {
    let mut file = File::open(path).context(|| format!("open journal {}", path.display()))?;
    read_from(&mut file, path)
}

/// Whether the owner of the journal lives (holds its lock).
///
/// # Errors
/// It cannot be opened.
pub fn is_owned(path: &Path) -> Result<bool> {
    let file = File::open(path).context(|| format!("open journal {}", path.display()))?;
    Ok(Flock::lock(file, FlockArg::LockExclusiveNonblock).is_err())
}

/// All journals in a directory; none if it does not exist.
///
/// # Errors
/// The directory cannot be read.
pub fn list(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.context(|| format!("list {}", dir.display()))?,
    };
    let mut found = Vec::new();
    for e in entries {
        let path = e.context(|| format!("list {}", dir.display()))?.path();
        if path
            .extension()
            .is_some_and(|x| x == "source" || x == "destination")
        {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn lock(file: File, path: &Path) -> Result<Flock<File>> {
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, e)| {
        if e == nix::errno::Errno::EWOULDBLOCK {
            Error::caller(
                format!("take over journal {}", path.display()),
                "the dunlin that owns it is still running",
            )
        } else {
            Error::errno(format!("lock journal {}", path.display()), e as i32)
        }
    })
}

/// Between the opening and the lock its owner may have settled it: what it tells has
/// been done, and the container may be another by now.
fn is_there(file: &File, path: &Path) -> Result<()> {
    let what = || format!("take over journal {}", path.display());
    let ours = file.metadata().context(what)?;
    match fs::metadata(path) {
        Ok(m) if (m.dev(), m.ino()) == (ours.dev(), ours.ino()) => Ok(()),
        Ok(_) => Err(Error::caller(what(), "it is another one by now")),
        Err(e) => Err(Error::os(what(), e)),
    }
}

fn read_from(file: &mut File, path: &Path) -> Result<Story> {
    let mut text = Vec::new();
    file.take(MAX + 1)
        .read_to_end(&mut text)
        .context(|| format!("read journal {}", path.display()))?;
    let bad = |why: String| Error::caller(format!("read journal {}", path.display()), why);
    if text.len() as u64 > MAX {
        return Err(bad("it is longer than any journal of ours".into()));
    }
    parse(&text).map_err(bad)
}

fn parse(text: &[u8]) -> std::result::Result<Story, String> {
    let mut story: Option<Story> = None;
    let mut lines = text.split_inclusive(|b| *b == b'\n').enumerate().peekable();
    while let Some((n, line)) = lines.next() {
        let Some(r) = parse_line(line) else {
            if lines.peek().is_none() {
                break; // torn: never said
            }
            return Err(format!("line {} is damaged", n + 1));
        };
        match (&mut story, r.facts) {
            (None, Some(facts)) if r.phase == Phase::Prepared => {
                story = Some(Story {
                    facts,
                    phase: r.phase,
                    note: r.note,
                    at: r.at,
                });
            }
            (Some(s), None) => {
                if r.phase != s.phase && !s.phase.may_become(s.facts.side, r.phase) {
                    return Err(format!(
                        "line {}: {:?} cannot become {:?}",
                        n + 1,
                        s.phase,
                        r.phase
                    ));
                }
                s.phase = r.phase;
                s.at = r.at;
                if r.note.is_some() {
                    s.note = r.note;
                }
            }
            _ => return Err(format!("line {} does not belong there", n + 1)),
        }
    }
    story.ok_or_else(|| "it holds no whole record".to_owned())
}

fn parse_line(line: &[u8]) -> Option<Record> {
    let text = std::str::from_utf8(line).ok()?.strip_suffix('\n')?;
    let (crc, json) = text.split_once(' ')?;
    let crc = u32::from_str_radix(crc, 16).ok()?;
    (crc == crc32fast::hash(json.as_bytes())).then_some(())?;
    serde_json::from_str(json).ok()
}

fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
#[path = "journal/tests.rs"]
mod tests;
