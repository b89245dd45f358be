//! Areas of an address space, from /proc/PID/maps, with the flags of smaps.
//!
//! smaps walks page tables: milliseconds per populated GiB. So it is read before
//! the freeze, and inside it only maps; where an area is not as it was, somebody else
//! may know its flags ([`Style`]), or smaps is read again. So it is with guard pages,
//! if the freeze is not to look for them.

use std::collections::{BTreeMap, HashMap};

use super::{MAP_DROPPABLE, TASK_SIZE, status};
use crate::base::{Error, HostPid, PageRange, Result};
use crate::image::records::{MmEntry, VmaEntry};
use crate::sys::pagemap::{Filter, Pagemap};
use crate::sys::procfs::{self, Map, Stat};

/// What is behind an area, and so where its pages come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Private anonymous memory.
    PrivateAnon,
    /// A private mapping of a file: only its changed pages belong to the task.
    PrivateFile,
    /// Shared anonymous memory: pages belong to the object with this inode number.
    SharedAnon(u64),
    /// A shared mapping of a file: the file holds the pages.
    SharedFile,
    /// A mapping of a memfd: the memfd holds the pages.
    Memfd,
    /// Memory whose content may vanish at any time: not carried.
    Droppable,
    /// The vDSO's code.
    Vdso,
    /// The vDSO's data, which the kernel provides.
    Vvar,
    /// The vsyscall page, which the kernel provides.
    Vsyscall,
}

/// An area of a captured address space.
#[derive(Debug, Clone)]
pub struct Area {
    /// Where.
    pub range: PageRange,
    /// What.
    pub kind: Kind,
    /// The line of /proc it was made from.
    pub map: Map,
    /// Its record; `shmid` is filled in by the caller for files.
    pub entry: VmaEntry,
}

impl Area {
    /// Whether a file id belongs into its record.
    pub fn has_file(&self) -> bool {
        has_file(self.kind)
    }

    /// Whether its pages may be left for later in images that CRIU reads: its rule for
    /// PE_LAZY, and for shared anonymous memory, where CRIU does not look at the flag.
    pub fn can_be_lazy(&self) -> bool {
        self.can_follow() && self.entry.flags & libc::MAP_LOCKED.cast_unsigned() == 0
    }

    /// Whether dunlin can fill it after the resume: memory that is locked, too.
    pub fn can_follow(&self) -> bool {
        matches!(self.kind, Kind::PrivateAnon | Kind::SharedAnon(_))
    }
}

/// The two-letter words of smaps' VmFlags.
pub type Flags = Vec<[u8; 2]>;

/// Flags that mmap(2) and madvise(2) give an area, and a program does not see.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Style {
    /// MAP_NORESERVE.
    pub noreserve: bool,
    /// madvise(2) advice in force.
    pub advice: Vec<i32>,
}

impl Style {
    /// As smaps would show it.
    pub fn flags(&self) -> Flags {
        let advice = ADVICE.iter().filter(|(_, a)| self.advice.contains(a));
        let words = advice.map(|(word, _)| *word);
        let words = words.chain(self.noreserve.then_some("nr"));
        words.filter_map(|w| w.as_bytes().try_into().ok()).collect()
    }

    /// The style of an area of plain private memory.
    fn of(map: &Map) -> Option<Self> {
        let odd = [
            "gd", "lo", "ht", "um", "uw", "ui", "dp", "sl", "ss", "io", "pf",
        ];
        let plain = is_plain(map) && !odd.iter().any(|word| map.has(word));
        plain.then(|| Self {
            noreserve: map.has("nr"),
            advice: advice_of(map).collect(),
        })
    }
}

/// Private anonymous memory without a name.
pub fn is_plain(map: &Map) -> bool {
    !map.shared && map.ino == 0 && map.dev == (0, 0) && map.name.is_empty()
}

/// What walks page tables, read while a task still runs: flags of its areas, and
/// where its guard pages were.
#[derive(Debug, Clone, Default)]
pub struct Before {
    maps: HashMap<u64, Map>,
    /// Where guard pages were looked for, in order.
    looked: Vec<PageRange>,
    guards: Vec<PageRange>,
}

impl Before {
    /// Reads smaps. Costs milliseconds per populated GiB.
    ///
    /// # Errors
    /// If the task is gone.
    pub fn read(pid: HostPid) -> Result<Self> {
        let maps = procfs::smaps(pid)?;
        Ok(Self {
            maps: maps.into_iter().map(|m| (m.range.start(), m)).collect(),
            ..Self::default()
        })
    }

    /// As [`Self::read`], with the guard pages of what may hold some. Costs as much
    /// again.
    ///
    /// # Errors
    /// If the task is gone.
    pub fn with_guards(pid: HostPid) -> Result<Self> {
        let pagemap = Pagemap::open(pid)?;
        let (mut looked, mut guards) = (Vec::new(), Vec::new());
        for m in procfs::maps(pid)? {
            if m.range.start() < TASK_SIZE {
                let found = pagemap.scan(m.range, Filter::GUARDS)?;
                guards.extend(found.into_iter().map(|r| r.range));
                looked.push(m.range);
            }
        }
        Ok(Self {
            looked,
            guards,
            ..Self::read(pid)?
        })
    }

    /// Whether some area has this word among its flags.
    pub fn has(&self, flag: &str) -> bool {
        self.maps.values().any(|m| m.has(flag))
    }

    /// The styles of the task's private memory, that of most areas first.
    pub fn styles(&self) -> Vec<Style> {
        let mut counts: BTreeMap<Style, usize> = BTreeMap::new();
        for style in self.maps.values().filter_map(Style::of) {
            *counts.entry(style).or_default() += 1;
        }
        let mut styles: Vec<_> = counts.into_iter().collect();
        styles.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        styles.into_iter().map(|(style, _)| style).collect()
    }

    /// Where guard pages were in `area`, and the parts of it that nobody looked at.
    pub fn guards(&self, area: PageRange) -> (Vec<PageRange>, Vec<PageRange>) {
        let were = within(&self.guards, area);
        let (mut unseen, mut at) = (Vec::new(), area.start());
        for seen in within(&self.looked, area) {
            unseen.extend(PageRange::new(at, seen.start()));
            at = seen.end();
        }
        unseen.extend(PageRange::new(at, area.end()));
        unseen.retain(|r| !r.is_empty());
        (were.collect(), unseen)
    }

    fn flags(&self, map: &Map) -> Option<&Map> {
        self.maps.get(&map.range.start()).filter(|old| {
            // a growing stack or heap keeps its flags
            old.prot == map.prot
                && old.shared == map.shared
                && old.ino == map.ino
                && old.name == map.name
                && (old.range == map.range || old.offset == map.offset)
        })
    }
}

/// The parts of `ranges` (disjoint, in order) in `area`. A process may have a
/// million areas, and each is asked for.
fn within(ranges: &[PageRange], area: PageRange) -> impl Iterator<Item = PageRange> {
    let first = ranges.partition_point(|r| r.end() <= area.start());
    let rest = ranges.get(first..).unwrap_or(&[]);
    let here = rest.iter().take_while(move |r| r.start() < area.end());
    here.filter_map(move |r| r.intersect(area))
}

/// All areas of a stopped task, in order of address. `find` says of areas that are
/// not as they were, among all areas, what their flags are; an empty answer: it cannot.
///
/// # Errors
/// Areas of a kind that is not carried are refused by name; those of `find`.
pub fn areas(
    pid: HostPid,
    before: &Before,
    find: impl FnOnce(&[&Map], &[Map]) -> Result<Vec<Flags>>,
) -> Result<Vec<Area>> {
    let mut maps = procfs::maps(pid)?;
    let mut flags: Vec<Option<Flags>> = maps
        .iter()
        .map(|m| before.flags(m).map(|old| old.flags.clone()))
        .collect();
    let new = || maps.iter().zip(&flags).filter(|(_, f)| f.is_none());
    let new: Vec<&Map> = new().map(|(m, _)| m).collect();
    if !new.is_empty() {
        let found = find(&new, &maps)?;
        if found.len() == new.len() {
            let open = flags.iter_mut().filter(|f| f.is_none());
            open.zip(found).for_each(|(f, found)| *f = Some(found));
        } else {
            let fresh = Before::read(pid)?;
            let read = |m: &Map| fresh.flags(m).map(|now| now.flags.clone());
            flags = maps.iter().map(read).collect();
        }
    }
    for (m, flags) in maps.iter_mut().zip(flags) {
        m.flags = flags.ok_or_else(|| {
            Error::bug(
                format!("read areas of task {pid}"),
                format!("{} changed while it was stopped", m.range),
            )
        })?;
    }
    maps.into_iter().map(|m| area(pid, m)).collect()
}

fn area(pid: HostPid, map: Map) -> Result<Area> {
    let refuse = |why: &str| {
        Error::refused(
            format!("task {pid} memory {} {}", map.range, map.name),
            why.to_owned(),
        )
    };
    let (kind, status) = classify(&map).map_err(refuse)?;
    if kind != Kind::Vvar && kind != Kind::Vdso && kind != Kind::Vsyscall {
        for (flag, why) in [
            ("io", "device memory is not carried"),
            (
                "pf",
                "memory without pages of its own (VM_PFNMAP) is not carried",
            ),
            ("um", "the task uses a userfaultfd of its own"),
            ("uw", "the task uses a userfaultfd of its own"),
            ("ui", "the task uses a userfaultfd of its own"),
            ("ss", "shadow stacks are not carried"),
            ("sl", "sealed memory (mseal) is not carried"),
            ("ht", "huge pages of hugetlbfs are not carried"),
        ] {
            if map.has(flag) {
                return Err(refuse(why));
            }
        }
    }
    let entry = VmaEntry {
        start: map.range.start(),
        end: map.range.end(),
        pgoff: if matches!(kind, Kind::PrivateAnon | Kind::Droppable) {
            0
        } else {
            map.offset
        },
        shmid: if let Kind::SharedAnon(ino) = kind {
            ino
        } else {
            0
        },
        prot: map.prot.cast_unsigned(),
        flags: mmap_flags(&map, kind),
        status,
        fd: -1,
        madv: madvise(&map),
        fdflags: has_file(kind).then(|| {
            if map.shared && map.has("mw") {
                libc::O_RDWR.cast_unsigned()
            } else {
                0
            }
        }),
        lock_on_fault: map.has("lf").then_some(true),
    };
    Ok(Area {
        range: map.range,
        kind,
        map,
        entry,
    })
}

fn has_file(kind: Kind) -> bool {
    matches!(kind, Kind::PrivateFile | Kind::SharedFile | Kind::Memfd)
}

fn classify(map: &Map) -> Result<(Kind, u32), &'static str> {
    let name = map.name.as_str();
    let anon = status::REGULAR | status::ANON_PRIVATE;
    if map.range.start() >= TASK_SIZE {
        return if name == "[vsyscall]" {
            Ok((Kind::Vsyscall, status::VSYSCALL | status::ANON_PRIVATE))
        } else {
            Err("it lies above user space")
        };
    }
    if map.has("dp") {
        return Ok((Kind::Droppable, anon));
    }
    if map.ino == 0 && map.dev == (0, 0) {
        return match name {
            "[vdso]" => Ok((Kind::Vdso, anon | status::VDSO)),
            "[heap]" => Ok((Kind::PrivateAnon, anon | status::HEAP)),
            "" | "[stack]" => Ok((Kind::PrivateAnon, anon)),
            n if n.starts_with("[vvar") => Ok((Kind::Vvar, anon | status::VVAR)),
            n if n.starts_with("[anon:") => Ok((Kind::PrivateAnon, anon)),
            "[uprobes]" => Err("it is probed from outside (uprobes)"),
            _ => Err("a mapping of this kind is not carried"),
        };
    }
    if name == "/dev/zero (deleted)" || name.starts_with("[anon_shmem:") {
        if !map.shared {
            return Err("a private mapping of shared anonymous memory is not carried");
        }
        return Ok((
            Kind::SharedAnon(map.ino),
            status::REGULAR | status::ANON_SHARED,
        ));
    }
    for (prefix, why) in [
        ("/SYSV", "System V shared memory is not carried"),
        ("/[aio]", "AIO rings are not carried"),
        ("/anon_hugepage", "huge pages of hugetlbfs are not carried"),
        ("/secretmem", "secret memory is not carried"),
        ("anon_inode:", "a mapping of this kind is not carried"),
        ("socket:", "a mapping of a socket is not carried"),
        ("[", "a mapping of this kind is not carried"),
    ] {
        if name.starts_with(prefix) {
            return Err(why);
        }
    }
    if !name.starts_with('/') {
        return Err("a mapping of this kind is not carried");
    }
    let file = if map.shared {
        status::FILE_SHARED
    } else {
        status::FILE_PRIVATE
    };
    if name.starts_with("/memfd:") {
        // a private mapping of a memfd has pages of its own, like any file's
        let kind = if map.shared {
            Kind::Memfd
        } else {
            Kind::PrivateFile
        };
        return Ok((kind, status::REGULAR | status::MEMFD | file));
    }
    Ok((
        if map.shared {
            Kind::SharedFile
        } else {
            Kind::PrivateFile
        },
        status::REGULAR | file,
    ))
}

fn mmap_flags(map: &Map, kind: Kind) -> u32 {
    if kind == Kind::Droppable {
        return MAP_DROPPABLE | libc::MAP_ANONYMOUS.cast_unsigned();
    }
    let mut flags = if map.shared {
        libc::MAP_SHARED
    } else {
        libc::MAP_PRIVATE
    };
    if !has_file(kind) {
        flags |= libc::MAP_ANONYMOUS;
    }
    for (word, bit) in [
        ("gd", libc::MAP_GROWSDOWN),
        ("lo", libc::MAP_LOCKED),
        ("nr", libc::MAP_NORESERVE),
    ] {
        if map.has(word) {
            flags |= bit;
        }
    }
    flags.cast_unsigned()
}

/// madvise(2) advice that stays in force, as smaps shows it.
const ADVICE: [(&str, i32); 8] = [
    ("sr", libc::MADV_SEQUENTIAL),
    ("rr", libc::MADV_RANDOM),
    ("dc", libc::MADV_DONTFORK),
    ("dd", libc::MADV_DONTDUMP),
    ("mg", libc::MADV_MERGEABLE),
    ("hg", libc::MADV_HUGEPAGE),
    ("nh", libc::MADV_NOHUGEPAGE),
    ("wf", libc::MADV_WIPEONFORK),
];

fn advice_of(map: &Map) -> impl Iterator<Item = i32> {
    let here = ADVICE.iter().filter(|(word, _)| map.has(word));
    here.map(|(_, advice)| *advice)
}

/// madvise(2) advice in force, bit n for advice n.
fn madvise(map: &Map) -> Option<u64> {
    let bits = advice_of(map).fold(0u64, |m, advice| m | (1 << advice));
    // the kernel's own areas are always marked so, and cannot be advised
    let own = map.name == "[vdso]" || map.name == "[vsyscall]" || map.name.starts_with("[vvar");
    (bits != 0 && !own).then_some(bits)
}

/// Runs of guard pages as records, which stand behind the area that holds them.
pub fn guard_entry(range: PageRange) -> VmaEntry {
    VmaEntry {
        start: range.start(),
        end: range.end(),
        pgoff: 0,
        shmid: 0,
        prot: 0,
        flags: 0,
        status: status::GUARD,
        fd: -1,
        madv: None,
        fdflags: None,
        lock_on_fault: None,
    }
}

/// The record of an address space.
///
/// # Errors
/// If the auxiliary vector cannot be read.
pub fn record(
    pid: HostPid,
    stat: &Stat,
    brk: u64,
    vmas: Vec<VmaEntry>,
    exe: u32,
) -> Result<MmEntry> {
    /// CRIU refuses an image with more on x86-64. The vector of a new kernel is
    /// one pair longer with its final AT_NULL, which the kernel adds by itself.
    const AUXV_WORDS: usize = 44;
    let auxv = procfs::file(pid, "auxv")?;
    Ok(MmEntry {
        mm_start_code: stat.start_code,
        mm_end_code: stat.end_code,
        mm_start_data: stat.start_data,
        mm_end_data: stat.end_data,
        mm_start_stack: stat.start_stack,
        mm_start_brk: stat.start_brk,
        mm_brk: brk,
        mm_arg_start: stat.arg_start,
        mm_arg_end: stat.arg_end,
        mm_env_start: stat.env_start,
        mm_env_end: stat.env_end,
        exe_file_id: exe,
        mm_saved_auxv: auxv
            .chunks_exact(8)
            .filter_map(|c| c.try_into().ok())
            .map(u64::from_le_bytes)
            .take(AUXV_WORDS)
            .collect(),
        vmas,
        dumpable: None,
        aios: Vec::new(),
        thp_disabled: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(name: &str, shared: bool, ino: u64, flags: &[&str]) -> Map {
        Map {
            range: PageRange::new(0x1000, 0x3000).unwrap(),
            prot: 3,
            shared,
            offset: 0,
            dev: if ino == 0 { (0, 0) } else { (0, 1) },
            ino,
            name: name.to_owned(),
            flags: flags
                .iter()
                .map(|f| f.as_bytes().try_into().unwrap())
                .collect(),
        }
    }

    #[test]
    fn own_areas_are_all_of_a_known_kind() {
        let me = HostPid(i32::try_from(std::process::id()).unwrap());
        // other test threads map and unmap: take one snapshot
        for m in procfs::smaps(me).unwrap() {
            area(me, m).unwrap();
        }
    }

    #[test]
    fn what_cannot_be_carried_is_refused_by_name() {
        for (m, word) in [
            (map("/SYSV00000000 (deleted)", true, 5, &[]), "System V"),
            (map("/dev/x", true, 5, &["io", "pf"]), "device"),
            (map("", false, 0, &["um"]), "userfaultfd"),
            (map("", false, 0, &["sl"]), "mseal"),
            (map("anon_inode:[perf_event]", true, 5, &[]), "kind"),
            (map("[brand-new]", false, 0, &[]), "kind"),
        ] {
            let e = area(HostPid(7), m.clone()).unwrap_err().to_string();
            assert!(
                e.contains(word) && e.contains("0x1000-0x3000") && e.contains("task 7"),
                "{e}"
            );
        }
    }

    #[test]
    fn guard_pages_of_very_many_areas_are_found_in_no_time() {
        let pages = |page: u64, n| PageRange::with_pages(page * 4096, n).unwrap();
        let all = || (0..200_000).map(|n| 16 + 4 * n);
        let before = Before {
            maps: HashMap::new(),
            looked: all().map(|at| pages(at, 2)).collect(),
            guards: all().map(|at| pages(at + 1, 1)).collect(),
        };
        let begun = std::time::Instant::now();
        for at in all() {
            let (were, unseen) = before.guards(pages(at, 3));
            assert_eq!(were, [pages(at + 1, 1)]);
            assert_eq!(unseen, [pages(at + 2, 1)]);
        }
        let (were, unseen) = before.guards(pages(14, 8));
        assert_eq!(were, [pages(17, 1), pages(21, 1)]);
        assert_eq!(unseen, [pages(14, 2), pages(18, 2)]);
        // By looking at each for each: a minute.
        assert!(begun.elapsed() < std::time::Duration::from_secs(5));
    }

    #[test]
    fn flags_and_advice_are_kept() {
        let a = area(
            HostPid(7),
            map("[stack]", false, 0, &["gd", "lo", "dc", "hg"]),
        )
        .unwrap();
        assert_eq!(a.entry.flags, 0x2 | 0x20 | 0x100 | 0x2000);
        assert_eq!(a.entry.madv, Some((1 << 10) | (1 << 14)));
        assert!(!a.can_be_lazy(), "CRIU fills locked memory at once");
        assert!(a.can_follow() && a.entry.lock_on_fault.is_none());
        let on_fault = area(HostPid(7), map("", false, 0, &["lo", "lf"])).unwrap();
        assert_eq!(on_fault.entry.lock_on_fault, Some(true));
        let a = area(HostPid(7), map("/dev/zero (deleted)", true, 99, &[])).unwrap();
        assert_eq!((a.kind, a.entry.shmid), (Kind::SharedAnon(99), 99));
    }
}
