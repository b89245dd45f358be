//! Records to sockets. All of it runs at the place of the container: its
//! network namespace, its root directory.
//!
//! Unix sockets come in four kinds: those that stand alone (listeners,
//! unconnected ones, datagram sockets with a one-way peer), pairs, connections
//! through a listener, and orphans whose other end was closed.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::unix::{DGRAM, EXTERNAL, LISTEN};
use super::{MakePair, inet, options};
use crate::base::{Error, Result};
use crate::image::records::{InetSkEntry, PeerCredEntry, SkPacketEntry, UnixSkEntry};
use crate::sys::socket::{self, Place, accept, at_place, bind, connect, listen, send, unix_pair};

/// Messages of an image, in their order.
pub(in crate::objects) type Queues = Vec<(SkPacketEntry, Vec<u8>)>;

/// Sockets by the id of their file, not yet filled.
#[derive(Debug, Default)]
pub(in crate::objects) struct Sockets {
    pub(in crate::objects) files: BTreeMap<u32, OwnedFd>,
    /// Who can send to a socket, by its id.
    senders: BTreeMap<u32, OwnedFd>,
}

/// Pairs that are there already, by the id of the first (or only) end.
pub(in crate::objects) type Pairs = BTreeMap<u32, (OwnedFd, OwnedFd)>;

/// Has the pairs made that another task than we made, as `peers` tells.
pub(in crate::objects) fn made_by(
    unix: &[&UnixSkEntry],
    peers: &BTreeMap<u32, PeerCredEntry>,
    make: &mut MakePair<'_>,
) -> Result<Pairs> {
    let known = Known::new(unix);
    let mut made = Pairs::new();
    for u in unix.iter().filter(|u| u.uflags & EXTERNAL == 0) {
        let Some(by) = peers.get(&u.id).filter(|_| known.begins_pair(u)) else {
            continue;
        };
        match make(u.r#type.cast_signed(), by).map_err(|e| e.within(subject("Unix", u.ino)))? {
            Some(pair) => {
                made.insert(u.id, pair);
            }
            None => tracing::debug!(ino = u.ino, pid = by.pid, "its maker is not there"),
        }
    }
    Ok(made)
}

/// Makes all sockets but `pairs`.
pub(in crate::objects) fn build(
    unix: &[&UnixSkEntry],
    inet: &[&InetSkEntry],
    queues: &Queues,
    place: Place<'_>,
    pairs: Pairs,
) -> Result<Sockets> {
    if unix.is_empty() && inet.is_empty() {
        return Ok(Sockets::default());
    }
    let queued = queues.iter().map(|(p, _)| p.id_for).collect();
    at_place(place, || {
        let mut builder = Builder {
            known: Known::new(unix),
            queued,
            pairs,
            done: Sockets::default(),
        };
        builder.unix(unix)?;
        for entry in inet {
            let fd = inet::rebuild(entry).map_err(|e| e.within(subject("internet", entry.ino)))?;
            builder.done.files.insert(entry.id, fd);
        }
        Ok(builder.done)
    })
}

fn subject(kind: &str, ino: u32) -> String {
    format!("restore {kind} socket {ino}")
}

/// All Unix sockets, by inode.
struct Known<'a>(BTreeMap<u32, &'a UnixSkEntry>);

impl<'a> Known<'a> {
    fn new(unix: &[&'a UnixSkEntry]) -> Self {
        Self(unix.iter().map(|u| (u.ino, *u)).collect())
    }

    /// The other end, when both are connected to each other.
    fn partner(&self, u: &UnixSkEntry) -> Option<&'a UnixSkEntry> {
        let peer = self.0.get(&u.peer)?;
        (peer.peer == u.ino && peer.ino != u.ino && peer.r#type == u.r#type).then_some(*peer)
    }

    /// The listening socket that has the same name.
    fn listener(&self, u: &UnixSkEntry) -> Option<&'a UnixSkEntry> {
        self.0
            .values()
            .find(|l| {
                let same = l.name == u.name && l.name_dir == u.name_dir && l.r#type == u.r#type;
                l.state == LISTEN && !u.name.is_empty() && same && l.deleted != Some(true)
            })
            .copied()
    }

    /// Whether it is the first end of a socketpair, or what is left of one.
    fn begins_pair(&self, u: &UnixSkEntry) -> bool {
        match self.partner(u) {
            Some(peer) => {
                u.ino < peer.ino && self.listener(u).is_none() && self.listener(peer).is_none()
            }
            None => is_orphan(u),
        }
    }
}

/// One end of a connection whose other end is gone.
fn is_orphan(u: &UnixSkEntry) -> bool {
    u.r#type != DGRAM && u.state == super::unix::ESTABLISHED
}

struct Builder<'a> {
    known: Known<'a>,
    /// Ids of files with messages.
    queued: BTreeSet<u32>,
    pairs: Pairs,
    done: Sockets,
}

impl<'a> Builder<'a> {
    fn unix(&mut self, all: &[&'a UnixSkEntry]) -> Result<()> {
        let (pairs, alone): (Vec<&UnixSkEntry>, Vec<_>) = all
            .iter()
            .filter(|u| u.uflags & EXTERNAL == 0)
            .partition(|u| self.known.partner(u).is_some());
        for u in &alone {
            self.alone(u)
                .map_err(|e| e.within(subject("Unix", u.ino)))?;
        }
        for u in pairs {
            if let Some(peer) = self.known.partner(u).filter(|p| u.ino < p.ino) {
                self.pair(u, peer)
                    .map_err(|e| e.within(subject("Unix", u.ino)))?;
            }
        }
        for u in alone {
            if let Some(peer) = self.known.0.get(&u.peer).filter(|_| u.r#type == DGRAM) {
                self.one_way(u, peer)
                    .map_err(|e| e.within(subject("Unix", u.ino)))?;
            }
        }
        Ok(())
    }

    fn alone(&mut self, u: &UnixSkEntry) -> Result<()> {
        let kind = u.r#type.cast_signed();
        let orphan = is_orphan(u);
        let sk = if orphan || (u.r#type == DGRAM && self.queued.contains(&u.id)) {
            let (sk, sender) = self.new_pair(u)?;
            if !orphan {
                // Others must be able to send to it.
                connect(sk.as_fd(), &0u16.to_ne_bytes())?;
            }
            self.done.senders.insert(u.id, sender);
            sk
        } else {
            socket::socket(libc::AF_UNIX, kind, 0)?
        };
        if !orphan {
            bind_name(&sk, u)?;
        }
        if u.state == LISTEN {
            listen(sk.as_fd(), u.backlog)?;
        }
        self.done.files.insert(u.id, sk);
        Ok(())
    }

    fn pair(&mut self, a: &UnixSkEntry, b: &UnixSkEntry) -> Result<()> {
        let (x, y) = if let Some(listener) = self.known.listener(b) {
            self.through(a, listener)?
        } else if let Some(listener) = self.known.listener(a) {
            let (y, x) = self.through(b, listener)?;
            (x, y)
        } else {
            let (x, y) = self.new_pair(a)?;
            for (sk, u) in [(&x, a), (&y, b)] {
                // An accepted socket bears the name of its listener; without
                // that listener, the name of a file cannot be given again.
                if u.r#type == DGRAM || u.name.first() == Some(&0) {
                    bind_name(sk, u)?;
                }
            }
            (x, y)
        };
        let dup = |fd: &OwnedFd| fd.try_clone().map_err(|e| Error::os("dup", e));
        self.done.senders.insert(a.id, dup(&y)?);
        self.done.senders.insert(b.id, dup(&x)?);
        self.done.files.insert(a.id, x);
        self.done.files.insert(b.id, y);
        Ok(())
    }

    fn new_pair(&mut self, first: &UnixSkEntry) -> Result<(OwnedFd, OwnedFd)> {
        match self.pairs.remove(&first.id) {
            Some(pair) => Ok(pair),
            None => unix_pair(first.r#type.cast_signed()),
        }
    }

    /// Connects a new `client` through `listener`; (client, accepted).
    fn through(&self, client: &UnixSkEntry, listener: &UnixSkEntry) -> Result<(OwnedFd, OwnedFd)> {
        let server = self
            .done
            .files
            .get(&listener.id)
            .ok_or_else(|| Error::bug("listening socket", "was not made"))?;
        let sk = socket::socket(libc::AF_UNIX, client.r#type.cast_signed(), 0)?;
        bind_name(&sk, client)?;
        go_to(listener)?;
        connect(sk.as_fd(), &address(listener))?;
        Ok((sk, accept(server.as_fd())?))
    }

    fn one_way(&mut self, u: &UnixSkEntry, peer: &UnixSkEntry) -> Result<()> {
        if peer.name.is_empty() || peer.deleted == Some(true) {
            return Err(Error::image(
                format!("socket {}", peer.ino),
                "has no name by which it could be connected to",
            ));
        }
        if let Some(sk) = self.done.files.get(&u.id) {
            go_to(peer)?;
            connect(sk.as_fd(), &address(peer))?;
        }
        Ok(())
    }
}

fn address(u: &UnixSkEntry) -> Vec<u8> {
    let mut bytes = 1u16.to_ne_bytes().to_vec();
    bytes.extend_from_slice(&u.name);
    bytes
}

/// Makes a relative name mean what it meant.
fn go_to(u: &UnixSkEntry) -> Result<()> {
    let dir = u.name_dir.as_deref().unwrap_or("/");
    nix::unistd::chdir(dir).map_err(|e| Error::errno(format!("chdir {dir}"), e as i32))
}

fn bind_name(sk: &OwnedFd, u: &UnixSkEntry) -> Result<()> {
    match u.name.first() {
        None => return Ok(()),
        Some(0) => return bind(sk.as_fd(), &address(u)),
        Some(_) => {}
    }
    go_to(u)?;
    let name: Vec<u8> = u.name.iter().copied().take_while(|b| *b != 0).collect();
    let name = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(&name);
    let file = std::path::Path::new(name);
    let aside = file.with_extension("dunlin-aside");
    let what = |e| Error::os(format!("socket {}", file.display()), e);
    let found = std::fs::symlink_metadata(file).ok();
    let mut parked = false;
    if let Some(found) = found {
        use std::os::unix::fs::FileTypeExt;
        if u.deleted == Some(true) {
            std::fs::rename(file, &aside).map_err(what)?;
            parked = true;
        } else if found.file_type().is_socket() {
            std::fs::remove_file(file).map_err(what)?;
        }
    }
    bind(sk.as_fd(), &address(u)).map_err(|e| e.within(file.display().to_string()))?;
    if let Some(p) = &u.file_perms {
        use std::os::unix::fs::PermissionsExt;
        std::os::unix::fs::chown(file, Some(p.uid), Some(p.gid)).map_err(what)?;
        let mode = std::fs::Permissions::from_mode(p.mode & 0o7777);
        std::fs::set_permissions(file, mode).map_err(what)?;
    }
    if u.deleted == Some(true) {
        std::fs::remove_file(file).map_err(what)?;
    }
    if parked {
        std::fs::rename(&aside, file).map_err(what)?;
    }
    Ok(())
}

impl Sockets {
    /// Sends the messages again. `file` gives the open files that travel.
    pub(in crate::objects) fn fill<'f>(
        &self,
        queues: &Queues,
        file: impl Fn(u32) -> Result<BorrowedFd<'f>>,
    ) -> Result<()> {
        let mut wide = BTreeSet::new();
        for (packet, data) in queues {
            let sender = self.senders.get(&packet.id_for).ok_or_else(|| {
                Error::image(
                    format!("message for socket {}", packet.id_for),
                    "has no socket that could send it",
                )
            })?;
            if wide.insert(packet.id_for) {
                options::widest(sender.as_fd())?;
            }
            let mut rights = Vec::new();
            for id in packet.scm.iter().flat_map(|s| &s.rights) {
                rights.push(file(*id)?);
            }
            send(sender.as_fd(), data, &rights)
                .map_err(|e| e.within(format!("refill the queue of file {}", packet.id_for)))?;
        }
        Ok(())
    }

    /// Lets the senders go and sets what would have been in their way.
    pub(in crate::objects) fn finish(&mut self, unix: &[&UnixSkEntry]) -> Result<()> {
        self.senders.clear();
        for u in unix {
            if let Some(sk) = self.files.get(&u.id) {
                options::rebuild(sk.as_fd(), &u.opts)
                    .and_then(|()| options::half_close(sk.as_fd(), u.shutdown))
                    .map_err(|e| e.within(subject("Unix", u.ino)))?;
            }
        }
        Ok(())
    }
}
