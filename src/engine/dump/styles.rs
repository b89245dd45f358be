//! Flags of areas that came in the last moment before a freeze.
//!
//! Only smaps tells them, and smaps walks the page tables of the whole process: 20 ms
//! a GiB. But the kernel joins neighbours that are alike in all flags. So a page is
//! mapped beside the area in question, in the ways in which the process maps its
//! memory, until the two are one area; then it is unmapped. What joins with nothing,
//! or has no room beside it, has to be read from smaps.

use super::super::freeze::Tree;
use crate::base::{PAGE_SIZE, Result};
use crate::objects::mm::capture::{Before, Flags, Style, is_plain};
use crate::sys::procfs::{self, Map};
use crate::sys::procmap::Areas;
use crate::sys::steer;

const PROT_WRITE: u64 = libc::PROT_WRITE as u64;
/// The lowest address that any process may map, `vm.mmap_min_addr`'s default.
const LOWEST: u64 = 1 << 16;
/// Most ways that are tried for one area.
const MOST_STYLES: usize = 6;
/// For so many MiB in memory one area is asked for: both take about as long.
const MIB_PER_AREA: usize = 8;

/// The flags of all areas `new` of a stopped process, of which `all` are the areas.
/// None when one cannot be told so, or when reading smaps is faster.
///
/// # Errors
/// The process died.
pub(super) fn find(
    tree: &mut Tree,
    index: usize,
    new: &[&Map],
    all: &[Map],
    before: &Before,
) -> Result<Vec<Flags>> {
    let none = Ok(Vec::new());
    let Some(process) = tree.processes().get(index) else {
        return none;
    };
    let pid = process.pid;
    let mib = usize::try_from(process.stat.resident >> 20).unwrap_or(usize::MAX);
    if new.len() > mib / MIB_PER_AREA || new.iter().any(|m| !is_plain(m)) {
        return none;
    }
    // Locked or merged may be whatever it maps from now on, without being told
    // (mlockall(2), PR_SET_MEMORY_MERGE): our page would be, too.
    let leader = process.alive().and_then(|a| a.threads.first());
    let locks = leader.is_none_or(|t| t.status.locked_kib != 0);
    if locks || before.has("lo") || before.has("mg") {
        return none;
    }
    let insn = procfs::vdso(pid, all).and_then(|vdso| steer::find_syscall(pid, vdso));
    let Ok(insn) = insn else {
        return none;
    };
    let mut asker = Asker {
        tree,
        index,
        insn,
        areas: Areas::open(pid)?,
    };
    let mut styles = vec![Style::default()];
    styles.extend(
        before
            .styles()
            .into_iter()
            .filter(|s| *s != Style::default()),
    );
    styles.truncate(MOST_STYLES);
    let mut found = Vec::with_capacity(new.len());
    for map in new {
        let style = match beside(map, all) {
            Some(page) => asker.style(map, page, &styles)?,
            None => None,
        };
        let Some(style) = style else {
            tracing::debug!(pid = pid.0, area = %map.range, "came just before the freeze");
            return none;
        };
        found.push(style.flags());
    }
    tracing::debug!(
        pid = pid.0,
        areas = found.len(),
        "areas came just before the freeze"
    );
    Ok(found)
}

/// A free page that touches the area.
fn beside(map: &Map, all: &[Map]) -> Option<u64> {
    let free = |at: u64| !all.iter().any(|m| m.range.contains(at));
    let below = map.range.start().checked_sub(PAGE_SIZE);
    let below = below.filter(|at| *at >= LOWEST && free(*at));
    below.or_else(|| Some(map.range.end()).filter(|at| free(*at)))
}

struct Asker<'a> {
    tree: &'a mut Tree,
    index: usize,
    insn: u64,
    areas: Areas,
}

impl Asker<'_> {
    /// A call in the stopped process; `None` when none of its threads can be
    /// steered yet.
    fn call(&mut self, nr: i64, args: &[u64]) -> Result<Option<i64>> {
        self.tree.call(self.index, self.insn, nr, args)
    }

    fn style(&mut self, map: &Map, page: u64, styles: &[Style]) -> Result<Option<Style>> {
        let prot = u64::from(map.prot.unsigned_abs());
        for style in styles {
            // Memory that was writable once is accounted for ever.
            for first in [prot, prot | PROT_WRITE] {
                if first != prot && style.noreserve {
                    continue;
                }
                let alike = self.alike(map, page, style, first)?;
                let Some(alike) = alike else {
                    return Ok(None);
                };
                if alike {
                    return Ok(Some(style.clone()));
                }
                if first == prot | PROT_WRITE {
                    break;
                }
            }
        }
        Ok(None)
    }

    /// Whether a page that is mapped in this way joins with the area; `None` when it
    /// cannot be mapped.
    fn alike(&mut self, map: &Map, page: u64, style: &Style, first: u64) -> Result<Option<bool>> {
        let mut flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        if style.noreserve {
            flags |= libc::MAP_NORESERVE;
        }
        let flags = u64::from(flags.unsigned_abs());
        let args = [page, PAGE_SIZE, first, flags, u64::MAX, 0];
        let Some(at) = self.call(libc::SYS_mmap, &args)? else {
            return Ok(None);
        };
        let Some(at) = u64::try_from(at).ok().filter(|at| *at < 1 << 56) else {
            return Ok(None); // its limit of memory or of areas
        };
        let alike = if at == page {
            self.dressed(map, page, style, first)
        } else {
            Ok(None)
        };
        self.call(libc::SYS_munmap, &[at, PAGE_SIZE])?;
        alike
    }

    fn dressed(&mut self, map: &Map, page: u64, style: &Style, first: u64) -> Result<Option<bool>> {
        let prot = u64::from(map.prot.unsigned_abs());
        let mut calls: Vec<(i64, u64)> = Vec::new();
        if first != prot {
            calls.push((libc::SYS_mprotect, prot));
        }
        let advice = style.advice.iter().map(|a| u64::from(a.unsigned_abs()));
        calls.extend(advice.map(|a| (libc::SYS_madvise, a)));
        for (nr, how) in calls {
            if self.call(nr, &[page, PAGE_SIZE, how])? != Some(0) {
                return Ok(None);
            }
        }
        let joined = self.areas.at(page)?;
        Ok(Some(joined.is_some_and(|r| {
            r.start() <= map.range.start() && map.range.end() <= r.end()
        })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::PageRange;
    use crate::sys::testing::{Child, alone};

    const MIB: u64 = 1 << 20;

    fn number(n: i32) -> u64 {
        u64::from(n.unsigned_abs())
    }

    /// An area of its own among others, with a free page beside it.
    fn area(child: &Child, noreserve: bool, first: i32, last: i32, advice: &[i32]) -> PageRange {
        let spare = child.mmap(16 * PAGE_SIZE);
        child.munmap(spare, 16 * PAGE_SIZE);
        let at = spare + 4 * PAGE_SIZE;
        let reserve = if noreserve { libc::MAP_NORESERVE } else { 0 };
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE | reserve;
        let args = [at, 4 * PAGE_SIZE, number(first), number(flags), u64::MAX];
        assert_eq!(child.call(libc::SYS_mmap, args), at.cast_signed());
        if first != last {
            child.mprotect(at, 4 * PAGE_SIZE, last);
        }
        for a in advice {
            let args = [at, 4 * PAGE_SIZE, number(*a), 0, 0];
            assert_eq!(child.call(libc::SYS_madvise, args), 0);
        }
        PageRange::with_pages(at, 4).unwrap()
    }

    fn words(map: &Map) -> Vec<&str> {
        let all = ["sr", "rr", "dc", "dd", "mg", "hg", "nh", "wf", "nr"];
        all.into_iter().filter(|w| map.has(w)).collect()
    }

    /// What [`find`] says of `new`, in words, and what smaps says.
    fn both(child: &Child, before: &Before, new: &[PageRange]) -> (Vec<Map>, Vec<Map>) {
        let mut tree = Tree::stop(child.pid(), false).unwrap();
        let all = procfs::maps(child.pid()).unwrap();
        let is_new = |m: &&Map| new.iter().any(|n| n.intersect(m.range).is_some());
        let asked: Vec<&Map> = all.iter().filter(is_new).collect();
        let found = find(&mut tree, 0, &asked, &all, before).unwrap();
        assert_eq!(procfs::maps(child.pid()).unwrap(), all, "it left something");
        let truth = procfs::smaps(child.pid()).unwrap();
        let truth = truth.into_iter().filter(|m| is_new(&m)).collect();
        let said = asked
            .into_iter()
            .zip(found)
            .map(|(m, flags)| Map { flags, ..m.clone() });
        (said.collect(), truth)
    }

    #[test]
    fn an_area_is_told_by_what_it_joins_with_as_smaps_tells_it() {
        const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;
        let child = Child::fork();
        child.fill(child.mmap(128 * MIB), 128 * MIB, 1);
        let advised = [libc::MADV_NOHUGEPAGE, libc::MADV_DONTDUMP];
        area(&child, false, RW, RW, &advised);
        area(&child, true, RW, RW, &[libc::MADV_DONTFORK]);
        let before = Before::read(child.pid()).unwrap();
        let new = [
            area(&child, false, RW, RW, &[]),
            area(&child, true, RW, RW, &[]),
            area(&child, false, libc::PROT_NONE, libc::PROT_NONE, &[]),
            area(&child, false, RW, libc::PROT_READ, &[]),
            area(&child, false, RW, libc::PROT_READ, &advised),
            area(&child, true, libc::PROT_READ, RW, &[libc::MADV_DONTFORK]),
        ];
        child.fill(new[0].start(), PAGE_SIZE, 3);
        let (said, truth) = both(&child, &before, &new);
        assert_eq!(said.len(), new.len());
        for (said, truth) in said.iter().zip(&truth) {
            assert_eq!((said.range, words(said)), (truth.range, words(truth)));
        }
        assert_eq!(child.sum(new[0].start(), 2 * PAGE_SIZE), 3 * PAGE_SIZE);
    }

    #[test]
    fn what_joins_with_nothing_is_left_to_smaps() {
        alone!();
        const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;
        let child = Child::fork();
        child.fill(child.mmap(64 * MIB), 64 * MIB, 1);
        let before = Before::read(child.pid()).unwrap();
        // A way in which it mapped nothing before.
        let new = area(&child, false, RW, RW, &[libc::MADV_WIPEONFORK]);
        assert!(both(&child, &before, &[new]).0.is_empty());
        // Whatever it maps is locked.
        let locked = Child::fork();
        locked.fill(locked.mmap(64 * MIB), 64 * MIB, 1);
        let before = Before::read(locked.pid()).unwrap();
        assert_eq!(locked.call(libc::SYS_mlockall, [2, 0, 0, 0, 0]), 0);
        let new = area(&locked, false, RW, RW, &[]);
        assert!(both(&locked, &before, &[new]).0.is_empty());
        // A small process: smaps is quick.
        let small = Child::fork();
        let before = Before::read(small.pid()).unwrap();
        let new = area(&small, false, RW, RW, &[]);
        assert!(both(&small, &before, &[new]).0.is_empty());
    }
}
