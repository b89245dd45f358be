//! The restoring end.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use super::message::{Line, Message, SharedRecord, SpaceRecord, VERSION, unexpected};
use super::socket_in;
use crate::base::{Error, HostPid, PageRange, Result};
use crate::memory::anchor::Anchor;
use crate::memory::{LazyShared, LazySpace};
use crate::sys::seqpacket;

/// A restorer's conversation with the process that serves pages.
#[derive(Debug)]
pub struct Client {
    line: Line,
    spaces: u32,
    shared: u32,
}

impl Client {
    /// Connects, and agrees on a version. `timeout` holds for each wait.
    ///
    /// # Errors
    /// Nobody serves there (ENOENT, ECONNREFUSED), or another version.
    pub fn connect(work_dir: &Path, timeout: Duration) -> Result<Self> {
        let line = Line::new(seqpacket::connect_to(&socket_in(work_dir))?, timeout);
        line.send(&Message::Hello { version: VERSION }, &[])?;
        match line.receive()?.0 {
            Message::Hello { version: VERSION } => Ok(Self {
                line,
                spaces: 0,
                shared: 0,
            }),
            Message::Hello { version } => Err(Error::peer(
                "lazy-pages peer",
                format!("speaks version {version}, not {VERSION}"),
            )),
            Message::Abort { why } => Err(Error::peer("lazy-pages peer refuses", why)),
            other => Err(unexpected(&other, "HELLO")),
        }
    }

    /// Waits until the images are whole, as long as `patience`: a restorer may be
    /// started before its tree is captured.
    ///
    /// # Errors
    /// The server gives up, dies, or takes too long.
    pub fn images(&self, patience: Duration) -> Result<()> {
        let late = || Error::errno("wait for the images to be whole", libc::ETIMEDOUT);
        match self.line.receive_within(patience)?.ok_or_else(late)?.0 {
            Message::Whole => Ok(()),
            Message::Abort { why } => Err(Error::peer("the images will not come", why)),
            other => Err(unexpected(&other, "WHOLE")),
        }
    }

    /// Hands an address space over. Keep `space` until [`Self::ready`] has
    /// returned, then drop it, so that only the server holds its userfaultfd.
    ///
    /// # Errors
    /// The peer is gone or does not take it.
    pub fn space(&mut self, space: &LazySpace) -> Result<()> {
        let record = SpaceRecord {
            areas: space.areas.iter().map(Into::into).collect(),
            needed: ends(&space.needed).collect(),
            locked: ends(&space.locked).collect(),
        };
        let message = Message::Space {
            id: space.id.0,
            pid: space.pid.0,
        };
        let rights = [space.uffd.as_fd(), space.pidfd.as_fd()];
        self.line.send_record(&message, &rights, &record)?;
        self.spaces += 1;
        Ok(())
    }

    /// Hands a shared object over, with the pages that must come.
    ///
    /// # Errors
    /// As [`Self::space`].
    pub fn shared(&mut self, shared: &LazyShared) -> Result<()> {
        let record = SharedRecord(ends(&shared.needed).collect());
        let message = Message::Shared { id: shared.id };
        self.line
            .send_record(&message, &[shared.file.as_fd()], &record)?;
        self.shared += 1;
        Ok(())
    }

    /// Hands over what keeps their userfaultfds open.
    ///
    /// # Errors
    /// As [`Self::space`].
    pub fn anchor(&mut self, anchor: &Anchor) -> Result<()> {
        self.line.send(&Message::Anchor, &anchor.ends())
    }

    /// Everything is built and stopped: waits, as long as `patience`, until it may
    /// go on.
    ///
    /// # Errors
    /// The server says ABORT, dies, or takes too long: nothing may be resumed.
    pub fn ready(&mut self, root: HostPid, patience: Duration) -> Result<()> {
        let message = Message::Ready {
            root: root.0,
            spaces: self.spaces,
            shared: self.shared,
        };
        self.line.send(&message, &[])?;
        match self.line.receive_within(patience)? {
            Some((Message::Grant, _)) => Ok(()),
            Some((Message::Abort { why }, _)) => Err(Error::peer(
                "lazy-pages peer does not let the tree go on",
                why,
            )),
            Some((other, _)) => Err(unexpected(&other, "GRANT")),
            None => Err(Error::errno(
                "wait for the lazy-pages peer to let the tree go on",
                libc::ETIMEDOUT,
            )),
        }
    }

    /// The tasks run.
    ///
    /// # Errors
    /// The peer is gone: its guardian stops the container.
    pub fn resumed(self) -> Result<()> {
        self.line.send(&Message::Resumed, &[])
    }
}

fn ends(ranges: &[PageRange]) -> impl Iterator<Item = (u64, u64)> {
    ranges.iter().map(|r| (r.start(), r.end()))
}
