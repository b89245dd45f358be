//! How the process that restores hands its address spaces to the process that
//! serves pages, over `WORKDIR/lazy-pages.socket` (unix(7), SEQPACKET).
//!
//! ```text
//! restorer                                             server
//!   HELLO version  ----------------------------------->
//!   <-----------------------------------  HELLO version
//!   <------------------------------------------  WHOLE  the images may be read
//!   SPACE id, pid [uffd, pidfd, record]  ------------->  once for each address space
//!   SHARED id [object, record]  ---------------------->  once for each shared object
//!   ANCHOR [its two ends]  --------------------------->  at most once
//!   READY root, counts  ------------------------------>  everything is built and stopped
//!                                                        (the server starts its handler)
//!   <-----------------------------------  GRANT, or ABORT why
//!   (closes its userfaultfds, lets the tasks go on)
//!   RESUMED  ----------------------------------------->
//! ```
//!
//! A message is one JSON object of at most 4 KiB. What may be long (areas, page
//! runs) travels beside it as the content of a memfd. Whatever is unknown, out of
//! order or too long ends the conversation; the restorer kills what it built when
//! it gets no GRANT.

mod client;
mod message;
mod server;

pub use client::Client;
pub use message::VERSION;
pub use server::{Ready, Server, Session};

use std::path::{Path, PathBuf};

/// The socket's place in a work directory.
#[must_use]
pub fn socket_in(work_dir: &Path) -> PathBuf {
    work_dir.join("lazy-pages.socket")
}

#[cfg(test)]
mod tests;
