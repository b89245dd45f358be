//! Sockets of stopped tasks to records.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::stat::fstat;

use super::queue::Message;
use super::{inet, peer, unix};
use crate::base::{Error, HostPid, Result, ResultExt};
use crate::image::records::{FileEntry, FownEntry, PeerCredEntry, ScmEntry, SkPacketEntry};
use crate::sys::sock_diag::{self, UnixSocket};
use crate::sys::socket::{namespace, option};

/// A socket that is being captured: our duplicate and what is known of it.
#[derive(Debug)]
pub struct Open<'a> {
    /// Id of the open file description.
    pub id: u32,
    /// Our duplicate.
    pub fd: BorrowedFd<'a>,
    /// Inode of the socket.
    pub ino: u64,
    /// Status flags.
    pub flags: u32,
    /// Who gets SIGIO.
    pub fown: FownEntry,
}

/// A record with the messages that wait in its queue.
pub(super) type Captured = (FileEntry, Vec<(SkPacketEntry, Message)>);

/// Collects the sockets of a tree of stopped tasks.
#[derive(Debug)]
pub struct Capture {
    net: OwnedFd,
    net_inode: u64,
    own_net: bool,
    pub(super) net_ns_id: Option<u32>,
    pub(super) ext_unix_sk: bool,
    listed: Option<BTreeMap<u32, UnixSocket>>,
    depth: usize,
    peers: Vec<PeerCredEntry>,
    /// Captured Unix sockets by inode, and their peers.
    pub(super) unix: BTreeMap<u32, Option<unix::Peer>>,
}

impl Capture {
    /// Begins with the tree whose root is `root`; `net_ns_id` is what the
    /// image calls its network namespace.
    ///
    /// # Errors
    /// ENOENT or ESRCH when there is no such task.
    pub fn new(root: HostPid, net_ns_id: Option<u32>, ext_unix_sk: bool) -> Result<Self> {
        let open = |path: String| {
            File::open(&path)
                .map(OwnedFd::from)
                .map_err(|e| Error::os(format!("open {path}"), e))
        };
        let net = open(format!("/proc/{root}/ns/net"))?;
        let ours = open("/proc/self/ns/net".into())?;
        let net_inode = inode(&net)?;
        Ok(Self {
            own_net: inode(&ours)? != net_inode,
            net,
            net_inode,
            net_ns_id,
            ext_unix_sk,
            listed: None,
            depth: peer::depth(root)?,
            peers: Vec::new(),
            unix: BTreeMap::new(),
        })
    }

    /// Captures one socket.
    ///
    /// # Errors
    /// A socket that cannot be carried, by name.
    pub fn socket(&mut self, open: &Open<'_>) -> Result<Captured> {
        let family = option(open.fd, libc::SOL_SOCKET, libc::SO_DOMAIN)?;
        if !matches!(family, libc::AF_UNIX | libc::AF_INET | libc::AF_INET6) {
            return Err(Error::refused(
                format!("{} socket", family_name(family)),
                "cannot be carried",
            ));
        }
        if inode(&namespace(open.fd)?)? != self.net_inode {
            return Err(Error::refused(
                "socket of another network namespace",
                "cannot be carried",
            ));
        }
        match family {
            libc::AF_UNIX => {
                self.peers
                    .extend(peer::credentials(open.fd, open.id, self.depth)?);
                unix::capture(self, open)
            }
            _ => Ok((inet::capture(self, open, family)?, Vec::new())),
        }
    }

    /// What the kernel lists of a Unix socket.
    pub(super) fn listed(&mut self, ino: u32) -> Result<UnixSocket> {
        if self.listed.is_none() {
            let net = self.own_net.then(|| self.net.as_fd());
            self.listed = Some(sock_diag::unix_sockets(net)?);
        }
        self.listed
            .as_ref()
            .and_then(|l| l.get(&ino))
            .cloned()
            .ok_or_else(|| {
                Error::refused(format!("Unix socket {ino}"), "is not listed by the kernel")
            })
    }

    /// Whom the peers of the Unix sockets were made by.
    pub fn peers(&self) -> &[PeerCredEntry] {
        &self.peers
    }

    /// Records for the ends of connections that are outside, with ids from `fresh`.
    ///
    /// # Errors
    /// A Unix socket that is connected to one outside, unless `--ext-unix-sk`
    /// allows it and the other end has a name.
    pub fn finish(&self, fresh: impl FnMut() -> u32) -> Result<Vec<FileEntry>> {
        unix::outside(self, fresh)
    }
}

/// Puts the ids of descriptors in flight into the record of their message.
pub fn attach(packet: &mut SkPacketEntry, rights: Vec<u32>) {
    if !rights.is_empty() {
        packet.scm.push(ScmEntry {
            r#type: libc::SCM_RIGHTS.cast_unsigned(),
            rights,
        });
    }
}

fn inode(fd: &OwnedFd) -> Result<u64> {
    Ok(fstat(fd).context(|| "fstat".into())?.st_ino)
}

fn family_name(family: i32) -> String {
    match family {
        libc::AF_NETLINK => "netlink".into(),
        libc::AF_PACKET => "packet".into(),
        libc::AF_VSOCK => "vsock".into(),
        libc::AF_ALG => "crypto (AF_ALG)".into(),
        libc::AF_XDP => "XDP".into(),
        libc::AF_BLUETOOTH => "Bluetooth".into(),
        libc::AF_CAN => "CAN".into(),
        other => format!("family {other}"),
    }
}
