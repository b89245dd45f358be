//! Sockets: unix(7) with what is in their queues, listening and unconnected
//! sockets of ip(7) and ipv6(7).
//!
//! Most is asked from the duplicated descriptor itself; sock_diag(7) adds who
//! is connected to whom. A connection is made again by connecting: pairs as
//! pairs, an accepted one through its listener, so that both ends see the names
//! that they had.

mod capture;
mod inet;
mod options;
mod peer;
mod queue;
mod rebuild;
mod unix;

pub use capture::{Capture, Open, attach};
pub(in crate::objects) use inet::check as check_inet;
pub use peer::MakePair;
pub use queue::Message;
pub(in crate::objects) use rebuild::{Queues, build, made_by};
pub(in crate::objects) use unix::check as check_unix;
