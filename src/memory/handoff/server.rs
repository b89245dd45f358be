//! The serving end.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::message::{
    Line, Message, SharedRecord, SpaceRecord, VERSION, range, read_record, unexpected,
};
use super::socket_in;
use crate::base::limits::MAX_TASKS;
use crate::base::{Error, HostPid, Result};
use crate::memory::anchor::Anchor;
use crate::memory::{Area, Job, LazyShared, LazySpace, SpaceId};
use crate::sys::uffd::Uffd;
use crate::sys::{poll, seqpacket};

/// Waits for restorers. Its socket goes away with it.
#[derive(Debug)]
pub struct Server {
    fd: OwnedFd,
    path: PathBuf,
}

impl Server {
    /// Listens in a work directory.
    ///
    /// # Errors
    /// Those of bind(2).
    pub fn bind(work_dir: &Path) -> Result<Self> {
        let path = socket_in(work_dir);
        let fd = seqpacket::listen_at(&path)?;
        Ok(Self { fd, path })
    }

    /// Waits for a restorer and agrees with it on a version; `None` when none came
    /// within `patience`. `timeout` holds for each wait after that.
    ///
    /// # Errors
    /// The restorer speaks otherwise.
    pub fn accept(&self, patience: Option<Duration>, timeout: Duration) -> Result<Option<Session>> {
        if !poll::readable(self.fd.as_fd(), patience)? {
            return Ok(None);
        }
        let line = Line::new(seqpacket::accept(self.fd.as_fd())?, timeout);
        match line.receive()?.0 {
            Message::Hello { version: VERSION } => {}
            Message::Hello { version } => {
                let why = format!("version {version}; only {VERSION} is spoken here");
                line.send(&Message::Abort { why: why.clone() }, &[])?;
                return Err(Error::peer("restorer", why));
            }
            other => return Err(unexpected(&other, "HELLO")),
        }
        line.send(&Message::Hello { version: VERSION }, &[])?;
        Ok(Some(Session { line }))
    }
}

impl AsFd for Server {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A restorer that waits for its images. Dropped without [`Session::receive`], it
/// ends, and has built nothing.
#[derive(Debug)]
pub struct Session {
    line: Line,
}

/// A restorer that has built everything and waits. Dropped without
/// [`Ready::grant`], the restorer kills what it built.
#[derive(Debug)]
pub struct Ready {
    line: Line,
    root: HostPid,
}

impl Session {
    /// Lets the restorer read the images, which are whole by now, and takes
    /// everything over that it builds.
    ///
    /// # Errors
    /// What came contradicts itself, or the restorer died.
    pub fn receive(self) -> Result<(Job, Ready)> {
        self.line.send(&Message::Whole, &[])?;
        let mut job = Job::default();
        loop {
            let (message, rights) = self.line.receive()?;
            if job.spaces.len().max(job.shared.len()) > MAX_TASKS {
                return Err(Error::peer("restorer", "more address spaces than tasks"));
            }
            match message {
                Message::Space { id, pid } => job.spaces.push(space(id, pid, rights)?),
                Message::Shared { id } => {
                    let [file, record] = exactly(rights)?;
                    let SharedRecord(runs) = read_record(record)?;
                    let needed: Result<_> = runs.into_iter().map(range).collect();
                    job.shared.push(LazyShared {
                        id,
                        file: Arc::new(file.into()),
                        needed: needed?,
                    });
                }
                Message::Anchor => {
                    let [door, queue] = exactly(rights)?;
                    job.anchor = Some(Anchor::adopt(door, queue));
                }
                Message::Ready {
                    root,
                    spaces,
                    shared,
                } => {
                    let counts = (
                        u32::try_from(job.spaces.len()),
                        u32::try_from(job.shared.len()),
                    );
                    if counts != (Ok(spaces), Ok(shared)) {
                        return Err(Error::peer("restorer", "its counts do not fit"));
                    }
                    let ready = Ready {
                        line: self.line,
                        root: HostPid(root),
                    };
                    return Ok((job, ready));
                }
                Message::Hello { .. }
                | Message::Whole
                | Message::Grant
                | Message::Abort { .. }
                | Message::Resumed => {
                    return Err(unexpected(&message, "SPACE, SHARED, ANCHOR or READY"));
                }
            }
        }
    }
}

impl Ready {
    /// The root task, as the restorer sees it.
    pub fn root(&self) -> HostPid {
        self.root
    }

    /// Lets the tree go on. Faults must be served by now.
    ///
    /// # Errors
    /// The restorer died. It may have resumed all the same only if it said so.
    pub fn grant(self) -> Result<()> {
        self.line.send(&Message::Grant, &[])?;
        match self.line.receive()?.0 {
            Message::Resumed => Ok(()),
            other => Err(unexpected(&other, "RESUMED")),
        }
    }

    /// Whether the restorer still waits for the grant; if not, it is gone, or has
    /// given up.
    ///
    /// # Errors
    /// Those of poll(2).
    pub fn waits(&self) -> Result<bool> {
        Ok(!poll::readable(self.line.as_fd(), Some(Duration::ZERO))?)
    }

    /// The tree must not go on.
    ///
    /// # Errors
    /// The restorer is gone already.
    pub fn abort(self, why: &str) -> Result<()> {
        let why = why.chars().take(1000).collect();
        self.line.send(&Message::Abort { why }, &[])
    }
}

fn space(id: u32, pid: i32, rights: Vec<OwnedFd>) -> Result<LazySpace> {
    let [uffd, pidfd, record] = exactly(rights)?;
    let record: SpaceRecord = read_record(record)?;
    let areas: Result<Vec<Area>> = record.areas.into_iter().map(TryInto::try_into).collect();
    let ranges = |all: Vec<_>| all.into_iter().map(range).collect::<Result<_>>();
    Ok(LazySpace {
        id: SpaceId(id),
        pid: HostPid(pid),
        pidfd,
        uffd: Uffd::adopt(uffd)?,
        areas: areas?,
        needed: ranges(record.needed)?,
        locked: ranges(record.locked)?,
    })
}

fn exactly<const N: usize>(rights: Vec<OwnedFd>) -> Result<[OwnedFd; N]> {
    rights.try_into().map_err(|r: Vec<_>| {
        let why = format!("{} descriptors came in place of {N}", r.len());
        Error::peer("lazy-pages message", why)
    })
}
