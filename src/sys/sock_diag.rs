//! sock_diag(7) for Unix sockets: what no call on the socket itself tells.
//!
//! One request lists all Unix sockets of a network namespace, about 0.1 ms.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;

use crate::base::{Error, Result};
use crate::sys::netlink::{Link, attributes, u32_at};
use crate::sys::socket::{self, Place};

/// A Unix socket as the kernel lists it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UnixSocket {
    /// SOCK_STREAM, SOCK_DGRAM or SOCK_SEQPACKET.
    pub kind: u8,
    /// TCP_ESTABLISHED 1, TCP_CLOSE 7, TCP_LISTEN 10.
    pub state: u8,
    /// Inode of the socket.
    pub inode: u32,
    /// Inode of the socket it is connected to; 0 when that is closed.
    pub peer: Option<u32>,
    /// Name, without the family; a file name ends before its zero byte.
    pub name: Vec<u8>,
    /// For a listening socket: sockets that wait to be accepted (0: closed since).
    pub waiting: Vec<u32>,
    /// Bytes to read, or for a listening socket connections to accept.
    pub receive_queue: u32,
    /// Bytes sent and not read, or for a listening socket its backlog.
    pub send_queue: u32,
    /// 1: shut down for reading, 2: for writing.
    pub shutdown: u8,
}

const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// UDIAG_SHOW_NAME | PEER | ICONS | RQLEN
const SHOW: u32 = 0x01 | 0x04 | 0x08 | 0x10;
const UNIX_DIAG_NAME: u16 = 0;
const UNIX_DIAG_PEER: u16 = 2;
const UNIX_DIAG_ICONS: u16 = 3;
const UNIX_DIAG_RQLEN: u16 = 4;
const UNIX_DIAG_SHUTDOWN: u16 = 6;

/// Length of unix_diag_msg.
const HEADER: usize = 16;

/// All Unix sockets of the network namespace `net` (`None`: ours), by inode.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN for `net`; ENOENT when the kernel has no
/// unix_diag; a malformed answer.
pub fn unix_sockets(net: Option<BorrowedFd<'_>>) -> Result<BTreeMap<u32, UnixSocket>> {
    let place = Place { net, root: None };
    let link = socket::at_place(place, || Link::open(libc::NETLINK_SOCK_DIAG))?;
    let list = link.list(SOCK_DIAG_BY_FAMILY, &request());
    let mut found = BTreeMap::new();
    for message in list.map_err(|e| e.within("list Unix sockets"))? {
        let socket = parse(&message.body).ok_or_else(|| {
            Error::errno("list Unix sockets: answer of the kernel", libc::EBADMSG)
        })?;
        found.insert(socket.inode, socket);
    }
    Ok(found)
}

/// unix_diag_req: family, protocol, pad, states, inode, show, cookie
fn request() -> Vec<u8> {
    let mut m = vec![1, 0, 0, 0];
    m.extend_from_slice(&u32::MAX.to_ne_bytes());
    m.extend_from_slice(&0u32.to_ne_bytes());
    m.extend_from_slice(&SHOW.to_ne_bytes());
    m.extend_from_slice(&[0xff; 8]);
    m
}

fn parse(message: &[u8]) -> Option<UnixSocket> {
    let mut socket = UnixSocket {
        kind: *message.get(1)?,
        state: *message.get(2)?,
        inode: u32_at(message, 4)?,
        ..UnixSocket::default()
    };
    for (kind, value) in attributes(message.get(HEADER..)?) {
        match kind {
            UNIX_DIAG_NAME => socket.name = value.to_vec(),
            UNIX_DIAG_PEER => socket.peer = Some(u32_at(value, 0)?),
            UNIX_DIAG_ICONS => {
                socket.waiting = value.chunks_exact(4).filter_map(|c| u32_at(c, 0)).collect();
            }
            UNIX_DIAG_RQLEN => {
                socket.receive_queue = u32_at(value, 0)?;
                socket.send_queue = u32_at(value, 4)?;
            }
            UNIX_DIAG_SHUTDOWN => socket.shutdown = *value.first()?,
            _ => {}
        }
    }
    Some(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{AsFd, OwnedFd};
    use std::os::linux::fs::MetadataExt;

    fn inode(fd: &OwnedFd) -> u32 {
        let file = std::fs::File::from(fd.try_clone().unwrap());
        u32::try_from(file.metadata().unwrap().st_ino()).unwrap()
    }

    #[test]
    fn both_ends_of_a_pair_name_each_other() {
        let (a, b) = socket::unix_pair(libc::SOCK_STREAM).unwrap();
        socket::send(a.as_fd(), b"xyz", &[]).unwrap();
        socket::shutdown(b.as_fd(), libc::SHUT_WR).unwrap();
        let all = unix_sockets(None).unwrap();
        let (x, y) = (&all[&inode(&a)], &all[&inode(&b)]);
        assert_eq!((x.peer, y.peer), (Some(y.inode), Some(x.inode)));
        assert_eq!((x.shutdown, y.shutdown), (1, 2));
        assert_eq!(y.receive_queue, 3);
    }

    #[test]
    fn a_short_answer_is_an_error_and_no_panic() {
        for len in 0..HEADER {
            assert_eq!(parse(&vec![1; len]), None);
        }
        for len in HEADER..48 {
            drop(parse(&vec![1; len]));
        }
    }
}
