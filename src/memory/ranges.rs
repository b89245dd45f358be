//! A set of pages, kept as ranges that neither overlap nor touch.

use std::collections::BTreeMap;

use crate::base::PageRange;

/// A set of pages. Costs memory by the range, not by the page.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RangeSet {
    /// Start to end.
    ranges: BTreeMap<u64, u64>,
    bytes: u64,
}

impl RangeSet {
    /// The empty set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Pages in it.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.bytes / crate::base::PAGE_SIZE
    }

    /// Holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Whether the page at byte position `at` is in it.
    #[must_use]
    pub fn contains(&self, at: u64) -> bool {
        self.ranges
            .range(..=at)
            .next_back()
            .is_some_and(|(_, end)| at < *end)
    }

    /// Adds pages; returns how many were new.
    pub fn insert(&mut self, range: PageRange) -> u64 {
        if range.is_empty() {
            return 0;
        }
        let before = self.bytes;
        let (mut start, mut end) = (range.start(), range.end());
        if let Some((s, e)) = self.ranges.range(..=start).next_back()
            && *e >= start
        {
            start = *s;
        }
        while let Some((s, e)) = self.ranges.range(start..=end).next().map(|(s, e)| (*s, *e)) {
            end = end.max(e);
            self.bytes -= e - s;
            self.ranges.remove(&s);
        }
        self.bytes += end - start;
        self.ranges.insert(start, end);
        (self.bytes - before) / crate::base::PAGE_SIZE
    }

    /// Takes pages out; returns how many were in it.
    pub fn remove(&mut self, range: PageRange) -> u64 {
        let before = self.bytes;
        let (start, end) = (range.start(), range.end());
        while let Some((s, e)) = self.ranges.range(..end).next_back().map(|(s, e)| (*s, *e)) {
            if e <= start || start == end {
                break;
            }
            self.ranges.remove(&s);
            self.bytes -= e - s;
            if end < e {
                self.ranges.insert(end, e);
                self.bytes += e - end;
            }
            if s < start {
                self.ranges.insert(s, start);
                self.bytes += start - s;
            }
        }
        (before - self.bytes) / crate::base::PAGE_SIZE
    }

    /// Takes out all that `other` holds; costs what the smaller of both is.
    pub fn subtract(&mut self, other: &Self) {
        if other.ranges.len() <= self.ranges.len() {
            for range in other.iter() {
                self.remove(range);
            }
            return;
        }
        let mine: Vec<_> = self.iter().collect();
        for part in mine.into_iter().flat_map(|range| other.within(range)) {
            self.remove(part);
        }
    }

    /// Whether all pages of `range` are in it.
    #[must_use]
    pub fn covers(&self, range: PageRange) -> bool {
        self.within(range).map(PageRange::pages).sum::<u64>() == range.pages()
    }

    /// Takes out what of `range` is in it.
    pub fn take(&mut self, range: PageRange) -> Vec<PageRange> {
        let taken: Vec<_> = self.within(range).collect();
        for range in &taken {
            self.remove(*range);
        }
        taken
    }

    /// Takes out up to `pages` pages in up to `runs` ranges, the first ones at or
    /// behind `from`.
    pub fn take_from(&mut self, from: u64, mut pages: u64, runs: usize) -> Vec<PageRange> {
        let Some(rest) = PageRange::new(from, !(crate::base::PAGE_SIZE - 1)) else {
            return Vec::new();
        };
        let mut taken = Vec::new();
        for range in self.within(rest).take(runs) {
            let Some(part) = PageRange::with_pages(range.start(), pages.min(range.pages())) else {
                break;
            };
            if part.is_empty() {
                break;
            }
            pages -= part.pages();
            taken.push(part);
        }
        for range in &taken {
            self.remove(*range);
        }
        taken
    }

    /// Adds `len` bytes from `at` on; what is no range of whole pages adds nothing.
    pub fn insert_at(&mut self, at: u64, len: u64) -> u64 {
        whole(at, len).map_or(0, |r| self.insert(r))
    }

    /// Takes out `len` bytes from `at` on.
    pub fn remove_at(&mut self, at: u64, len: u64) -> u64 {
        whole(at, len).map_or(0, |r| self.remove(r))
    }

    /// All ranges, in order.
    pub fn iter(&self) -> impl Iterator<Item = PageRange> + '_ {
        self.ranges
            .iter()
            .filter_map(|(s, e)| PageRange::new(*s, *e))
    }

    /// The parts of the set within `range`, in order.
    pub fn within(&self, range: PageRange) -> impl Iterator<Item = PageRange> + '_ {
        let first = self
            .ranges
            .range(..range.start())
            .next_back()
            .map_or(range.start(), |(s, _)| *s);
        self.ranges
            .range(first..range.end().max(first))
            .filter_map(move |(s, e)| PageRange::new(*s, *e)?.intersect(range))
    }
}

fn whole(at: u64, len: u64) -> Option<PageRange> {
    PageRange::new(at, at.checked_add(len)?)
}

impl FromIterator<PageRange> for RangeSet {
    fn from_iter<I: IntoIterator<Item = PageRange>>(iter: I) -> Self {
        let mut set = Self::new();
        for range in iter {
            set.insert(range);
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::PAGE_SIZE;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn singles(ranges: &[PageRange]) -> Vec<u64> {
        let pages = |r: &PageRange| (r.start()..r.end()).step_by(4096);
        ranges.iter().flat_map(pages).collect()
    }

    proptest! {
        #[test]
        fn it_says_the_same_as_a_set_of_single_pages(
            steps in prop::collection::vec((any::<bool>(), 0u64..40, 0u64..12), 0..60)
        ) {
            let mut set = RangeSet::new();
            let mut model = BTreeSet::new();
            for (add, start, len) in steps {
                let range = PageRange::with_pages(start * PAGE_SIZE, len).unwrap();
                let pages = start..start + len;
                if add {
                    let new = pages.filter(|p| model.insert(*p)).count() as u64;
                    prop_assert_eq!(set.insert(range), new);
                } else {
                    let old = pages.filter(|p| model.remove(p)).count() as u64;
                    prop_assert_eq!(set.remove(range), old);
                }
                prop_assert_eq!(set.pages(), model.len() as u64);
                let listed: Vec<_> = set.iter().collect();
                prop_assert!(listed.windows(2).all(|w| w[0].end() < w[1].start()));
                for page in 0..60 {
                    prop_assert_eq!(set.contains(page * PAGE_SIZE), model.contains(&page));
                }
                let inside = (start..start + len).filter(|p| model.contains(p));
                let inside: Vec<_> = inside.map(|p| p * PAGE_SIZE).collect();
                let part: u64 = set.within(range).map(PageRange::pages).sum();
                prop_assert_eq!(part, inside.len() as u64);
                prop_assert_eq!(set.covers(range), part == len);
                prop_assert_eq!(singles(&set.clone().take(range)), inside);
                let mut rest = set.clone();
                let first = singles(&rest.take_from(start * PAGE_SIZE, len, 3));
                let behind = model.range(start..).map(|p| p * PAGE_SIZE);
                let behind: Vec<_> = behind.take(first.len()).collect();
                prop_assert_eq!(&first, &behind);
                prop_assert!(first.len() as u64 <= len);
                prop_assert_eq!(rest.pages(), (model.len() - first.len()) as u64);
            }
        }
    }
    fn pages(from: u64, n: u64) -> PageRange {
        PageRange::with_pages(from * PAGE_SIZE, n).unwrap()
    }

    proptest! {
        #[test]
        fn what_is_left_of_two_sets_is_what_only_the_first_has(
            a in prop::collection::vec((0u64..60, 0u64..6), 0..20),
            b in prop::collection::vec((0u64..60, 0u64..6), 0..20)
        ) {
            let set = |of: &[(u64, u64)]| -> RangeSet { of.iter().map(|(at, n)| pages(*at, *n)).collect() };
            let (a, b) = (set(&a), set(&b));
            let mut left = a.clone();
            left.subtract(&b);
            for page in (0..70).map(|n| n * PAGE_SIZE) {
                prop_assert_eq!(left.contains(page), a.contains(page) && !b.contains(page));
            }
        }
    }

    #[test]
    fn to_take_a_large_set_out_of_a_small_one_takes_no_time() {
        let large: RangeSet = (0..100_000).map(|n| pages(2 * n, 1)).collect();
        let begun = std::time::Instant::now();
        for n in 0..100_000 {
            let mut small: RangeSet = [pages(2 * n, 2)].into_iter().collect();
            small.subtract(&large);
            assert_eq!(small.pages(), 1);
        }
        // By looking at all of it each time: minutes.
        assert!(begun.elapsed() < std::time::Duration::from_secs(20));
    }
}
