//! Messages, and how they go over the socket.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::base::limits::MAX_RECORD;
use crate::base::{Error, PageRange, Result};
use crate::memory::{Area, Object};
use crate::sys::{fdops, poll, seqpacket, socket};

/// The only version that is spoken. 1 had no descriptor beside SHARED,
/// 2 no ANCHOR, 3 no locked memory.
pub const VERSION: u32 = 4;
/// Longest message, bytes.
const MAX_MESSAGE: usize = 4096;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub(super) enum Message {
    Hello { version: u32 },
    Whole,
    Space { id: u32, pid: i32 },
    Shared { id: u32 },
    Anchor,
    Ready { root: i32, spaces: u32, shared: u32 },
    Grant,
    Abort { why: String },
    Resumed,
}

/// Record beside SPACE.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SpaceRecord {
    pub(super) areas: Vec<AreaRecord>,
    pub(super) needed: Vec<(u64, u64)>,
    pub(super) locked: Vec<(u64, u64)>,
}

/// Record beside SHARED: start and end of each run.
#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct SharedRecord(pub(super) Vec<(u64, u64)>);

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AreaRecord {
    start: u64,
    end: u64,
    object: Object,
    at: u64,
    #[serde(default)]
    wipe_on_fork: bool,
}

impl From<&Area> for AreaRecord {
    fn from(a: &Area) -> Self {
        Self {
            start: a.range.start(),
            end: a.range.end(),
            object: a.object,
            at: a.at,
            wipe_on_fork: a.wipe_on_fork,
        }
    }
}

impl TryFrom<AreaRecord> for Area {
    type Error = Error;

    fn try_from(r: AreaRecord) -> Result<Self> {
        Ok(Self {
            range: range((r.start, r.end))?,
            object: r.object,
            at: r.at,
            wipe_on_fork: r.wipe_on_fork,
        })
    }
}

pub(super) fn range((start, end): (u64, u64)) -> Result<PageRange> {
    PageRange::new(start, end).ok_or_else(|| {
        Error::peer(
            "lazy-pages record",
            format!("{start:#x}-{end:#x} is no range of pages"),
        )
    })
}

/// One end.
#[derive(Debug)]
pub(super) struct Line {
    fd: OwnedFd,
    timeout: Duration,
}

impl AsFd for Line {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Line {
    pub(super) fn new(fd: OwnedFd, timeout: Duration) -> Self {
        Self { fd, timeout }
    }

    pub(super) fn send(&self, message: &Message, rights: &[BorrowedFd<'_>]) -> Result<()> {
        let bytes = encode(message)?;
        let deadline = Instant::now() + self.timeout;
        loop {
            match socket::send(self.fd.as_fd(), &bytes, rights) {
                Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if !poll::writable(self.fd.as_fd(), Some(left))? || left.is_zero() {
                        return Err(late("send to"));
                    }
                }
                Err(e) => return Err(e.within("send to the lazy-pages peer")),
                Ok(()) => return Ok(()),
            }
        }
    }

    /// Sends with a record in a memfd, as the last descriptor.
    pub(super) fn send_record(
        &self,
        message: &Message,
        rights: &[BorrowedFd<'_>],
        record: &impl Serialize,
    ) -> Result<()> {
        let mut file = File::from(fdops::memfd(c"dunlin-handoff", 0)?);
        file.write_all(&encode(record)?)
            .map_err(|e| Error::os("write a lazy-pages record", e))?;
        let mut rights = rights.to_vec();
        rights.push(file.as_fd());
        self.send(message, &rights)
    }

    pub(super) fn receive(&self) -> Result<(Message, Vec<OwnedFd>)> {
        self.receive_within(self.timeout)?
            .ok_or_else(|| late("wait for"))
    }

    pub(super) fn receive_within(
        &self,
        timeout: Duration,
    ) -> Result<Option<(Message, Vec<OwnedFd>)>> {
        let wrong = |why: String| Error::peer("lazy-pages message", why);
        if !poll::readable(self.fd.as_fd(), Some(timeout))? {
            return Ok(None);
        }
        let peeked = socket::peek(self.fd.as_fd(), MAX_MESSAGE)?;
        seqpacket::discard(self.fd.as_fd())?;
        let Some(got) = peeked else {
            return Err(wrong("none came".to_owned()));
        };
        if got.data.is_empty() {
            return Err(wrong("the peer has hung up".to_owned()));
        }
        if got.truncated || got.other_control.is_some() {
            return Err(wrong("too long".to_owned()));
        }
        let message =
            serde_json::from_slice(&got.data).map_err(|e| wrong(format!("malformed: {e}")))?;
        Ok(Some((message, got.rights)))
    }
}

/// Reads a record that came as a memfd; its length is checked before anything is
/// sized by it, and it may shrink meanwhile.
pub(super) fn read_record<T: DeserializeOwned>(fd: OwnedFd) -> Result<T> {
    let file = File::from(fd);
    let context = |e| Error::os("read a lazy-pages record", e);
    let meta = file.metadata().map_err(context)?;
    let len = usize::try_from(meta.len()).unwrap_or(usize::MAX);
    if !meta.is_file() || len > MAX_RECORD {
        let why = format!("{len} bytes are too long");
        return Err(Error::peer("lazy-pages record", why));
    }
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, 0).map_err(context)?;
    serde_json::from_slice(&bytes)
        .map_err(|e| Error::peer("lazy-pages record", format!("malformed: {e}")))
}

fn encode(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|e| Error::bug("encode a lazy-pages record", e.to_string()))
}

fn late(what: &str) -> Error {
    Error::errno(format!("{what} the lazy-pages peer"), libc::ETIMEDOUT)
}

/// What came is not what must come now.
pub(super) fn unexpected(got: &Message, wanted: &str) -> Error {
    Error::peer(
        "lazy-pages message",
        format!("{got:?} in place of {wanted}"),
    )
}
