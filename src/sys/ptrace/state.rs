//! What a stopped thread holds: registers, extended state, signals, its rseq area,
//! its seccomp filters, its robust list.

use std::mem;

use super::{Stopped, ptrace};
use crate::base::{Error, HostPid, Result};

/// General registers, the kernel's `struct user_regs_struct`.
pub type Regs = libc::user_regs_struct;

/// Registers that are all zero.
pub fn zero_regs() -> Regs {
    // SAFETY: user_regs_struct is plain integers; zero is a valid value.
    unsafe { mem::zeroed() }
}

/// Where the kernel keeps the restartable-sequences area of a thread:
/// `struct ptrace_rseq_configuration`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RseqConfig {
    /// Address of `struct rseq`, 0 if none is registered.
    pub abi_pointer: u64,
    /// Its registered size, bytes.
    pub abi_size: u32,
    /// The signature before abort handlers.
    pub signature: u32,
    /// Flags, 0 today.
    pub flags: u32,
    /// Padding.
    pub pad: u32,
}
const _: () = assert!(mem::size_of::<RseqConfig>() == 24);

const PTRACE_GET_RSEQ_CONFIGURATION: u32 = 0x420f;
const PTRACE_SECCOMP_GET_FILTER: u32 = 0x420c;
const NT_X86_XSTATE: usize = 0x202;
const NT_PRSTATUS: usize = 1;
const SIGINFO_SIZE: usize = 128;

impl Stopped {
    /// General registers.
    ///
    /// # Errors
    /// ESRCH if it was killed.
    pub fn regs(&self) -> Result<Regs> {
        let mut regs = zero_regs();
        let mut iov = libc::iovec {
            iov_base: (&raw mut regs).cast(),
            iov_len: mem::size_of::<Regs>(),
        };
        ptrace(
            libc::PTRACE_GETREGSET,
            self.tid,
            NT_PRSTATUS,
            (&raw mut iov) as usize,
        )
        .map_err(|e| self.err("read registers", e))?;
        Ok(regs)
    }

    /// Sets the general registers.
    ///
    /// # Errors
    /// ESRCH if it was killed, EIO for values the kernel does not take.
    pub fn set_regs(&mut self, regs: &Regs) -> Result<()> {
        let mut regs = *regs;
        let mut iov = libc::iovec {
            iov_base: (&raw mut regs).cast(),
            iov_len: mem::size_of::<Regs>(),
        };
        ptrace(
            libc::PTRACE_SETREGSET,
            self.tid,
            NT_PRSTATUS,
            (&raw mut iov) as usize,
        )
        .map(drop)
        .map_err(|e| self.err("write registers", e))
    }

    /// The extended state in XSAVE's standard format, as long as this CPU makes it.
    ///
    /// # Errors
    /// ESRCH if it was killed.
    pub fn xstate(&self) -> Result<Vec<u8>> {
        let mut buf = vec![0u8; 16384];
        let mut iov = libc::iovec {
            iov_base: buf.as_mut_ptr().cast(),
            iov_len: buf.len(),
        };
        ptrace(
            libc::PTRACE_GETREGSET,
            self.tid,
            NT_X86_XSTATE,
            (&raw mut iov) as usize,
        )
        .map_err(|e| self.err("read extended state", e))?;
        buf.truncate(iov.iov_len);
        Ok(buf)
    }

    /// Sets the extended state; it must have this CPU's length.
    ///
    /// # Errors
    /// EFAULT or EINVAL if the kernel does not take it.
    pub fn set_xstate(&mut self, xstate: &[u8]) -> Result<()> {
        let mut iov = libc::iovec {
            iov_base: xstate.as_ptr().cast_mut().cast(),
            iov_len: xstate.len(),
        };
        ptrace(
            libc::PTRACE_SETREGSET,
            self.tid,
            NT_X86_XSTATE,
            (&raw mut iov) as usize,
        )
        .map(drop)
        .map_err(|e| self.err("write extended state", e))
    }

    /// The mask of blocked signals, bit n-1 for signal n.
    ///
    /// # Errors
    /// ESRCH if it was killed.
    pub fn sigmask(&self) -> Result<u64> {
        let mut mask = 0u64;
        ptrace(
            libc::PTRACE_GETSIGMASK,
            self.tid,
            8,
            (&raw mut mask) as usize,
        )
        .map_err(|e| self.err("read signal mask", e))?;
        Ok(mask)
    }

    /// Sets the mask of blocked signals.
    ///
    /// # Errors
    /// ESRCH if it was killed.
    pub fn set_sigmask(&mut self, mask: u64) -> Result<()> {
        ptrace(
            libc::PTRACE_SETSIGMASK,
            self.tid,
            8,
            (&raw const mask) as usize,
        )
        .map(drop)
        .map_err(|e| self.err("write signal mask", e))
    }

    /// Pending signals as raw `siginfo_t` (128 bytes each), not consumed.
    /// `shared`: those of the whole process instead of this thread.
    ///
    /// # Errors
    /// ESRCH if it was killed.
    pub fn pending(&self, shared: bool) -> Result<Vec<[u8; SIGINFO_SIZE]>> {
        #[repr(C)]
        struct PeekArgs {
            off: u64,
            flags: u32,
            nr: i32,
        }
        let mut all = Vec::new();
        loop {
            let mut infos = [[0u8; SIGINFO_SIZE]; 32];
            let args = PeekArgs {
                off: all.len() as u64,
                flags: u32::from(shared),
                nr: 32,
            };
            let n = ptrace(
                libc::PTRACE_PEEKSIGINFO,
                self.tid,
                (&raw const args) as usize,
                (&raw mut infos) as usize,
            )
            .map_err(|e| self.err("peek pending signals", e))?;
            let n = usize::try_from(n).unwrap_or(0).min(infos.len());
            if n == 0 {
                return Ok(all);
            }
            all.extend_from_slice(infos.get(..n).unwrap_or(&[]));
        }
    }

    /// The siginfo of the signal it is stopped at.
    ///
    /// # Errors
    /// EINVAL if it is not in a signal stop.
    pub fn siginfo(&self) -> Result<[u8; SIGINFO_SIZE]> {
        let mut info = [0u8; SIGINFO_SIZE];
        ptrace(
            libc::PTRACE_GETSIGINFO,
            self.tid,
            0,
            (&raw mut info) as usize,
        )
        .map_err(|e| self.err("read siginfo", e))?;
        Ok(info)
    }

    /// The restartable-sequences registration.
    ///
    /// # Errors
    /// EIO on kernels before 5.13.
    pub fn rseq(&self) -> Result<RseqConfig> {
        let mut conf = RseqConfig::default();
        ptrace(
            PTRACE_GET_RSEQ_CONFIGURATION,
            self.tid,
            mem::size_of::<RseqConfig>(),
            (&raw mut conf) as usize,
        )
        .map_err(|e| self.err("read rseq registration", e))?;
        Ok(conf)
    }

    /// Seccomp filter number `index`, newest first, as raw `struct sock_filter`
    /// instructions (8 bytes each); `None` past the last one.
    ///
    /// # Errors
    /// EACCES without CAP_SYS_ADMIN or when we are under seccomp ourselves.
    pub fn seccomp_filter(&self, index: usize) -> Result<Option<Vec<u8>>> {
        let count = match ptrace(PTRACE_SECCOMP_GET_FILTER, self.tid, index, 0) {
            Ok(n) => usize::try_from(n).unwrap_or(0),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
            Err(e) => return Err(self.err("read seccomp filter", e)),
        };
        let mut code = vec![0u8; count * 8];
        ptrace(
            PTRACE_SECCOMP_GET_FILTER,
            self.tid,
            index,
            code.as_mut_ptr() as usize,
        )
        .map_err(|e| self.err("read seccomp filter", e))?;
        Ok(Some(code))
    }

    /// Flags of seccomp filter number `index` (`SECCOMP_FILTER_FLAG_LOG`).
    ///
    /// # Errors
    /// As [`Stopped::seccomp_filter`].
    pub fn seccomp_flags(&self, index: u64) -> Result<u64> {
        const PTRACE_SECCOMP_GET_METADATA: u32 = 0x420d;
        let mut meta = [index, 0u64];
        ptrace(
            PTRACE_SECCOMP_GET_METADATA,
            self.tid,
            16,
            (&raw mut meta) as usize,
        )
        .map_err(|e| self.err("read seccomp metadata", e))?;
        Ok(meta[1])
    }
}

/// Where a thread keeps its list of robust futexes, and the length of the
/// head: get_robust_list(2).
///
/// # Errors
/// EPERM without the right to trace it, ESRCH if it is gone.
pub fn robust_list(tid: HostPid) -> Result<(u64, u64)> {
    let (mut head, mut len) = (0u64, 0u64);
    // SAFETY: both are live and of the kernel's size (a pointer and a size_t).
    let r = unsafe {
        libc::syscall(
            libc::SYS_get_robust_list,
            tid.0,
            &raw mut head,
            &raw mut len,
        )
    };
    if r == 0 {
        Ok((head, len))
    } else {
        Err(Error::last_os(format!(
            "read the robust list of task {tid}"
        )))
    }
}
