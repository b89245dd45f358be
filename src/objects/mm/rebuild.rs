//! An address space out of its record: what is checked, and the calls that map it.
//!
//! Every area is made with its final protection, but for one case: an area that
//! has pages of its own and may not be written is mapped writable first and
//! protected afterwards (what the linker does for RELRO), so that the kernel
//! accounts its pages as it did before.

use std::collections::BTreeSet;

use crate::base::{Error, NsPid, PAGE_SIZE, PageRange, Result};
use crate::image::records::{MmEntry, VmaEntry};
use crate::image::vma as status;
use crate::sys::steer::{Arg, Batch};

/// What an area shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Private anonymous memory.
    PrivateAnon,
    /// Private mapping of the file with this id.
    PrivateFile(u32),
    /// Shared anonymous memory with this number.
    SharedAnon(u64),
    /// Shared mapping of the file with this id.
    SharedFile(u32),
}

/// How memory is locked: mlock2(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lock {
    /// All of it is there.
    Whole,
    /// What is there stays (`MLOCK_ONFAULT`).
    OnFault,
}

/// One area to map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Area {
    /// Where.
    pub range: PageRange,
    /// What.
    pub kind: Kind,
    /// `PROT_*`.
    pub prot: u32,
    /// `MAP_GROWSDOWN`, `MAP_NORESERVE`, `MAP_STACK`: flags for mmap(2).
    pub flags: u32,
    /// Offset in the file or shared memory, bytes.
    pub offset: u64,
    /// Whether and how it is locked.
    pub lock: Option<Lock>,
    /// The file must be open for writing, whatever its own record says.
    pub writes_file: bool,
    /// Bit n: madvise(2) advice n is in force.
    pub advice: u64,
}

impl Area {
    /// Whether it has to be locked again as a whole when it has been filled later:
    /// until then its pages are locked as they come.
    pub fn is_locked_later(&self) -> bool {
        let can_be_lazy = matches!(self.kind, Kind::PrivateAnon | Kind::SharedAnon(_));
        can_be_lazy && self.lock == Some(Lock::Whole)
    }

    /// Mapped writable first, see the head of this file.
    fn starts_writable(&self, has_pages: bool) -> bool {
        has_pages
            && self.prot & PROT_WRITE == 0
            && matches!(self.kind, Kind::PrivateAnon | Kind::PrivateFile(_))
    }
}

/// An address space to build.
#[derive(Debug, Clone)]
pub struct Space {
    /// What to map, by address.
    pub areas: Vec<Area>,
    /// `[vvar]` areas, taken together; they are moved, not mapped.
    pub vvar: Option<PageRange>,
    /// `[vdso]`.
    pub vdso: Option<PageRange>,
    /// Guard pages (`MADV_GUARD_INSTALL`) inside areas.
    pub guards: Vec<PageRange>,
    /// The rest of the record.
    pub entry: MmEntry,
}

const PROT_WRITE: u32 = libc::PROT_WRITE.unsigned_abs();
const PROT_ALL: u32 = (libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC).unsigned_abs();
const MAP_SHARED: u32 = libc::MAP_SHARED.unsigned_abs();
const MAP_PRIVATE: u32 = libc::MAP_PRIVATE.unsigned_abs();
const MAP_ANON: u32 = libc::MAP_ANONYMOUS.unsigned_abs();
const MAP_LOCKED: u32 = libc::MAP_LOCKED.unsigned_abs();
const PASSED_FLAGS: u32 =
    (libc::MAP_GROWSDOWN | libc::MAP_NORESERVE | libc::MAP_STACK).unsigned_abs();
/// madvise(2) advice that makes guard pages.
pub const MADV_GUARD_INSTALL: i32 = 102;
const ACCESS: u32 = libc::O_ACCMODE.unsigned_abs();
const READ_WRITE: u32 = libc::O_RDWR.unsigned_abs();
/// Advice that sets a property of an area and can be given again.
const ADVICE: u64 = (1 << libc::MADV_RANDOM)
    | (1 << libc::MADV_SEQUENTIAL)
    | (1 << libc::MADV_DONTFORK)
    | (1 << libc::MADV_MERGEABLE)
    | (1 << libc::MADV_HUGEPAGE)
    | (1 << libc::MADV_NOHUGEPAGE)
    | (1 << libc::MADV_DONTDUMP)
    | (1 << libc::MADV_WIPEONFORK);
const USER_TOP: u64 = 0x7fff_ffff_f000;
const MAX_AREAS: usize = 1 << 20;

impl Space {
    /// Checks the record of task `pid`.
    ///
    /// # Errors
    /// Areas that overlap, are no page ranges, contradict themselves, or are of
    /// a kind that cannot be carried: by range and kind.
    pub fn read(pid: NsPid, entry: MmEntry) -> Result<Self> {
        let mut space = Self {
            areas: Vec::new(),
            vvar: None,
            vdso: None,
            guards: Vec::new(),
            entry: MmEntry::default(),
        };
        if entry.vmas.len() > MAX_AREAS {
            return Err(Error::image(
                format!("memory map of task {pid}"),
                format!("{} areas", entry.vmas.len()),
            ));
        }
        if !entry.aios.is_empty() {
            return Err(Error::refused(
                format!("task {pid}"),
                "it has asynchronous I/O contexts (io_setup), which are not carried",
            ));
        }
        let mut end = 0;
        for v in &entry.vmas {
            let range = PageRange::new(v.start, v.end)
                .filter(|r| !r.is_empty())
                .ok_or_else(|| wrong(pid, v, "is no page range"))?;
            if v.status & status::VSYSCALL != 0 {
                continue;
            }
            if range.end() > USER_TOP {
                return Err(wrong(pid, v, "lies above the user's addresses"));
            }
            if v.status & status::GUARD != 0 {
                space.guards.push(range);
                continue;
            }
            if range.start() < end {
                return Err(wrong(pid, v, "overlaps the area before"));
            }
            end = range.end();
            space.add(pid, v, range)?;
        }
        for g in &space.guards {
            let inside = |a: &Area| a.range.start() <= g.start() && g.end() <= a.range.end();
            if !space.areas.iter().any(inside) {
                return Err(Error::image(
                    format!("memory map of task {pid}"),
                    format!("guard pages {g} lie in no area"),
                ));
            }
        }
        space.entry = entry;
        Ok(space)
    }

    fn add(&mut self, pid: NsPid, v: &VmaEntry, range: PageRange) -> Result<()> {
        if v.status & status::VVAR != 0 {
            let whole = match self.vvar {
                None => range,
                Some(before) if before.end() == range.start() => {
                    PageRange::new(before.start(), range.end()).unwrap_or(range)
                }
                Some(_) => return Err(wrong(pid, v, "is a second vvar, elsewhere")),
            };
            self.vvar = Some(whole);
            return Ok(());
        }
        if v.status & status::VDSO != 0 {
            if self.vdso.replace(range).is_some() {
                return Err(wrong(pid, v, "is a second vdso"));
            }
            return Ok(());
        }
        if v.status & status::UPROBES != 0 {
            return Ok(());
        }
        self.areas.push(area(pid, v, range)?);
        Ok(())
    }

    /// Everything that is occupied in the finished address space.
    pub fn taken(&self) -> impl Iterator<Item = PageRange> {
        self.areas
            .iter()
            .map(|a| a.range)
            .chain(self.vvar)
            .chain(self.vdso)
    }

    /// Ids of all files that are mapped, and of the executable.
    pub fn files(&self) -> BTreeSet<u32> {
        self.areas
            .iter()
            .filter_map(|a| match a.kind {
                Kind::PrivateFile(id) | Kind::SharedFile(id) => Some(id),
                Kind::PrivateAnon | Kind::SharedAnon(_) => None,
            })
            .chain([self.entry.exe_file_id])
            .collect()
    }

    /// The area that holds the page at `addr`.
    pub fn area_at(&self, addr: u64) -> Option<&Area> {
        let after = self.areas.partition_point(|a| a.range.start() <= addr);
        self.areas
            .get(after.checked_sub(1)?)
            .filter(|a| a.range.contains(addr))
    }
}

fn wrong(pid: NsPid, v: &VmaEntry, why: &str) -> Error {
    Error::image(
        format!("memory map of task {pid}: area {:#x}-{:#x}", v.start, v.end),
        why.to_owned(),
    )
}

fn area(pid: NsPid, v: &VmaEntry, range: PageRange) -> Result<Area> {
    let refuse = |what: &str| {
        Err(Error::refused(
            format!("area {range} of task {pid}"),
            format!("{what} is not carried"),
        ))
    };
    for (bit, what) in [
        (status::SYSVIPC, "System V shared memory"),
        (status::SOCKET, "a mapped socket"),
        (status::AIORING, "an AIO ring"),
        (status::SHSTK, "a shadow stack"),
    ] {
        if v.status & bit != 0 {
            return refuse(what);
        }
    }
    let known = status::REGULAR
        | status::STACK
        | status::HEAP
        | status::MEMFD
        | status::FILE_PRIVATE
        | status::FILE_SHARED
        | status::ANON_SHARED
        | status::ANON_PRIVATE;
    if v.status & !known != 0 {
        return Err(wrong(
            pid,
            v,
            &format!("has unknown status bits {:#x}", v.status & !known),
        ));
    }
    let file = || u32::try_from(v.shmid).map_err(|_| wrong(pid, v, "names no file"));
    let (kind, map_type) = match v.status
        & (status::FILE_PRIVATE | status::FILE_SHARED | status::ANON_SHARED | status::ANON_PRIVATE)
    {
        status::FILE_PRIVATE => (Kind::PrivateFile(file()?), MAP_PRIVATE),
        status::FILE_SHARED => (Kind::SharedFile(file()?), MAP_SHARED),
        status::ANON_SHARED => (Kind::SharedAnon(v.shmid), MAP_SHARED),
        status::ANON_PRIVATE => (Kind::PrivateAnon, MAP_PRIVATE),
        _ => return Err(wrong(pid, v, "is not of exactly one kind")),
    };
    if v.flags & (MAP_SHARED | MAP_PRIVATE) != map_type {
        return Err(wrong(pid, v, "contradicts itself about being shared"));
    }
    if v.flags & libc::MAP_HUGETLB.unsigned_abs() != 0 {
        return refuse("memory of huge pages (MAP_HUGETLB)");
    }
    let plain = MAP_SHARED | MAP_PRIVATE | MAP_ANON | MAP_LOCKED | PASSED_FLAGS;
    if v.flags & !plain != 0 {
        return Err(wrong(
            pid,
            v,
            &format!("has unknown flags {:#x}", v.flags & !plain),
        ));
    }
    let advice = v.madv.unwrap_or(0);
    if v.prot & !PROT_ALL != 0 || advice & !ADVICE != 0 {
        return Err(wrong(
            pid,
            v,
            &format!("has unknown protection {:#x} or advice {advice:#x}", v.prot),
        ));
    }
    if !v.pgoff.is_multiple_of(PAGE_SIZE) || v.pgoff.checked_add(range.len()).is_none() {
        return Err(wrong(pid, v, "has an offset that is no page"));
    }
    Ok(Area {
        range,
        kind,
        prot: v.prot,
        flags: v.flags & PASSED_FLAGS,
        offset: v.pgoff,
        lock: (v.flags & MAP_LOCKED != 0).then_some(if v.lock_on_fault == Some(true) {
            Lock::OnFault
        } else {
            Lock::Whole
        }),
        writes_file: map_type == MAP_SHARED
            && (v.prot & PROT_WRITE != 0 || v.fdflags.is_some_and(|f| f & ACCESS == READ_WRITE)),
        advice,
    })
}

/// Adds the call that maps an area; `fd` is a descriptor of the running task
/// for whatever is not private anonymous memory. `has_pages`: it will be filled.
pub fn map(batch: &mut Batch, area: &Area, fd: Option<Arg>, has_pages: bool) {
    let kind = match area.kind {
        Kind::PrivateAnon => MAP_PRIVATE | MAP_ANON,
        Kind::PrivateFile(_) => MAP_PRIVATE,
        Kind::SharedAnon(_) | Kind::SharedFile(_) => MAP_SHARED,
    };
    let prot = if area.starts_writable(has_pages) {
        area.prot | PROT_WRITE
    } else {
        area.prot
    };
    let flags = kind | area.flags | libc::MAP_FIXED_NOREPLACE.unsigned_abs();
    let offset = if matches!(area.kind, Kind::PrivateAnon) {
        0
    } else {
        area.offset
    };
    batch.call(
        "mmap",
        libc::SYS_mmap,
        &[
            area.range.start().into(),
            area.range.len().into(),
            prot.into(),
            flags.into(),
            fd.unwrap_or_else(|| (-1i64).into()),
            offset.into(),
        ],
    );
}

/// Adds the calls that give areas their properties after they were filled:
/// protection, advice, locks. `follows`: more pages come later.
pub fn finish(batch: &mut Batch, area: &Area, has_pages: bool, follows: bool) {
    let (start, len) = (area.range.start(), area.range.len());
    if area.starts_writable(has_pages) {
        batch.call(
            "mprotect",
            libc::SYS_mprotect,
            &[start.into(), len.into(), area.prot.into()],
        );
    }
    for advice in (0..64).filter(|a| area.advice & (1 << a) != 0) {
        batch.call(
            "madvise",
            libc::SYS_madvise,
            &[start.into(), len.into(), advice.into()],
        );
    }
    if area.lock.is_some() {
        let on_fault = u64::from(libc::MLOCK_ONFAULT);
        let args = [start.into(), len.into(), on_fault.into()];
        batch.call("mlock2", libc::SYS_mlock2, &args);
    }
    if area.lock == Some(Lock::Whole) && !(follows && area.is_locked_later()) {
        // It also reads what is not there, and fails where nobody may read; it is
        // locked by then.
        batch.try_call("mlock", libc::SYS_mlock, &[start.into(), len.into()]);
    }
}

/// Adds the calls that install guard pages: the last step on memory.
pub fn guards(batch: &mut Batch, guards: &[PageRange]) {
    for g in guards {
        batch.call(
            "madvise(MADV_GUARD_INSTALL)",
            libc::SYS_madvise,
            &[g.start().into(), g.len().into(), MADV_GUARD_INSTALL.into()],
        );
    }
}

/// Adds the call that tells the kernel where code, data, heap, stack, arguments
/// and environment lie, and what the executable is: `PR_SET_MM_MAP` of prctl(2).
/// `exe` is a descriptor of the running task.
pub fn describe(batch: &mut Batch, mm: &MmEntry, exe: Arg) {
    const AUXV_PTR_AT: usize = 88;
    const EXE_AT: usize = 100;
    let mut auxv: Vec<u8> = mm
        .mm_saved_auxv
        .iter()
        .flat_map(|w| w.to_le_bytes())
        .collect();
    // the kernel wants pairs, and ends them itself
    auxv.truncate(auxv.len() / 16 * 16);
    let auxv_len = u32::try_from(auxv.len()).unwrap_or(0);
    let auxv = batch.bytes(&auxv);
    let mut raw = [0u8; 104];
    let words = [
        mm.mm_start_code,
        mm.mm_end_code,
        mm.mm_start_data,
        mm.mm_end_data,
        mm.mm_start_brk,
        mm.mm_brk,
        mm.mm_start_stack,
        mm.mm_arg_start,
        mm.mm_arg_end,
        mm.mm_env_start,
        mm.mm_env_end,
    ];
    for (slot, word) in raw.chunks_exact_mut(8).zip(words) {
        slot.copy_from_slice(&word.to_le_bytes());
    }
    raw[96..100].copy_from_slice(&auxv_len.to_le_bytes());
    // room for the eight bytes that a patch of the last word writes
    let mut room = raw.to_vec();
    room.extend_from_slice(&[0; 8]);
    let map = batch.bytes(&room);
    batch.patch(map, AUXV_PTR_AT, Arg::Buf(auxv));
    batch.patch(map, EXE_AT, exe);
    batch.call(
        "prctl(PR_SET_MM_MAP)",
        libc::SYS_prctl,
        &[
            libc::PR_SET_MM.into(),
            libc::PR_SET_MM_MAP.into(),
            map.into(),
            raw.len().into(),
            0.into(),
        ],
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn anon(start: u64, end: u64) -> VmaEntry {
        VmaEntry {
            start,
            end,
            prot: 3,
            flags: MAP_PRIVATE | MAP_ANON,
            status: status::REGULAR | status::ANON_PRIVATE,
            fd: -1,
            ..Default::default()
        }
    }

    fn read(vmas: Vec<VmaEntry>) -> Result<Space> {
        Space::read(
            NsPid(7),
            MmEntry {
                vmas,
                ..Default::default()
            },
        )
    }

    fn refused(v: VmaEntry, word: &str) {
        let e = read(vec![v]).unwrap_err().to_string();
        assert!(e.contains(word) && e.contains('7'), "{e}");
    }

    #[test]
    fn areas_that_overlap_or_are_no_pages_are_refused_by_range() {
        let e = read(vec![anon(0x1000, 0x3000), anon(0x2000, 0x4000)]).unwrap_err();
        assert!(e.to_string().contains("0x2000-0x4000"), "{e}");
        refused(anon(0x1000, 0x1001), "no page range");
        refused(anon(0x3000, 0x1000), "no page range");
        refused(anon(0x1000, !0xfff), "above");
    }

    #[test]
    fn kinds_that_are_not_carried_are_refused_by_name() {
        let with = |status: u32, flags: u32| VmaEntry {
            status,
            flags,
            ..anon(0x1000, 0x2000)
        };
        let regular = status::REGULAR | status::ANON_PRIVATE;
        refused(with(regular | status::SYSVIPC, 2), "System V");
        refused(with(regular | status::AIORING, 2), "AIO");
        refused(with(regular | (1 << 27), 2), "unknown status");
        refused(with(regular, 0x40022), "huge pages");
        refused(with(regular, 0x8000_0022), "unknown flags");
        refused(with(regular, 0x21), "contradicts");
        refused(with(status::REGULAR, 2), "exactly one kind");
    }

    #[test]
    fn several_vvar_areas_are_one_and_vsyscall_is_left_out() {
        let special = |start, end, status| VmaEntry {
            status,
            ..anon(start, end)
        };
        let s = read(vec![
            special(0x1000, 0x5000, status::VVAR),
            special(0x5000, 0x7000, status::VVAR),
            special(0x7000, 0x9000, status::VDSO),
            special(
                0xffff_ffff_ff60_0000,
                0xffff_ffff_ff60_1000,
                status::VSYSCALL,
            ),
        ])
        .unwrap();
        assert_eq!(s.vvar, PageRange::new(0x1000, 0x7000));
        assert_eq!(s.vdso, PageRange::new(0x7000, 0x9000));
        assert!(s.areas.is_empty());
    }

    #[test]
    fn guards_outside_of_areas_are_refused() {
        let g = VmaEntry {
            status: status::GUARD,
            ..anon(0x9000, 0xa000)
        };
        refused(g, "no area");
    }
}
