//! Page batches: which pages of which space, and their bytes.
//!
//! ```text
//!  0  u32  image id of the address space or of the shared memory
//!  4  u16  1: address space; 2: shared memory
//!  6  u16  number of runs, at most 256
//!  then per run
//!     u64  position of its first page: address, or byte offset
//!     u32  pages, at least 1
//!     u32  0: bytes follow; 1: all zero, no bytes
//!  then the bytes of all runs of sort 0, in order
//! ```
//!
//! A batch holds pieces that lie apart, so that scattered memory travels in
//! large frames too.

use std::ops::Range;

use super::frame::BATCH_BYTES;
use crate::base::{Error, PAGE_SIZE, PageRange, Result};
use crate::memory::{Object, SpaceId};

/// Most runs in a batch.
pub const MAX_RUNS: usize = 256;
/// Most pages that one batch may name, zero pages included.
pub const MAX_PAGES: u64 = 1 << 16;
/// Bytes of a batch that are not page content.
pub const MAX_OVERHEAD: usize = 8 + MAX_RUNS * 16;

/// Page size as a `usize`.
pub const PAGE: usize = 4096;
const _: () = assert!(PAGE as u64 == PAGE_SIZE);

/// Neighbouring pages of one sort.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Where they belong.
    pub range: PageRange,
    /// Where their bytes lie in the batch's content; `None`: all zero.
    pub bytes: Option<Range<usize>>,
}

/// A batch, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Whose pages.
    pub object: Object,
    /// Its runs, in the order sent.
    pub runs: Vec<Run>,
    body: Vec<u8>,
}

impl Batch {
    /// Checks the body of a PAGES frame; keeps it, copies nothing.
    ///
    /// # Errors
    /// Names what is wrong; the peer is to blame.
    pub fn parse(body: Vec<u8>) -> Result<Self> {
        let bad = |why: &'static str| Error::peer("read page batch", why);
        let word = |at: usize| -> Result<u32> {
            body.get(at..at + 4)
                .and_then(|b| b.first_chunk())
                .map(|b| u32::from_le_bytes(*b))
                .ok_or_else(|| bad("truncated"))
        };
        let (id, mixed) = (word(0)?, word(4)?);
        let object = object(mixed & 0xffff, id)?;
        let count = usize::try_from(mixed >> 16).unwrap_or(usize::MAX);
        if count == 0 || count > MAX_RUNS {
            return Err(bad("number of runs out of bounds"));
        }
        let mut data = 8 + count * 16;
        let mut runs = Vec::with_capacity(count);
        let mut total = 0u64;
        for i in 0..count {
            let at = 8 + i * 16;
            let start = u64::from(word(at)?) | u64::from(word(at + 4)?) << 32;
            let pages = u64::from(word(at + 8)?);
            total += pages;
            let range = PageRange::with_pages(start, pages)
                .filter(|r| !r.is_empty())
                .ok_or_else(|| bad("run is empty or not of whole pages"))?;
            if total > MAX_PAGES {
                return Err(bad("too many pages"));
            }
            let bytes = match word(at + 12)? {
                0 => {
                    let len = usize::try_from(range.len()).unwrap_or(usize::MAX);
                    let end = data.checked_add(len).ok_or_else(|| bad("run overflows"))?;
                    let r = data..end;
                    data = end;
                    Some(r)
                }
                1 => None,
                _ => return Err(bad("unknown sort of run")),
            };
            runs.push(Run { range, bytes });
        }
        if data != body.len() {
            return Err(bad("bytes do not add up to the runs"));
        }
        Ok(Self { object, runs, body })
    }

    /// The bytes of a run of this batch; `None` if it is all zero.
    pub fn content(&self, run: &Run) -> Option<&[u8]> {
        self.body.get(run.bytes.clone()?)
    }

    /// The body, for its memory to be used again.
    pub fn into_body(self) -> Vec<u8> {
        self.body
    }

    /// All pages that it names.
    pub fn pages(&self) -> u64 {
        self.runs.iter().map(|r| r.range.pages()).sum()
    }
}

/// Lays out the body of a batch behind whatever `out` holds already: for each
/// range (at most [`MAX_RUNS`], together at most [`BATCH_BYTES`]) its pages are
/// read by `read` straight into place; pages that are all zero are cut out.
/// Returns the bytes of page content that were kept.
///
/// # Errors
/// What `read` says; too many ranges or bytes is a bug of ours.
pub fn lay_out(
    out: &mut Vec<u8>,
    object: Object,
    ranges: &[PageRange],
    mut read: impl FnMut(PageRange, &mut [u8]) -> Result<()>,
) -> Result<u64> {
    let total: u64 = ranges.iter().map(|r| r.len()).sum();
    let total = usize::try_from(total).unwrap_or(usize::MAX);
    if ranges.is_empty() || ranges.len() > MAX_RUNS || total > BATCH_BYTES {
        return Err(Error::bug("lay out page batch", "too many runs or bytes"));
    }
    let mut content = vec![0u8; total];
    let mut at = 0usize;
    for r in ranges {
        let len = usize::try_from(r.len()).unwrap_or(usize::MAX);
        read(*r, &mut content[at..at + len])?;
        at += len;
    }
    // Split into runs of zero and other pages; past MAX_RUNS keep zeros as data.
    let mut runs: Vec<(u64, u32, bool)> = Vec::with_capacity(ranges.len());
    let mut left = ranges.len();
    at = 0;
    let mut kept: Vec<Range<usize>> = Vec::with_capacity(ranges.len());
    for r in ranges {
        left -= 1;
        let mut addr = r.start();
        let mut fresh = true;
        while addr < r.end() {
            let page = &content[at..at + PAGE];
            let room = runs.len() + left + 1 < MAX_RUNS;
            let zero = is_zero(page) && (room || matches!(runs.last(), Some(l) if !fresh && l.2));
            let same = !fresh && matches!(runs.last(), Some(l) if l.2 == zero);
            match runs.last_mut() {
                Some(l) if same => l.1 += 1,
                // No room for one more run: a run of zeros goes on only by
                // zeros, a run of bytes takes zeros as bytes.
                _ => runs.push((addr, 1, zero)),
            }
            if !zero {
                match kept.last_mut() {
                    Some(k) if k.end == at => k.end = at + PAGE,
                    _ => kept.push(at..at + PAGE),
                }
            }
            fresh = false;
            at += PAGE;
            addr += PAGE_SIZE;
        }
    }
    if runs.len() > MAX_RUNS {
        // Zero runs made too many: say everything as bytes.
        runs = ranges
            .iter()
            .map(|r| {
                (
                    r.start(),
                    u32::try_from(r.pages()).unwrap_or(u32::MAX),
                    false,
                )
            })
            .collect();
        kept = std::iter::once(0..total).collect();
    }
    let (sort, id) = numbers(object);
    let count = u32::try_from(runs.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&id.to_le_bytes());
    out.extend_from_slice(&(sort | count << 16).to_le_bytes());
    for (start, pages, zero) in &runs {
        out.extend_from_slice(&start.to_le_bytes());
        out.extend_from_slice(&pages.to_le_bytes());
        out.extend_from_slice(&u32::from(*zero).to_le_bytes());
    }
    let mut bytes = 0u64;
    for k in kept {
        bytes += k.len() as u64;
        out.extend_from_slice(&content[k]);
    }
    Ok(bytes)
}

/// Sort and id of an object on the wire.
pub fn numbers(object: Object) -> (u32, u32) {
    match object {
        Object::Private(SpaceId(id)) => (1, id),
        Object::Shared(id) => (2, id),
    }
}

/// The object of a sort and an id.
///
/// # Errors
/// Unknown sort; the peer is to blame.
pub fn object(sort: u32, id: u32) -> Result<Object> {
    match sort {
        1 => Ok(Object::Private(SpaceId(id))),
        2 => Ok(Object::Shared(id)),
        _ => Err(Error::peer(
            "read pages",
            format!("unknown sort of memory {sort}"),
        )),
    }
}

/// Whether all bytes are zero.
pub fn is_zero(page: &[u8]) -> bool {
    let (chunks, rest) = page.as_chunks::<16>();
    chunks.iter().all(|c| u128::from_ne_bytes(*c) == 0) && rest.iter().all(|b| *b == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(page: u64, pages: u64) -> PageRange {
        PageRange::with_pages(page * PAGE_SIZE, pages).unwrap()
    }

    proptest! {
        /// Pages by number: zero where the pattern says so.
        #[test]
        fn pages_come_back_and_zero_pages_cost_no_bytes(
            pieces in proptest::collection::vec((1u64..8, 0u64..4), 1..40),
            zero in 1u64..6,
        ) {
            let mut at = 16;
            let mut ranges = Vec::new();
            for (len, gap) in pieces {
                if ranges.iter().map(|r: &PageRange| r.pages()).sum::<u64>() + len > 256 { break; }
                ranges.push(range(at, len));
                at += len + gap;
            }
            let fill = |page: u64| if page.is_multiple_of(zero) { 0u8 } else { u8::try_from(page % 251).unwrap() + 1 };
            let mut body = Vec::new();
            let bytes = lay_out(&mut body, Object::Shared(7), &ranges, |r, buf| {
                for (i, p) in buf.chunks_mut(PAGE).enumerate() {
                    p.fill(fill(r.start() / PAGE_SIZE + i as u64));
                }
                Ok(())
            }).unwrap();
            let b = Batch::parse(body).unwrap();
            prop_assert_eq!(b.object, Object::Shared(7));
            let mut seen = Vec::new();
            let mut data = 0;
            for run in &b.runs {
                for i in 0..run.range.pages() {
                    let page = run.range.start() / PAGE_SIZE + i;
                    seen.push(page);
                    match b.content(run) {
                        None => prop_assert_eq!(fill(page), 0),
                        Some(c) => {
                            data += PAGE as u64;
                            let i = usize::try_from(i).unwrap();
                            prop_assert!(c[i * PAGE..(i + 1) * PAGE].iter().all(|x| *x == fill(page)));
                        }
                    }
                }
            }
            prop_assert_eq!(data, bytes);
            let want: Vec<u64> = ranges.iter().flat_map(|r| r.start() / PAGE_SIZE..r.end() / PAGE_SIZE).collect();
            prop_assert_eq!(seen, want);
        }

        #[test]
        fn a_batch_of_noise_never_panics(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Batch::parse(body);
        }
    }

    #[test]
    fn a_page_number_that_overflows_is_refused() {
        let mut body = Vec::new();
        body.extend_from_slice(&1u32.to_le_bytes());
        body.extend_from_slice(&(1u32 | 1 << 16).to_le_bytes());
        body.extend_from_slice(&(u64::MAX - 4095).to_le_bytes());
        body.extend_from_slice(&2u32.to_le_bytes());
        body.extend_from_slice(&1u32.to_le_bytes());
        assert!(Batch::parse(body).is_err());
    }

    #[test]
    fn alternating_pages_past_the_limit_of_runs_still_fit() {
        let ranges: Vec<_> = (0..128).map(|i| range(1000 + i * 3, 2)).collect();
        let mut body = Vec::new();
        lay_out(&mut body, Object::Private(SpaceId(1)), &ranges, |_, b| {
            b[..PAGE].fill(1);
            Ok(())
        })
        .unwrap();
        let b = Batch::parse(body).unwrap();
        assert_eq!(b.pages(), 256);
    }
}
