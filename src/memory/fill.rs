//! Fills everything that is missing from a source that can be read at once: all
//! of it before the resume (an eager restore), or beside the handler after it.

use std::sync::{Mutex, PoisonError};

use crate::base::{Error, Result};
use crate::memory::filler::Filler;
use crate::memory::{Origin, PageReader, PageSink};

/// Bytes moved at once: big enough for the ioctl's fixed cost, small enough to
/// stay in the cache between read and copy, and for a fault not to wait long.
pub const PIECE: u64 = 256 << 10;

/// Reads and places until nothing is missing, with `threads` threads (this one
/// is not among them).
///
/// # Errors
/// A page cannot be read or placed. The pages that are missing still are, and
/// whoever touches them waits: tell [`PageSink::lost`] if nobody tries again.
pub fn fill_all(filler: &Filler, reader: &dyn PageReader, threads: usize) -> Result<()> {
    let cursor: Mutex<Option<Origin>> = Mutex::new(None);
    let failed: Mutex<Option<Error>> = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                let mut buf = Vec::new();
                while lock(&failed).is_none() {
                    match step(filler, reader, &cursor, &mut buf) {
                        Ok(true) => {}
                        Ok(false) => break,
                        Err(e) => {
                            lock(&failed).get_or_insert(e);
                        }
                    }
                }
            });
        }
    });
    let error = lock(&failed).take();
    error.map_or(Ok(()), Err)
}

/// Places the next piece; `false` when nothing is missing.
fn step(
    filler: &Filler,
    reader: &dyn PageReader,
    cursor: &Mutex<Option<Origin>>,
    buf: &mut Vec<u8>,
) -> Result<bool> {
    let next = {
        let mut cursor = lock(cursor);
        let residency = filler.residency();
        // Once around: children may have come to need what was passed already.
        let next = residency
            .next_missing(*cursor, PIECE)
            .or_else(|| residency.next_missing(None, PIECE));
        *cursor = next.map(|(object, range)| Origin {
            object,
            at: range.end(),
        });
        next
    };
    let Some((object, range)) = next else {
        return Ok(false);
    };
    let len = usize::try_from(range.len())
        .map_err(|_| Error::bug(format!("fill {range} of {object}"), "too long"))?;
    buf.resize(len, 0);
    reader.read(object, range.start(), buf)?;
    filler.place(object, range.start(), buf)?;
    Ok(true)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{PAGE_SIZE, PageRange};
    use crate::memory::held::{Content, HeldPages, Space};
    use crate::memory::testing::{guarded, own};
    use crate::memory::{Direct, Handler, Job, OnLoss, SpaceId};
    use crate::sys::testing::Child;
    use std::os::fd::AsFd;
    use std::sync::Arc;
    use std::time::Instant;

    const GIB: u64 = 1 << 30;

    fn lazy(child: &Child, at: u64, needed: Vec<PageRange>) -> Job {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        assert_eq!(child.mmap_with(at, GIB, flags, -1), at);
        let range = PageRange::new(at, at + GIB).unwrap();
        let id = SpaceId(1);
        let space = guarded(child, id, vec![own(id, range)], needed);
        Job {
            spaces: vec![space],
            shared: vec![],
            anchor: None,
        }
    }

    /// `cargo test --release --lib one_gib -- --ignored --nocapture`
    #[test]
    #[ignore = "a measurement"]
    fn one_gib_is_found_read_and_filled_in_this_time() {
        let source = Child::fork();
        let at = source.mmap(GIB);
        for page in (at..at + GIB).step_by(4096) {
            source.fill(page, 1, 5);
        }
        crate::sys::pidfd::send_signal(source.pidfd().as_fd(), libc::SIGSTOP).unwrap();
        let area = PageRange::new(at, at + GIB).unwrap();
        let start = Instant::now();
        let space = Space::open(SpaceId(1), source.pid()).unwrap();
        let needed = space.existing(area, Content::Anonymous).unwrap().content;
        println!("find which pages exist: {:?}", start.elapsed());
        assert_eq!(needed, [area]);
        let held = Arc::new(HeldPages::new([space], []));
        for threads in [1, 2] {
            let target = Child::fork();
            let filler = Filler::new(lazy(&target, at, needed.clone())).unwrap();
            let start = Instant::now();
            fill_all(&filler, held.as_ref(), threads).unwrap();
            println!("read and fill, {threads} threads: {:?}", start.elapsed());
            drop(filler);
            assert_eq!(target.sum(at + 77 * PAGE_SIZE, 4096), 5);
        }
        let target = Child::fork();
        let filler = Filler::new(lazy(&target, at, needed)).unwrap();
        let source = Arc::new(Direct(Arc::clone(&held)));
        let policy = Box::new(|_: &Error| OnLoss::Kill);
        let handler = Handler::start(filler, source, policy).unwrap();
        let start = Instant::now();
        for page in (0..2000).map(|i| i * 61 % 2000 * 32) {
            assert_eq!(target.sum(at + page * PAGE_SIZE, 1), 5);
        }
        let each = start.elapsed() / 2000;
        println!("fault, with 16 pages each, seen by the task: {each:?}");
        println!("alone: {:?}", handler.summary());
        std::thread::scope(|s| {
            let bulk = s.spawn(|| fill_all(&handler.sink(), held.as_ref(), 1));
            for page in (2000..).map(|i| i * 61 % 8000 * 32).take(3000) {
                assert_eq!(target.sum(at + page * PAGE_SIZE, 1), 5);
                if bulk.is_finished() {
                    break;
                }
            }
        });
        println!("with bulk beside: {:?}", handler.wait().unwrap().summary);
    }
}
