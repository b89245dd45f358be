//! The RPC socket: one protobuf message a packet (SEQPACKET), a descriptor
//! beside it where the message is about one.

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use nix::sys::socket::{
    ControlMessage, MsgFlags, SockType, getsockopt, recv, sendmsg, sockopt::PeerCredentials,
    sockopt::SockType as TypeOfSocket,
};
use prost::Message;

use crate::base::{Blame, Error, Result, ResultExt, limits};
use crate::image::records::rpc::{CriuReq, CriuResp};

/// The client's end of this conversation.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: OwnedFd,
    peer: i32,
}

impl Connection {
    /// Talks on `socket`, which must be a connected SEQPACKET socket.
    ///
    /// # Errors
    /// It is something else.
    pub(crate) fn new(socket: OwnedFd) -> Result<Self> {
        let kind = getsockopt(&socket, TypeOfSocket).context(|| "RPC socket".to_owned())?;
        if kind != SockType::SeqPacket {
            return Err(Error::caller("RPC socket", "is not a SEQPACKET socket"));
        }
        let peer = getsockopt(&socket, PeerCredentials)
            .context(|| "peer of the RPC socket".to_owned())?
            .pid();
        Ok(Self { socket, peer })
    }

    /// Where descriptor `fd` of the client can be opened again.
    pub(crate) fn peer_fd(&self, fd: i32) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{fd}", self.peer))
    }

    /// The next request; `None` when the client has closed.
    ///
    /// # Errors
    /// The socket failed (blame: kernel), or the packet is no request (blame:
    /// caller), after which the next one can be read.
    pub(crate) fn receive(&self) -> Result<Option<CriuReq>> {
        let context = || "RPC request".to_owned();
        let fd = self.socket.as_raw_fd();
        let peek = MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC;
        let length = retry(|| recv(fd, &mut [], peek)).context(context)?;
        let mut packet = vec![0; length.min(limits::MAX_RECORD)];
        let read = retry(|| recv(fd, &mut packet, MsgFlags::empty())).context(context)?;
        if length == 0 {
            return Ok(None);
        }
        if length > limits::MAX_RECORD {
            return Err(Error::caller(context(), "is larger than 64 MiB"));
        }
        CriuReq::decode(&packet[..read])
            .map(Some)
            .map_err(|e| Error::other(Blame::Caller, context(), e))
    }

    /// Sends `answer`, with `fd` beside it if there is one.
    ///
    /// # Errors
    /// The client is gone.
    pub(crate) fn send(&self, answer: &CriuResp, fd: Option<BorrowedFd<'_>>) -> Result<()> {
        let packet = answer.encode_to_vec();
        let fds: Vec<_> = fd.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        let control: &[_] = if fds.is_empty() { &[] } else { &rights };
        let data = [IoSlice::new(&packet)];
        retry(|| {
            sendmsg::<()>(
                self.socket.as_fd().as_raw_fd(),
                &data,
                control,
                MsgFlags::MSG_NOSIGNAL,
                None,
            )
        })
        .context(|| "RPC answer".to_owned())?;
        Ok(())
    }
}

fn retry<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    loop {
        match call() {
            Err(nix::errno::Errno::EINTR) => {}
            result => return result,
        }
    }
}
