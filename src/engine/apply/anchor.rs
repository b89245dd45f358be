//! Each address space that waits for pages holds the tree's anchor itself: no end
//! of ours lets it read zeros ([`crate::memory::anchor`]).

use std::os::fd::{AsFd, AsRawFd};

use tracing::warn;

use super::Build;
use crate::base::{Error, NsPid, Result};
use crate::memory::anchor::Anchor;
use crate::sys::aio;
use crate::sys::procmap::Areas;
use crate::sys::steer::{Arg, Batch, done};
use crate::sys::uffd::Uffd;

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
        match self.held_by(pid, &anchor)? {
            Ok(()) => anchor.keep(uffd.as_fd())?,
            Err(denied) => warn!("task {pid} holds no anchor of its memory: {denied}"),
        }
        self.left.anchor = Some(anchor);
        Ok(())
    }

    /// What the kernel does not allow is inside.
    fn held_by(&mut self, pid: NsPid, anchor: &Anchor) -> Result<Result<()>> {
        let service = self.service;
        let queue = anchor.queue().as_raw_fd();
        let live = self.live(pid)?;
        let mut b = Batch::new();
        let context = b.buffer(8);
        let setup = b.try_call(
            "io_setup",
            libc::SYS_io_setup,
            &[1.into(), Arg::Buf(context)],
        );
        let made = live.leader.run(&b)?;
        if let Err(e) = done("io_setup", made.ret(setup)) {
            return Ok(Err(e));
        }
        let context = made.u64_at(context, 0);
        let mut b = Batch::new();
        let fd = b.call(
            "pidfd_getfd",
            libc::SYS_pidfd_getfd,
            &[service.into(), queue.into(), 0.into()],
        );
        let fd = live.leader.run(&b)?.ret(fd);
        let fd =
            i32::try_from(fd).map_err(|_| Error::bug("pidfd_getfd", format!("returned {fd}")))?;
        let ring = Areas::open(live.host)?.at(context)?;
        let ring = ring.ok_or_else(|| Error::bug("io_setup", "made no ring"))?;
        let mut b = Batch::new();
        let request = b.bytes(&aio::until_its_end(fd));
        let list = b.buffer(8);
        b.patch(list, 0, Arg::Buf(request));
        let submit = b.try_call(
            "io_submit",
            libc::SYS_io_submit,
            &[context.into(), 1.into(), Arg::Buf(list)],
        );
        b.call("close", libc::SYS_close, &[fd.into()]);
        // The request stays, and nobody is to see where it came from.
        b.call(
            "munmap",
            libc::SYS_munmap,
            &[context.into(), ring.len().into()],
        );
        let made = live.leader.run(&b)?;
        // As many as it took are no failure.
        Ok(done("io_submit", made.ret(submit).min(0)))
    }
}
