//! The first task: a copy of this process, in its namespaces, then emptied.

use std::collections::BTreeMap;
use std::os::fd::AsRawFd;

use super::{Build, Live, Made, SEIZED, reap, stop};
use crate::base::{Error, HostPid, PageRange, Result, ResultExt};
use crate::engine::plan::Plan;
use crate::memory::{Job, PageReader};
use crate::objects::vdso::rebuild as vdso;
use crate::sys::clone::{self, Child};
use crate::sys::steer::{Batch, MAPPING_LEN, Steered, find_syscall};
use crate::sys::{pidfd, procfs};

/// Bytes behind the loop in which a vDSO can be parked.
const PARKING: u64 = 1 << 20;
const USER_TOP: u64 = 0x7fff_ffff_f000;
const RSEQ_FLAG_UNREGISTER: u64 = 1;

/// The root before it is emptied.
#[derive(Debug)]
pub(in crate::engine) struct Origin {
    /// The child, which waits.
    child: Option<Child>,
    pid: HostPid,
}

impl Origin {
    /// Takes over a child that [`clone::spawn`] made.
    pub(in crate::engine) fn new(child: Child) -> Self {
        let pid = child.pid;
        Self {
            child: Some(child),
            pid,
        }
    }

    /// As the host sees it.
    pub(in crate::engine) fn pid(&self) -> HostPid {
        self.pid
    }

    /// The line to it.
    pub(in crate::engine) fn line(&self) -> Result<&clone::Line> {
        self.child
            .as_ref()
            .map(|c| &c.line)
            .ok_or_else(|| Error::bug("restore", "the root has been taken over"))
    }

    /// Waits until it has done its part.
    ///
    /// # Errors
    /// What its code reported.
    pub(in crate::engine) fn ready(&self) -> Result<Vec<u8>> {
        self.child
            .as_ref()
            .ok_or_else(|| Error::bug("restore", "the root has been taken over"))?
            .result()
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        if let Some(child) = self.child.take() {
            // it ends when the line does, but not if it is stuck
            let _ = pidfd::send_signal(std::os::fd::AsFd::as_fd(&child.pidfd), libc::SIGKILL);
            reap(child.pid);
        }
    }
}

impl<'a> Build<'a> {
    /// Takes over the root: stops it, puts the loop in, and leaves nothing in its
    /// address space but the loop and the vDSO, nothing in its descriptor table
    /// but a pidfd of ours.
    ///
    /// # Errors
    /// Which call failed; the root is killed then.
    pub(in crate::engine) fn begin(
        plan: &'a Plan,
        pages: &'a dyn PageReader,
        lazy: bool,
        service: i32,
        our_pidfd: i32,
        mut origin: Origin,
    ) -> Result<Self> {
        let host = origin.pid;
        let hole = find_hole(plan, host)?;
        let mut build = Self {
            plan,
            pages,
            lazy,
            live: BTreeMap::new(),
            made: Made(vec![host]),
            numbers: BTreeMap::new(),
            service,
            hole,
            shared: BTreeMap::new(),
            left: Job::default(),
            terminals: Vec::new(),
            early: BTreeMap::new(),
        };
        let mut task = stop(host).context(|| "take over the root".to_owned())?;
        // from now on `build` kills it
        drop(origin.child.take());
        let rseq = task.rseq()?;
        let maps = procfs::maps(host)?;
        let present = vdso::find(host, &maps)?;
        let insn = find_syscall(host, present.code)?;
        task.set_options(SEIZED)?;
        let mut leader = Steered::install(task, insn, hole.start()).map_err(|(_, e)| e)?;

        let mut b = Batch::new();
        if rseq.abi_pointer != 0 {
            b.call(
                "rseq",
                libc::SYS_rseq,
                &[
                    rseq.abi_pointer.into(),
                    rseq.abi_size.into(),
                    RSEQ_FLAG_UNREGISTER.into(),
                    rseq.signature.into(),
                ],
            );
        }
        if our_pidfd != service {
            b.call(
                "dup3",
                libc::SYS_dup3,
                &[our_pidfd.into(), service.into(), libc::O_CLOEXEC.into()],
            );
        }
        if service > 0 {
            b.call(
                "close_range",
                libc::SYS_close_range,
                &[0.into(), (service - 1).into(), 0.into()],
            );
        }
        b.call(
            "close_range",
            libc::SYS_close_range,
            &[(service + 1).into(), u32::MAX.into(), 0.into()],
        );
        for gap in gaps(&[leader.mapping(), present.whole()]) {
            b.call(
                "munmap",
                libc::SYS_munmap,
                &[gap.start().into(), gap.len().into()],
            );
        }
        leader.run(&b).context(|| "empty the root".to_owned())?;
        build.live.insert(
            plan.tree.root,
            Live {
                host,
                leader,
                threads: Vec::new(),
                vdso: present,
            },
        );
        Ok(build)
    }
}

/// Opens a pidfd of this process, for the root to inherit.
pub(in crate::engine) fn own_pidfd() -> Result<std::os::fd::OwnedFd> {
    let me = HostPid(std::process::id().cast_signed());
    let fd = pidfd::open(me)?;
    debug_assert!(fd.as_raw_fd() >= 0);
    Ok(fd)
}

fn find_hole(plan: &Plan, host: HostPid) -> Result<PageRange> {
    let mut taken: Vec<PageRange> = procfs::maps(host)?.iter().map(|m| m.range).collect();
    for body in plan.tasks.values().filter_map(|t| t.body.as_ref()) {
        taken.extend(body.space.taken());
    }
    taken.retain(|r| r.end() <= USER_TOP);
    procfs::find_hole(&taken, MAPPING_LEN + PARKING)
        .and_then(|at| PageRange::new(at, at + MAPPING_LEN + PARKING))
        .ok_or_else(|| Error::refused("address spaces of the tree", "have no common hole"))
}

/// What lies between and around the ranges that stay.
fn gaps(keep: &[PageRange]) -> Vec<PageRange> {
    let mut keep = keep.to_vec();
    keep.sort_unstable();
    let mut at = 0;
    let mut gaps = Vec::new();
    for k in keep {
        gaps.extend(PageRange::new(at, k.start()));
        at = k.end();
    }
    gaps.extend(PageRange::new(at, USER_TOP));
    gaps.retain(|g| !g.is_empty());
    gaps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_all_but_what_stays() {
        let r = |a, b| PageRange::new(a, b).unwrap();
        assert_eq!(
            gaps(&[r(0x5000, 0x6000), r(0x1000, 0x2000)]),
            [r(0, 0x1000), r(0x2000, 0x5000), r(0x6000, USER_TOP)]
        );
    }
}
