//! What waits in the queue of a Unix socket, looked at and left there.

use std::os::fd::{BorrowedFd, OwnedFd};

use crate::base::{Error, Result};
use crate::sys::socket::{option, peek, set_option, unread};

/// A message that waits to be read; of a stream, a run of bytes.
#[derive(Debug)]
pub struct Message {
    /// Its bytes.
    pub data: Vec<u8>,
    /// Duplicates of the descriptors that travel with it.
    pub rights: Vec<OwnedFd>,
}

/// Least room for a message.
const LEAST: usize = 4 << 10;
/// Most bytes of one message.
const LARGEST: usize = 64 << 20;
/// Most messages in one queue.
const MOST: usize = 1 << 16;

/// All of them, in order. `stream`: an empty read is the end of the stream.
pub(super) fn capture(fd: BorrowedFd<'_>, ends_empty: bool) -> Result<Vec<Message>> {
    let before = option(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF)?;
    if before != -1 {
        return Err(Error::refused(
            "socket with SO_PEEK_OFF set",
            "cannot be carried",
        ));
    }
    // All bytes of a stream, those of the next message else: there may be longer ones.
    let mut room = unread(fd)?.max(LEAST);
    let messages = loop {
        set_option(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF, 0)?;
        match all(fd, ends_empty, room) {
            Ok(None) if room < LARGEST => room *= 4,
            other => break other,
        }
    };
    set_option(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF, -1)?;
    messages?.ok_or_else(|| Error::refused("a message in its queue", "is above 64 MiB"))
}

/// `None` when a message is longer than `room`.
fn all(fd: BorrowedFd<'_>, ends_empty: bool, room: usize) -> Result<Option<Vec<Message>>> {
    let mut messages = Vec::new();
    while let Some(message) = peek(fd, room)? {
        if message.truncated {
            return Ok(None);
        }
        if let Some(kind) = message.other_control {
            return Err(Error::refused(
                format!("control data of type {kind} in its queue"),
                "cannot be carried",
            ));
        }
        if message.data.is_empty() && message.rights.is_empty() && ends_empty {
            break;
        }
        if messages.len() == MOST {
            return Err(Error::refused("its queue", "holds too many messages"));
        }
        messages.push(Message {
            data: message.data,
            rights: message.rights,
        });
    }
    Ok(Some(messages))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::socket::{send, unix_pair};
    use std::os::fd::AsFd;

    fn queued(kind: i32, messages: &[&[u8]]) -> Vec<Vec<u8>> {
        let (a, b) = unix_pair(kind).unwrap();
        for m in messages {
            send(a.as_fd(), m, &[]).unwrap();
        }
        let first = capture(b.as_fd(), true).unwrap();
        let again = capture(b.as_fd(), true).unwrap();
        let data = |v: Vec<Message>| v.into_iter().map(|m| m.data).collect::<Vec<_>>();
        let first = data(first);
        assert_eq!(first, data(again), "looking at a queue changes it");
        first
    }

    #[test]
    fn messages_keep_their_borders_and_stream_bytes_their_order() {
        let two: &[&[u8]] = &[b"one", b"three"];
        assert_eq!(queued(libc::SOCK_DGRAM, two), two);
        assert_eq!(queued(libc::SOCK_SEQPACKET, two), two);
        assert_eq!(queued(libc::SOCK_STREAM, two).concat(), b"onethree");
    }

    #[test]
    fn a_message_above_the_first_room_is_whole() {
        let (a, b) = unix_pair(libc::SOCK_DGRAM).unwrap();
        set_option(a.as_fd(), libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, 4 << 20).unwrap();
        let large: Vec<u8> = (0..LEAST + 9)
            .map(|i| u8::try_from(i % 251).unwrap())
            .collect();
        send(a.as_fd(), b"small", &[]).unwrap();
        send(a.as_fd(), &large, &[]).unwrap();
        let got = capture(b.as_fd(), true).unwrap();
        assert_eq!(got.len(), 2);
        assert!(got[1].data == large);
    }
}
