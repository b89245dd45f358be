//! Serves the memory of one tree that is being restored on this machine, from
//! something that can be read at once: what `lazy-pages` does.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::base::Result;
use crate::memory::fill::fill_all;
use crate::memory::guardian::Guardian;
use crate::memory::handler::{Direct, Handler, OnLoss, Outcome};
use crate::memory::handoff::Server;
use crate::memory::{Filler, PageReader, PageSink};

/// Threads that fill what nobody has asked for yet.
const THREADS: usize = 2;

/// Waits for a restorer (as long as `patience`, for ever if `None`), lets its tree
/// go on, serves its faults and fills the rest; returns when every page is there.
/// `None` when no restorer came. `status` is where the guardian says that it had
/// to stop the container. `timeout` holds for each wait for the restorer. `help` says
/// who does what only a tracer can ([`Filler::past_calls_by`]).
///
/// Call it before this process holds any userfaultfd.
///
/// # Errors
/// The restorer contradicts itself; a page cannot be read or placed (the
/// container is killed then).
pub fn serve_one(
    server: &Server,
    reader: Arc<dyn PageReader>,
    status: Option<&Path>,
    patience: Option<Duration>,
    timeout: Duration,
    help: impl FnOnce(&Filler),
) -> Result<Option<Outcome>> {
    let mut guardian = Guardian::start(status)?;
    let Some(session) = server.accept(patience, timeout)? else {
        return Ok(None);
    };
    let (job, ready) = session.receive()?;
    let filler = Filler::new(job)?;
    help(&filler);
    guardian.watch(&filler)?;
    let source = Arc::new(Direct(Arc::clone(&reader)));
    let handler = Handler::start(filler, source, Box::new(|_| OnLoss::Kill))?;
    if let Err(e) = ready.grant() {
        // Its tasks died with it, unless it died after it had let them go: they
        // need their pages either way.
        tracing::warn!("{e}; serving whoever lives");
    }
    if let Err(e) = fill_all(&handler.sink(), reader.as_ref(), THREADS) {
        handler.sink().lost(e);
    }
    let outcome = handler.wait();
    if outcome.is_err() {
        // The container was killed and is still guarded: the guardian sees it to
        // its end when this process goes.
        std::mem::forget(guardian);
    }
    outcome.map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Error, PAGE_SIZE};
    use crate::memory::handoff::Client;
    use crate::memory::testing::lazy;
    use crate::memory::{Object, SpaceId};
    use crate::sys::pidfd;
    use crate::sys::testing::Child;
    use std::os::fd::AsFd;

    const LONG: Duration = Duration::from_secs(20);
    const PAGES: u64 = 300;

    /// Threes, and from some page on nothing but errors.
    struct Threes(u64);

    impl PageReader for Threes {
        fn read(&self, _: Object, at: u64, buf: &mut [u8]) -> Result<()> {
            if at + u64::try_from(buf.len()).unwrap() > self.0 {
                return Err(Error::errno("read pages-1.img", libc::EIO));
            }
            buf.fill(3);
            Ok(())
        }
    }

    fn restore(child: &Child, work: &Path) -> u64 {
        let (space, range) = lazy(child, SpaceId(1), PAGES);
        let mut client = Client::connect(work, LONG).unwrap();
        client.images(LONG).unwrap();
        client.space(&space).unwrap();
        client.ready(child.pid(), LONG).unwrap();
        client.resumed().unwrap();
        range.start()
    }

    #[test]
    fn a_restored_tree_gets_all_its_pages() {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::bind(dir.path()).unwrap();
        let child = Child::fork();
        let outcome = std::thread::scope(|s| {
            s.spawn(|| {
                let at = restore(&child, dir.path());
                assert_eq!(child.sum(at, PAGES * PAGE_SIZE), 3 * PAGES * PAGE_SIZE);
            });
            serve_one(
                &server,
                Arc::new(Threes(u64::MAX)),
                None,
                Some(LONG),
                LONG,
                |_| (),
            )
        });
        assert_eq!(outcome.unwrap().unwrap().count.present, PAGES);
        let reader: Arc<dyn PageReader> = Arc::new(Threes(0));
        let none = serve_one(&server, reader, None, Some(Duration::ZERO), LONG, |_| ()).unwrap();
        assert!(none.is_none());
    }

    #[test]
    fn an_unreadable_image_kills_the_tree_and_shows_it_no_zeros() {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::bind(dir.path()).unwrap();
        let child = Child::fork();
        let outcome = std::thread::scope(|s| {
            s.spawn(|| restore(&child, dir.path()));
            serve_one(&server, Arc::new(Threes(0)), None, Some(LONG), LONG, |_| ())
        })
        .unwrap()
        .unwrap();
        assert!(
            outcome
                .lost
                .unwrap()
                .to_string()
                .starts_with("read pages-1.img")
        );
        assert!(pidfd::wait_exit(child.pidfd().as_fd(), Some(LONG)).unwrap());
    }
}
