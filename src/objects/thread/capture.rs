//! What a stopped thread is: registers, extended state, and the facts that only
//! the thread itself can ask.
//!
//! Order matters. An injected call clears `rseq_cs` and ends an interrupted
//! system call's `orig_rax`, so [`settle`] looks at both right after the stop,
//! before anything is injected, and leaves registers from which the thread can
//! simply go on: in place when it is let go, or elsewhere from an image. One
//! thing it cannot know yet: whether a handler that is about to run has
//! SA_RESTART, which only an injected call tells ([`Settled::decide`]).
//!
//! A signal may also come later, before the thread goes on: its handler must end a
//! call such as pause(2), and not find it issued again behind itself. Only the
//! kernel can tell then, so that a call that was interrupted by our stop alone is
//! given back to it at the very end ([`Settled::last`]), and an image says of it
//! how it would end ([`Settled::recorded`]).

use crate::base::{Error, HostPid, Result, VAddr};
use crate::image::records::{
    RseqEntry, ThreadInfoX86, UserX86FpregsEntry, UserX86RegsEntry, UserX86RegsMode,
    UserX86XsaveEntry,
};
use crate::sys::cpu::{component, xstate_component};
use crate::sys::ptrace::{Regs, Stopped};
use crate::sys::vm;

const EINTR: i64 = -(libc::EINTR as i64);
const ERESTARTSYS: i64 = -512;
const ERESTARTNOINTR: i64 = -513;
const ERESTARTNOHAND: i64 = -514;
const ERESTART_RESTARTBLOCK: i64 = -516;
const SYSCALL_INSN_LEN: u64 = 2;
const RSEQ_CS_AT: u64 = 8;
const RSEQ_CS_NO_RESTART_ON_SIGNAL: u32 = 1 << 1;
const CS_64: u64 = 0x33;
/// Not in the libc crate.
const SYS_IO_PGETEVENTS: i64 = 333;

/// A thread's registers as it will go on, and its rseq registration.
#[derive(Debug, Clone)]
pub struct Settled {
    /// General registers, with interrupted calls rewound.
    pub regs: Regs,
    /// The rseq registration, if any.
    pub rseq: Option<RseqEntry>,
    undecided: Option<Undecided>,
    open: Option<Open>,
}

/// A call that is issued again, if no handler comes first.
#[derive(Debug, Clone)]
struct Open {
    /// How the kernel would go on itself.
    last: Regs,
    /// How the call ends for a handler: ERESTARTSYS or ERESTARTNOHAND.
    end: i64,
}

/// A call that is issued again after the handler of `signal` if that has
/// SA_RESTART. Until it is known, the call has failed with EINTR.
#[derive(Debug, Clone)]
struct Undecided {
    signal: i32,
    again: Regs,
}

impl Settled {
    /// Whether the task's registers are still the kernel's, which would know how
    /// to go on; before the task is steered they must be replaced by `regs`.
    pub fn is_undecided(&self) -> bool {
        self.undecided.is_some()
    }

    /// The registers with which the thread is let go, where they are not `regs`.
    pub fn last(&self) -> Option<&Regs> {
        self.open.as_ref().map(|o| &o.last)
    }

    /// The registers for an image: where the thread is about to issue an interrupted
    /// call again, the number of the call that it is in is what the kernel would let
    /// it end with (both mean "in none").
    pub fn recorded(&self) -> Regs {
        let end = self.open.as_ref().map(|o| o.end.cast_unsigned());
        Regs {
            orig_rax: end.unwrap_or(self.regs.orig_rax),
            ..self.regs
        }
    }

    /// Issues again a call that waited for what `restarts` says of a signal: its
    /// handler has SA_RESTART. Whether the registers have changed.
    pub fn decide(&mut self, restarts: impl FnOnce(i32) -> bool) -> bool {
        match self.undecided.take() {
            Some(undecided) if restarts(undecided.signal) => {
                self.regs = undecided.again;
                true
            }
            _ => false,
        }
    }
}

/// Reads the registers of a thread that has just stopped, rewinds an
/// interrupted system call, aborts an interrupted rseq critical section, and
/// sets the result as its registers, unless it is undecided. `handler`: the signal
/// whose handler runs as soon as the thread goes on.
///
/// # Errors
/// 32-bit code is refused; an unreadable rseq area is an error.
pub fn settle(task: &mut Stopped, handler: Option<i32>) -> Result<Settled> {
    let tid = task.tid();
    let mut regs = task.regs()?;
    if regs.cs != CS_64 {
        return Err(Error::refused(
            format!("task {tid}"),
            "it runs 32-bit code, which is not carried",
        ));
    }
    let rewound = rewind(tid, &mut regs, handler);
    let before = regs.rip;
    let rseq = rseq(task, &mut regs)?;
    let (undecided, open) = match rewound {
        Some(Rewound::Undecided(u)) => (Some(u), None),
        Some(Rewound::Open(o)) if regs.rip == before => (None, Some(o)),
        Some(Rewound::Open(_)) | None => (None, None),
    };
    if undecided.is_none() {
        task.set_regs(&regs)?;
    }
    Ok(Settled {
        regs,
        rseq,
        undecided,
        open,
    })
}

/// What is not settled yet about a call that was rewound.
#[derive(Debug)]
enum Rewound {
    Undecided(Undecided),
    Open(Open),
}

fn rewind(tid: HostPid, regs: &mut Regs, handler: Option<i32>) -> Option<Rewound> {
    let nr = i64::try_from(regs.orig_rax).ok()?;
    let interrupted = *regs;
    let again = again(nr, regs);
    let open = |end: i64, last: i64| {
        let last = Regs {
            rax: last.cast_unsigned(),
            ..interrupted
        };
        (!has_own_mask(nr, &interrupted)).then_some(Rewound::Open(Open { last, end }))
    };
    let open = match (regs.rax.cast_signed(), handler) {
        (ERESTARTNOINTR, _) => None,
        (ERESTARTSYS, None) => open(ERESTARTSYS, ERESTARTSYS),
        (ret @ (ERESTARTNOHAND | ERESTART_RESTARTBLOCK), None) => open(ERESTARTNOHAND, ret),
        // our stop is the only reason why these end early: the program must not see it
        (EINTR, None) if ends_at_any_stop(nr) => open(ERESTARTNOHAND, ERESTARTNOHAND),
        (ret @ (ERESTARTSYS | ERESTARTNOHAND | ERESTART_RESTARTBLOCK), Some(signal)) => {
            regs.rax = EINTR.cast_unsigned();
            regs.orig_rax = u64::MAX;
            let restarts = ret == ERESTARTSYS;
            return restarts.then_some(Rewound::Undecided(Undecided { signal, again }));
        }
        _ => return None,
    };
    *regs = again;
    tracing::debug!(tid = tid.0, nr, "rewound an interrupted system call");
    open
}

/// The registers from which the interrupted call `nr` is issued again.
fn again(nr: i64, interrupted: &Regs) -> Regs {
    let mut regs = *interrupted;
    if regs.rax.cast_signed() == ERESTART_RESTARTBLOCK {
        // the kernel has stored the time that is left where the caller wanted it
        match nr {
            libc::SYS_nanosleep if regs.rsi != 0 => regs.rdi = regs.rsi,
            libc::SYS_clock_nanosleep if regs.r10 != 0 => regs.rdx = regs.r10,
            _ => {}
        }
    }
    regs.rax = regs.orig_rax;
    regs.rip = regs.rip.wrapping_sub(SYSCALL_INSN_LEN);
    regs.orig_rax = u64::MAX;
    regs
}

/// Calls that return EINTR at a mere stop, signal(7), "Interruption of system
/// calls and library functions by stop signals".
fn ends_at_any_stop(nr: i64) -> bool {
    matches!(
        nr,
        libc::SYS_epoll_wait
            | libc::SYS_epoll_pwait
            | libc::SYS_epoll_pwait2
            | libc::SYS_rt_sigtimedwait
            | libc::SYS_semop
            | libc::SYS_semtimedop
            | libc::SYS_recvfrom
            | libc::SYS_recvmsg
            | libc::SYS_accept
            | libc::SYS_accept4
            | libc::SYS_sendto
            | libc::SYS_sendmsg
            | libc::SYS_io_getevents
            | libc::SYS_read
            | libc::SYS_write
    )
}

/// Calls that block signals in their own way, which ends with the first call that is
/// injected: which handler may end them is known when they are issued again.
fn has_own_mask(nr: i64, regs: &Regs) -> bool {
    match nr {
        libc::SYS_rt_sigsuspend => true,
        libc::SYS_ppoll => regs.r10 != 0,
        libc::SYS_epoll_pwait | libc::SYS_epoll_pwait2 => regs.r8 != 0,
        libc::SYS_pselect6 | SYS_IO_PGETEVENTS => regs.r9 != 0,
        _ => false,
    }
}

fn rseq(task: &Stopped, regs: &mut Regs) -> Result<Option<RseqEntry>> {
    let tid = task.tid();
    let conf = match task.rseq() {
        Ok(conf) => conf,
        // no such request: a kernel that cannot tell
        Err(e) if matches!(e.raw_os_error(), Some(libc::EIO | libc::EINVAL)) => return Ok(None),
        Err(e) => return Err(e),
    };
    if conf.abi_pointer == 0 {
        return Ok(None);
    }
    let mut word = [0u8; 8];
    // Whoever would make a page come may wait for us: never for a page.
    vm::peek(
        tid,
        VAddr(conf.abi_pointer.wrapping_add(RSEQ_CS_AT)),
        &mut word,
    )?;
    let cs = u64::from_le_bytes(word);
    let mut keep = None;
    if cs != 0 {
        let mut raw = [0u8; 32];
        vm::peek(tid, VAddr(cs), &mut raw)?;
        let at = |n: usize| {
            raw.get(n..n + 8)
                .and_then(|b| b.try_into().ok())
                .map_or(0, u64::from_le_bytes)
        };
        let flags = u32::try_from(at(0) >> 32).unwrap_or(0);
        let (start, len, abort) = (at(8), at(16), at(24));
        if regs.rip.wrapping_sub(start) < len {
            if flags & RSEQ_CS_NO_RESTART_ON_SIGNAL == 0 {
                tracing::debug!(tid = tid.0, "aborted an interrupted rseq section");
                regs.rip = abort;
            } else {
                keep = Some(cs);
            }
        }
    }
    Ok(Some(RseqEntry {
        rseq_abi_pointer: conf.abi_pointer,
        rseq_abi_size: conf.abi_size,
        signature: conf.signature,
        rseq_cs_pointer: keep,
    }))
}

/// General registers as a record.
pub fn gpregs(r: &Regs) -> UserX86RegsEntry {
    UserX86RegsEntry {
        r15: r.r15,
        r14: r.r14,
        r13: r.r13,
        r12: r.r12,
        bp: r.rbp,
        bx: r.rbx,
        r11: r.r11,
        r10: r.r10,
        r9: r.r9,
        r8: r.r8,
        ax: r.rax,
        cx: r.rcx,
        dx: r.rdx,
        si: r.rsi,
        di: r.rdi,
        orig_ax: r.orig_rax,
        ip: r.rip,
        cs: r.cs,
        flags: r.eflags,
        sp: r.rsp,
        ss: r.ss,
        fs_base: r.fs_base,
        gs_base: r.gs_base,
        ds: r.ds,
        es: r.es,
        fs: r.fs,
        gs: r.gs,
        mode: Some(UserX86RegsMode::Native as i32),
    }
}

/// Components of the extended state that CRIU's record has a place for.
const CARRIED: u64 = (1 << component::X87)
    | (1 << component::SSE)
    | (1 << component::YMM)
    | (1 << component::BNDREGS)
    | (1 << component::BNDCSR)
    | (1 << component::OPMASK)
    | (1 << component::ZMM_HI256)
    | (1 << component::HI16_ZMM)
    | (1 << component::PKRU);

/// Registers of a thread as a record. The second value is the raw extended
/// state where it holds more than the record can (AMX).
///
/// # Errors
/// If the extended state is shorter than its own header says.
pub fn thread_info(
    task: &Stopped,
    regs: &Regs,
    clear_tid_addr: u64,
) -> Result<(ThreadInfoX86, Option<Vec<u8>>)> {
    let xstate = task.xstate()?;
    let (fpregs, rest) = fpregs(&xstate).ok_or_else(|| {
        Error::bug(
            format!("read extended state of task {}", task.tid()),
            "it is shorter than this CPU's",
        )
    })?;
    let info = ThreadInfoX86 {
        clear_tid_addr,
        gpregs: gpregs(regs),
        fpregs,
        tls: Vec::new(),
    };
    Ok((info, rest.then_some(xstate)))
}

fn words(bytes: &[u8]) -> Vec<u32> {
    bytes
        .chunks_exact(4)
        .filter_map(|c| c.try_into().ok())
        .map(u32::from_le_bytes)
        .collect()
}

fn fpregs(x: &[u8]) -> Option<(UserX86FpregsEntry, bool)> {
    let u16_at = |n: usize| {
        x.get(n..n + 2)?
            .try_into()
            .ok()
            .map(u16::from_le_bytes)
            .map(u32::from)
    };
    let u32_at = |n: usize| x.get(n..n + 4)?.try_into().ok().map(u32::from_le_bytes);
    let u64_at = |n: usize| x.get(n..n + 8)?.try_into().ok().map(u64::from_le_bytes);
    let part = |number: u32, len: usize| -> Option<Vec<u8>> {
        match xstate_component(number) {
            // a CPU may report a component larger than its used part
            Some((offset, size)) => Some(
                x.get(offset..offset + size.min(len))?
                    .iter()
                    .copied()
                    .chain(std::iter::repeat(0))
                    .take(len)
                    .collect(),
            ),
            None => Some(vec![0; len]),
        }
    };
    let longs = |bytes: Vec<u8>| -> Vec<u64> {
        bytes
            .chunks_exact(8)
            .filter_map(|c| c.try_into().ok())
            .map(u64::from_le_bytes)
            .collect()
    };
    let xstate_bv = u64_at(512).unwrap_or(3);
    let xsave = UserX86XsaveEntry {
        xstate_bv: xstate_bv & CARRIED,
        ymmh_space: words(&part(component::YMM, 256)?),
        bndreg_state: longs(part(component::BNDREGS, 64)?),
        bndcsr_state: longs(part(component::BNDCSR, 64)?),
        opmask_reg: longs(part(component::OPMASK, 64)?),
        zmm_upper: longs(part(component::ZMM_HI256, 512)?),
        hi16_zmm: longs(part(component::HI16_ZMM, 1024)?),
        pkru: words(&part(component::PKRU, 8)?),
        cet: None,
    };
    let amx = (1u64 << component::XTILECFG) | (1 << component::XTILEDATA);
    Some((
        UserX86FpregsEntry {
            cwd: u16_at(0)?,
            swd: u16_at(2)?,
            twd: u16_at(4)?,
            fop: u16_at(6)?,
            rip: u64_at(8)?,
            rdp: u64_at(16)?,
            mxcsr: u32_at(24)?,
            mxcsr_mask: u32_at(28)?,
            st_space: words(x.get(32..160)?),
            xmm_space: words(x.get(160..416)?),
            padding: Vec::new(),
            xsave: Some(xsave),
        },
        xstate_bv & amx != 0,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn regs(nr: i64, ret: i64) -> Regs {
        let mut r: Regs = crate::sys::ptrace::zero_regs();
        r.orig_rax = nr.cast_unsigned();
        r.rax = ret.cast_unsigned();
        r.rip = 0x1002;
        r
    }

    #[test]
    fn a_call_that_only_our_stop_interrupted_is_issued_again() {
        for (nr, ret) in [
            (libc::SYS_read, -512),
            (libc::SYS_pause, -514),
            (libc::SYS_futex, -516),
            (libc::SYS_epoll_wait, -4),
        ] {
            let mut r = regs(nr, ret);
            rewind(HostPid(1), &mut r, None);
            assert_eq!(
                (r.rip, r.rax.cast_signed(), r.orig_rax),
                (0x1000, nr, u64::MAX),
                "call {nr}"
            );
        }
    }

    #[test]
    fn a_call_that_is_issued_again_can_still_be_ended_by_a_handler() {
        for (ret, last, end) in [
            (-512, -512, -512),
            (-514, -514, -514),
            (-516, -516, -514),
            (-4, -514, -514),
        ] {
            let mut r = regs(libc::SYS_epoll_wait, ret);
            let Some(Rewound::Open(open)) = rewind(HostPid(1), &mut r, None) else {
                panic!("{ret}: nothing is open");
            };
            let o = &open.last;
            assert_eq!((o.rip, o.rax.cast_signed()), (0x1002, last), "{ret}");
            assert_eq!(
                (o.orig_rax.cast_signed(), open.end),
                (libc::SYS_epoll_wait, end)
            );
            let settled = Settled {
                regs: r,
                rseq: None,
                undecided: None,
                open: Some(open),
            };
            let mut record = gpregs(&settled.recorded());
            record.cs = CS_64;
            let back = super::super::rebuild::regs(crate::base::NsPid(1), &record).unwrap();
            assert_eq!((back.rip, back.rax.cast_signed()), (0x1002, end), "{ret}");
            assert_eq!(back.orig_rax.cast_signed(), libc::SYS_epoll_wait);
        }
        let mut r = regs(libc::SYS_read, -513);
        assert!(rewind(HostPid(1), &mut r, None).is_none());
    }

    #[test]
    fn a_sleep_goes_on_for_the_time_that_was_left() {
        let mut r = regs(libc::SYS_nanosleep, -516);
        (r.rdi, r.rsi) = (0x10, 0x20);
        rewind(HostPid(1), &mut r, None);
        assert_eq!(r.rdi, 0x20);
    }

    #[test]
    fn a_pending_handler_sees_the_interruption_that_the_kernel_would_show() {
        let settled = |ret, restarts: bool| {
            let mut regs = regs(libc::SYS_read, ret);
            let undecided = match rewind(HostPid(1), &mut regs, Some(10)) {
                Some(Rewound::Undecided(u)) => Some(u),
                Some(Rewound::Open(_)) | None => None,
            };
            let mut settled = Settled {
                regs,
                rseq: None,
                undecided,
                open: None,
            };
            settled.decide(|signal| restarts && signal == 10);
            (settled.regs.rip, settled.regs.rax.cast_signed())
        };
        assert_eq!(settled(-512, false), (0x1002, -4));
        assert_eq!(settled(-512, true), (0x1000, libc::SYS_read));
        assert_eq!(settled(-513, false), (0x1000, libc::SYS_read));
        for never in [-514, -516, -4] {
            assert_eq!(settled(never, true), (0x1002, -4));
        }
    }

    #[test]
    fn a_finished_call_keeps_its_result() {
        let mut r = regs(libc::SYS_write, 5);
        rewind(HostPid(1), &mut r, None);
        assert_eq!((r.rip, r.rax), (0x1002, 5));
    }
}
