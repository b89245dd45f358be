//! Interrupting threads, and waiting until they stop.

use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Alive, STOP_DEADLINE, Thread};
use crate::base::{Error, HostPid, Result, ResultExt};
use crate::objects::mm::capture::Before;
use crate::objects::signals::capture::deliverable;
use crate::objects::thread::capture::{Settled, settle};
use crate::sys::procfs::{self, Status};
use crate::sys::ptrace::{self, Options, Seized, Stop, Stopped, Waited};

/// Threads that have been interrupted and not yet been seen to stop.
pub(super) type Interrupted = HashMap<HostPid, Vec<Seized>>;

/// Interrupts one thread. `None`: it has ended.
fn interrupt(tid: HostPid) -> Result<Option<Seized>> {
    let options = Options {
        suspend_seccomp: true,
        ..Options::default()
    };
    match ptrace::seize(tid, options).and_then(|s| s.interrupt().map(|()| s)) {
        Ok(s) => Ok(Some(s)),
        Err(e) if e.raw_os_error() == Some(libc::ESRCH) => Ok(None),
        Err(e) => Err(why_not(tid, e)),
    }
}

/// Interrupts the threads of `pid` that are not in `seen` yet.
fn interrupt_new(pid: HostPid, seen: &mut HashSet<HostPid>) -> Result<Vec<Seized>> {
    let threads = procfs::threads(pid)?;
    let new = threads.into_iter().filter(|tid| seen.insert(*tid));
    new.filter_map(|tid| interrupt(tid).transpose()).collect()
}

/// Interrupts the whole tree under `pid`, waiting for nothing.
pub(super) fn catch(pid: HostPid, caught: &mut Interrupted) -> Result<()> {
    let mut queue = vec![pid];
    while let Some(pid) = queue.pop() {
        if matches!(procfs::stat(pid)?.state, b'Z' | b'X') {
            continue;
        }
        caught.insert(pid, interrupt_new(pid, &mut HashSet::new())?);
        queue.extend(procfs::children(pid)?);
    }
    Ok(())
}

pub(super) fn stop_process(
    pid: HostPid,
    fd: OwnedFd,
    before: Before,
    caught: Vec<Seized>,
) -> Result<Alive> {
    let mut seen: HashSet<HostPid> = caught.iter().map(Seized::tid).collect();
    let mut fresh = caught;
    let mut stopped: Vec<(Stopped, Stop)> = Vec::new();
    let mut stop = || -> Result<()> {
        loop {
            fresh.extend(interrupt_new(pid, &mut seen)?);
            if fresh.is_empty() {
                return Ok(());
            }
            for s in fresh.drain(..) {
                if let Some(pair) = wait_stopped(s)? {
                    stopped.push(pair);
                }
            }
        }
    };
    if let Err(e) = stop() {
        for (s, _) in stopped {
            let _ = s.detach(0);
        }
        // what does not stop now is let go when this thread ends
        for s in fresh {
            if let Ok(Some((s, _))) = wait_stopped(s) {
                let _ = s.detach(0);
            }
        }
        return Err(e);
    }
    stopped.sort_by_key(|(s, _)| (s.tid() != pid, s.tid()));
    let mut threads = Vec::with_capacity(stopped.len());
    let mut stop_signal = None;
    let mut shared = !0;
    let mut left = stopped.into_iter();
    for (mut s, reason) in left.by_ref() {
        if let Stop::Event { signal } = reason
            && signal != libc::SIGTRAP
        {
            stop_signal = Some(signal);
        }
        match read_thread(pid, &mut s, &mut shared) {
            Ok((status, settled, mask)) => {
                threads.push(Thread {
                    tid: s.tid(),
                    status,
                    settled,
                    mask,
                    stopped: Some(s),
                });
            }
            Err(e) => {
                let _ = s.detach(0);
                for (s, _) in left.by_ref() {
                    let _ = s.detach(0);
                }
                for mut t in threads {
                    let _ = t.let_go();
                }
                return Err(e);
            }
        }
    }
    if threads.first().is_none_or(|t| t.tid != pid) {
        for mut t in threads {
            let _ = t.let_go();
        }
        return Err(Error::refused(
            format!("task {pid}"),
            "its main thread is gone",
        ));
    }
    Ok(Alive {
        pidfd: fd,
        threads,
        stop_signal,
        before: Arc::new(before),
    })
}

/// `shared`: of what is pending for the process, what no earlier thread takes.
fn read_thread(pid: HostPid, s: &mut Stopped, shared: &mut u64) -> Result<(Status, Settled, u64)> {
    let status = procfs::thread_status(pid, s.tid())?;
    let mask = s.sigmask()?;
    *shared &= status.shd_pnd;
    let settled = settle(s, deliverable(&status, mask, shared))?;
    Ok((status, settled, mask))
}

fn why_not(tid: HostPid, e: Error) -> Error {
    let tracer = procfs::status(tid).map(|s| s.tracer).unwrap_or(0);
    if tracer == 0 {
        e
    } else {
        Error::refused(format!("task {tid}"), format!("task {tracer} traces it"))
    }
}

/// Stops one thread of a process that otherwise runs on, lets `act` steer it, and lets
/// it go as it was. `None`: none of its threads stopped within `patience`.
///
/// # Errors
/// ESRCH if the process is gone; whatever `act` says.
pub(in crate::engine) fn borrow<T: Send>(
    pid: HostPid,
    patience: Duration,
    act: impl Fn(&mut Stopped) -> Result<T> + Sync,
) -> Result<Option<T>> {
    let mut threads = procfs::threads(pid)?;
    // What waits in the kernel now may not stop at all.
    threads.sort_by_key(|tid| procfs::stat(*tid).is_ok_and(|s| s.state == b'D'));
    by_a_tracer(&format!("steer task {pid}"), || {
        for tid in threads {
            if let Some(done) = borrow_thread(pid, tid, patience, &act)? {
                return Ok(Some(done));
            }
        }
        Ok(None)
    })
}

fn borrow_thread<T>(
    pid: HostPid,
    tid: HostPid,
    patience: Duration,
    act: impl Fn(&mut Stopped) -> Result<T>,
) -> Result<Option<T>> {
    let Some(seized) = interrupt(tid)? else {
        return Ok(None);
    };
    let Caught::Stopped(mut stopped, _) = wait_for(seized, patience, || false)? else {
        return Ok(None);
    };
    let done = read_thread(pid, &mut stopped, &mut !0).and_then(|(_, settled, _)| {
        // A signal is about to be handled, and only the kernel knows how the call
        // goes on that it ends: another thread, or later.
        let free = !settled.is_undecided();
        let acted = free.then(|| act(&mut stopped)).transpose();
        match settled.last() {
            Some(last) => stopped.set_regs(last).and(acted),
            None => acted,
        }
    });
    // A process that was stopped stays so.
    stopped.detach(0)?;
    done
}

/// Waits until each thread has come to where it could be stopped, or `is_in` no longer
/// says that it is where it was. `false`: one did neither within `patience`.
///
/// # Errors
/// Somebody else traces one.
pub(in crate::engine) fn pass(
    threads: &[HostPid],
    patience: Duration,
    is_in: impl Fn(HostPid) -> bool + Sync,
) -> Result<bool> {
    let until = Instant::now() + patience;
    let passes = |tid: HostPid| {
        let Some(seized) = interrupt(tid)? else {
            return Ok(true);
        };
        let left = until.saturating_duration_since(Instant::now());
        match wait_for(seized, left, || !is_in(tid))? {
            // A process that was stopped stays so.
            Caught::Stopped(s, _) => s.detach(0).map(|()| true),
            Caught::Died => Ok(true),
            Caught::Not => Ok(!is_in(tid)),
        }
    };
    by_a_tracer("wait for calls", || {
        let mut each = threads.iter().map(|tid| passes(*tid));
        each.try_fold(true, |past, one| Ok(past && one?))
    })
}

/// Traces on a thread of its own: what does not stop in time is let go when that ends.
fn by_a_tracer<T: Send>(what: &str, trace: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .spawn_scoped(scope, trace)
            .context(|| "start a thread".to_owned())?
            .join()
            .unwrap_or_else(|_| Err(Error::bug(what, "it panicked")))
    })
}

/// Waits for the stop; signals that come first are delivered. `None`: it died.
fn wait_stopped(seized: Seized) -> Result<Option<(Stopped, Stop)>> {
    let tid = seized.tid();
    match wait_for(seized, STOP_DEADLINE, || false)? {
        Caught::Stopped(s, stop) => Ok(Some((s, stop))),
        Caught::Died => Ok(None),
        Caught::Not => Err(Error::refused(
            format!("task {tid}"),
            "it does not stop: in vfork, or in an uninterruptible call",
        )),
    }
}

/// What came of waiting for a stop.
enum Caught {
    Stopped(Stopped, Stop),
    Died,
    Not,
}

/// Waits for a stop, as long as `patience` and until `enough`.
fn wait_for(mut seized: Seized, patience: Duration, enough: impl Fn() -> bool) -> Result<Caught> {
    let deadline = Instant::now() + patience;
    let mut pause = Duration::from_micros(20);
    loop {
        match seized.poll()? {
            Ok(Waited::Stopped(s, stop @ Stop::Event { .. })) => {
                return Ok(Caught::Stopped(s, stop));
            }
            Ok(Waited::Stopped(s, Stop::Signal(signal))) => seized = s.deliver(signal)?,
            Ok(Waited::Stopped(s, _)) => seized = s.resume()?,
            Ok(Waited::Gone(_)) => return Ok(Caught::Died),
            Err(s) => {
                seized = s;
                if enough() || Instant::now() > deadline {
                    return Ok(Caught::Not);
                }
                // the kernel has no descriptor to wait on for a ptrace stop
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(1));
            }
        }
    }
}
