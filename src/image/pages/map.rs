//! The list of runs.

use super::{PE_LAZY, PE_PARENT, PE_PRESENT};
use crate::base::{Error, PAGE_SIZE, PageRange, Result};
use crate::image::frame::{self, Reader};
use crate::image::records::{PagemapEntry, PagemapHead};
use crate::image::{Kind, Set};

/// Where the content of a page is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// In the pages file.
    Here,
    /// In the parent image.
    Parent,
    /// With whoever holds the task that was saved.
    Elsewhere,
    /// Nowhere: all bytes are zero.
    Zero,
}

/// Pages that follow one another, and are held the same way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Addresses, or byte offsets for shared memory.
    pub range: PageRange,
    /// `PE_*`.
    pub flags: u32,
    /// Where in the pages file the first byte is, if it is there.
    pub offset: u64,
}

impl Run {
    /// Where the content is.
    pub fn held(&self) -> Held {
        // CRIU asks for the parent first, too.
        if self.flags & PE_PARENT != 0 {
            Held::Parent
        } else if self.flags & PE_PRESENT != 0 {
            Held::Here
        } else if self.flags & PE_LAZY != 0 {
            Held::Elsewhere
        } else {
            Held::Zero
        }
    }

    /// Takes in the run behind this one, if both are one run in pieces.
    fn join(&mut self, next: &Run) -> bool {
        let beside = self.range.end() == next.range.start() && self.flags == next.flags;
        let content = self.held() != Held::Here || self.offset + self.range.len() == next.offset;
        match PageRange::new(self.range.start(), next.range.end()) {
            Some(range) if beside && content => {
                self.range = range;
                true
            }
            _ => false,
        }
    }

    /// Whether the content may come after the task has resumed.
    pub fn lazy(&self) -> bool {
        self.flags & PE_LAZY != 0
    }
}

/// Which pages an address space or a shared memory has, by ascending address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pagemap {
    pages_id: u32,
    runs: Vec<Run>,
    bytes: u64,
}

impl Pagemap {
    /// The pagemap of this type and id; `None` if there is none in the image.
    ///
    /// Errors: it is damaged, by name and record.
    pub fn of(set: &Set, kind: Kind, id: u32) -> Result<Option<Self>> {
        let name = kind.file_name(id);
        match set.raw(&name) {
            Some(bytes) => Self::decode(kind, &name, bytes).map(Some),
            None => Ok(None),
        }
    }

    /// Reads a pagemap file of this name.
    ///
    /// Errors: as [`Pagemap::of`].
    pub fn decode(kind: Kind, name: &str, bytes: &[u8]) -> Result<Self> {
        let mut reader = Reader::new(kind, name, bytes)?;
        let head: PagemapHead = reader.first()?;
        let mut runs = Vec::new();
        let mut offset = 0u64;
        while let Some(entry) = reader.next::<PagemapEntry>()? {
            let run = run(&entry, offset).ok_or_else(|| {
                reader.error(format!(
                    "{} pages at {:#x} are no range of pages",
                    pages_of(&entry),
                    entry.vaddr
                ))
            })?;
            if run.held() == Held::Here {
                offset = offset
                    .checked_add(run.range.len())
                    .ok_or_else(|| reader.error("more bytes than a file can have"))?;
            }
            if !run.range.is_empty() {
                runs.push(run);
            }
        }
        // Offsets follow the order of the file; runs are found by address.
        runs.sort_by_key(|run| run.range.start());
        if let Some(pair) = runs
            .windows(2)
            .find(|pair| pair[0].range.end() > pair[1].range.start())
        {
            return Err(Error::image(
                name,
                format!("lists {} and {}", pair[0].range, pair[1].range),
            ));
        }
        // CRIU breaks runs where its pipes are full.
        runs.dedup_by(|next, last| last.join(next));
        Ok(Self {
            pages_id: head.pages_id,
            runs,
            bytes: offset,
        })
    }

    /// A pagemap from runs that are listed in the order of the pages file.
    pub(super) fn encode(pages_id: u32, runs: &[Run]) -> Vec<u8> {
        let mut bytes = Kind::Pagemap.head();
        frame::push(&mut bytes, &PagemapHead { pages_id });
        for run in runs {
            let pages = run.range.pages();
            let entry = PagemapEntry {
                vaddr: run.range.start(),
                compat_nr_pages: u32::try_from(pages).unwrap_or(u32::MAX),
                in_parent: None,
                flags: Some(run.flags),
                nr_pages: Some(pages),
            };
            frame::push(&mut bytes, &entry);
        }
        bytes
    }

    /// The number of the pages file.
    pub fn pages_id(&self) -> u32 {
        self.pages_id
    }

    /// The runs, by ascending address; none is empty, none overlaps another.
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// Bytes that the pages file must have.
    pub fn bytes_here(&self) -> u64 {
        self.bytes
    }

    /// The run that this address lies in.
    pub fn find(&self, addr: u64) -> Option<&Run> {
        let index = self.runs.partition_point(|run| run.range.end() <= addr);
        self.runs.get(index).filter(|run| run.range.contains(addr))
    }

    /// The parts of runs that lie in this range.
    pub fn within(&self, range: PageRange) -> impl Iterator<Item = Run> {
        let first = self
            .runs
            .partition_point(|run| run.range.end() <= range.start());
        self.runs[first..].iter().map_while(move |run| {
            let part = run.range.intersect(range)?;
            Some(Run {
                range: part,
                flags: run.flags,
                offset: run.offset + (part.start() - run.range.start()),
            })
        })
    }
}

/// `nr_pages` came later: images without it count in 32 bits.
fn pages_of(entry: &PagemapEntry) -> u64 {
    entry.nr_pages.unwrap_or(u64::from(entry.compat_nr_pages))
}

fn run(entry: &PagemapEntry, offset: u64) -> Option<Run> {
    let range = PageRange::with_pages(entry.vaddr, pages_of(entry))?;
    // No address space is larger, so sums of offsets cannot overflow.
    if range.end() > 1 << 62 || !entry.vaddr.is_multiple_of(PAGE_SIZE) {
        return None;
    }
    let flags = match (entry.flags, entry.in_parent()) {
        (flags, true) => flags.unwrap_or(0) | PE_PARENT,
        (Some(flags), false) => flags,
        (None, false) => PE_PRESENT,
    };
    Some(Run {
        range,
        flags,
        offset,
    })
}
