//! Each address space that waits for pages holds the tree's anchor itself: no end
//! of ours lets it read zeros ([`crate::memory::anchor`]).

use std::os::fd::{AsFd, AsRawFd};

use tracing::warn;

use super::Build;
use crate::base::{Error, NsPid, Result};
use crate::memory::anchor::Anchor;
use crate::sys::steer::{Arg, Batch};
use crate::sys::uffd::Uffd;
use crate::sys::{aio, procfs};

impl Build<'_> {
    /// Puts the userfaultfd of a task into the anchor, and lets its address space
    /// hold that. A kernel that has no such requests, or none left, leaves it to
    /// the page handler and its guardian alone.
    ///
    /// # Errors
    /// The task cannot be steered; no descriptors are left.
    pub(super) fn anchor(&mut self, pid: NsPid, uffd: &Uffd) -> Result<()> {
        let anchor = match self.left.anchor.take() {
            Some(a) => a,
            None => Anchor::new()?,
        };
        match self.held_by(pid, &anchor) {
            Ok(()) => anchor.keep(uffd.as_fd())?,
            Err(e) if is_denied(&e) => {
                warn!("task {pid} holds no anchor of its memory: {e}");
            }
            Err(e) => return Err(e),
        }
        self.left.anchor = Some(anchor);
        Ok(())
    }

    fn held_by(&mut self, pid: NsPid, anchor: &Anchor) -> Result<()> {
        let service = self.service;
        let queue = anchor.queue().as_raw_fd();
        let live = self.live(pid)?;
        let mut b = Batch::new();
        let context = b.buffer(8);
        b.call(
            "io_setup",
            libc::SYS_io_setup,
            &[1.into(), Arg::Buf(context)],
        );
        let fd = b.call(
            "pidfd_getfd",
            libc::SYS_pidfd_getfd,
            &[service.into(), queue.into(), 0.into()],
        );
        let made = live.leader.run(&b)?;
        let (context, fd) = (made.u64_at(context, 0), made.ret(fd));
        let fd =
            i32::try_from(fd).map_err(|_| Error::bug("pidfd_getfd", format!("returned {fd}")))?;
        let maps = procfs::maps(live.host)?;
        let ring = maps.iter().find(|m| m.range.start() == context);
        let ring = ring.ok_or_else(|| Error::bug("io_setup", "made no ring"))?;
        let mut b = Batch::new();
        let request = b.bytes(&aio::until_its_end(fd));
        let list = b.buffer(8);
        b.patch(list, 0, Arg::Buf(request));
        b.call(
            "io_submit",
            libc::SYS_io_submit,
            &[context.into(), 1.into(), Arg::Buf(list)],
        );
        b.call("close", libc::SYS_close, &[fd.into()]);
        // The request stays, and nobody is to see where it came from.
        b.call(
            "munmap",
            libc::SYS_munmap,
            &[context.into(), ring.range.len().into()],
        );
        live.leader.run(&b).map(drop)
    }
}

/// io_setup(2): not built in, or the limit of the machine is reached.
fn is_denied(e: &Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::ENOSYS | libc::EAGAIN))
}
