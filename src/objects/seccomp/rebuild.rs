//! Seccomp filters, installed oldest first, one chain a thread.
//!
//! The tracer suspends seccomp meanwhile (`PTRACE_O_SUSPEND_SECCOMP`), so that
//! the calls that follow are not judged by the filters just installed. They are
//! installed while CAP_SYS_ADMIN is still there: without it the kernel wants
//! no_new_privs first, which would change what the program sees.

use crate::base::{Error, NsPid, Result};
use crate::image::records::{SeccompEntry, SeccompFilter, SeccompMode};
use crate::sys::steer::{Arg, Batch};

const SECCOMP_SET_MODE_STRICT: u64 = 0;
const SECCOMP_SET_MODE_FILTER: u64 = 1;
/// TSYNC is an action (CRIU marks filters that all threads have with it; here
/// each thread installs its own), LOG and SPEC_ALLOW are properties of the filter.
const TSYNC: u32 = 1 << 0;
const CARRIED_FLAGS: u32 = (1 << 1) | (1 << 2);
const MAX_INSTRUCTIONS: usize = 4096;

/// What a thread has.
#[derive(Debug, Clone, PartialEq)]
pub enum Wanted {
    /// None.
    Disabled,
    /// Only read, write, exit and sigreturn.
    Strict,
    /// These filters, oldest first.
    Filters(Vec<SeccompFilter>),
}

/// What the record of thread `tid` asks for, out of the image's filters.
///
/// # Errors
/// Filters that are missing, form a ring, or are no programs.
pub fn wanted(
    tid: NsPid,
    mode: Option<i32>,
    newest: Option<u32>,
    all: Option<&SeccompEntry>,
) -> Result<Wanted> {
    let wrong = |why: String| Error::image(format!("seccomp of thread {tid}"), why);
    let mode = mode.unwrap_or(SeccompMode::Disabled as i32);
    match SeccompMode::try_from(mode) {
        Err(_) => Err(wrong(format!("unknown mode {mode}"))),
        Ok(SeccompMode::Disabled) => Ok(Wanted::Disabled),
        Ok(SeccompMode::Strict) => Ok(Wanted::Strict),
        Ok(SeccompMode::Filter) => {
            let all = all.map_or(&[][..], |e| &e.seccomp_filters);
            let mut chain = Vec::new();
            let mut at = Some(newest.ok_or_else(|| wrong("no filter".to_owned()))?);
            while let Some(index) = at {
                let f = usize::try_from(index)
                    .ok()
                    .and_then(|i| all.get(i))
                    .ok_or_else(|| wrong(format!("filter {index} is missing")))?;
                if chain.len() >= all.len() {
                    return Err(wrong("its filters form a ring".to_owned()));
                }
                let len = f.filter.len();
                if len == 0 || len % 8 != 0 || len / 8 > MAX_INSTRUCTIONS {
                    return Err(wrong(format!(
                        "filter {index} of {len} bytes is no program"
                    )));
                }
                if f.flags.unwrap_or(0) & !(CARRIED_FLAGS | TSYNC) != 0 {
                    return Err(wrong(format!(
                        "filter {index} has flags {:#x}, which are not carried",
                        f.flags.unwrap_or(0)
                    )));
                }
                chain.push(f.clone());
                at = f.prev;
            }
            chain.reverse();
            Ok(Wanted::Filters(chain))
        }
    }
}

/// Adds the calls that install what is wanted in the thread that runs them.
pub fn install(batch: &mut Batch, wanted: &Wanted) {
    match wanted {
        Wanted::Disabled => {}
        Wanted::Strict => {
            batch.call(
                "seccomp(SECCOMP_SET_MODE_STRICT)",
                libc::SYS_seccomp,
                &[SECCOMP_SET_MODE_STRICT.into(), 0.into(), 0u64.into()],
            );
        }
        Wanted::Filters(filters) => {
            for f in filters {
                install_filter(batch, f);
            }
        }
    }
}

fn install_filter(batch: &mut Batch, f: &SeccompFilter) {
    let code = batch.bytes(&f.filter);
    // struct sock_fprog: a short, padding, a pointer
    let mut prog = [0u8; 16];
    let len = u16::try_from(f.filter.len() / 8).unwrap_or(u16::MAX);
    prog[..2].copy_from_slice(&len.to_le_bytes());
    let prog = batch.bytes(&prog);
    batch.patch(prog, 8, Arg::Buf(code));
    batch.call(
        "seccomp(SECCOMP_SET_MODE_FILTER)",
        libc::SYS_seccomp,
        &[
            SECCOMP_SET_MODE_FILTER.into(),
            (f.flags.unwrap_or(0) & CARRIED_FLAGS).into(),
            prog.into(),
        ],
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn f(prev: Option<u32>, len: usize) -> SeccompFilter {
        SeccompFilter {
            filter: vec![0; len],
            prev,
            flags: None,
        }
    }

    #[test]
    fn a_chain_comes_oldest_first() {
        let all = SeccompEntry {
            seccomp_filters: vec![f(None, 8), f(Some(0), 16)],
        };
        let Wanted::Filters(chain) = wanted(NsPid(1), Some(2), Some(1), Some(&all)).unwrap() else {
            panic!()
        };
        assert_eq!(
            chain.iter().map(|f| f.filter.len()).collect::<Vec<_>>(),
            [8, 16]
        );
    }

    #[test]
    fn rings_gaps_and_scraps_are_refused() {
        let ring = SeccompEntry {
            seccomp_filters: vec![f(Some(1), 8), f(Some(0), 8)],
        };
        assert!(wanted(NsPid(1), Some(2), Some(1), Some(&ring)).is_err());
        assert!(wanted(NsPid(1), Some(2), Some(7), Some(&ring)).is_err());
        assert!(wanted(NsPid(1), Some(2), None, Some(&ring)).is_err());
        assert!(wanted(NsPid(1), Some(9), None, None).is_err());
        let scrap = SeccompEntry {
            seccomp_filters: vec![f(None, 7)],
        };
        assert!(wanted(NsPid(1), Some(2), Some(0), Some(&scrap)).is_err());
    }
}
