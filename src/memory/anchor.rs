//! What keeps userfaultfds open when nobody of ours is left.
//!
//! The last close of a userfaultfd turns missing pages into zeros, so one that
//! guards missing pages must live as long as the address spaces do, whoever is
//! killed. A process cannot promise that, an address space itself can: it ends a
//! context of asynchronous I/O when it ends, and a request in that context holds a
//! file until then (`sys::aio`). Nothing of it is to be seen in the task: no
//! descriptor, no mapping.
//!
//! ```text
//! handler, guardian      each address space
//!   |        |              | a request that waits for the queue's end
//!   v        v              v
//!  uffds   the queue of a socket, which nobody has to read: it holds
//!   |                       | each userfaultfd, in a message
//!   +----> userfaultfd <----+
//! ```
//!
//! The file is no userfaultfd but a socket with messages, since what is held there
//! must be let go of again when every page has come, and only the task could end
//! its request. Who has the socket empties it ([`Anchor::let_go`]); its end
//! then ends the requests.
//!
//! Of children that are forked later the userfaultfd is put there as soon as the
//! event is read; they have no request of their own. So they are held as long as
//! any address space lives that was restored.
//!
//! What it costs: 0.2 ms an address space, and once, when that ends, the 5 to 30 ms
//! that the kernel needs to end such a context.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use tracing::warn;

use crate::base::Result;
use crate::sys::{seqpacket, socket};

/// Bytes of room for messages: some ten thousand userfaultfds.
const ROOM: i32 = 16 << 20;

/// The userfaultfds of one tree, in the queue of a socket.
#[derive(Debug)]
pub struct Anchor {
    door: OwnedFd,
    queue: OwnedFd,
}

impl Anchor {
    /// An empty one, which nobody holds yet.
    ///
    /// # Errors
    /// EMFILE.
    pub fn new() -> Result<Self> {
        // Datagrams: the end of the other end does not end the queue.
        let (door, queue) = socket::unix_pair(libc::SOCK_DGRAM)?;
        for name in [libc::SO_SNDBUFFORCE, libc::SO_SNDBUF] {
            if socket::set_option(door.as_fd(), libc::SOL_SOCKET, name, ROOM).is_ok() {
                break;
            }
        }
        Ok(Self { door, queue })
    }

    /// One that another process has made.
    pub fn adopt(door: OwnedFd, queue: OwnedFd) -> Self {
        Self { door, queue }
    }

    /// To be handed over.
    pub fn ends(&self) -> [BorrowedFd<'_>; 2] {
        [self.door.as_fd(), self.queue.as_fd()]
    }

    /// What an address space has to hold.
    pub fn queue(&self) -> BorrowedFd<'_> {
        self.queue.as_fd()
    }

    /// Keeps a userfaultfd.
    ///
    /// # Errors
    /// EAGAIN when it is full.
    pub fn keep(&self, uffd: BorrowedFd<'_>) -> Result<()> {
        socket::send(self.door.as_fd(), &[0], &[uffd])
    }

    /// Every page has come: keeps nothing any more, for nobody.
    pub fn let_go(&self) {
        // What is not taken out of a message is closed.
        while seqpacket::discard(self.queue.as_fd()).is_ok() {}
        if let Err(e) = socket::shutdown(self.queue.as_fd(), libc::SHUT_RDWR) {
            warn!("let userfaultfds go: {e}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{PAGE_SIZE, PageRange, VAddr};
    use crate::memory::testing::own;
    use crate::memory::{Filler, Job, LazySpace, SpaceId};
    use crate::sys::testing::Child;
    use crate::sys::uffd::{Uffd, feature, mode};
    use crate::sys::{aio, pidfd, procfs, vm};
    use std::os::fd::AsRawFd;
    use std::time::Duration;

    /// Lets the child hold the anchor, as a restore does.
    fn hold(child: &Child, anchor: &Anchor) {
        let room = child.mmap(PAGE_SIZE);
        let us = i64::from(std::process::id());
        let call = |nr, args| {
            let r = child.call(nr, args);
            assert!(r >= 0, "call {nr}: {r}");
            r.cast_unsigned()
        };
        let service = call(libc::SYS_pidfd_open, [us.cast_unsigned(), 0, 0, 0, 0]);
        let number = i64::from(anchor.queue().as_raw_fd()).cast_unsigned();
        let fd = call(libc::SYS_pidfd_getfd, [service, number, 0, 0, 0]);
        call(libc::SYS_io_setup, [1, room, 0, 0, 0]);
        let context = vm::read_vec(child.pid(), VAddr(room), 8).unwrap();
        let context = u64::from_ne_bytes(context.try_into().unwrap());
        let request = aio::until_its_end(i32::try_from(fd).unwrap());
        vm::write(child.pid(), VAddr(room + 64), &request).unwrap();
        let list = (room + 64).to_ne_bytes();
        vm::write(child.pid(), VAddr(room), &list).unwrap();
        assert_eq!(call(libc::SYS_io_submit, [context, 1, room, 0, 0]), 1);
        let maps = procfs::maps(child.pid()).unwrap();
        let ring = maps.iter().find(|m| m.range.start() == context).unwrap();
        child.munmap(context, ring.range.len());
        for fd in [service, fd] {
            call(libc::SYS_close, [fd, 0, 0, 0, 0]);
        }
    }

    /// An anchor that a child holds, and a page that it lacks.
    fn anchored(child: &Child) -> (Anchor, Uffd, u64) {
        let at = child.mmap(PAGE_SIZE);
        let uffd = Uffd::handshake(child.userfaultfd(), feature::LAZY).unwrap();
        uffd.register(PageRange::with_pages(at, 1).unwrap(), mode::MISSING)
            .unwrap();
        let anchor = Anchor::new().unwrap();
        hold(child, &anchor);
        anchor.keep(uffd.as_fd()).unwrap();
        (anchor, uffd, at)
    }

    #[test]
    fn with_all_our_descriptors_closed_a_missing_page_is_waited_for() {
        let child = Child::fork();
        let (anchor, uffd, at) = anchored(&child);
        drop((anchor, uffd));
        child.start_sum(at, PAGE_SIZE);
        let read = child.finish_within(Duration::from_millis(200));
        assert_eq!(read, None, "it read a page that never came");
        pidfd::send_signal(child.pidfd().as_fd(), libc::SIGKILL).unwrap();
        let long = Some(Duration::from_secs(20));
        assert!(pidfd::wait_exit(child.pidfd().as_fd(), long).unwrap());
    }

    #[test]
    fn what_was_let_go_of_is_guarded_no_more() {
        let child = Child::fork();
        let (anchor, uffd, at) = anchored(&child);
        anchor.let_go();
        drop((anchor, uffd));
        assert_eq!(child.sum(at, PAGE_SIZE), 0);
    }

    #[test]
    fn a_child_that_is_forked_later_is_kept_as_well() {
        let child = Child::fork();
        let (anchor, uffd, at) = anchored(&child);
        let range = PageRange::with_pages(at, 1).unwrap();
        let area = own(SpaceId(1), range);
        let space = LazySpace {
            id: SpaceId(1),
            pid: child.pid(),
            pidfd: child.pidfd().try_clone().unwrap(),
            uffd,
            areas: vec![area],
            needed: vec![range],
            locked: Vec::new(),
        };
        let job = Job {
            spaces: vec![space],
            shared: vec![],
            anchor: Some(anchor),
        };
        let filler = Filler::new(job).unwrap();
        let space = filler.space(SpaceId(1)).unwrap();
        let forked = std::thread::scope(|s| {
            let forks = s.spawn(|| child.spawn());
            while !forks.is_finished() {
                filler.drain(&space).unwrap();
            }
            forks.join().unwrap()
        });
        drop((space, filler));
        forked.start_sum(at, PAGE_SIZE);
        let read = forked.finish_within(Duration::from_millis(200));
        assert_eq!(read, None, "it read a page that never came");
    }

    #[test]
    fn a_thousand_are_kept() {
        let anchor = Anchor::new().unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        for _ in 0..1000 {
            anchor.keep(file.as_fd()).unwrap();
        }
        anchor.let_go();
    }
}
