//! Pseudoterminals whose slave is in the container and whose master is with
//! whoever started it: pts(4). What a terminal is, is told by its slave; who has
//! it as controlling terminal, by /proc. Bytes that were typed and not read yet
//! are not carried, as with CRIU.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::capture::{Capture, Open};
use crate::base::{Error, HostPid, NsPid, Result};
use crate::image::records::{
    FdTypes, FileEntry, TermiosEntry, TtyFileEntry, TtyInfoEntry, TtyPtyEntry, TtyType,
    WinsizeEntry,
};
use crate::image::{Kind as Image, Set};
use crate::sys::procfs;
use crate::sys::tty::{self, Termios};

/// Unix98 slaves: 256 for each of these majors.
const SLAVE_MAJORS: std::ops::RangeInclusive<u32> = 136..=143;
const CBAUD: u32 = 0o010017;
/// Highest number: that of the kernel's own limit on pairs.
const MAX_NUMBER: u32 = 1 << 20;

/// A pair whose master is open here.
#[derive(Debug)]
pub struct Pair {
    /// Its number in the container's devpts.
    pub number: u32,
    /// Goes to whoever restores.
    pub master: OwnedFd,
    /// Ours, for tasks to fetch.
    pub slave: OwnedFd,
    /// Session whose controlling terminal it is, and its foreground group; 0: none.
    pub session: NsPid,
    /// See `session`.
    pub group: NsPid,
}

fn number_of(rdev: u64) -> Option<u32> {
    let major = libc::major(rdev);
    SLAVE_MAJORS
        .contains(&major)
        .then(|| (major - SLAVE_MAJORS.start()) * 256 + libc::minor(rdev))
}

impl Capture {
    pub(super) fn terminal(&mut self, open: &Open<'_>) -> Result<FileEntry> {
        let no = |why: &str| {
            let subject = format!("terminal {}", open.link);
            Err(Error::refused(subject, format!("cannot be carried{why}")))
        };
        let Some(number) = number_of(open.stat.st_rdev) else {
            return no(": only slaves of pseudoterminals can");
        };
        if !self.policy.orphan_pts_master {
            return no(" without a caller that takes its master (RPC orphan_pts_master)");
        }
        if !self.own_mounts || !self.mounts.contains(&open.info.mnt_id) {
            return no(": it is the host's");
        }
        // CRIU's number of a pair's slave
        let info_id = number << 1;
        if self.terminals.insert(number) {
            let info = info(open, info_id, number)?;
            self.image.push(Image::TtyInfo, 0, &info);
        }
        let regf_id = self.ids.fresh();
        let path = self.path(open, regf_id)?;
        self.image.push(Image::Files, 0, &path);
        Ok(FileEntry {
            r#type: FdTypes::Tty.into(),
            id: open.id,
            tty: Some(TtyFileEntry {
                id: open.id,
                tty_info_id: info_id,
                flags: open.flags(),
                fown: open.fown.clone(),
                regf_id: Some(regf_id),
            }),
            ..FileEntry::default()
        })
    }
}

fn info(open: &Open<'_>, id: u32, number: u32) -> Result<TtyInfoEntry> {
    let size = tty::size(open.fd)?.map(u32::from);
    let (session, group) = controlled(open.spot.pid, open.stat.st_rdev)?;
    let device = |dev: u64| {
        u32::try_from(dev).map_err(|_| Error::refused("terminal", "has a device above 32 bits"))
    };
    Ok(TtyInfoEntry {
        id,
        r#type: TtyType::Pty.into(),
        locked: false,
        exclusive: tty::is_exclusive(open.fd)?,
        packet_mode: false,
        sid: session.0.unsigned_abs(),
        pgrp: group.0.unsigned_abs(),
        rdev: device(open.stat.st_rdev)?,
        termios: Some(modes(tty::modes(open.fd)?)),
        termios_locked: Some(modes(tty::locked_modes(open.fd)?)),
        winsize: Some(WinsizeEntry {
            ws_row: size[0],
            ws_col: size[1],
            ws_xpixel: size[2],
            ws_ypixel: size[3],
        }),
        pty: Some(TtyPtyEntry { index: number }),
        dev: Some(device(open.stat.st_dev)?),
        uid: Some(open.stat.st_uid),
        gid: Some(open.stat.st_gid),
    })
}

/// The session of `pid` and the foreground group, as the container counts, if
/// this is their terminal.
fn controlled(pid: HostPid, rdev: u64) -> Result<(NsPid, NsPid)> {
    let stat = procfs::stat(pid)?;
    if u64::from(stat.tty_nr.cast_unsigned()) != rdev {
        return Ok((NsPid(0), NsPid(0)));
    }
    let last = |ids: &[i32]| NsPid(ids.last().copied().unwrap_or(0));
    let session = last(&procfs::status(pid)?.ns_sid);
    // a group whose leader is gone has no name to look it up by
    let group = procfs::status(HostPid(stat.tpgid)).map_or(NsPid(0), |s| last(&s.ns_pgid));
    Ok((session, group))
}

fn modes(t: Termios) -> TermiosEntry {
    TermiosEntry {
        c_iflag: t.iflag,
        c_oflag: t.oflag,
        c_cflag: t.cflag,
        c_lflag: t.lflag,
        c_line: t.line.into(),
        c_ispeed: t.cflag & CBAUD,
        c_ospeed: t.cflag & CBAUD,
        c_cc: t.cc.map(u32::from).to_vec(),
    }
}

fn termios(entry: Option<&TermiosEntry>) -> Termios {
    let Some(e) = entry else {
        return Termios::default();
    };
    let byte = |word: u32| u8::try_from(word & 0xff).unwrap_or(0);
    let mut cc = [0; 19];
    for (to, from) in cc.iter_mut().zip(&e.c_cc) {
        *to = byte(*from);
    }
    Termios {
        iflag: e.c_iflag,
        oflag: e.c_oflag,
        cflag: e.c_cflag,
        lflag: e.c_lflag,
        line: byte(e.c_line),
        cc,
    }
}

/// All terminals of an image, by the id of their record.
///
/// # Errors
/// One that cannot be made again, by what it is.
pub(super) fn read(set: &Set) -> Result<BTreeMap<u32, TtyInfoEntry>> {
    let mut all = BTreeMap::new();
    for info in set.all::<TtyInfoEntry>(Image::TtyInfo, 0)? {
        let subject = || format!("terminal {:#x}", info.id);
        let number = info.pty.as_ref().map(|p| p.index);
        if info.r#type() != TtyType::Pty || number.is_none_or(|n| n >= MAX_NUMBER) {
            return Err(Error::image(subject(), "is no pseudoterminal"));
        }
        if u64::from(info.rdev) == libc::makedev(5, 2) {
            return Err(Error::image(subject(), "is a master, which is not carried"));
        }
        all.insert(info.id, info);
    }
    Ok(all)
}

/// Uid and gid of a slave, where they are known.
pub type Owner = Option<(u32, u32)>;

/// The pairs of an image: their numbers, and who owns their slaves.
///
/// # Errors
/// A terminal that cannot be made again, by what it is.
pub fn numbers(set: &Set) -> Result<BTreeMap<u32, Owner>> {
    Ok(read(set)?
        .values()
        .filter_map(|i| Some((i.pty.as_ref()?.index, i.uid.zip(i.gid))))
        .collect())
}

/// A pair as it was, of a master in the container's devpts.
///
/// # Errors
/// Those of ioctl_tty(2).
pub fn rebuild(set: &Set, master: OwnedFd) -> Result<Pair> {
    let number = tty::number(master.as_fd())?;
    let slave = tty::peer(master.as_fd(), libc::O_RDWR)?;
    let mut pair = Pair {
        number,
        master,
        slave,
        session: NsPid(0),
        group: NsPid(0),
    };
    let all = read(set)?;
    let Some(info) = all
        .values()
        .find(|i| i.pty.as_ref().is_some_and(|p| p.index == number))
    else {
        return Ok(pair);
    };
    let id = |raw: u32| NsPid(i32::try_from(raw).unwrap_or(0));
    (pair.session, pair.group) = (id(info.sid), id(info.pgrp));
    if info.termios.is_some() {
        let word = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
        let size = info.winsize.as_ref().map_or([0; 4], |w| {
            [w.ws_row, w.ws_col, w.ws_xpixel, w.ws_ypixel].map(word)
        });
        tty::set(
            pair.slave.as_fd(),
            termios(info.termios.as_ref()),
            size,
            termios(info.termios_locked.as_ref()),
        )
        .map_err(|e| e.within(format!("terminal {number}")))?;
    }
    Ok(pair)
}

/// Opens the slave as `entry` had it.
pub(super) fn open(
    entry: &TtyFileEntry,
    known: &BTreeMap<u32, TtyInfoEntry>,
    pairs: &[Pair],
) -> Result<OwnedFd> {
    let number = known
        .get(&entry.tty_info_id)
        .and_then(|i| i.pty.as_ref())
        .map(|p| p.index);
    let pair = pairs
        .iter()
        .find(|p| Some(p.number) == number)
        .ok_or_else(|| {
            Error::image(
                format!("terminal of file {}", entry.id),
                "has no pair in the container",
            )
        })?;
    let master: BorrowedFd<'_> = pair.master.as_fd();
    tty::peer(master, entry.flags.cast_signed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_survive_their_record() {
        let mut cc = [0u8; 19];
        cc.iter_mut().enumerate().for_each(|(i, c)| {
            *c = u8::try_from(i * 13).unwrap();
        });
        let t = Termios {
            iflag: 0x500,
            oflag: 5,
            cflag: 0xbf,
            lflag: 0x8a3b,
            line: 0,
            cc,
        };
        assert_eq!(termios(Some(&modes(t))), t);
    }

    #[test]
    fn slaves_are_numbered_through_all_their_majors() {
        assert_eq!(number_of(libc::makedev(136, 3)), Some(3));
        assert_eq!(number_of(libc::makedev(137, 1)), Some(257));
        assert_eq!(number_of(libc::makedev(5, 2)), None);
    }
}
