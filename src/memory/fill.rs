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
