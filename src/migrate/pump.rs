//! The source's side of page traffic: answers faults, pushes the rest, and says what
//! does not exist.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::watch;

use crate::base::{Blame, Error, PAGE_SIZE, PageRange, Result};
use crate::memory::held::Existing;
use crate::memory::{Object, PageReader, RangeSet};
use crate::wire::batch::{self, MAX_RUNS, lay_out};
use crate::wire::frame::{BATCH_BYTES, Kind};
use crate::wire::message;
use crate::wire::ranges;
use crate::wire::transport::{Reader, Writer, told};

use super::ports::Lister;
use super::queue::{Answer, Piece, Queue};

/// Pages of a bulk batch.
const BULK_PAGES: u64 = (BATCH_BYTES as u64 / PAGE_SIZE) / 2;
/// Most pages that go with a wanted one.
const WINDOW: u64 = 64;

/// What is pushed, and how much has gone.
pub struct Pump {
    queue: Mutex<Queue>,
    pages: Arc<dyn PageReader>,
    lister: Option<Arc<dyn Lister>>,
    listing: watch::Sender<Listing>,
    bytes: AtomicU64,
    batches: AtomicU64,
    faults: AtomicU64,
}

/// Whether it is known which pages exist.
#[derive(Debug, Clone)]
enum Listing {
    Open,
    Done,
    Failed(String),
}

impl std::fmt::Debug for Pump {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pump")
            .field("left", &self.queue().left())
            .finish_non_exhaustive()
    }
}

impl Pump {
    /// Pushes `objects`, read from `pages`. With a `lister` they name pages that may
    /// exist, and nothing is pushed before [`Pump::list`].
    pub fn new(
        pages: Arc<dyn PageReader>,
        objects: &[(Object, Vec<PageRange>)],
        lister: Option<Arc<dyn Lister>>,
    ) -> Self {
        let mut queue = Queue::new();
        for (object, ranges) in objects {
            match lister {
                Some(_) => queue.declare_possible(*object, ranges.iter().copied()),
                None => queue.declare(*object, ranges.iter().copied()),
            }
        }
        let listing = match lister {
            Some(_) => Listing::Open,
            None => Listing::Done,
        };
        Self {
            queue: Mutex::new(queue),
            pages,
            lister,
            listing: watch::Sender::new(listing),
            bytes: AtomicU64::new(0),
            batches: AtomicU64::new(0),
            faults: AtomicU64::new(0),
        }
    }

    /// Looks up which pages exist, if nobody knows yet: walks all page tables. The
    /// lanes tell the peer what it found, or that it failed.
    pub fn list(&self) {
        // Nobody joins this thread, and the lanes wait for its word.
        let done = catch_unwind(AssertUnwindSafe(|| self.list_all()));
        let listing = match done {
            Ok(Ok(())) => Listing::Done,
            Ok(Err(e)) => Listing::Failed(e.to_string()),
            Err(_) => Listing::Failed("the thread panicked".to_owned()),
        };
        self.listing.send_replace(listing);
    }

    /// Whether the lookup has failed already: nothing is granted then.
    ///
    /// # Errors
    /// Why it failed.
    pub fn check(&self) -> Result<()> {
        match &*self.listing.borrow() {
            Listing::Failed(why) => Err(unlisted(why)),
            Listing::Open | Listing::Done => Ok(()),
        }
    }

    fn list_all(&self) -> Result<()> {
        let Some(lister) = &self.lister else {
            return Ok(());
        };
        let unlisted = self.queue().unlisted();
        for (object, ranges) in unlisted {
            let mut all = Existing::default();
            for range in ranges {
                let found = lister.existing(object, range)?;
                all.content.extend(found.content);
                all.guards.extend(found.guards);
            }
            let mut queue = self.queue();
            if let Object::Private(id) = object {
                queue.list_guards(all.guards.into_iter().map(|g| (id, g)));
            }
            queue.list(object, all.content);
        }
        let elsewhere = lister.guards()?;
        self.queue().list_guards(elsewhere);
        Ok(())
    }

    /// The queue, for a restart in a new epoch.
    pub fn queue(&self) -> MutexGuard<'_, Queue> {
        // Whole between any two statements that could panic.
        self.queue
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The queue, for lanes of an epoch ([`Queue::epoch`]).
    ///
    /// # Errors
    /// A newer one has begun: what they took now would go to nobody.
    fn queue_in(&self, epoch: u64) -> Result<MutexGuard<'_, Queue>> {
        let queue = self.queue();
        if queue.epoch() == epoch {
            Ok(queue)
        } else {
            Err(Error::link("take pages", "a newer epoch has begun"))
        }
    }

    /// Bytes of page content sent.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Faults answered.
    pub fn faults(&self) -> u64 {
        self.faults.load(Ordering::Relaxed)
    }

    /// Answers faults until the lane ends, or another epoch begins.
    ///
    /// # Errors
    /// The connection; a page that cannot be read, which the peer is told.
    pub async fn answer(&self, mut reader: Reader, mut writer: Writer, epoch: u64) -> Result<()> {
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
            let answer = self
                .queue_in(epoch)?
                .take_fault(object, wanted, window, MAX_RUNS / 2)?;
            self.faults.fetch_add(1, Ordering::Relaxed);
            match answer {
                Answer::Pages(ranges) => self.send(&mut writer, &Piece { object, ranges }).await?,
                Answer::Look(ranges) => self.look(&mut writer, object, &ranges).await?,
                Answer::Absent => say_absent(&mut writer, &[(object, wanted)], false).await?,
                Answer::Guard => say_absent(&mut writer, &[(object, wanted)], true).await?,
            }
        }
        Ok(())
    }

    /// Sends what of `ranges` exists, and says what does not.
    async fn look(&self, writer: &mut Writer, object: Object, look: &[PageRange]) -> Result<()> {
        let (mut content, mut guards) = (Vec::new(), Vec::new());
        let mut absent: RangeSet = look.iter().copied().collect();
        for range in look {
            let lister = self.lister.as_ref();
            let lister = lister.ok_or_else(|| Error::bug("look for pages", "nobody does"))?;
            let found = match lister.existing(object, *range) {
                Ok(found) => found,
                Err(e) => {
                    super::remote::say_why(writer, Kind::Failure, &e).await;
                    return Err(e);
                }
            };
            content.extend(found.content);
            guards.extend(found.guards);
        }
        for range in content.iter().chain(&guards) {
            absent.remove(*range);
        }
        let absent: Vec<_> = absent.iter().map(|r| (object, r)).collect();
        let guards: Vec<_> = guards.into_iter().map(|r| (object, r)).collect();
        // The wanted page comes first, whatever it is.
        for ranges in content.chunks(MAX_RUNS / 2) {
            let ranges = ranges.to_vec();
            self.send(writer, &Piece { object, ranges }).await?;
        }
        say_absent(writer, &absent, false).await?;
        say_absent(writer, &guards, true).await
    }

    /// Pushes pieces until all have been taken, once it is known which there are, or
    /// until another epoch begins.
    ///
    /// # Errors
    /// As [`Pump::answer`].
    pub async fn push(&self, writer: &mut Writer, epoch: u64) -> Result<()> {
        self.listed(writer).await?;
        let (absent, guards) = {
            let mut queue = self.queue_in(epoch)?;
            (queue.take_absent(), queue.take_guards())
        };
        let guards: Vec<_> = guards
            .into_iter()
            .map(|(id, range)| (Object::Private(id), range))
            .collect();
        say_absent(writer, &guards, true).await?;
        say_absent(writer, &absent, false).await?;
        loop {
            let piece = self.queue_in(epoch)?.take_bulk(BULK_PAGES, MAX_RUNS / 2);
            match piece {
                Some(p) => self.send(writer, &p).await?,
                None => return Ok(()),
            }
        }
    }

    async fn listed(&self, writer: &mut Writer) -> Result<()> {
        let mut listing = self.listing.subscribe();
        let failed = match listing.wait_for(|l| !matches!(l, Listing::Open)).await {
            Ok(now) => match &*now {
                Listing::Failed(why) => Some(why.clone()),
                Listing::Open | Listing::Done => None,
            },
            // We hold the other end.
            Err(_) => None,
        };
        let Some(why) = failed else { return Ok(()) };
        let e = unlisted(&why);
        super::remote::say_why(writer, Kind::Failure, &e).await;
        Err(e)
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

/// ABSENT, as often as it takes.
async fn say_absent(writer: &mut Writer, list: &[(Object, PageRange)], guards: bool) -> Result<()> {
    for (object, part) in ranges::parts(list) {
        let (sort, id) = batch::numbers(object);
        let (starts, pages) = ranges::columns(&part);
        let absent = message::Absent {
            id,
            sort,
            starts,
            pages,
            guards,
        };
        writer.send(Kind::Absent, &absent).await?;
    }
    Ok(())
}

fn unlisted(why: &str) -> Error {
    Error::new(Blame::Us, "look up which pages exist", why.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::SpaceId;

    struct Zeros;

    impl PageReader for Zeros {
        fn read(&self, _: Object, _: u64, buf: &mut [u8]) -> Result<()> {
            buf.fill(0);
            Ok(())
        }
    }

    #[test]
    fn a_lane_that_outlives_its_epoch_takes_nothing_from_the_next() {
        let all = PageRange::with_pages(0, 64).unwrap();
        let object = Object::Private(SpaceId(1));
        let pump = Pump::new(Arc::new(Zeros), &[(object, vec![all])], None);
        let old = pump.queue().epoch();
        pump.queue_in(old).unwrap().take_bulk(8, 1).unwrap();
        pump.queue().restart(&[(object, all)]).unwrap();
        assert!(pump.queue_in(old).is_err());
        let now = pump.queue().epoch();
        let piece = pump.queue_in(now).unwrap().take_bulk(64, 1).unwrap();
        assert_eq!(piece.ranges, [all]);
    }

    struct Broken;

    impl Lister for Broken {
        fn existing(&self, _: Object, _: PageRange) -> Result<Existing> {
            Err(Error::errno("PAGEMAP_SCAN", libc::ESRCH))
        }
        fn guards(&self) -> Result<Vec<(SpaceId, PageRange)>> {
            Ok(Vec::new())
        }
    }

    #[test]
    fn a_lookup_that_failed_is_known_before_anything_is_granted() {
        let all = PageRange::with_pages(0, 64).unwrap();
        let object = Object::Private(SpaceId(1));
        let lister: Arc<dyn Lister> = Arc::new(Broken);
        let pump = Pump::new(Arc::new(Zeros), &[(object, vec![all])], Some(lister));
        pump.check().unwrap();
        pump.list();
        let why = pump.check().unwrap_err().to_string();
        assert!(why.contains("PAGEMAP_SCAN"), "{why}");
    }
}
