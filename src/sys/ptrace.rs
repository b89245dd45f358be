//! ptrace(2) as typestate. A [`Seized`] task runs, a [`Stopped`] one does not;
//! only a stopped one has registers, and letting it go consumes the value.
//!
//! Both are `!Send`: the kernel binds a tracee to the *thread* that seized it.
//! A stop is always waited for with waitpid(2) `__WALL` on that one thread id,
//! so that nobody else's children are reaped by accident.
//!
//! Two rules of the kernel shape this file:
//! - a task that was stopped by SIGSTOP before we came reports one more
//!   `PTRACE_EVENT_STOP` after each continue (group stop), and stays stopped
//!   after a detach: such stops are passed over while steering;
//! - when the tracer dies, a seized task simply runs on. Only tasks that *we*
//!   made may be seized with [`Options::kill_on_tracer_death`].

use std::io;
use std::marker::PhantomData;
use std::mem;

use crate::base::{Error, HostPid, Result};

/// How a task is seized.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// `PTRACE_O_EXITKILL`: the task dies with us. For half-built tasks only.
    pub kill_on_tracer_death: bool,
    /// `PTRACE_O_TRACEFORK | TRACEVFORK | TRACECLONE`: what it makes is seized
    /// by the call that makes it, and starts stopped.
    pub follow: bool,
    /// `PTRACE_O_SUSPEND_SECCOMP`: its filters do not see injected calls.
    /// Needs CAP_SYS_ADMIN.
    pub suspend_seccomp: bool,
}

impl Options {
    fn bits(self) -> usize {
        let mut bits = libc::PTRACE_O_TRACESYSGOOD;
        if self.kill_on_tracer_death {
            bits |= libc::PTRACE_O_EXITKILL;
        }
        if self.follow {
            bits |=
                libc::PTRACE_O_TRACEFORK | libc::PTRACE_O_TRACEVFORK | libc::PTRACE_O_TRACECLONE;
        }
        if self.suspend_seccomp {
            bits |= libc::PTRACE_O_SUSPEND_SECCOMP;
        }
        usize::try_from(bits).unwrap_or(0)
    }
}

/// Why a task stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// `PTRACE_INTERRUPT`, a group stop, or the first stop of a new task.
    /// `signal` is SIGTRAP for the first and last, else the stopping signal.
    Event {
        /// The signal number reported.
        signal: i32,
    },
    /// About to receive this signal.
    Signal(i32),
    /// At entry or exit of a system call (only after [`Stopped::to_syscall_stop`]).
    Syscall,
    /// It made a task or thread, whose id as we see it is this.
    Made(HostPid),
}

/// What waiting for a seized task gave.
#[derive(Debug)]
pub enum Waited {
    /// It stopped.
    Stopped(Stopped, Stop),
    /// It is gone; the wait status tells how.
    Gone(i32),
}

/// A seized task that runs, or has not yet been seen to stop.
#[derive(Debug)]
pub struct Seized {
    tid: HostPid,
    options: Options,
    _thread: PhantomData<*const ()>,
}

/// A stopped tracee.
#[derive(Debug)]
pub struct Stopped {
    tid: HostPid,
    options: Options,
    _thread: PhantomData<*const ()>,
}

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

fn ptrace(request: libc::c_uint, tid: HostPid, addr: usize, data: usize) -> io::Result<i64> {
    // SAFETY: every caller passes addr and data as its request defines them,
    // with pointers to live buffers of the stated size.
    let r = unsafe { libc::ptrace(request, tid.0, addr, data) };
    if r == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(r)
    }
}

/// Seizes a task without stopping it.
///
/// # Errors
/// EPERM if it is traced already or we lack the privilege, ESRCH if it is gone.
pub fn seize(tid: HostPid, options: Options) -> Result<Seized> {
    ptrace(libc::PTRACE_SEIZE, tid, 0, options.bits())
        .map_err(|e| Error::os(format!("seize task {tid}"), e))?;
    Ok(Seized {
        tid,
        options,
        _thread: PhantomData,
    })
}

impl Seized {
    /// Its thread id as we see it.
    pub fn tid(&self) -> HostPid {
        self.tid
    }

    /// A task that was seized by the call that made it ([`Stop::Made`]).
    pub fn adopted(tid: HostPid, options: Options) -> Self {
        Self {
            tid,
            options,
            _thread: PhantomData,
        }
    }

    /// Asks it to stop; [`Seized::wait`] tells when it has.
    ///
    /// # Errors
    /// ESRCH if it is gone.
    pub fn interrupt(&self) -> Result<()> {
        ptrace(libc::PTRACE_INTERRUPT, self.tid, 0, 0)
            .map(drop)
            .map_err(|e| Error::os(format!("interrupt task {}", self.tid), e))
    }

    /// Waits until it stops or is gone.
    ///
    /// # Errors
    /// Whatever waitpid(2) says.
    pub fn wait(self) -> Result<Waited> {
        match wait_on(self.tid, 0)? {
            Some(w) => Ok(self.classify(w)),
            None => Err(Error::bug(
                format!("wait for task {}", self.tid),
                "waitpid without WNOHANG returned nothing",
            )),
        }
    }

    /// Looks whether it has stopped, without waiting.
    ///
    /// # Errors
    /// Whatever waitpid(2) says.
    pub fn poll(self) -> Result<std::result::Result<Waited, Self>> {
        match wait_on(self.tid, libc::WNOHANG)? {
            Some(w) => Ok(Ok(self.classify(w))),
            None => Ok(Err(self)),
        }
    }

    fn classify(self, status: i32) -> Waited {
        if !libc::WIFSTOPPED(status) {
            return Waited::Gone(status);
        }
        let stopped = Stopped {
            tid: self.tid,
            options: self.options,
            _thread: PhantomData,
        };
        let stop = stopped.classify(status);
        Waited::Stopped(stopped, stop)
    }
}

fn wait_on(tid: HostPid, flags: i32) -> Result<Option<i32>> {
    let mut status = 0;
    loop {
        // SAFETY: status is a live i32.
        let r = unsafe { libc::waitpid(tid.0, &raw mut status, libc::__WALL | flags) };
        if r == 0 {
            return Ok(None);
        }
        if r > 0 {
            return Ok(Some(status));
        }
        let e = io::Error::last_os_error();
        if e.raw_os_error() != Some(libc::EINTR) {
            return Err(Error::os(format!("wait for task {tid}"), e));
        }
    }
}

impl Stopped {
    /// Its thread id as we see it.
    pub fn tid(&self) -> HostPid {
        self.tid
    }

    fn err(&self, what: &str, e: io::Error) -> Error {
        Error::os(format!("{what} of task {}", self.tid), e)
    }

    fn classify(&self, status: i32) -> Stop {
        let signal = libc::WSTOPSIG(status);
        let event = status >> 16;
        match event {
            libc::PTRACE_EVENT_STOP => Stop::Event { signal },
            libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_VFORK | libc::PTRACE_EVENT_CLONE => {
                let mut msg: libc::c_ulong = 0;
                let ok = ptrace(
                    libc::PTRACE_GETEVENTMSG,
                    self.tid,
                    0,
                    (&raw mut msg) as usize,
                )
                .is_ok();
                Stop::Made(HostPid(if ok {
                    i32::try_from(msg).unwrap_or(0)
                } else {
                    0
                }))
            }
            _ if signal == libc::SIGTRAP | 0x80 => Stop::Syscall,
            _ => Stop::Signal(signal),
        }
    }

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

    /// Continues, delivering no signal, and waits for the next stop.
    /// The value stays `Stopped`; if the task died it is an error.
    ///
    /// # Errors
    /// If the task is gone.
    pub fn run_to_stop(&mut self) -> Result<Stop> {
        self.go(libc::PTRACE_CONT)
    }

    /// Continues to the next entry or exit of a system call.
    ///
    /// # Errors
    /// If the task is gone.
    pub fn to_syscall_stop(&mut self) -> Result<Stop> {
        self.go(libc::PTRACE_SYSCALL)
    }

    fn go(&mut self, request: libc::c_uint) -> Result<Stop> {
        ptrace(request, self.tid, 0, 0).map_err(|e| self.err("continue", e))?;
        let status = wait_on(self.tid, 0)?.unwrap_or(0);
        if libc::WIFSTOPPED(status) {
            Ok(self.classify(status))
        } else {
            Err(Error::os(
                format!("task {} died while it was steered", self.tid),
                io::Error::from_raw_os_error(libc::ESRCH),
            ))
        }
    }

    /// Asks for another `PTRACE_EVENT_STOP` as soon as it is continued, so that
    /// it passes through the kernel's signal path (which restarts calls).
    ///
    /// # Errors
    /// ESRCH if it was killed.
    pub fn interrupt_again(&mut self) -> Result<()> {
        ptrace(libc::PTRACE_INTERRUPT, self.tid, 0, 0)
            .map(drop)
            .map_err(|e| self.err("interrupt", e))
    }

    /// Changes the options it was seized with.
    ///
    /// # Errors
    /// ESRCH if it was killed.
    pub fn set_options(&mut self, options: Options) -> Result<()> {
        ptrace(libc::PTRACE_SETOPTIONS, self.tid, 0, options.bits())
            .map_err(|e| self.err("set ptrace options", e))?;
        self.options = options;
        Ok(())
    }

    /// The options it was seized with.
    pub fn options(&self) -> Options {
        self.options
    }

    /// Delivers the signal that it is stopped at, and lets it run, still seized.
    ///
    /// # Errors
    /// ESRCH if it was killed.
    pub fn deliver(self, signal: i32) -> Result<Seized> {
        let data = usize::try_from(signal).unwrap_or(0);
        ptrace(libc::PTRACE_CONT, self.tid, 0, data).map_err(|e| self.err("continue", e))?;
        Ok(Seized {
            tid: self.tid,
            options: self.options,
            _thread: PhantomData,
        })
    }

    /// Lets it run, still seized.
    ///
    /// # Errors
    /// ESRCH if it was killed.
    pub fn resume(self) -> Result<Seized> {
        ptrace(libc::PTRACE_CONT, self.tid, 0, 0).map_err(|e| self.err("continue", e))?;
        Ok(Seized {
            tid: self.tid,
            options: self.options,
            _thread: PhantomData,
        })
    }

    /// Lets it go for good, delivering `signal` (0 for none).
    ///
    /// # Errors
    /// ESRCH if it was killed.
    pub fn detach(self, signal: i32) -> Result<()> {
        let signal = usize::try_from(signal).unwrap_or(0);
        ptrace(libc::PTRACE_DETACH, self.tid, 0, signal)
            .map(drop)
            .map_err(|e| self.err("detach", e))
    }
}

/// Waits until the killed tracees `tids` have ended, in whatever order they do:
/// the last thread of the first process of a pid namespace ends only when all the
/// others in it have been waited for, and nobody knows which thread is last.
/// `false` when `patience` passed before.
pub fn reap_all(mut tids: Vec<HostPid>, patience: std::time::Duration) -> bool {
    let deadline = std::time::Instant::now() + patience;
    loop {
        // What cannot be waited for any more has ended.
        tids.retain(|tid| match wait_on(*tid, libc::WNOHANG) {
            Ok(None) => true,
            Ok(Some(status)) => libc::WIFSTOPPED(status),
            Err(_) => false,
        });
        if tids.is_empty() {
            return true;
        }
        if std::time::Instant::now() > deadline {
            return false;
        }
        // waitpid(2) cannot wait for one of several threads.
        std::thread::sleep(std::time::Duration::from_micros(100));
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

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_seized_task_stops_when_interrupted_and_runs_on_after_detach() {
        let mut child = Command::new("cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = HostPid(i32::try_from(child.id()).unwrap());
        let seized = seize(pid, Options::default()).unwrap();
        seized.interrupt().unwrap();
        let Waited::Stopped(stopped, stop) = seized.wait().unwrap() else {
            panic!("gone")
        };
        assert_eq!(
            stop,
            Stop::Event {
                signal: libc::SIGTRAP
            }
        );
        assert_ne!(stopped.regs().unwrap().rsp, 0);
        assert!(stopped.xstate().unwrap().len() >= 576);
        stopped.detach(0).unwrap();
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success());
    }
}
