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
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
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

/// The journal's file of one container on one end.
///
/// # Errors
/// An id that cannot be part of a file name.
pub fn path_of(dir: &Path, side: Side, id: &str) -> Result<PathBuf> {
    let plain = !id.is_empty()
        && id.len() <= 200
        && !id.starts_with('.')
        && id
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._+-".contains(&b));
    if !plain {
        return Err(Error::caller(
            format!("container id {id:?}"),
            "only letters, digits and ._+- are allowed",
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
        let file = OpenOptions::new()
            .append(true)
            .read(true)
            .create_new(true)
            .mode(0o600)
            .open(&path);
        let file = match file {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                return Err(Error::caller(
                    format!("start migration of {}", facts.id),
                    format!(
                        "an earlier one is not settled ({}); see dunlin resolve --list",
                        path.display()
                    ),
                ));
            }
            other => other.context(what)?,
        };
        let file = lock(file, &path)?;
        let mut j = Self {
            file,
            path,
            facts: facts.clone(),
            phase: Phase::Prepared,
        };
        j.append(&Record {
            phase: Phase::Prepared,
            at: now_ms(),
            facts: Some(facts),
            note: None,
        })?;
        j.sync()?;
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
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn facts(side: Side) -> Facts {
        Facts {
            side,
            id: "c1".into(),
            session: "00".into(),
            peer: "peer".into(),
            port: serde_json::json!({"cgroup": "/x"}),
        }
    }

    #[test]
    fn what_was_recorded_is_read_back_after_the_owner_died() {
        let dir = tempfile::tempdir().unwrap();
        let mut j = Journal::create(dir.path(), facts(Side::Source)).unwrap();
        let path = path_of(dir.path(), Side::Source, "c1").unwrap();
        assert!(is_owned(&path).unwrap());
        j.note(serde_json::json!("held")).unwrap();
        j.advance(Phase::Granted).unwrap();
        assert!(Journal::take_over(&path).is_err(), "its owner lives");
        drop(j);
        let (j, story) = Journal::take_over(&path).unwrap();
        assert_eq!(story.phase, Phase::Granted);
        assert_eq!(story.note, Some(serde_json::json!("held")));
        assert_eq!(story.facts, facts(Side::Source));
        j.settle().unwrap();
        assert!(list(dir.path()).unwrap().is_empty());
    }

    #[test]
    fn a_second_migration_of_an_unsettled_container_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        drop(Journal::create(dir.path(), facts(Side::Source)).unwrap());
        let e = Journal::create(dir.path(), facts(Side::Source)).unwrap_err();
        assert!(e.to_string().contains("dunlin resolve"), "{e}");
        Journal::create(dir.path(), facts(Side::Destination)).unwrap();
    }

    #[test]
    fn illegal_moves_are_refused_and_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let mut j = Journal::create(dir.path(), facts(Side::Destination)).unwrap();
        assert!(j.advance(Phase::Granted).is_err());
        j.advance(Phase::Resuming).unwrap();
        assert!(j.advance(Phase::Aborted).is_err(), "may have run");
        let path = path_of(dir.path(), Side::Destination, "c1").unwrap();
        assert_eq!(read(&path).unwrap().phase, Phase::Resuming);
    }

    #[test]
    fn journals_are_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let sub = dir.path().join("state");
        Journal::create(&sub, facts(Side::Source)).unwrap();
        let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&sub), 0o700);
        assert_eq!(mode(&sub.join("c1.source")), 0o600);
    }

    #[test]
    fn an_id_that_leaves_the_directory_is_refused() {
        for id in ["", "..", "a/b", ".x", "a\nb"] {
            assert!(path_of(Path::new("/run/dunlin"), Side::Source, id).is_err());
        }
    }

    fn whole() -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let mut j = Journal::create(dir.path(), facts(Side::Source)).unwrap();
        for p in [Phase::Granted, Phase::Resumed, Phase::Complete] {
            j.advance(p).unwrap();
        }
        fs::read(dir.path().join("c1.source")).unwrap()
    }

    proptest! {
        #[test]
        fn a_torn_journal_tells_a_prefix_of_the_story(cut in any::<prop::sample::Index>()) {
            let text = whole();
            let cut = cut.index(text.len());
            let lines = text[..cut].iter().filter(|b| **b == b'\n').count();
            let want = [None, Some(Phase::Prepared), Some(Phase::Granted), Some(Phase::Resumed)];
            prop_assert_eq!(parse(&text[..cut]).ok().map(|s| s.phase), want[lines]);
        }

        #[test]
        fn a_flipped_bit_never_moves_the_story_forward(bit in any::<prop::sample::Index>()) {
            let mut text = whole();
            let bit = bit.index(text.len() * 8);
            text[bit / 8] ^= 1 << (bit % 8);
            if let Ok(s) = parse(&text) {
                // Hex digits have two cases; anything else must not pass.
                prop_assert!(s.phase <= Phase::Complete);
                prop_assert_eq!(s.facts, facts(Side::Source));
            }
        }
    }
}
