//! Control messages: small protobuf records, one per frame kind that needs
//! content. Field numbers are ours and never change their meaning.

use prost::Message;

use super::frame::{Kind, encode};
use crate::base::{Blame, Error, Result};

/// HELLO: opens a lane.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Hello {
    /// Protocol versions that the source speaks, best first.
    #[prost(uint32, repeated, tag = "1")]
    pub versions: Vec<u32>,
    /// The session, from the token: 16 bytes.
    #[prost(bytes = "vec", tag = "2")]
    pub session: Vec<u8>,
    /// What the lane is for: see [`Lane`].
    #[prost(uint32, tag = "3")]
    pub lane: u32,
    /// Which reconnection this is; the first is 1.
    #[prost(uint64, tag = "4")]
    pub epoch: u64,
    /// 32 fresh random bytes.
    #[prost(bytes = "vec", tag = "5")]
    pub nonce: Vec<u8>,
    /// Bytes in a page at the source.
    #[prost(uint64, tag = "6")]
    pub page_size: u64,
}

/// What a lane carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lane {
    /// The session's own messages, bundle, images.
    Control,
    /// Pages that tasks wait for, and the requests for them.
    Fault,
    /// Pages that nobody asked for yet.
    Bulk,
}

impl Lane {
    /// Its number on the wire; 0 is none.
    pub fn number(self) -> u32 {
        match self {
            Lane::Control => 1,
            Lane::Fault => 2,
            Lane::Bulk => 3,
        }
    }

    /// The lane of a number.
    ///
    /// # Errors
    /// Unknown.
    pub fn from_number(n: u32) -> Result<Self> {
        match n {
            1 => Ok(Lane::Control),
            2 => Ok(Lane::Fault),
            3 => Ok(Lane::Bulk),
            _ => Err(Error::peer("open lane", format!("unknown sort {n}"))),
        }
    }
}

/// CHALLENGE: the receiver's nonce and the version it chose.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Challenge {
    /// The version to speak.
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// 32 fresh random bytes.
    #[prost(bytes = "vec", tag = "2")]
    pub nonce: Vec<u8>,
}

/// PROOF and WELCOME: that the sender knows the secret.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Proof {
    /// HMAC-SHA-256, see [`super::secret`].
    #[prost(bytes = "vec", tag = "1")]
    pub mac: Vec<u8>,
}

/// OFFER: what is to be moved.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Offer {
    /// The container's id.
    #[prost(string, tag = "1")]
    pub id: String,
    /// The bundle's config.json as the source runs it.
    #[prost(bytes = "vec", tag = "2")]
    pub config: Vec<u8>,
    /// Bytes of regular files in the bundle, about.
    #[prost(uint64, tag = "3")]
    pub bundle_bytes: u64,
    /// Bytes of memory that the container holds, about.
    #[prost(uint64, tag = "4")]
    pub memory_bytes: u64,
    /// `uname -m` of the source.
    #[prost(string, tag = "5")]
    pub machine: String,
    /// CPU flags of the source that a program may have found (`/proc/cpuinfo`).
    #[prost(string, repeated, tag = "6")]
    pub cpu_flags: Vec<String>,
    /// Files and directories in the bundle, about.
    #[prost(uint64, tag = "7")]
    pub bundle_entries: u64,
    /// What runc remembers of descriptors 0, 1, 2 (`descriptors.json`).
    #[prost(string, repeated, tag = "8")]
    pub descriptors: Vec<String>,
    /// What the source carries beside the default, as options: the destination has to
    /// be told the same.
    #[prost(string, repeated, tag = "9")]
    pub carried: Vec<String>,
}

/// REFUSED, ABORT, ABORTED, FAILURE: why, in sentences for people.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Reasons {
    /// One reason a line.
    #[prost(string, repeated, tag = "1")]
    pub reasons: Vec<String>,
}

/// ENTRY: one file of the bundle; for a regular one DATA frames follow until
/// `size` is reached or the next ENTRY comes (holes are not sent).
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Entry {
    /// Path below the bundle's root file system, no leading slash; empty: the root itself.
    #[prost(bytes = "vec", tag = "1")]
    pub path: Vec<u8>,
    /// `st_mode` with its type.
    #[prost(uint32, tag = "2")]
    pub mode: u32,
    /// Owner.
    #[prost(uint32, tag = "3")]
    pub uid: u32,
    /// Group.
    #[prost(uint32, tag = "4")]
    pub gid: u32,
    /// Bytes, of a regular file.
    #[prost(uint64, tag = "5")]
    pub size: u64,
    /// Modification time, seconds since 1970.
    #[prost(int64, tag = "6")]
    pub mtime: i64,
    /// And nanoseconds.
    #[prost(uint32, tag = "7")]
    pub mtime_nsec: u32,
    /// Where a symbolic link points.
    #[prost(bytes = "vec", tag = "8")]
    pub target: Vec<u8>,
    /// Earlier path of the same inode: make a hard link of it.
    #[prost(bytes = "vec", tag = "9")]
    pub hard_link: Vec<u8>,
    /// Extended attributes of files and directories.
    #[prost(message, repeated, tag = "10")]
    pub xattrs: Vec<Xattr>,
}

/// An extended attribute.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Xattr {
    /// Its full name.
    #[prost(bytes = "vec", tag = "1")]
    pub name: Vec<u8>,
    /// Its value.
    #[prost(bytes = "vec", tag = "2")]
    pub value: Vec<u8>,
}

/// REMOVE: a path that was sent and is no more.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Remove {
    /// As in [`Entry`].
    #[prost(bytes = "vec", tag = "1")]
    pub path: Vec<u8>,
}

/// IMAGE: a file of the image directory; IMAGE_DATA frames follow.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Image {
    /// File name, no slash.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Bytes.
    #[prost(uint64, tag = "2")]
    pub size: u64,
}

/// STATE_END: counts, so that a lost image is noticed.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct StateEnd {
    /// Image files sent.
    #[prost(uint64, tag = "1")]
    pub images: u64,
    /// Their bytes.
    #[prost(uint64, tag = "2")]
    pub bytes: u64,
    /// Microseconds from the first interrupt to this message.
    #[prost(uint64, tag = "3")]
    pub frozen_us: u64,
}

/// READY, GRANT, RESUMED, COMPLETE, FORGET, bound to the session and its epoch.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Step {
    /// The session: 16 bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub session: Vec<u8>,
    /// The epoch in which it is said.
    #[prost(uint64, tag = "2")]
    pub epoch: u64,
    /// Named times, microseconds, for the account.
    #[prost(message, repeated, tag = "3")]
    pub times: Vec<Figure>,
}

/// A named number of the account: microseconds, bytes or a count.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Figure {
    /// Its name, as in the report.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its value.
    #[prost(uint64, tag = "2")]
    pub value: u64,
}

/// FAULT: a page that a task waits for.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Fault {
    /// Image id of the address space or shared memory.
    #[prost(uint32, tag = "1")]
    pub id: u32,
    /// Address or byte offset of the page.
    #[prost(uint64, tag = "2")]
    pub address: u64,
    /// Pages wanted from there, at least 1.
    #[prost(uint32, tag = "3")]
    pub pages: u32,
    /// Start of the range around it that is welcome too.
    #[prost(uint64, tag = "4")]
    pub window_start: u64,
    /// Its pages; 0: none.
    #[prost(uint32, tag = "5")]
    pub window_pages: u32,
    /// 1: address space; 2: shared memory.
    #[prost(uint32, tag = "6")]
    pub sort: u32,
}

/// MISSING: what the destination still lacks, after a reconnection.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Missing {
    /// Image id of the address space or shared memory.
    #[prost(uint32, tag = "1")]
    pub id: u32,
    /// Start addresses or byte offsets.
    #[prost(uint64, repeated, tag = "2")]
    pub starts: Vec<u64>,
    /// Pages of each.
    #[prost(uint64, repeated, tag = "3")]
    pub pages: Vec<u64>,
    /// The last message of the list.
    #[prost(bool, tag = "4")]
    pub last: bool,
    /// 1: address space; 2: shared memory.
    #[prost(uint32, tag = "5")]
    pub sort: u32,
}

/// ABSENT: what the destination may stop to wait for.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Absent {
    /// Image id of the address space or shared memory.
    #[prost(uint32, tag = "1")]
    pub id: u32,
    /// 1: address space; 2: shared memory.
    #[prost(uint32, tag = "2")]
    pub sort: u32,
    /// Start addresses or byte offsets.
    #[prost(uint64, repeated, tag = "3")]
    pub starts: Vec<u64>,
    /// Pages of each.
    #[prost(uint64, repeated, tag = "4")]
    pub pages: Vec<u64>,
    /// They are guard pages of the address space; else no such pages exist, and
    /// they read as zeros.
    #[prost(bool, tag = "5")]
    pub guards: bool,
}

/// A whole frame from a message.
///
/// # Errors
/// The message is over the limit of its kind.
pub fn frame<M: Message>(kind: Kind, m: &M) -> Result<Vec<u8>> {
    encode(kind, &m.encode_to_vec())
}

/// A message from the body of a frame of `kind`.
///
/// # Errors
/// Not that message; the peer is to blame.
pub fn parse<M: Message + Default>(kind: Kind, body: &[u8]) -> Result<M> {
    M::decode(body).map_err(|e| Error::other(Blame::Peer, format!("read {kind:?} message"), e))
}
