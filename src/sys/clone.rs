//! clone3(2) with `set_tid`, and the child that runs our own code after it.
//!
//! The first task of a restored tree is a copy of this process: it needs no
//! exec, no second binary, and inherits descriptors. That is sound only from a
//! process with one thread (a lock held by another thread would stay locked for
//! ever in the copy), so [`spawn`] counts the threads and refuses otherwise.
//!
//! Parent and child hold the two ends of a `SOCK_SEQPACKET` pair, the
//! [`Line`]. The child runs a closure, sends its result (bytes, or an error as
//! errno and text), and then waits on the line: it exits when the parent goes
//! away, and never returns to its caller.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use crate::base::{Blame, Error, HostPid, NsPid, Result, ResultExt};

/// What clone3(2) is asked for.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// `CLONE_NEW*` and `CLONE_PARENT`.
    pub flags: u64,
    /// Wanted ids, innermost pid namespace first; empty for any.
    pub set_tid: Vec<NsPid>,
}

/// `struct clone_args` of linux/sched.h, version 2.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}
const _: () = assert!(mem::size_of::<CloneArgs>() == 88);

/// `struct clone_args` as bytes, for a clone3 that a steered task makes: the
/// word at [`SET_TID_AT`] must be patched to the address of the id array.
pub fn args_bytes(flags: u64, exit_signal: i32, stack: u64, set_tid_count: usize) -> [u8; 88] {
    let words: [u64; 11] = [
        flags,
        0,
        0,
        0,
        u64::from(exit_signal.unsigned_abs()),
        stack,
        0,
        0,
        0,
        u64::try_from(set_tid_count).unwrap_or(u64::MAX),
        0,
    ];
    let mut bytes = [0u8; 88];
    for (slot, word) in bytes.chunks_exact_mut(8).zip(words) {
        slot.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// Offset of the pointer to the id array in `struct clone_args`, bytes.
pub const SET_TID_AT: usize = 64;

/// One end of the pair between a parent and the child it made.
#[derive(Debug)]
pub struct Line(OwnedFd);

/// Largest message on a line, bytes.
const MAX_MESSAGE: usize = 64 * 1024;

impl Line {
    fn pair() -> Result<(Self, Self)> {
        let mut fds: [RawFd; 2] = [-1; 2];
        // SAFETY: fds has room for the two descriptors that socketpair(2) writes.
        let r = unsafe {
            libc::socketpair(
                libc::AF_UNIX,
                libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC,
                0,
                fds.as_mut_ptr(),
            )
        };
        if r != 0 {
            return Err(Error::last_os("make a socket pair"));
        }
        // SAFETY: both descriptors were just made and belong to nobody else.
        Ok(unsafe {
            (
                Self(OwnedFd::from_raw_fd(fds[0])),
                Self(OwnedFd::from_raw_fd(fds[1])),
            )
        })
    }

    /// Sends one message.
    ///
    /// # Errors
    /// EPIPE if the other end is gone, EMSGSIZE if it is too long.
    pub fn send(&self, message: &[u8]) -> Result<()> {
        // SAFETY: the pointer and the length describe `message`.
        let n = unsafe {
            libc::send(
                self.0.as_raw_fd(),
                message.as_ptr().cast(),
                message.len(),
                libc::MSG_NOSIGNAL,
            )
        };
        if n < 0 {
            return Err(Error::last_os("send to the other end of a clone"));
        }
        Ok(())
    }

    /// Waits for one message; `None` if the other end is gone.
    ///
    /// # Errors
    /// Whatever recv(2) says.
    pub fn receive(&self) -> Result<Option<Vec<u8>>> {
        let mut buf = vec![0u8; MAX_MESSAGE];
        loop {
            // SAFETY: the pointer and the length describe `buf`.
            let n = unsafe {
                libc::recv(
                    self.0.as_raw_fd(),
                    buf.as_mut_ptr().cast(),
                    buf.len(),
                    libc::MSG_NOSIGNAL,
                )
            };
            match usize::try_from(n) {
                Ok(0) => return Ok(None),
                Ok(n) => {
                    buf.truncate(n);
                    return Ok(Some(buf));
                }
                Err(_) => {
                    let e = io::Error::last_os_error();
                    match e.raw_os_error() {
                        Some(libc::EINTR) => {}
                        Some(libc::ECONNRESET) => return Ok(None),
                        _ => return Err(Error::os("receive from the other end of a clone", e)),
                    }
                }
            }
        }
    }

    /// The descriptor's number.
    pub fn raw(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// A child that runs our code.
#[derive(Debug)]
pub struct Child {
    /// Its id as we see it.
    pub pid: HostPid,
    /// Its pidfd.
    pub pidfd: OwnedFd,
    /// Our end of the line.
    pub line: Line,
}

impl Child {
    /// Waits for what its closure returned.
    ///
    /// # Errors
    /// The closure's error, or that the child died before it said anything.
    pub fn result(&self) -> Result<Vec<u8>> {
        let message = self.line.receive()?.ok_or_else(|| {
            Error::bug(
                format!("task {}", self.pid),
                "died before it reported anything",
            )
        })?;
        decode(&message).context(|| format!("in new task {}", self.pid))
    }
}

/// Makes a child with `request` that runs `body` and then waits.
///
/// The line that `body` gets may be used for a conversation with the parent
/// before the result.
///
/// # Errors
/// EEXIST if an id is taken, EPERM without the privilege for a flag; a bug if
/// this process has more than one thread.
pub fn spawn(request: &Request, body: impl FnOnce(&Line) -> Result<Vec<u8>>) -> Result<Child> {
    let threads = std::fs::read_dir("/proc/self/task")
        .context(|| "list our own threads".to_owned())?
        .count();
    if threads != 1 {
        return Err(Error::bug(
            "clone the first task",
            format!("this process has {threads} threads, not one"),
        ));
    }
    let (ours, theirs) = Line::pair()?;
    let tids: Vec<i32> = request.set_tid.iter().map(|t| t.0).collect();
    let mut pidfd: RawFd = -1;
    let sibling = request.flags & u64::from(libc::CLONE_PARENT.unsigned_abs()) != 0;
    let args = CloneArgs {
        flags: request.flags | u64::from(libc::CLONE_PIDFD.unsigned_abs()),
        pidfd: (&raw mut pidfd) as u64,
        // a sibling's parent is told by its own rules: clone3(2) wants 0 here
        exit_signal: if sibling {
            0
        } else {
            u64::from(libc::SIGCHLD.unsigned_abs())
        },
        set_tid: if tids.is_empty() {
            0
        } else {
            tids.as_ptr() as u64
        },
        set_tid_size: tids.len() as u64,
        ..CloneArgs::default()
    };
    // SAFETY: args and what it points to outlive the call; there is no CLONE_VM,
    // so the child has its own copy of this stack, and we are single-threaded.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw const args,
            mem::size_of::<CloneArgs>(),
        )
    };
    match pid {
        -1 => Err(Error::last_os(format!(
            "clone the first task with flags {:#x} and ids {tids:?}",
            request.flags
        ))),
        0 => {
            drop(ours);
            run_child(&theirs, body)
        }
        pid => Ok(Child {
            pid: HostPid(i32::try_from(pid).unwrap_or(0)),
            // SAFETY: the kernel stored a new descriptor that is only ours.
            pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) },
            line: ours,
        }),
    }
}

fn run_child(line: &Line, body: impl FnOnce(&Line) -> Result<Vec<u8>>) -> ! {
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| body(line)))
        .unwrap_or_else(|_| Err(Error::bug("new task", "panicked")));
    let failed = result.is_err();
    let sent = line.send(&encode(&result));
    if !failed && sent.is_ok() {
        // stays here until it is steered elsewhere, or the parent is gone
        while let Ok(Some(_)) = line.receive() {}
    }
    // SAFETY: _exit(2) has no preconditions; nothing of this copy may unwind.
    unsafe { libc::_exit(i32::from(failed)) }
}

fn encode(result: &Result<Vec<u8>>) -> Vec<u8> {
    match result {
        Ok(bytes) => {
            let mut m = vec![0u8];
            m.extend_from_slice(bytes.get(..MAX_MESSAGE - 1).unwrap_or(bytes));
            m
        }
        Err(e) => {
            let mut m = vec![1u8, blame_code(e.blame())];
            m.extend_from_slice(&e.raw_os_error().unwrap_or(0).to_le_bytes());
            let text = e.to_string();
            m.extend_from_slice(text.as_bytes().get(..4096).unwrap_or(text.as_bytes()));
            m
        }
    }
}

fn decode(message: &[u8]) -> Result<Vec<u8>> {
    match message {
        [0, payload @ ..] => Ok(payload.to_vec()),
        [1, blame, e0, e1, e2, e3, text @ ..] => {
            let errno = i32::from_le_bytes([*e0, *e1, *e2, *e3]);
            let text = String::from_utf8_lossy(text).into_owned();
            Err(if errno == 0 {
                Error::new(blame_of(*blame), text, "failed there")
            } else {
                Error::errno(text, errno)
            })
        }
        _ => Err(Error::bug("read a child's report", "malformed")),
    }
}

fn blame_code(b: Blame) -> u8 {
    match b {
        Blame::Us => 0,
        Blame::Caller => 1,
        Blame::Image => 2,
        Blame::Peer => 3,
        Blame::Container => 4,
        Blame::Kernel => 5,
        Blame::Link => 6,
    }
}

fn blame_of(code: u8) -> Blame {
    match code {
        1 => Blame::Caller,
        2 => Blame::Image,
        3 => Blame::Peer,
        4 => Blame::Container,
        5 => Blame::Kernel,
        6 => Blame::Link,
        _ => Blame::Us,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_the_child_keeps_errno_text_and_blame() {
        let e = Error::errno("mount /proc", libc::EBUSY);
        let back = decode(&encode(&Err(e))).unwrap_err();
        assert_eq!(back.raw_os_error(), Some(libc::EBUSY));
        assert!(back.to_string().contains("mount /proc"), "{back}");
        let back = decode(&encode(&Err(Error::image("mountpoints", "loop")))).unwrap_err();
        assert_eq!(back.blame(), Blame::Image);
    }

    #[test]
    fn a_process_with_several_threads_is_refused() {
        // the test harness has several
        let e = spawn(&Request::default(), |_| Ok(Vec::new())).unwrap_err();
        assert!(e.to_string().contains("threads"), "{e}");
    }

    #[test]
    fn a_short_report_is_refused() {
        assert!(decode(&[]).is_err());
        assert!(decode(&[1, 2, 3]).is_err());
    }
}
