//! The source's side of page traffic: answers faults, pushes the rest.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::base::{Error, PAGE_SIZE, PageRange, Result};
use crate::memory::{Object, PageReader};
use crate::wire::batch::{self, MAX_RUNS, lay_out};
use crate::wire::frame::{BATCH_BYTES, Kind};
use crate::wire::message;
use crate::wire::transport::{Reader, Writer, told};

use super::queue::{Piece, Queue};

/// Pages of a bulk batch.
const BULK_PAGES: u64 = (BATCH_BYTES as u64 / PAGE_SIZE) / 2;
/// Most pages that go with a wanted one.
const WINDOW: u64 = 64;

/// What is pushed, and how much has gone.
pub struct Pump {
    queue: Mutex<Queue>,
    pages: Arc<dyn PageReader>,
    bytes: AtomicU64,
    batches: AtomicU64,
    faults: AtomicU64,
}

impl std::fmt::Debug for Pump {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pump")
            .field("left", &self.queue().left())
            .finish_non_exhaustive()
    }
}

impl Pump {
    /// Pushes `objects`, read from `pages`.
    pub fn new(pages: Arc<dyn PageReader>, objects: &[(Object, Vec<PageRange>)]) -> Self {
        let mut queue = Queue::new();
        for (object, ranges) in objects {
            queue.declare(*object, ranges.iter().copied());
        }
        Self {
            queue: Mutex::new(queue),
            pages,
            bytes: AtomicU64::new(0),
            batches: AtomicU64::new(0),
            faults: AtomicU64::new(0),
        }
    }

    /// The queue, for a restart in a new epoch.
    pub fn queue(&self) -> MutexGuard<'_, Queue> {
        // Whole between any two statements that could panic.
        self.queue
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Bytes of page content sent.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Faults answered.
    pub fn faults(&self) -> u64 {
        self.faults.load(Ordering::Relaxed)
    }

    /// Answers faults until the lane ends.
    ///
    /// # Errors
    /// The connection; a page that cannot be read, which the peer is told.
    pub async fn answer(&self, mut reader: Reader, mut writer: Writer) -> Result<()> {
        while let Some(f) = reader.next().await? {
            match f.kind {
                Kind::Fault => {}
                Kind::Failure => return Err(told(&f)),
                other => {
                    return Err(Error::peer(
                        format!("receive {other:?}"),
                        "not on the fault lane",
                    ));
                }
            }
            let m: message::Fault = message::parse(f.kind, &f.body)?;
            let bad = || Error::peer("page fault", "not a range of pages");
            let object = batch::object(m.sort, m.id)?;
            let wanted =
                PageRange::with_pages(m.address, u64::from(m.pages).min(WINDOW)).ok_or_else(bad)?;
            let window =
                PageRange::with_pages(m.window_start, u64::from(m.window_pages).min(WINDOW))
                    .ok_or_else(bad)?;
            let piece = self
                .queue()
                .take_fault(object, wanted, window, MAX_RUNS / 2)?;
            self.faults.fetch_add(1, Ordering::Relaxed);
            self.send(&mut writer, &piece).await?;
        }
        Ok(())
    }

    /// Pushes pieces until all have been taken.
    ///
    /// # Errors
    /// As [`Pump::answer`].
    pub async fn push(&self, writer: &mut Writer) -> Result<()> {
        loop {
            let piece = self.queue().take_bulk(BULK_PAGES, MAX_RUNS / 2);
            match piece {
                Some(p) => self.send(writer, &p).await?,
                None => return Ok(()),
            }
        }
    }

    async fn send(&self, writer: &mut Writer, piece: &Piece) -> Result<()> {
        let mut bytes = 0;
        let mut unreadable = None;
        let done = writer
            .send_built(Kind::Pages, |body| {
                bytes = lay_out(body, piece.object, &piece.ranges, |range, buf| {
                    self.pages.read(piece.object, range.start(), buf)
                })
                .inspect_err(|e| unreadable = Some(e.to_string()))?;
                Ok(())
            })
            .await;
        if let (Some(_), Err(e)) = (&unreadable, &done) {
            super::remote::say_why(writer, Kind::Failure, e).await;
        }
        done?;
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.batches.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}
