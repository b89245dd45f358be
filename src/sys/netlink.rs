//! netlink(7): requests to a subsystem of the kernel, and its answers.
//!
//! A socket speaks about the network namespace in which it was made.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use crate::base::{Error, Result};
use crate::sys::socket;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
/// The list changed while it was read.
const NLM_F_DUMP_INTR: u16 = 0x10;
/// Length of nlmsghdr.
const HEADER: usize = 16;
const ROOM: usize = 64 << 10;

/// One message of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// What it is about, in the numbers of the subsystem.
    pub kind: u16,
    /// What follows the header.
    pub body: Vec<u8>,
}

impl Message {
    /// As it stood in the answer, header included, padded to four bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        message(self.kind, 0, &self.body)
    }
}

/// A socket to one subsystem.
#[derive(Debug)]
pub struct Link {
    fd: OwnedFd,
}

impl Link {
    /// A socket of `protocol` (NETLINK_*), in the network namespace of the calling
    /// thread.
    ///
    /// # Errors
    /// EPROTONOSUPPORT when the kernel has no such subsystem.
    pub fn open(protocol: i32) -> Result<Self> {
        let fd = socket::socket(libc::AF_NETLINK, libc::SOCK_RAW, protocol)?;
        Ok(Self { fd })
    }

    /// All that the subsystem lists for a request.
    ///
    /// # Errors
    /// What it answered, as errno; EINTR when the list changed meanwhile; EBADMSG
    /// for an answer that makes no sense.
    pub fn list(&self, kind: u16, body: &[u8]) -> Result<Vec<Message>> {
        self.send(kind, NLM_F_DUMP, body)?;
        let mut all = Vec::new();
        loop {
            let datagram = self.receive()?;
            let (messages, done) = split(&datagram)?;
            all.extend(messages);
            if done {
                return Ok(all);
            }
        }
    }

    /// Makes a change.
    ///
    /// # Errors
    /// What the subsystem answered, as errno.
    pub fn change(&self, kind: u16, body: &[u8]) -> Result<()> {
        self.send(kind, NLM_F_ACK, body)?;
        // the acknowledgement is the only answer
        split(&self.receive()?).map(drop)
    }

    fn send(&self, kind: u16, flags: u16, body: &[u8]) -> Result<()> {
        let request = message(kind, flags | NLM_F_REQUEST, body);
        socket::send(self.fd.as_fd(), &request, &[]).map_err(|e| e.within("ask the kernel"))
    }

    fn receive(&self) -> Result<Vec<u8>> {
        let mut room = vec![0u8; ROOM];
        // SAFETY: the kernel writes at most room.len() bytes into `room`.
        let n = unsafe { libc::recv(self.fd.as_raw_fd(), room.as_mut_ptr().cast(), room.len(), 0) };
        let n = usize::try_from(n)
            .map_err(|_| Error::os("answer of the kernel", io::Error::last_os_error()))?;
        room.truncate(n);
        Ok(room)
    }
}

fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
    let mut m = Vec::with_capacity(HEADER + body.len());
    m.extend_from_slice(&len.to_ne_bytes());
    m.extend_from_slice(&kind.to_ne_bytes());
    m.extend_from_slice(&flags.to_ne_bytes());
    // sequence and port: one request at a time
    m.extend_from_slice(&[0; 8]);
    m.extend_from_slice(body);
    m.resize(m.len().next_multiple_of(4), 0);
    m
}

/// An attribute with its header, padded.
pub fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let len = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut a = len.to_ne_bytes().to_vec();
    a.extend_from_slice(&kind.to_ne_bytes());
    a.extend_from_slice(value);
    a.resize(a.len().next_multiple_of(4), 0);
    a
}

/// The messages of some bytes, and whether they end a list.
///
/// # Errors
/// The errno that they carry; EINTR for a list that changed; EBADMSG.
pub fn split(mut bytes: &[u8]) -> Result<(Vec<Message>, bool)> {
    let bad = || Error::errno("answer of the kernel", libc::EBADMSG);
    let mut all = Vec::new();
    while bytes.len() >= HEADER {
        let len = usize::try_from(u32_at(bytes, 0).ok_or_else(bad)?).map_err(|_| bad())?;
        let kind = u16_at(bytes, 4).ok_or_else(bad)?;
        let flags = u16_at(bytes, 6).ok_or_else(bad)?;
        let body = bytes.get(HEADER..len).ok_or_else(bad)?;
        if flags & NLM_F_DUMP_INTR != 0 {
            return Err(Error::errno("answer of the kernel", libc::EINTR));
        }
        match kind {
            NLMSG_DONE => return Ok((all, true)),
            NLMSG_ERROR => match u32_at(body, 0).ok_or_else(bad)?.cast_signed() {
                0 => return Ok((all, true)),
                e => return Err(Error::errno("answer of the kernel", e.saturating_neg())),
            },
            _ => all.push(Message {
                kind,
                body: body.to_vec(),
            }),
        }
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or(&[]);
    }
    if bytes.is_empty() {
        Ok((all, false))
    } else {
        Err(bad())
    }
}

/// The attributes of some bytes, without the flags of their kinds; ends at one that
/// is cut.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    const KIND: u16 = 0x3fff;
    std::iter::from_fn(move || {
        let len = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & KIND;
        let value = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    })
}

/// A number of the host's byte order.
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let b = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(b.try_into().ok()?))
}

/// A number of the host's byte order.
pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let b = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_ne_bytes(b.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_attributes_come_back_as_they_were_put_together() {
        let body = [attribute(1, b"lo\0"), attribute(4, &[7, 0, 0, 0])].concat();
        let one = Message { kind: 16, body };
        let two = Message {
            kind: 17,
            body: Vec::new(),
        };
        let bytes = [one.to_bytes(), two.to_bytes()].concat();
        let (all, done) = split(&bytes).unwrap();
        assert_eq!((all, done), (vec![one.clone(), two], false));
        let parts: Vec<_> = attributes(&one.body).collect();
        assert_eq!(parts, [(1, &b"lo\0"[..]), (4, &[7, 0, 0, 0][..])]);
    }

    #[test]
    fn refusals_and_cut_answers_are_errors_and_no_panic() {
        let refusal = message(NLMSG_ERROR, 0, &(-libc::EPERM).to_ne_bytes());
        let e = split(&refusal).unwrap_err();
        assert_eq!(e.raw_os_error(), Some(libc::EPERM));
        let changed = message(16, NLM_F_DUMP_INTR, &[0; 8]);
        assert_eq!(
            split(&changed).unwrap_err().raw_os_error(),
            Some(libc::EINTR)
        );
        let whole = message(16, 0, &attribute(1, b"abcdefgh"));
        for len in 1..whole.len() {
            split(&whole[..len]).unwrap_err();
            assert!(attributes(&whole[..len]).count() < 100);
        }
    }
}
