//! A thread's registers and the areas that the kernel knows by address.
//!
//! CRIU's record of the extended state lists components; the kernel takes one
//! XSAVE area in the standard format, with the offsets of this CPU. A component
//! that this CPU lacks cannot be carried and is refused by name.

use crate::base::{Error, NsPid, PAGE_SIZE, Result, VAddr};
use crate::image::records::{
    RseqEntry, UserX86FpregsEntry, UserX86RegsEntry, UserX86RegsMode, UserX86XsaveEntry,
};
use crate::sys::cpu::{component, xstate_component};
use crate::sys::ptrace::{Regs, Stop};
use crate::sys::steer::{Batch, Steered};
use crate::sys::vm;

const CS_64: u64 = 0x33;
const XSAVE_HEADER: usize = 512;
const XSAVE_MIN: usize = 576;
const EINTR: i64 = 4;
const ERESTARTSYS: i64 = -512;
const ERESTARTNOHAND: i64 = -514;
const ERESTART_RESTARTBLOCK: i64 = -516;
const SYSCALL_INSN_LEN: u64 = 2;

/// The general registers of a record. A call that was interrupted, and that
/// whoever made the image did not rewind, is rewound (or fails with EINTR where
/// only the kernel knew how to go on). One that our capture has rewound is given to
/// the kernel: if a handler comes before the thread goes on, it ends the call.
///
/// # Errors
/// 32-bit code is refused.
pub fn regs(tid: NsPid, e: &UserX86RegsEntry) -> Result<Regs> {
    if e.mode() != UserX86RegsMode::Native || e.cs != CS_64 {
        return Err(Error::refused(
            format!("thread {tid}"),
            "it runs 32-bit code, which is not carried",
        ));
    }
    let (mut ax, mut ip, mut orig_ax) = (e.ax, e.ip, u64::MAX);
    if let Ok(nr) = i64::try_from(e.orig_ax) {
        match e.ax.cast_signed() {
            ERESTARTNOHAND..=ERESTARTSYS => {
                ax = nr.cast_unsigned();
                ip = ip.wrapping_sub(SYSCALL_INSN_LEN);
            }
            ERESTART_RESTARTBLOCK => ax = (-EINTR).cast_unsigned(),
            _ => {}
        }
    } else if matches!(e.orig_ax.cast_signed(), ERESTARTSYS | ERESTARTNOHAND) {
        (orig_ax, ax) = (e.ax, e.orig_ax);
        ip = ip.wrapping_add(SYSCALL_INSN_LEN);
    }
    Ok(Regs {
        r15: e.r15,
        r14: e.r14,
        r13: e.r13,
        r12: e.r12,
        rbp: e.bp,
        rbx: e.bx,
        r11: e.r11,
        r10: e.r10,
        r9: e.r9,
        r8: e.r8,
        rax: ax,
        rcx: e.cx,
        rdx: e.dx,
        rsi: e.si,
        rdi: e.di,
        // else not in a system call: nothing for the kernel to restart
        orig_rax: orig_ax,
        rip: ip,
        cs: e.cs,
        eflags: e.flags,
        rsp: e.sp,
        ss: e.ss,
        fs_base: e.fs_base,
        gs_base: e.gs_base,
        ds: e.ds,
        es: e.es,
        fs: e.fs,
        gs: e.gs,
    })
}

/// The XSAVE area for a record, `len` bytes as this CPU has it (what
/// `Stopped::xstate` returns the length of).
///
/// # Errors
/// A component in use that this CPU lacks, or an area too short for one.
pub fn xstate(tid: NsPid, e: &UserX86FpregsEntry, len: usize) -> Result<Vec<u8>> {
    if len < XSAVE_MIN {
        return Err(Error::refused(
            format!("thread {tid}"),
            format!("this CPU's extended state is only {len} bytes"),
        ));
    }
    let mut area = Area {
        tid,
        bytes: vec![0; len],
    };
    let short = |v: u32, what: &str| {
        u16::try_from(v).map_err(|_| {
            Error::image(
                format!("core of thread {tid}"),
                format!("{what} has more than 16 bits"),
            )
        })
    };
    area.put(0, &short(e.cwd, "cwd")?.to_le_bytes())?;
    area.put(2, &short(e.swd, "swd")?.to_le_bytes())?;
    area.put(4, &short(e.twd, "twd")?.to_le_bytes())?;
    area.put(6, &short(e.fop, "fop")?.to_le_bytes())?;
    area.put(8, &e.rip.to_le_bytes())?;
    area.put(16, &e.rdp.to_le_bytes())?;
    area.put(24, &e.mxcsr.to_le_bytes())?;
    area.put(28, &e.mxcsr_mask.to_le_bytes())?;
    area.words(32, 128, "st_space", &e.st_space)?;
    area.words(160, 256, "xmm_space", &e.xmm_space)?;
    let bv = match &e.xsave {
        None => 3,
        Some(x) => area.xsave(x)?,
    };
    area.put(XSAVE_HEADER, &bv.to_le_bytes())?;
    Ok(area.bytes)
}

struct Area {
    tid: NsPid,
    bytes: Vec<u8>,
}

impl Area {
    fn put(&mut self, at: usize, bytes: &[u8]) -> Result<()> {
        let tid = self.tid;
        self.bytes
            .get_mut(at..at + bytes.len())
            .map(|dst| dst.copy_from_slice(bytes))
            .ok_or_else(|| {
                Error::refused(
                    format!("thread {tid}"),
                    format!("this CPU's extended state ends before byte {at}"),
                )
            })
    }

    fn words(&mut self, at: usize, max: usize, what: &str, words: &[u32]) -> Result<()> {
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        self.bounded(at, max, what, &bytes)
    }

    fn bounded(&mut self, at: usize, max: usize, what: &str, bytes: &[u8]) -> Result<()> {
        if bytes.len() > max {
            return Err(Error::image(
                format!("core of thread {}", self.tid),
                format!("{what} has {} bytes, more than {max}", bytes.len()),
            ));
        }
        self.put(at, bytes)
    }

    fn xsave(&mut self, x: &UserX86XsaveEntry) -> Result<u64> {
        if x.cet.is_some() {
            return Err(Error::refused(
                format!("thread {}", self.tid),
                "it has a shadow stack, which is not carried",
            ));
        }
        let longs = |v: &[u64]| -> Vec<u8> { v.iter().flat_map(|w| w.to_le_bytes()).collect() };
        let words = |v: &[u32]| -> Vec<u8> { v.iter().flat_map(|w| w.to_le_bytes()).collect() };
        let parts = [
            (component::YMM, "ymmh_space", words(&x.ymmh_space)),
            (component::BNDREGS, "bndreg_state", longs(&x.bndreg_state)),
            (component::BNDCSR, "bndcsr_state", longs(&x.bndcsr_state)),
            (component::OPMASK, "opmask_reg", longs(&x.opmask_reg)),
            (component::ZMM_HI256, "zmm_upper", longs(&x.zmm_upper)),
            (component::HI16_ZMM, "hi16_zmm", longs(&x.hi16_zmm)),
            (component::PKRU, "pkru", words(&x.pkru)),
        ];
        let mut known = 3u64;
        for (number, name, bytes) in parts {
            known |= 1 << number;
            let used = x.xstate_bv & (1 << number) != 0;
            match xstate_component(number) {
                Some((offset, size)) => self.bounded(offset, size, name, &bytes)?,
                None if used => {
                    return Err(Error::refused(
                        format!("thread {}", self.tid),
                        format!("it uses {name} of the extended state, which this CPU lacks"),
                    ));
                }
                None => {}
            }
        }
        // components that have no place in the record cannot be in use
        if x.xstate_bv & !known & !AMX & !PASID != 0 {
            return Err(Error::refused(
                format!("thread {}", self.tid),
                format!("it uses unknown extended state {:#x}", x.xstate_bv & !known),
            ));
        }
        Ok(x.xstate_bv & known)
    }
}

const AMX: u64 = (1 << component::XTILECFG) | (1 << component::XTILEDATA);
const PASID: u64 = 1 << 10;

/// Asks that threads of the process may use AMX tiles: arch_prctl(2),
/// `ARCH_REQ_XCOMP_PERM`.
pub fn allow_tiles(batch: &mut Batch) {
    const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
    batch.call(
        "arch_prctl(ARCH_REQ_XCOMP_PERM)",
        libc::SYS_arch_prctl,
        &[ARCH_REQ_XCOMP_PERM.into(), component::XTILEDATA.into()],
    );
}

/// Makes the kernel give a thread the room for AMX tiles, which it has only after
/// it has used one: the thread loads them by XRSTOR from `raw`, in the area of
/// the call loop. Its registers are in disorder afterwards.
///
/// # Errors
/// A state of another length than this CPU's, or the thread does something else.
pub fn load_tiles(steered: &mut Steered, tid: NsPid, raw: &[u8]) -> Result<()> {
    // xrstor64 [rdi]; int3
    const CODE: [u8; 5] = [0x48, 0x0f, 0xae, 0x2f, 0xcc];
    // behind the loop's own code, in the same page
    const CODE_AT: u64 = 2048;
    let len = steered.task.xstate()?.len();
    if raw.len() != len {
        return Err(Error::refused(
            format!("thread {tid}"),
            format!(
                "its extended state is {} bytes, this CPU's {len} (another CPU)",
                raw.len()
            ),
        ));
    }
    let host = steered.task.tid();
    let code = steered.mapping().start() + CODE_AT;
    let data = steered.mapping().start() + PAGE_SIZE;
    vm::write(host, VAddr(code), &CODE)?;
    vm::write(host, VAddr(data), raw)?;
    let mut regs = steered.saved;
    regs.rip = code;
    regs.rdi = data;
    regs.rax = AMX;
    regs.rdx = 0;
    regs.orig_rax = u64::MAX;
    steered.task.set_regs(&regs)?;
    loop {
        match steered.task.run_to_stop()? {
            Stop::Signal(libc::SIGTRAP) => return Ok(()),
            Stop::Event { .. } => {}
            other => {
                return Err(Error::refused(
                    format!("thread {tid}"),
                    format!("cannot load its AMX tiles: {other:?}"),
                ));
            }
        }
    }
}

/// Adds the calls by which a thread tells the kernel about its areas: the word
/// to clear at exit (set_tid_address(2)), the robust list
/// (set_robust_list(2)).
pub fn areas(batch: &mut Batch, clear_tid: u64, robust: u64, robust_len: u32) {
    batch.call(
        "set_tid_address",
        libc::SYS_set_tid_address,
        &[clear_tid.into()],
    );
    if robust_len != 0 {
        batch.call(
            "set_robust_list",
            libc::SYS_set_robust_list,
            &[robust.into(), robust_len.into()],
        );
    }
}

/// Adds the rseq registration. The memory of the area must be there already;
/// the kernel writes to it from now on.
pub fn rseq(batch: &mut Batch, e: &RseqEntry) {
    if e.rseq_abi_pointer == 0 {
        return;
    }
    batch.call(
        "rseq",
        libc::SYS_rseq,
        &[
            e.rseq_abi_pointer.into(),
            e.rseq_abi_size.into(),
            0u64.into(),
            e.signature.into(),
        ],
    );
}

#[cfg(test)]
mod tests {
    use super::super::capture;
    use super::*;

    fn gp() -> UserX86RegsEntry {
        let mut e = capture::gpregs(&crate::sys::ptrace::zero_regs());
        e.cs = CS_64;
        e.ip = 0x1002;
        e
    }

    #[test]
    fn an_interrupted_call_that_nobody_rewound_is_issued_again() {
        let mut e = gp();
        (e.orig_ax, e.ax) = (0, (-512i64).cast_unsigned());
        let r = regs(NsPid(1), &e).unwrap();
        assert_eq!((r.rip, r.rax, r.orig_rax), (0x1000, 0, u64::MAX));
        e.ax = (-516i64).cast_unsigned();
        let r = regs(NsPid(1), &e).unwrap();
        assert_eq!((r.rip, r.rax.cast_signed()), (0x1002, -4));
    }

    #[test]
    fn code_of_32_bits_is_refused() {
        let mut e = gp();
        e.cs = 0x23;
        assert!(regs(NsPid(1), &e).is_err());
    }

    #[test]
    fn unknown_state_and_overlong_parts_are_refused_by_name() {
        let mut e = UserX86FpregsEntry {
            xsave: Some(UserX86XsaveEntry {
                xstate_bv: 1 << 40,
                ..Default::default()
            }),
            ..Default::default()
        };
        assert!(
            xstate(NsPid(1), &e, 11008)
                .unwrap_err()
                .to_string()
                .contains("unknown")
        );
        e.xsave = None;
        e.st_space = vec![0; 33];
        assert!(
            xstate(NsPid(1), &e, 11008)
                .unwrap_err()
                .to_string()
                .contains("st_space")
        );
        e.st_space = Vec::new();
        assert_eq!(xstate(NsPid(1), &e, 11008).unwrap()[512], 3);
        assert!(xstate(NsPid(1), &e, 100).is_err());
    }
}
