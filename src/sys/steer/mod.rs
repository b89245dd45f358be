//! Running system calls inside a stopped task.
//!
//! Two ways, for two needs:
//! - [`once`]: one call through a `syscall` instruction that is there already
//!   (the vDSO's), by PTRACE_SYSCALL stops. Needs no memory of ours in the task
//!   and raises no signal. About six stops' worth of time.
//! - [`Steered`]: a loop of under 200 bytes, put r-x into a hole of its address
//!   space, runs an array of records ([`Batch`]) at 0.16 us a call and traps at
//!   the end, or at the first call that failed; how many records are left tells
//!   which one.
//!
//! The trap is an `int3`. The kernel forces SIGTRAP on the task: if SIGTRAP is
//! blocked or ignored there, its action would silently become the default.
//! So SIGTRAP is never blocked while steering, and who steers a task that
//! ignores SIGTRAP sets that action again by [`once`], at the very end.
//!
//! The task is hostile: what comes back is foreign input. Records are written
//! anew for each batch and only results are read back.

mod batch;
mod code;

pub use batch::{Arg, Batch, Buf, CallId, Results};

use code::loop_code;
use std::fs::File;
use std::os::unix::fs::FileExt;

use super::ptrace::{Regs, Stop, Stopped};
use crate::base::{Error, HostPid, PAGE_SIZE, PageRange, Result};

/// Bytes of the loop's whole mapping: one page of code, then data.
pub const MAPPING_LEN: u64 = PAGE_SIZE + DATA_LEN;
const DATA_LEN: u64 = 512 * 1024;
const RECORD_LEN: usize = 72;
const COPY: u64 = u64::MAX;
/// All signals but SIGTRAP blocked.
const STEER_MASK: u64 = !(1 << (libc::SIGTRAP - 1));
fn mem_file(pid: HostPid) -> Result<File> {
    let path = format!("/proc/{pid}/mem");
    File::options()
        .read(true)
        .write(true)
        .open(&path)
        .map_err(|e| Error::os(format!("open {path}"), e))
}

/// Finds a `syscall` instruction inside `vdso` (the task's `[vdso]` area).
///
/// # Errors
/// If the area cannot be read or holds none.
pub fn find_syscall(pid: HostPid, vdso: PageRange) -> Result<u64> {
    let len = usize::try_from(vdso.len().min(64 * PAGE_SIZE)).unwrap_or(0);
    let mut code = vec![0u8; len];
    mem_file(pid)?
        .read_exact_at(&mut code, vdso.start())
        .map_err(|e| Error::os(format!("read vdso {vdso} of task {pid}"), e))?;
    code.windows(2)
        .position(|w| w == [0x0f, 0x05])
        .map(|at| vdso.start() + at as u64)
        .ok_or_else(|| {
            Error::refused(
                format!("task {pid}"),
                "its vdso holds no syscall instruction",
            )
        })
}

/// Runs one call through the `syscall` instruction at `insn`; registers and
/// signal mask are as before afterwards. Tasks that the call makes are not
/// looked at: use a batch for those.
///
/// # Errors
/// If the task dies or does something else than the call. A failing call is
/// not an error: the result is its negative errno.
pub fn once(task: &mut Stopped, insn: u64, nr: i64, args: &[u64]) -> Result<i64> {
    let saved = task.regs()?;
    let mask = task.sigmask()?;
    task.set_sigmask(STEER_MASK)?;
    let r = once_raw(task, insn, nr, args, &saved);
    task.set_regs(&saved)?;
    task.set_sigmask(mask)?;
    r
}

fn once_raw(task: &mut Stopped, insn: u64, nr: i64, args: &[u64], saved: &Regs) -> Result<i64> {
    let arg = |n: usize| args.get(n).copied().unwrap_or(0);
    let mut regs = *saved;
    regs.rip = insn;
    regs.rax = nr.unsigned_abs();
    regs.orig_rax = u64::MAX;
    (regs.rdi, regs.rsi, regs.rdx) = (arg(0), arg(1), arg(2));
    (regs.r10, regs.r8, regs.r9) = (arg(3), arg(4), arg(5));
    task.set_regs(&regs)?;
    to_syscall(task)?;
    let entry = task.regs()?;
    if entry.orig_rax != nr.unsigned_abs() {
        return Err(Error::refused(
            format!("task {}", task.tid()),
            "its vdso does not do the call that it was asked for",
        ));
    }
    to_syscall(task)?;
    Ok(task.regs()?.rax.cast_signed())
}

fn to_syscall(task: &mut Stopped) -> Result<()> {
    loop {
        match task.to_syscall_stop()? {
            Stop::Syscall => return Ok(()),
            // group stops and leftover interrupts
            Stop::Event { .. } => {}
            Stop::Signal(libc::SIGSTOP) => {
                tracing::debug!(tid = task.tid().0, "swallowed a SIGSTOP while steering")
            }
            other => {
                return Err(Error::refused(
                    format!("task {}", task.tid()),
                    format!("unexpected stop while steering: {other:?}"),
                ));
            }
        }
    }
}

/// A stopped task with the loop in its address space.
///
/// Registers and signal mask of the thread are in disorder until
/// [`Steered::remove`] or [`Steered::forget`]; the originals are here.
#[derive(Debug)]
pub struct Steered {
    /// The thread that runs the loop.
    pub task: Stopped,
    /// Its registers before.
    pub saved: Regs,
    /// Its signal mask before.
    pub mask: u64,
    mapping: PageRange,
    insn: u64,
    mem: File,
}

impl Steered {
    /// Maps the loop at `hole` (at least [`MAPPING_LEN`] bytes, free), by way of
    /// the `syscall` instruction at `insn`.
    ///
    /// # Errors
    /// The task comes back unchanged with the error when mapping failed.
    pub fn install(
        mut task: Stopped,
        insn: u64,
        hole: u64,
    ) -> std::result::Result<Self, (Stopped, Error)> {
        match Self::prepare(&mut task, insn, hole) {
            Ok((saved, mask, mapping, mem)) => Ok(Self {
                task,
                saved,
                mask,
                mapping,
                insn,
                mem,
            }),
            Err(e) => Err((task, e)),
        }
    }

    fn prepare(task: &mut Stopped, insn: u64, hole: u64) -> Result<(Regs, u64, PageRange, File)> {
        let tid = task.tid();
        let mapping = PageRange::new(hole, hole.saturating_add(MAPPING_LEN))
            .ok_or_else(|| Error::bug("install loop", "the hole is not page-aligned"))?;
        let saved = task.regs()?;
        let mask = task.sigmask()?;
        let mem = mem_file(tid)?;
        task.set_sigmask(STEER_MASK)?;
        let install = |task: &mut Stopped| -> Result<()> {
            let flags = u64::from(
                (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE)
                    .unsigned_abs(),
            );
            let at = once_raw(
                task,
                insn,
                libc::SYS_mmap,
                &[hole, MAPPING_LEN, 3, flags, u64::MAX, 0],
                &saved,
            )?;
            if at.cast_unsigned() != hole {
                return Err(Error::errno(
                    format!("map the call loop at {hole:#x} in task {tid}"),
                    errno_of(at),
                ));
            }
            mem.write_all_at(loop_code(), hole)
                .map_err(|e| Error::os(format!("write the call loop into task {tid}"), e))?;
            let r = once_raw(
                task,
                insn,
                libc::SYS_mprotect,
                &[hole, PAGE_SIZE, 5],
                &saved,
            )?;
            done(format!("protect the call loop in task {tid}"), r).inspect_err(|_| {
                let _ = once_raw(task, insn, libc::SYS_munmap, &[hole, MAPPING_LEN], &saved);
            })
        };
        match install(task) {
            Ok(()) => Ok((saved, mask, mapping, mem)),
            Err(e) => {
                // best effort: if this fails too the task is gone
                let _ = task.set_regs(&saved).and_then(|()| task.set_sigmask(mask));
                Err(e)
            }
        }
    }

    /// A fork child of a steered task: it has inherited the loop's mapping.
    /// It must be at its first stop.
    ///
    /// # Errors
    /// If its memory cannot be opened.
    pub fn inherited(mut task: Stopped, parent: &Self) -> Result<Self> {
        let mem = mem_file(task.tid())?;
        let saved = task.regs()?;
        task.set_sigmask(STEER_MASK)?;
        Ok(Self {
            task,
            saved,
            mask: parent.mask,
            mapping: parent.mapping,
            insn: parent.insn,
            mem,
        })
    }

    /// Another thread of the same address space. It may only run batches while
    /// no other thread of the space does.
    ///
    /// # Errors
    /// If its memory cannot be opened, or it died.
    pub fn thread(mut task: Stopped, leader: &Self) -> std::result::Result<Self, (Stopped, Error)> {
        let prepare = |task: &mut Stopped| -> Result<(Regs, u64, File)> {
            let (saved, mask) = (task.regs()?, task.sigmask()?);
            let mem = mem_file(task.tid())?;
            task.set_sigmask(STEER_MASK)?;
            Ok((saved, mask, mem))
        };
        match prepare(&mut task) {
            Ok((saved, mask, mem)) => Ok(Self {
                task,
                saved,
                mask,
                mapping: leader.mapping,
                insn: leader.insn,
                mem,
            }),
            Err(e) => Err((task, e)),
        }
    }

    /// Where the loop lies.
    pub fn mapping(&self) -> PageRange {
        self.mapping
    }

    /// Tells where a `syscall` instruction lies now (the vDSO was moved).
    pub fn set_syscall_insn(&mut self, insn: u64) {
        self.insn = insn;
    }

    /// Where the `syscall` instruction for [`once`] lies.
    pub fn syscall_insn(&self) -> u64 {
        self.insn
    }

    /// Runs a batch to its end or to its first failure.
    ///
    /// # Errors
    /// The first failing call (that was not added by `try_call`) with its
    /// errno; the death of the task; a batch larger than the data area.
    pub fn run(&mut self, batch: &Batch) -> Result<Results> {
        let tid = self.task.tid();
        let base = self.mapping.start() + PAGE_SIZE;
        let asm = batch.assemble(base)?;
        if asm.bytes.len() as u64 > DATA_LEN {
            return Err(Error::bug(
                format!("steer task {tid}"),
                "batch larger than the data area",
            ));
        }
        self.mem
            .write_all_at(&asm.bytes, base)
            .map_err(|e| Error::os(format!("write a batch into task {tid}"), e))?;
        let mut regs = self.saved;
        regs.rip = self.mapping.start();
        regs.rbx = base;
        regs.r12 = asm.count as u64;
        regs.orig_rax = u64::MAX;
        regs.eflags &= !0x500; // no single step, direction forward
        self.task.set_regs(&regs)?;
        let mut made = Vec::new();
        loop {
            match self.task.run_to_stop()? {
                Stop::Signal(libc::SIGTRAP) => break,
                Stop::Made(pid) => made.push(pid),
                Stop::Event { .. } => {}
                Stop::Signal(libc::SIGSTOP) => {
                    tracing::debug!(tid = tid.0, "swallowed a SIGSTOP while steering")
                }
                other => {
                    let at = self.task.regs()?;
                    return Err(Error::refused(
                        format!("task {tid}"),
                        format!(
                            "unexpected stop while steering: {other:?} at {:#x}, {} records left",
                            at.rip, at.r12
                        ),
                    ));
                }
            }
        }
        let end = self.task.regs()?;
        let trap = self.mapping.start() + loop_code().len() as u64;
        let mut bytes = vec![0u8; asm.bytes.len()];
        self.mem
            .read_exact_at(&mut bytes, base)
            .map_err(|e| Error::os(format!("read results from task {tid}"), e))?;
        let left = usize::try_from(end.r12).unwrap_or(usize::MAX);
        if end.rip != trap || left > asm.count {
            return Err(Error::refused(
                format!("task {tid}"),
                "it left the call loop",
            ));
        }
        let results = Results {
            bytes,
            data_at: asm.data_at,
            at_call: asm.at_call,
            made,
        };
        if left > 0 {
            let index = asm.count - left;
            let what = asm.whats.get(index).copied().unwrap_or("?");
            let o = index * RECORD_LEN;
            let ret = results
                .bytes
                .get(o + 56..o + 64)
                .and_then(|b| b.try_into().ok())
                .map_or(0, i64::from_le_bytes);
            let arg = |n: usize| {
                results
                    .bytes
                    .get(o + 8 * n..o + 8 * n + 8)
                    .and_then(|b| b.try_into().ok())
                    .map_or(0, u64::from_le_bytes)
            };
            return Err(Error::errno(
                format!(
                    "task {tid}: {what}({:#x}, {:#x}, {:#x}, {:#x}, {:#x}) (step {index})",
                    arg(1),
                    arg(2),
                    arg(3),
                    arg(4),
                    arg(5)
                ),
                errno_of(ret),
            ));
        }
        Ok(results)
    }

    /// One call through the `syscall` instruction, while the loop stays.
    ///
    /// # Errors
    /// As [`once`].
    pub fn once(&mut self, nr: i64, args: &[u64]) -> Result<i64> {
        let saved = self.saved;
        once_raw(&mut self.task, self.insn, nr, args, &saved)
    }

    /// Ignores SIGTRAP again in a task that did so before it was steered. The
    /// last thing before [`Steered::remove`].
    ///
    /// # Errors
    /// If the task died.
    pub fn ignore_trap(&mut self) -> Result<()> {
        let at = self.mapping.start() + PAGE_SIZE;
        let mut action = [0u8; 32];
        action[0] = 1; // SIG_IGN
        self.mem
            .write_all_at(&action, at)
            .map_err(|e| Error::os(format!("write into task {}", self.task.tid()), e))?;
        let r = self.once(libc::SYS_rt_sigaction, &[5, at, 0, 8])?;
        done(format!("ignore SIGTRAP in task {}", self.task.tid()), r)
    }

    /// Unmaps the loop and gives the thread its registers and mask back.
    ///
    /// # Errors
    /// If the task died.
    pub fn remove(mut self) -> Result<Stopped> {
        let r = self.once(
            libc::SYS_munmap,
            &[self.mapping.start(), self.mapping.len()],
        )?;
        done(
            format!("unmap the call loop of task {}", self.task.tid()),
            r,
        )?;
        self.task.set_regs(&self.saved)?;
        self.task.set_sigmask(self.mask)?;
        Ok(self.task)
    }

    /// Gives the thread the registers and the mask that `saved` and `mask` hold
    /// now, and leaves the mapping alone (another thread unmaps it, or it has
    /// been unmapped).
    ///
    /// # Errors
    /// If the task died.
    pub fn forget(mut self) -> Result<Stopped> {
        self.task.set_regs(&self.saved)?;
        self.task.set_sigmask(self.mask)?;
        Ok(self.task)
    }
}

/// What a call of a task returned, which is 0 if it has done its work.
///
/// # Errors
/// Its errno, with `what` was to be done; EIO for what is none.
pub fn done(what: impl Into<String>, ret: i64) -> Result<()> {
    match ret {
        0 => Ok(()),
        _ => Err(Error::errno(what, errno_of(ret))),
    }
}

fn errno_of(ret: i64) -> i32 {
    if (-4095..0).contains(&ret) {
        i32::try_from(-ret).unwrap_or(libc::EIO)
    } else {
        libc::EIO
    }
}

#[cfg(test)]
mod tests;
