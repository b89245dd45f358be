//! Our protocol between two dunlins: frames, messages, page batches, a session
//! that knows which message may follow which (no IO in it), and the transport.
//!
//! Why it is so:
//! - A frame is a fixed header (magic, version, type, length, checksum) that is
//!   judged before its body is read: nothing foreign sizes an allocation, and
//!   what is unknown is refused, never skipped.
//! - The session is a table of legal moves shared by both ends, so that a test
//!   can walk it without a socket; transport moves frames and knows no meaning.
//! - A session lives on several connections (lanes), because a page that a task
//!   waits for must never queue behind a megabyte that nobody asked for yet.
//! - Each lane is opened by a proof of the session's secret that is bound to the
//!   TLS channel under it; the receiver proves the same, since a source kills
//!   its container on the receiver's word.
//!
//! `docs/wire.md` describes the bytes for people.

pub mod batch;
pub mod frame;
pub mod message;
pub mod ranges;
pub mod secret;
pub mod session;
pub mod tls;
pub mod transport;
