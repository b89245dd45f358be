//! Epoll sets and their members: epoll(7).
//!
//! fdinfo tells under which number a member was added, in the table of the
//! task that added it; the file may since have moved to another number or be
//! open only elsewhere. kcmp(2) tells which descriptor it is.

use std::collections::BTreeMap;

use super::capture::{Capture, Open, Seen, Table};
use super::fdinfo::Target;
use super::identity::Spot;
use crate::base::{Error, Result};
use crate::image::Kind as Image;
use crate::image::records::{EventpollFileEntry, EventpollTfdEntry, FdTypes, FileEntry};
use crate::sys::kcmp::{self, EpollSlot};

/// An epoll set whose members are still to be found.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) entry: FileEntry,
    /// Descriptors that refer to it.
    pub(super) holders: Vec<Spot>,
    targets: Vec<Target>,
}

impl Capture {
    pub(super) fn epoll(&mut self, open: Open<'_>) -> Result<FileEntry> {
        let entry = FileEntry {
            r#type: FdTypes::Eventpoll.into(),
            id: open.id,
            epfd: Some(EventpollFileEntry {
                id: open.id,
                flags: open.flags(),
                fown: open.fown,
                tfd: Vec::new(),
            }),
            ..FileEntry::default()
        };
        self.epolls.push(Pending {
            entry: entry.clone(),
            holders: vec![open.spot],
            targets: open.info.targets,
        });
        Ok(entry)
    }

    pub(super) fn finish_epolls(&mut self) -> Result<()> {
        for mut pending in std::mem::take(&mut self.epolls) {
            let members = self.members(&pending)?;
            if let Some(epfd) = pending.entry.epfd.as_mut() {
                epfd.tfd = members;
            }
            self.image.push(Image::Files, 0, &pending.entry);
        }
        Ok(())
    }

    /// The members as seen by the first holder that has them all open.
    fn members(&self, pending: &Pending) -> Result<Vec<EventpollTfdEntry>> {
        let mut failure = None;
        for holder in &pending.holders {
            let Some(table) = self.tables.iter().find(|t| t.pid == holder.pid) else {
                continue; // in flight: nobody's table
            };
            match in_table(table, *holder, pending) {
                Ok(members) => return Ok(members),
                Err(e) => failure = failure.or(Some(e)),
            }
        }
        Err(failure.unwrap_or_else(|| {
            Error::refused("an epoll set that travels in a socket", "cannot be carried")
        }))
    }
}

fn in_table(table: &Table, holder: Spot, pending: &Pending) -> Result<Vec<EventpollTfdEntry>> {
    let mut nth = BTreeMap::new();
    let mut members = Vec::with_capacity(pending.targets.len());
    for target in &pending.targets {
        let toff = nth.entry(target.fd).or_insert(0u32);
        let slot = EpollSlot {
            efd: holder.fd.cast_unsigned(),
            tfd: target.fd,
            toff: *toff,
        };
        *toff += 1;
        let tfd = find(table, holder, target, &slot)?.ok_or_else(|| {
            Error::refused(
                format!(
                    "task {} fd {}: epoll member that was added as fd {}",
                    holder.pid, holder.fd, target.fd
                ),
                "is not open there any more and cannot be carried",
            )
        })?;
        members.push(EventpollTfdEntry {
            id: pending.entry.id,
            tfd,
            events: target.events,
            data: target.data,
            dev: Some(target.dev),
            inode: Some(target.ino),
            pos: Some(target.pos),
        });
    }
    Ok(members)
}

/// The number that the target has in the table now; its old one if possible.
fn find(table: &Table, holder: Spot, target: &Target, slot: &EpollSlot) -> Result<Option<u32>> {
    let is = |fd: i32| kcmp::epoll_target((table.pid, fd), holder.pid, slot);
    let number = |fd: i32| fd.cast_unsigned();
    if let Some(seen) = table.seen.iter().find(|s| number(s.fd) == target.fd)
        && is(seen.fd)?
    {
        return Ok(Some(target.fd));
    }
    // It was moved: look at all that may be it first.
    let (likely, others): (Vec<&Seen>, Vec<&Seen>) =
        table.seen.iter().partition(|s| s.ino == target.ino);
    for seen in likely.into_iter().chain(others) {
        if is(seen.fd)? {
            return Ok(Some(number(seen.fd)));
        }
    }
    Ok(None)
}
