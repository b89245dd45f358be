//! Lists of ranges of pages, as MISSING and ABSENT carry them.

use super::batch;
use crate::base::{Error, PageRange, Result};
use crate::memory::Object;

/// Most ranges in one message.
pub const MOST: usize = 32 << 10;

/// Ranges of one object, in as many parts as messages are needed.
pub fn parts(list: &[(Object, PageRange)]) -> Vec<(Object, Vec<PageRange>)> {
    let mut parts: Vec<(Object, Vec<PageRange>)> = Vec::new();
    for (object, range) in list {
        match parts.last_mut() {
            Some((o, ranges)) if o == object && ranges.len() < MOST => ranges.push(*range),
            _ => parts.push((*object, vec![*range])),
        }
    }
    parts
}

/// Start and length in pages of each, in two columns.
pub fn columns(ranges: &[PageRange]) -> (Vec<u64>, Vec<u64>) {
    ranges.iter().map(|r| (r.start(), r.pages())).unzip()
}

/// The ranges of a message.
///
/// # Errors
/// Columns of different length, an unknown sort, no whole pages: the peer is to blame.
pub fn read(sort: u32, id: u32, starts: &[u64], pages: &[u64]) -> Result<(Object, Vec<PageRange>)> {
    let bad = |why: &'static str| Error::peer("read list of pages", why);
    if starts.len() != pages.len() || starts.len() > MOST {
        return Err(bad("it does not fit"));
    }
    let object = batch::object(sort, id)?;
    let range = |(s, p): (&u64, &u64)| PageRange::with_pages(*s, *p);
    let ranges: Option<Vec<_>> = starts.iter().zip(pages).map(range).collect();
    Ok((object, ranges.ok_or_else(|| bad("not a range of pages"))?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::SpaceId;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_list_comes_back_whole_from_its_messages(
            list in prop::collection::vec((0u32..3, 0u64..1 << 40, 1u64..1 << 20), 0..60)
        ) {
            let list: Vec<_> = list
                .into_iter()
                .map(|(id, at, n)| {
                    let object = if id == 0 { Object::Shared(5) } else { Object::Private(SpaceId(id)) };
                    (object, PageRange::with_pages(at * 4096, n).unwrap())
                })
                .collect();
            let mut back = Vec::new();
            for (object, ranges) in parts(&list) {
                let (sort, id) = batch::numbers(object);
                let (starts, pages) = columns(&ranges);
                let (object, ranges) = read(sort, id, &starts, &pages).unwrap();
                back.extend(ranges.into_iter().map(|r| (object, r)));
            }
            prop_assert_eq!(back, list);
        }
    }

    #[test]
    fn a_list_that_does_not_fit_is_refused() {
        let e = |starts: &[u64], pages: &[u64]| read(1, 1, starts, pages).unwrap_err().to_string();
        assert!(e(&[0], &[]).contains("does not fit"));
        assert!(e(&vec![0; MOST + 1], &vec![1; MOST + 1]).contains("does not fit"));
        assert!(e(&[1], &[1]).contains("not a range"));
        assert!(e(&[4096], &[u64::MAX]).contains("not a range"));
        assert!(read(3, 1, &[], &[]).is_err());
    }
}
