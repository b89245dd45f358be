//! Unix sockets: unix(7).

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd};

use super::capture::{Capture, Captured, Open};
use super::{options, queue};
use crate::base::{Error, Result, ResultExt};
use crate::image::records::{
    FdTypes, FileEntry, FilePermsEntry, SkPacketEntry, SkShutdown, UnixSkEntry,
};
use crate::sys::sock_diag::UnixSocket;
use crate::sys::socket::{peer_address, unix_file};

pub(super) const ESTABLISHED: u32 = 1;
pub(super) const CLOSE: u32 = 7;
pub(super) const LISTEN: u32 = 10;

pub(super) const STREAM: u32 = libc::SOCK_STREAM.cast_unsigned();
pub(super) const DGRAM: u32 = libc::SOCK_DGRAM.cast_unsigned();
pub(super) const SEQPACKET: u32 = libc::SOCK_SEQPACKET.cast_unsigned();

/// Longest name: sun_path.
const MAX_NAME: usize = 108;

/// CRIU's mark for a socket that is not restored but connected to.
pub(super) const EXTERNAL: u32 = 1;

/// The other end of a captured socket.
#[derive(Debug)]
pub(super) struct Peer {
    ino: u32,
    dgram: bool,
    /// As getpeername(2) tells it.
    address: Vec<u8>,
}

/// Records for the ends of connections that are outside.
///
/// # Errors
/// One that is not allowed, or cannot be found again.
pub(super) fn outside(all: &Capture, mut fresh: impl FnMut() -> u32) -> Result<Vec<FileEntry>> {
    let mut records: BTreeMap<u32, FileEntry> = BTreeMap::new();
    for (ino, peer) in &all.unix {
        let Some(peer) = peer.as_ref().filter(|p| !all.unix.contains_key(&p.ino)) else {
            continue;
        };
        let name = peer.address.get(2..).unwrap_or_default().to_vec();
        let findable = peer.dgram && matches!(name.first(), Some(b'/' | 0));
        if !(findable && all.ext_unix_sk) {
            let hint = if findable { " (see --ext-unix-sk)" } else { "" };
            return Err(Error::refused(
                format!("Unix socket {ino}"),
                format!(
                    "is connected to socket {} outside of the container{hint}",
                    peer.ino
                ),
            ));
        }
        records.entry(peer.ino).or_insert_with(|| {
            let id = fresh();
            FileEntry {
                r#type: FdTypes::Unixsk.into(),
                id,
                usk: Some(UnixSkEntry {
                    id,
                    ino: peer.ino,
                    r#type: DGRAM,
                    state: LISTEN,
                    uflags: EXTERNAL,
                    name,
                    ..UnixSkEntry::default()
                }),
                ..FileEntry::default()
            }
        });
    }
    Ok(records.into_values().collect())
}

pub(super) fn capture(all: &mut Capture, open: &Open<'_>) -> Result<Captured> {
    let ino = u32::try_from(open.ino)
        .map_err(|_| Error::refused("Unix socket", "has an inode number above 32 bits"))?;
    let listed = all.listed(ino)?;
    refuse(&listed)?;
    let dgram = u32::from(listed.kind) == DGRAM;
    let mut entry = UnixSkEntry {
        id: open.id,
        ino,
        r#type: u32::from(listed.kind),
        state: u32::from(listed.state),
        flags: open.flags,
        uflags: 0,
        backlog: listed.send_queue,
        peer: listed.peer.unwrap_or(0),
        fown: open.fown.clone(),
        opts: options::capture(open.fd, true)?,
        name: listed.name.clone(),
        shutdown: (listed.shutdown != 0).then(|| shutdown(listed.shutdown).into()),
        ns_id: all.net_ns_id,
        ..UnixSkEntry::default()
    };
    if entry.name.first().is_some_and(|b| *b != 0) {
        file_name(open, &mut entry)?;
    }
    let packets = if u32::from(listed.state) == LISTEN
        || (!dgram && u32::from(listed.state) != ESTABLISHED)
    {
        Vec::new()
    } else {
        let ends_empty = !dgram || listed.shutdown & 1 != 0;
        packets(open, ends_empty)?
    };
    let peer = match listed.peer.filter(|p| *p != 0) {
        Some(ino) => Some(Peer {
            ino,
            dgram,
            address: peer_address(open.fd)?.unwrap_or_default(),
        }),
        None => None,
    };
    all.unix.insert(ino, peer);
    let entry = FileEntry {
        r#type: FdTypes::Unixsk.into(),
        id: open.id,
        usk: Some(entry),
        ..FileEntry::default()
    };
    Ok((entry, packets))
}

fn packets(open: &Open<'_>, ends_empty: bool) -> Result<Vec<(SkPacketEntry, queue::Message)>> {
    queue::capture(open.fd, ends_empty)?
        .into_iter()
        .map(|message| {
            let length = u32::try_from(message.data.len())
                .map_err(|_| Error::bug("message in a queue", "above 4 GiB"))?;
            let packet = SkPacketEntry {
                id_for: open.id,
                length,
                scm: Vec::new(),
            };
            Ok((packet, message))
        })
        .collect()
}

/// What cannot be made again.
fn refuse(s: &UnixSocket) -> Result<()> {
    let no = |why: &'static str| Err(Error::refused(format!("Unix socket {}", s.inode), why));
    let (kind, state) = (u32::from(s.kind), u32::from(s.state));
    match (kind, state) {
        (STREAM | SEQPACKET, LISTEN) if !s.waiting.is_empty() => {
            no("has a connection that nobody has accepted yet")
        }
        (STREAM | SEQPACKET, ESTABLISHED) if s.peer.unwrap_or(0) == 0 && s.shutdown != 3 => {
            no("waits to be accepted by its peer")
        }
        (STREAM | SEQPACKET, LISTEN | ESTABLISHED | CLOSE) | (DGRAM, ESTABLISHED | CLOSE) => Ok(()),
        _ => no("is of a type or in a state that cannot be carried"),
    }
}

fn shutdown(bits: u8) -> SkShutdown {
    match bits & 3 {
        1 => SkShutdown::Read,
        2 => SkShutdown::Write,
        3 => SkShutdown::Both,
        _ => SkShutdown::None,
    }
}

/// What the file system knows of a socket that is bound to a file.
fn file_name(open: &Open<'_>, entry: &mut UnixSkEntry) -> Result<()> {
    // An accepted socket has the name of its listener, and so its file.
    let Some(file) = unix_file(open.fd)? else {
        return Ok(());
    };
    let stat = nix::sys::stat::fstat(&file).context(|| "fstat".into())?;
    entry.file_perms = Some(FilePermsEntry {
        mode: stat.st_mode,
        uid: stat.st_uid,
        gid: stat.st_gid,
    });
    let link = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    let path = std::fs::read_link(&link).map_err(|e| Error::os(format!("readlink {link}"), e))?;
    let path = path.to_str().ok_or_else(|| {
        Error::refused(
            format!("socket {}", path.display()),
            "has a name that is not UTF-8",
        )
    })?;
    let bare = path.strip_suffix(" (deleted)").unwrap_or(path);
    if bare != path && stat.st_nlink == 0 {
        entry.deleted = Some(true);
    }
    let name: Vec<u8> = entry.name.iter().copied().take_while(|b| *b != 0).collect();
    if name.first() != Some(&b'/') {
        let dir = std::str::from_utf8(&name)
            .ok()
            .and_then(|n| bare.strip_suffix(n))
            .ok_or_else(|| {
                Error::refused(
                    format!("socket {bare}"),
                    "was bound to a name that it has no more",
                )
            })?;
        let dir = dir.strip_suffix('/').unwrap_or(dir);
        entry.name_dir = Some(if dir.is_empty() { "/" } else { dir }.to_owned());
    }
    Ok(())
}

/// Refuses a record that makes no sense.
pub(in crate::objects) fn check(entry: &UnixSkEntry, external: bool) -> Result<()> {
    let bad = |why: &'static str| Err(Error::image(format!("Unix socket {}", entry.ino), why));
    if !matches!(entry.r#type, STREAM | DGRAM | SEQPACKET) {
        return bad("is of an unknown type");
    }
    if !matches!(entry.state, ESTABLISHED | CLOSE | LISTEN) {
        return bad("is in an unknown state");
    }
    match entry.uflags {
        0 => {}
        EXTERNAL if external && entry.r#type == DGRAM => {}
        EXTERNAL => return bad("is outside of the container (see --ext-unix-sk)"),
        _ => return bad("has marks that are not known"),
    }
    if entry.name.len() > MAX_NAME {
        return bad("has a name that is too long");
    }
    if entry.shutdown.is_some_and(|s| !(0..=3).contains(&s)) {
        return bad("has an unknown shutdown state");
    }
    Ok(())
}
