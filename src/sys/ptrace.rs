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

use crate::base::{Error, HostPid, Result};

mod state;

pub use state::{Regs, RseqConfig, robust_list, zero_regs};

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
