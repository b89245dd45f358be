//! Numbers that must not be mixed up: a pid as the host sees it and as the
//! container sees it, addresses of a foreign address space, ranges of pages.

use std::fmt;

/// Bytes in a page. Images, protocol and kernel agree on it or are refused.
pub const PAGE_SIZE: u64 = 4096;

/// A process or thread id in the pid namespace of dunlin itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPid(pub i32);

/// A process or thread id in the pid namespace of the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NsPid(pub i32);

impl fmt::Display for HostPid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for NsPid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An address in the address space of a task (never one of ours).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VAddr(pub u64);

impl fmt::Display for VAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A range of whole pages: `start` and `end` are multiples of [`PAGE_SIZE`],
/// `start <= end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageRange {
    start: u64,
    end: u64,
}

impl PageRange {
    /// A range from byte addresses; `None` if they are not aligned or reversed.
    pub fn new(start: u64, end: u64) -> Option<Self> {
        (start <= end && start.is_multiple_of(PAGE_SIZE) && end.is_multiple_of(PAGE_SIZE))
            .then_some(Self { start, end })
    }

    /// A range of `pages` pages from `start`; `None` if unaligned or too long.
    pub fn with_pages(start: u64, pages: u64) -> Option<Self> {
        let end = start.checked_add(pages.checked_mul(PAGE_SIZE)?)?;
        Self::new(start, end)
    }

    /// First byte.
    pub fn start(self) -> u64 {
        self.start
    }

    /// First byte behind.
    pub fn end(self) -> u64 {
        self.end
    }

    /// Length in bytes.
    pub fn len(self) -> u64 {
        self.end - self.start
    }

    /// Holds no page.
    pub fn is_empty(self) -> bool {
        self.start == self.end
    }

    /// Length in pages.
    pub fn pages(self) -> u64 {
        self.len() / PAGE_SIZE
    }

    /// Each page of it, as a range of its own.
    pub fn each_page(self) -> impl Iterator<Item = Self> {
        (0..self.pages()).map(move |page| Self {
            start: self.start + page * PAGE_SIZE,
            end: self.start + (page + 1) * PAGE_SIZE,
        })
    }

    /// Its first page; `None` if it is empty.
    pub fn first_page(self) -> Option<Self> {
        self.each_page().next()
    }

    /// Whether the byte address lies inside.
    pub fn contains(self, addr: u64) -> bool {
        self.start <= addr && addr < self.end
    }

    /// The common part, if any.
    pub fn intersect(self, other: Self) -> Option<Self> {
        let start = self.start.max(other.start);
        let end = self.end.min(other.end);
        (start < end).then_some(Self { start, end })
    }
}

impl fmt::Display for PageRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}-{:#x}", self.start, self.end)
    }
}
