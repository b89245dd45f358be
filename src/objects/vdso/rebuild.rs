//! Moving the kernel's vDSO to where the program knows it.
//!
//! A new task has the vDSO that its kernel gave it, at some address; the program
//! has the addresses of its own in registers, in the auxiliary vector and in the
//! C library. If both offer the same functions at the same offsets, moving is
//! enough. If not, another kernel made the image, and it is refused.
//!
//! The data areas before it (`[vvar]`, `[vvar_vclock]`) are found by the code by
//! their distance, so all move together, in order. In two steps: the wanted
//! place may overlap the present one.

use crate::base::{Error, HostPid, PageRange, Result};
use crate::sys::procfs::{self, Map};
use crate::sys::steer::Batch;

/// What a task has now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Present {
    /// Data areas, by address.
    pub data: Vec<PageRange>,
    /// The code.
    pub code: PageRange,
}

/// Finds the areas in a task's maps.
///
/// # Errors
/// If there is no vDSO, or its data does not lie directly before it.
pub fn find(pid: HostPid, maps: &[Map]) -> Result<Present> {
    let code = procfs::vdso(pid, maps)?;
    let data: Vec<PageRange> = maps
        .iter()
        .filter(|m| m.name.starts_with("[vvar"))
        .map(|m| m.range)
        .collect();
    let mut end = code.start();
    for d in data.iter().rev() {
        if d.end() != end {
            return Err(Error::refused(
                format!("new task {pid}"),
                format!("its vdso data {d} does not lie before its code {code}"),
            ));
        }
        end = d.start();
    }
    Ok(Present { data, code })
}

impl Present {
    /// All areas together.
    pub fn whole(&self) -> PageRange {
        let start = self.data.first().map_or(self.code.start(), |d| d.start());
        PageRange::new(start, self.code.end()).unwrap_or(self.code)
    }

    fn pieces(&self) -> impl Iterator<Item = PageRange> {
        self.data.iter().copied().chain([self.code])
    }

    /// Adds the calls that move all areas so that the first begins at `to`, by
    /// way of `parking` (free, as long as the whole), and returns where they
    /// will lie.
    pub fn relocate(&self, batch: &mut Batch, parking: u64, to: u64) -> Self {
        let parked = self.parked(batch, parking);
        let there = self.shifted(to);
        move_pieces(batch, &parked, &there);
        there
    }

    /// Adds the calls that move all areas to `to`, which is free, and returns
    /// where they will lie.
    pub fn parked(&self, batch: &mut Batch, to: u64) -> Self {
        let there = self.shifted(to);
        move_pieces(batch, self, &there);
        there
    }

    fn shifted(&self, to: u64) -> Self {
        let base = self.whole().start();
        let shift = |r: &PageRange| {
            PageRange::with_pages(to.wrapping_add(r.start() - base), r.pages()).unwrap_or(*r)
        };
        Self {
            data: self.data.iter().map(shift).collect(),
            code: shift(&self.code),
        }
    }
}

fn move_pieces(batch: &mut Batch, from: &Present, to: &Present) {
    const FLAGS: i32 = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    for (f, t) in from.pieces().zip(to.pieces()) {
        batch.call(
            "mremap",
            libc::SYS_mremap,
            &[
                f.start().into(),
                f.len().into(),
                t.len().into(),
                FLAGS.into(),
                t.start().into(),
            ],
        );
    }
}

/// Whether a program that knows the vDSO `image` can use `kernel` in its place:
/// byte for byte the same, or every function that the image's offers is at the
/// same offset.
///
/// # Errors
/// By the name of the first function that differs.
pub fn compatible(image: &[u8], kernel: &[u8]) -> Result<()> {
    if image == kernel {
        return Ok(());
    }
    let refuse = |why: String| Error::refused("vdso of the image", why);
    let theirs = symbols(image).ok_or_else(|| refuse("it is no ELF image".to_owned()))?;
    let ours = symbols(kernel).ok_or_else(|| refuse("this kernel's is no ELF image".to_owned()))?;
    for (name, value) in &theirs {
        match ours.iter().find(|(n, _)| n == name) {
            Some((_, v)) if v == value => {}
            Some((_, v)) => {
                return Err(refuse(format!(
                    "{} is at {value:#x} there and at {v:#x} here (another kernel)",
                    String::from_utf8_lossy(name)
                )));
            }
            None => {
                return Err(refuse(format!(
                    "this kernel lacks {}",
                    String::from_utf8_lossy(name)
                )));
            }
        }
    }
    Ok(())
}

/// Name and value of all defined dynamic symbols. ELF-64, little endian.
fn symbols(elf: &[u8]) -> Option<Vec<(Vec<u8>, u64)>> {
    const SHT_DYNSYM: u32 = 11;
    const SYM_LEN: usize = 24;
    let u16_at = |n: usize| Some(u16::from_le_bytes(elf.get(n..n + 2)?.try_into().ok()?));
    let u32_at = |n: usize| Some(u32::from_le_bytes(elf.get(n..n + 4)?.try_into().ok()?));
    let u64_at = |n: usize| Some(u64::from_le_bytes(elf.get(n..n + 8)?.try_into().ok()?));
    let size = |v: u64| usize::try_from(v).ok().filter(|v| *v <= elf.len());
    if elf.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let table = size(u64_at(40)?)?;
    let (entry, count) = (usize::from(u16_at(58)?), usize::from(u16_at(60)?));
    let section = |i: usize| table.checked_add(i.checked_mul(entry)?);
    for i in 0..count {
        let s = section(i)?;
        if u32_at(s + 4)? != SHT_DYNSYM {
            continue;
        }
        let (at, len) = (size(u64_at(s + 24)?)?, size(u64_at(s + 32)?)?);
        let strings = section(usize::try_from(u32_at(s + 40)?).ok()?)?;
        let names = elf.get(size(u64_at(strings + 24)?)?..)?;
        let mut all = Vec::new();
        for sym in elf.get(at..at.checked_add(len)?)?.chunks_exact(SYM_LEN) {
            let word = |n: usize, l: usize| sym.get(n..n + l);
            let name = u32::from_le_bytes(word(0, 4)?.try_into().ok()?);
            let defined_in = u16::from_le_bytes(word(6, 2)?.try_into().ok()?);
            let value = u64::from_le_bytes(word(8, 8)?.try_into().ok()?);
            if defined_in == 0 {
                continue;
            }
            let tail = names.get(usize::try_from(name).ok()?..)?;
            let name = tail.split(|b| *b == 0).next()?;
            all.push((name.to_vec(), value));
        }
        return Some(all);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> (PageRange, Vec<u8>) {
        let pid = HostPid(i32::try_from(std::process::id()).unwrap());
        let maps = crate::sys::procfs::maps(pid).unwrap();
        let p = find(pid, &maps).unwrap();
        let len = usize::try_from(p.code.len()).unwrap();
        let bytes = crate::sys::vm::read_vec(pid, crate::base::VAddr(p.code.start()), len).unwrap();
        (p.code, bytes)
    }

    #[test]
    fn a_vdso_fits_itself_even_when_its_code_was_patched() {
        let (_, mut bytes) = own();
        assert!(
            symbols(&bytes)
                .unwrap()
                .iter()
                .any(|(n, _)| n == b"__vdso_clock_gettime")
        );
        let same = bytes.clone();
        *bytes.last_mut().unwrap() ^= 1;
        compatible(&same, &bytes).unwrap();
    }

    #[test]
    fn a_vdso_with_a_moved_function_is_refused_by_its_name() {
        let (_, bytes) = own();
        let syms = symbols(&bytes).unwrap();
        let (_, value) = syms.iter().find(|(n, _)| n == b"__vdso_time").unwrap();
        // the symbol's value, in place
        let at = bytes
            .windows(8)
            .position(|w| w == value.to_le_bytes())
            .unwrap();
        let mut moved = bytes.clone();
        moved[at] ^= 0x10;
        let e = compatible(&bytes, &moved).unwrap_err().to_string();
        assert!(e.contains("time"), "{e}");
        assert!(compatible(b"rubbish", &bytes).is_err());
        assert!(compatible(&bytes[..200], &bytes).is_err());
    }

    #[test]
    fn areas_keep_their_order_and_distance_when_moved() {
        let r = |a, b| PageRange::new(a, b).unwrap();
        let p = Present {
            data: vec![r(0x1000, 0x5000), r(0x5000, 0x7000)],
            code: r(0x7000, 0x9000),
        };
        let there = p.relocate(&mut Batch::new(), 0x10_0000, 0x20_0000);
        assert_eq!(there.code, r(0x20_6000, 0x20_8000));
        assert_eq!(there.whole().pages(), p.whole().pages());
    }
}
