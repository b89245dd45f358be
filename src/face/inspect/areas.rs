//! Memory: areas, and where the contents of their pages are.

use super::files::Names;
use crate::base::{PageRange, Result};
use crate::image::pages::{Held, Pagemap};
use crate::image::records::{MmEntry, VmaEntry};
use crate::image::{Kind, Set, vma};
use serde::Serialize;

/// An address space, or a shared memory (then it has no areas).
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Memory {
    /// Pid, or number of the shared memory.
    pub(super) id: u32,
    /// Length of all areas.
    pub(super) mapped: u64,
    #[serde(flatten)]
    pub(super) content: Content,
    /// Number in the name of the pages file.
    pub(super) pages_id: Option<u32>,
    pub(super) areas: Vec<Area>,
}

/// Bytes by the place of their content.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct Content {
    /// In the pages file.
    pub(super) present: u64,
    /// Of those: may come after the resume.
    pub(super) present_lazy: u64,
    /// Left behind with the task that was saved.
    pub(super) elsewhere: u64,
    /// In the parent image.
    pub(super) parent: u64,
    /// Zero.
    pub(super) zero: u64,
}

/// One area.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Area {
    pub(super) start: String,
    pub(super) end: String,
    pub(super) bytes: u64,
    pub(super) protection: String,
    pub(super) kind: String,
    /// Path, or what it is.
    pub(super) name: String,
    /// Bytes into the file.
    pub(super) offset: u64,
    #[serde(flatten)]
    pub(super) content: Content,
}

impl Content {
    fn add(&mut self, map: &Pagemap, range: PageRange) {
        for run in map.within(range) {
            let len = run.range.len();
            match run.held() {
                Held::Here => {
                    self.present += len;
                    self.present_lazy += if run.lazy() { len } else { 0 };
                }
                Held::Elsewhere => self.elsewhere += len,
                Held::Parent => self.parent += len,
                Held::Zero => self.zero += len,
            }
        }
    }

    fn all(map: &Pagemap) -> Self {
        let mut content = Self::default();
        if let Some(all) = PageRange::new(0, 1 << 62) {
            content.add(map, all);
        }
        content
    }
}

/// The address space of a task.
pub(super) fn of_task(set: &Set, names: &Names, pid: u32, mm: &MmEntry) -> Result<Memory> {
    let map = Pagemap::of(set, Kind::Pagemap, pid)?;
    let areas: Vec<Area> = mm
        .vmas
        .iter()
        .map(|entry| area(entry, names, map.as_ref()))
        .collect();
    Ok(Memory {
        id: pid,
        mapped: mm
            .vmas
            .iter()
            .filter(|entry| entry.status & vma::GUARD == 0)
            .map(|entry| entry.end.saturating_sub(entry.start))
            .fold(0, u64::saturating_add),
        content: map.as_ref().map(Content::all).unwrap_or_default(),
        pages_id: map.map(|map| map.pages_id()),
        areas,
    })
}

/// All shared memories of the image.
pub(super) fn shared(set: &Set) -> Result<Vec<Memory>> {
    let mut found = Vec::new();
    for id in set.ids(Kind::PagemapShmem) {
        if let Some(map) = Pagemap::of(set, Kind::PagemapShmem, id)? {
            found.push(Memory {
                id,
                content: Content::all(&map),
                pages_id: Some(map.pages_id()),
                ..Memory::default()
            });
        }
    }
    Ok(found)
}

fn area(entry: &VmaEntry, names: &Names, map: Option<&Pagemap>) -> Area {
    let mut content = Content::default();
    if let (Some(map), Some(range)) = (map, PageRange::new(entry.start, entry.end)) {
        content.add(map, range);
    }
    let (kind, name) = kind(entry, names);
    Area {
        start: format!("{:#x}", entry.start),
        end: format!("{:#x}", entry.end),
        bytes: entry.end.saturating_sub(entry.start),
        protection: protection(entry),
        kind,
        name,
        offset: entry.pgoff,
        content,
    }
}

/// As `/proc/PID/maps` has it.
fn protection(entry: &VmaEntry) -> String {
    let bits = [(1, 'r'), (2, 'w'), (4, 'x')];
    let mut text: String = bits
        .iter()
        .map(|&(bit, letter)| if entry.prot & bit != 0 { letter } else { '-' })
        .collect();
    text.push(if entry.flags & 1 != 0 { 's' } else { 'p' });
    text
}

fn kind(entry: &VmaEntry, names: &Names) -> (String, String) {
    let has = |bits| entry.status & bits != 0;
    let file =
        || u32::try_from(entry.shmid).map_or_else(|_| String::from("?"), |id| names.path(id));
    let (kind, name) = if has(vma::GUARD) {
        ("guard", String::new())
    } else if has(vma::VDSO) {
        ("vdso", String::from("[vdso]"))
    } else if has(vma::VVAR) {
        ("vvar", String::from("[vvar]"))
    } else if has(vma::VSYSCALL) {
        ("vsyscall", String::from("[vsyscall]"))
    } else if has(vma::SYSVIPC) {
        ("sysv", format!("segment {}", entry.shmid))
    } else if has(vma::AIORING) {
        ("aio", String::from("[aio]"))
    } else if has(vma::SOCKET) {
        ("socket", format!("socket {}", entry.shmid))
    } else if has(vma::MEMFD) {
        ("memfd", file())
    } else if has(vma::FILE_PRIVATE) {
        ("file", file())
    } else if has(vma::FILE_SHARED) {
        ("file, shared", file())
    } else if has(vma::ANON_SHARED) {
        ("shared", format!("memory {}", entry.shmid))
    } else if has(vma::SHSTK) {
        ("shadow stack", String::new())
    } else if has(vma::HEAP) {
        ("anonymous", String::from("[heap]"))
    } else if has(vma::STACK) || entry.flags & 0x100 != 0 {
        ("anonymous", String::from("[stack]"))
    } else if has(vma::ANON_PRIVATE) {
        ("anonymous", String::new())
    } else {
        ("unknown", format!("status {:#x}", entry.status))
    };
    (String::from(kind), name)
}
