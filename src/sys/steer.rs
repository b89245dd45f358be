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

std::arch::global_asm!(
    ".pushsection .rodata.dunlin_loop, \"a\"",
    ".globl dunlin_loop_start",
    ".globl dunlin_loop_end",
    ".hidden dunlin_loop_start",
    ".hidden dunlin_loop_end",
    "dunlin_loop_start:",
    // rbx: next record, r12: records left
    "2: test r12, r12",
    "jz 6f",
    "mov rax, [rbx]",
    "mov rdi, [rbx + 8]",
    "mov rsi, [rbx + 16]",
    "cmp rax, -1",
    "je 5f",
    "mov rdx, [rbx + 24]",
    "mov r10, [rbx + 32]",
    "mov r8, [rbx + 40]",
    "mov r9, [rbx + 48]",
    "syscall",
    "mov [rbx + 56], rax",
    "cmp rax, -4095",
    "jb 3f",
    // failed: go on only if the record says so
    "test byte ptr [rbx + 64], 1",
    "jz 6f",
    "3: add rbx, 72",
    "dec r12",
    "jmp 2b",
    // copy a result into a later record
    "5: mov rax, [rdi]",
    "mov [rsi], rax",
    "jmp 3b",
    "6: int3",
    "dunlin_loop_end:",
    ".popsection",
);

unsafe extern "C" {
    static dunlin_loop_start: u8;
    static dunlin_loop_end: u8;
}

fn loop_code() -> &'static [u8] {
    // SAFETY: both symbols delimit one run of bytes that global_asm! placed in .rodata.
    unsafe {
        let start = &raw const dunlin_loop_start;
        let end = &raw const dunlin_loop_end;
        std::slice::from_raw_parts(start, end.offset_from_unsigned(start))
    }
}

/// An argument of an injected call.
#[derive(Debug, Clone, Copy)]
pub enum Arg {
    /// A number, or an address in the task.
    Val(u64),
    /// The address of a buffer of the batch.
    Buf(Buf),
    /// The address `offset` bytes into a buffer of the batch.
    BufAt(Buf, u64),
    /// What an earlier call of the batch returned.
    Ret(CallId),
}

/// A buffer of a batch, input or output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buf {
    offset: usize,
    len: usize,
}

/// A call of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallId(usize);

macro_rules! arg_from {
    ($($t:ty),*) => {$(
        impl From<$t> for Arg {
            #[allow(clippy::cast_sign_loss, clippy::cast_possible_truncation, clippy::cast_lossless)]
            fn from(v: $t) -> Self { Arg::Val(v as i64 as u64) }
        }
    )*};
}
arg_from!(u64, i64, u32, i32, usize);

impl From<Buf> for Arg {
    fn from(b: Buf) -> Self {
        Arg::Buf(b)
    }
}

#[derive(Debug, Clone)]
struct Record {
    nr: u64,
    args: [Arg; 6],
    may_fail: bool,
    call: usize,
    what: &'static str,
}

/// System calls to run in a task, with their data.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    records: Vec<Record>,
    data: Vec<u8>,
    patches: Vec<(usize, Arg)>,
    calls: usize,
}

impl Batch {
    /// No calls.
    pub fn new() -> Self {
        Self::default()
    }

    /// Holds no call.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Bytes of the loop's data area that it will need.
    pub fn footprint(&self) -> usize {
        // a result that is used costs one record more
        let uses = self
            .records
            .iter()
            .flat_map(|r| &r.args)
            .filter(|a| matches!(a, Arg::Ret(_)))
            .count();
        (self.records.len() + uses + self.patches.len()) * RECORD_LEN + self.data.len() + 64
    }

    /// Whether another few calls with little data surely fit.
    pub fn has_room(&self) -> bool {
        self.footprint() < usize::try_from(DATA_LEN).unwrap_or(0) - 16 * 1024
    }

    /// Input bytes, copied into the task.
    pub fn bytes(&mut self, bytes: &[u8]) -> Buf {
        let b = self.buffer(bytes.len());
        if let Some(dst) = self.data.get_mut(b.offset..b.offset + b.len) {
            dst.copy_from_slice(bytes);
        }
        b
    }

    /// A NUL-terminated string.
    pub fn cstr(&mut self, s: &[u8]) -> Buf {
        let mut v = s.to_vec();
        v.push(0);
        self.bytes(&v)
    }

    /// `len` zero bytes that calls may write to. Aligned to 64 bytes.
    pub fn buffer(&mut self, len: usize) -> Buf {
        let offset = self.data.len().next_multiple_of(64);
        self.data.resize(offset + len, 0);
        Buf { offset, len }
    }

    /// Makes the eight bytes at `at` in buffer `buf` hold `value` (an address of
    /// another buffer, or an earlier result) when the next call added runs.
    pub fn patch(&mut self, buf: Buf, at: usize, value: Arg) {
        match value {
            Arg::Ret(_) => {
                let call = self.calls;
                self.records.push(Record {
                    nr: COPY,
                    args: [
                        value,
                        Arg::BufAt(buf, at as u64),
                        0u64.into(),
                        0u64.into(),
                        0u64.into(),
                        0u64.into(),
                    ],
                    may_fail: false,
                    call,
                    what: "patch",
                });
            }
            _ => self.patches.push((buf.offset + at, value)),
        }
    }

    /// Adds a call that must not fail. `what` names it in errors.
    pub fn call(&mut self, what: &'static str, nr: i64, args: &[Arg]) -> CallId {
        self.add(what, nr, args, false)
    }

    /// Adds a call whose failure is only reported, as a negative result.
    pub fn try_call(&mut self, what: &'static str, nr: i64, args: &[Arg]) -> CallId {
        self.add(what, nr, args, true)
    }

    fn add(&mut self, what: &'static str, nr: i64, given: &[Arg], may_fail: bool) -> CallId {
        let mut args = [Arg::Val(0); 6];
        for (slot, a) in args.iter_mut().zip(given) {
            *slot = *a;
        }
        let id = CallId(self.calls);
        self.calls += 1;
        self.records.push(Record {
            nr: nr.unsigned_abs(),
            args,
            may_fail,
            call: id.0,
            what,
        });
        id
    }

    /// Lays the batch out for a data area at `base`. Returns the bytes, the
    /// number of records, and for each call the index of its record.
    fn assemble(&self, base: u64) -> Result<Assembled> {
        let mut recs: Vec<[u64; 9]> = Vec::with_capacity(self.records.len());
        let mut at_call = vec![usize::MAX; self.calls];
        let mut whats = Vec::with_capacity(self.records.len());
        let copies: usize = self
            .records
            .iter()
            .map(|r| r.args.iter().filter(|a| matches!(a, Arg::Ret(_))).count())
            .sum();
        let total = self.records.iter().filter(|r| r.nr != COPY).count() + copies;
        let data_at = (total * RECORD_LEN).next_multiple_of(64);
        let buf_addr = |b: Buf, off: u64| base + (data_at + b.offset) as u64 + off;
        let ret_addr = |at_call: &[usize], c: CallId| -> Result<u64> {
            let i = at_call.get(c.0).copied().filter(|i| *i != usize::MAX);
            let i =
                i.ok_or_else(|| Error::bug("assemble batch", "a result is used before its call"))?;
            Ok(base + (i * RECORD_LEN) as u64 + 56)
        };
        for r in &self.records {
            if r.nr == COPY {
                let (Arg::Ret(c), Arg::BufAt(b, off)) = (r.args[0], r.args[1]) else {
                    return Err(Error::bug("assemble batch", "malformed patch"));
                };
                recs.push([
                    COPY,
                    ret_addr(&at_call, c)?,
                    buf_addr(b, off),
                    0,
                    0,
                    0,
                    0,
                    0,
                    0,
                ]);
                whats.push(r.what);
                continue;
            }
            let uses = r.args.iter().filter(|a| matches!(a, Arg::Ret(_))).count();
            let mine = recs.len() + uses;
            let mut vals = [0u64; 6];
            for (n, a) in r.args.iter().enumerate() {
                vals[n] = match *a {
                    Arg::Val(v) => v,
                    Arg::Buf(b) => buf_addr(b, 0),
                    Arg::BufAt(b, off) => buf_addr(b, off),
                    Arg::Ret(c) => {
                        let dst = base + (mine * RECORD_LEN + 8 + 8 * n) as u64;
                        recs.push([COPY, ret_addr(&at_call, c)?, dst, 0, 0, 0, 0, 0, 0]);
                        whats.push(r.what);
                        0
                    }
                };
            }
            at_call[r.call] = recs.len();
            recs.push([
                r.nr,
                vals[0],
                vals[1],
                vals[2],
                vals[3],
                vals[4],
                vals[5],
                0,
                u64::from(r.may_fail),
            ]);
            whats.push(r.what);
        }
        let mut bytes = Vec::with_capacity(data_at + self.data.len());
        for r in &recs {
            for w in r {
                bytes.extend_from_slice(&w.to_le_bytes());
            }
        }
        bytes.resize(data_at, 0);
        bytes.extend_from_slice(&self.data);
        for (at, value) in &self.patches {
            let v = match *value {
                Arg::Val(v) => v,
                Arg::Buf(b) => buf_addr(b, 0),
                Arg::BufAt(b, off) => buf_addr(b, off),
                Arg::Ret(_) => return Err(Error::bug("assemble batch", "malformed patch")),
            };
            let dst = bytes
                .get_mut(data_at + at..data_at + at + 8)
                .ok_or_else(|| Error::bug("assemble batch", "patch outside of its buffer"))?;
            dst.copy_from_slice(&v.to_le_bytes());
        }
        Ok(Assembled {
            bytes,
            data_at,
            count: recs.len(),
            at_call,
            whats,
        })
    }
}

struct Assembled {
    bytes: Vec<u8>,
    data_at: usize,
    count: usize,
    at_call: Vec<usize>,
    whats: Vec<&'static str>,
}

/// What a batch gave: return values, output buffers, tasks made.
#[derive(Debug)]
pub struct Results {
    bytes: Vec<u8>,
    data_at: usize,
    at_call: Vec<usize>,
    /// Tasks and threads that the calls made (host ids), in order; each is
    /// seized and starts stopped.
    pub made: Vec<HostPid>,
}

impl Results {
    /// The raw result of a call: negative errno on failure.
    pub fn ret(&self, call: CallId) -> i64 {
        let at = self.at_call.get(call.0).copied().unwrap_or(usize::MAX);
        at.checked_mul(RECORD_LEN)
            .and_then(|o| self.bytes.get(o + 56..o + 64))
            .and_then(|b| b.try_into().ok())
            .map_or(-i64::from(libc::EINVAL), i64::from_le_bytes)
    }

    /// A buffer as the calls left it. Foreign input.
    pub fn bytes(&self, buf: Buf) -> &[u8] {
        self.bytes
            .get(self.data_at + buf.offset..self.data_at + buf.offset + buf.len)
            .unwrap_or(&[])
    }

    /// The `index`th little-endian u64 of a buffer.
    pub fn u64_at(&self, buf: Buf, index: usize) -> u64 {
        self.bytes(buf)
            .get(index * 8..index * 8 + 8)
            .and_then(|b| b.try_into().ok())
            .map_or(0, u64::from_le_bytes)
    }

    /// The `index`th little-endian u32 of a buffer.
    pub fn u32_at(&self, buf: Buf, index: usize) -> u32 {
        self.bytes(buf)
            .get(index * 4..index * 4 + 4)
            .and_then(|b| b.try_into().ok())
            .map_or(0, u32::from_le_bytes)
    }
}

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
            if r != 0 {
                let _ = once_raw(task, insn, libc::SYS_munmap, &[hole, MAPPING_LEN], &saved);
                return Err(Error::errno(
                    format!("protect the call loop in task {tid}"),
                    errno_of(r),
                ));
            }
            Ok(())
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
        if r == 0 {
            Ok(())
        } else {
            Err(Error::errno(
                format!("ignore SIGTRAP in task {}", self.task.tid()),
                errno_of(r),
            ))
        }
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
        if r != 0 {
            return Err(Error::errno(
                format!("unmap the call loop of task {}", self.task.tid()),
                errno_of(r),
            ));
        }
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

fn errno_of(ret: i64) -> i32 {
    if (-4095..0).contains(&ret) {
        i32::try_from(-ret).unwrap_or(libc::EIO)
    } else {
        libc::EIO
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::super::procfs;
    use super::super::ptrace::{Options, Waited, seize};
    use super::*;

    fn cat() -> Child {
        Command::new("cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    }

    fn steer(child: &Child, options: Options) -> Steered {
        let pid = HostPid(i32::try_from(child.id()).unwrap());
        // until exec has happened the maps are our own
        while procfs::comm(pid).unwrap() != "cat" {
            std::thread::yield_now();
        }
        let seized = seize(pid, options).unwrap();
        seized.interrupt().unwrap();
        let Waited::Stopped(task, _) = seized.wait().unwrap() else {
            panic!("gone")
        };
        let maps = procfs::maps(pid).unwrap();
        let vdso = maps.iter().find(|m| m.name == "[vdso]").unwrap().range;
        let insn = find_syscall(pid, vdso).unwrap();
        let hole = procfs::find_hole(
            &maps.iter().map(|m| m.range).collect::<Vec<_>>(),
            MAPPING_LEN,
        )
        .unwrap();
        Steered::install(task, insn, hole)
            .map_err(|(_, e)| e)
            .unwrap()
    }

    #[test]
    fn the_loop_is_under_200_bytes() {
        assert!(loop_code().len() < 200);
    }

    #[test]
    fn a_batch_passes_data_results_and_failures_and_the_task_runs_on() {
        let mut child = cat();
        let mut s = steer(&child, Options::default());
        let mut b = Batch::new();
        let pid = b.call("getpid", libc::SYS_getpid, &[]);
        let path = b.cstr(b"/proc/self/comm");
        let open = b.call(
            "openat",
            libc::SYS_openat,
            &[libc::AT_FDCWD.into(), path.into(), 0.into()],
        );
        let out = b.buffer(16);
        let read = b.call(
            "read",
            libc::SYS_read,
            &[Arg::Ret(open), out.into(), 16.into()],
        );
        b.call("close", libc::SYS_close, &[Arg::Ret(open)]);
        let bad = b.try_call("close", libc::SYS_close, &[(-1).into()]);
        let r = s.run(&b).unwrap();
        assert_eq!(r.ret(pid), i64::from(child.id()));
        assert_eq!(r.ret(read), 4);
        assert_eq!(&r.bytes(out)[..4], b"cat\n");
        assert_eq!(r.ret(bad), -i64::from(libc::EBADF));

        let mut b = Batch::new();
        b.call("getpid", libc::SYS_getpid, &[]);
        b.call("close", libc::SYS_close, &[(-1).into()]);
        b.call("exit", libc::SYS_exit_group, &[7.into()]);
        let e = s.run(&b).unwrap_err();
        assert_eq!(e.raw_os_error(), Some(libc::EBADF));
        assert!(e.to_string().contains("close("), "{e}");

        s.remove().unwrap().detach(0).unwrap();
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success());
    }

    #[test]
    fn a_child_made_by_a_batch_starts_stopped_and_seized() {
        let mut child = cat();
        let options = Options {
            follow: true,
            kill_on_tracer_death: true,
            suspend_seccomp: false,
        };
        let mut s = steer(&child, options);
        let mut b = Batch::new();
        let fork = b.call("fork", libc::SYS_fork, &[]);
        let r = s.run(&b).unwrap();
        let [made] = r.made[..] else {
            panic!("{:?}", r.made)
        };
        assert_eq!(r.ret(fork), i64::from(made.0));
        let Waited::Stopped(kid, _) = super::super::ptrace::Seized::adopted(made, options)
            .wait()
            .unwrap()
        else {
            panic!("gone")
        };
        let mut kid = Steered::inherited(kid, &s).unwrap();
        let mut b = Batch::new();
        let getppid = b.call("getppid", libc::SYS_getppid, &[]);
        assert_eq!(kid.run(&b).unwrap().ret(getppid), i64::from(child.id()));
        let mut b = Batch::new();
        b.call("exit", libc::SYS_exit_group, &[0.into()]);
        assert!(kid.run(&b).is_err());
        s.task.set_options(Options::default()).unwrap();
        s.remove().unwrap().detach(0).unwrap();
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success());
    }
}
