//! A process that shares our table of descriptors (clone(2), CLONE_FILES) and
//! nothing else: when we die, every descriptor lives on in it. It is no thread of
//! ours, runs no destructors, allocates nothing, and makes raw calls only, since
//! it is a copy of a process with threads.
//!
//! What it is for, and what it does when we die: [`crate::memory::guardian`].

use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use crate::base::{Error, HostPid, Result, utc};
use crate::sys::pidfd;

mod family;
mod raw;
mod table;

/// Processes that one guardian can stop by descriptor.
pub const MAX_WATCHED: usize = 4000;

/// What both sides see.
#[repr(C)]
struct Board {
    /// 1: nothing is left to guard.
    released: AtomicU32,
    /// How many of `pidfds` are valid.
    watched: AtomicU32,
    /// Where to say what happened, or -1.
    status: AtomicI32,
    pidfds: [AtomicI32; MAX_WATCHED],
    /// The processes of `pidfds`, for their children.
    pids: [AtomicI32; MAX_WATCHED],
}

const SAID: &[u8] = b" the page handler died; the container is killed, so that no page of it \
reads as zeros\n";
const DONE: &[u8] = b" all its processes are gone\n";

/// A running guardian. Dropping it lets it go: do that only when no descriptor
/// needs it any more.
#[derive(Debug)]
pub struct Guardian {
    board: NonNull<Board>,
    pid: HostPid,
    pidfd: OwnedFd,
    /// In the shared table, by number: it must stay open as long as the guardian.
    kept: Vec<OwnedFd>,
}

// SAFETY: the board is shared memory that is only used through atomics.
unsafe impl Send for Guardian {}
// SAFETY: as above; `watch` takes &mut self.
unsafe impl Sync for Guardian {}

impl Guardian {
    /// Starts one, before there is anything to guard. `status` is written to
    /// when it has to act.
    ///
    /// # Errors
    /// Those of mmap(2), pidfd_open(2), clone(2).
    pub fn start(status: Option<OwnedFd>) -> Result<Self> {
        // SAFETY: a new mapping at a place of the kernel's choice.
        let board = unsafe {
            libc::mmap(
                ptr::null_mut(),
                size_of::<Board>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if board == libc::MAP_FAILED {
            return Err(Error::last_os("map the guardian's board"));
        }
        let Some(board) = NonNull::new(board.cast::<Board>()) else {
            return Err(Error::errno("map the guardian's board", libc::ENOMEM));
        };
        let me = i32::try_from(std::process::id())
            .map_err(|_| Error::errno("own pid", libc::EOVERFLOW))?;
        let ours = pidfd::open(HostPid(me))?;
        // SAFETY: zeroed memory is a valid Board, and lives as long as `self`.
        let shared = unsafe { board.as_ref() };
        let said = status.as_ref().map_or(-1, AsRawFd::as_raw_fd);
        shared.status.store(said, Ordering::Release);
        let (pid, pidfd) = spawn(shared, ours.as_fd())?;
        let mut kept = vec![ours];
        kept.extend(status);
        Ok(Self {
            board,
            pid,
            pidfd,
            kept,
        })
    }

    /// Another one in place of one that has died; it is told all that the first
    /// was.
    ///
    /// # Errors
    /// Those of clone(2).
    pub fn again(&mut self) -> Result<()> {
        let Some(ours) = self.kept.first() else {
            return Err(Error::bug("replace the guardian", "it had no descriptor"));
        };
        // SAFETY: the board lives as long as `self`.
        let shared = unsafe { self.board.as_ref() };
        let (pid, pidfd) = spawn(shared, ours.as_fd())?;
        let old = std::mem::replace(&mut self.pid, pid);
        self.pidfd = pidfd;
        // SAFETY: the status pointer may be null. __WALL: it ends without a signal.
        unsafe { libc::waitpid(old.0, ptr::null_mut(), libc::__WALL) };
        Ok(())
    }

    /// Names the file to which it writes when it has to act.
    pub fn say_to(&mut self, status: OwnedFd) {
        // SAFETY: the board lives as long as `self`.
        let board = unsafe { self.board.as_ref() };
        board.status.store(status.as_raw_fd(), Ordering::Release);
        self.kept.push(status);
    }

    /// Its pid: move it to a control group that is not the container's.
    pub fn pid(&self) -> HostPid {
        self.pid
    }

    /// Readable when it has died.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Adds a process that is killed when we die, with those that descend from it.
    ///
    /// # Errors
    /// More than [`MAX_WATCHED`], or no descriptor left.
    pub fn watch(&mut self, pid: HostPid, pidfd: BorrowedFd<'_>) -> Result<()> {
        let own = pidfd
            .try_clone_to_owned()
            .map_err(|e| Error::os("duplicate a pidfd", e))?;
        // SAFETY: the board lives as long as `self`.
        let board = unsafe { self.board.as_ref() };
        let n = board.watched.load(Ordering::Acquire);
        let slots = usize::try_from(n)
            .ok()
            .and_then(|n| board.pidfds.get(n).zip(board.pids.get(n)));
        let (slot, number) = slots.ok_or_else(|| Error::errno("watch a process", libc::ENOSPC))?;
        slot.store(own.as_raw_fd(), Ordering::Release);
        number.store(pid.0, Ordering::Release);
        board.watched.store(n + 1, Ordering::Release);
        self.kept.push(own);
        Ok(())
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        // SAFETY: the board is unmapped below, and not before.
        let board = unsafe { self.board.as_ref() };
        board.released.store(1, Ordering::Release);
        let _ = pidfd::send_signal(self.pidfd.as_fd(), libc::SIGKILL);
        // SAFETY: the status pointer may be null. __WALL: it ends without a signal.
        unsafe { libc::waitpid(self.pid.0, ptr::null_mut(), libc::__WALL) };
        // SAFETY: nobody uses the board any more; the guardian's mapping of it was
        // its own.
        unsafe { libc::munmap(self.board.as_ptr().cast(), size_of::<Board>()) };
    }
}

fn spawn(board: &Board, ours: BorrowedFd<'_>) -> Result<(HostPid, OwnedFd)> {
    let mut pidfd: RawFd = -1;
    let flags = libc::CLONE_FILES | libc::CLONE_PIDFD;
    // SAFETY: like fork(2) but for the table of descriptors; the child runs
    // on a copy of this stack, makes raw calls only and never returns.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone,
            i64::from(flags),
            0,
            &raw mut pidfd,
            ptr::null_mut::<i32>(),
            0,
        )
    };
    if pid == 0 {
        watch_over(board, ours.as_raw_fd());
    }
    let Ok(pid @ 1..) = i32::try_from(pid) else {
        return Err(Error::last_os("clone the guardian"));
    };
    // SAFETY: clone(2) has just made this descriptor, for us alone.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok((HostPid(pid), pidfd))
}

/// The guardian's life.
fn watch_over(board: &Board, parent: RawFd) -> ! {
    // SAFETY: raw calls on plain values and on this function's own stack.
    unsafe {
        libc::setsid();
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const all, ptr::null_mut());
        libc::prctl(libc::PR_SET_NAME, c"dunlin-guardian".as_ptr());
        // Our parent dying must not take us along, whatever it had set.
        libc::prctl(libc::PR_SET_PDEATHSIG, 0);
    }
    wait_for(parent, -1);
    if board.released.load(Ordering::Acquire) == 1 || !table::any_alive(table::Then::Nothing) {
        exit();
    }
    say(board, SAID);
    loop {
        kill_all(board);
        // Whoever of them lives on descends from them, by ways that are not known.
        if !table::any_alive(table::Then::Poison) {
            break;
        }
        // Nothing tells when an address space has ended.
        wait_for(-1, 20);
    }
    say(board, DONE);
    exit()
}

fn exit() -> ! {
    // SAFETY: ends the process at once.
    unsafe { libc::_exit(0) }
}

fn wait_for(fd: RawFd, millis: i32) {
    let mut p = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one pollfd on this stack. All signals are blocked: no EINTR.
    unsafe { libc::poll(&raw mut p, 1, millis) };
}

/// Whether the process of a pidfd has not ended: its number is its own.
fn lives(pidfd: RawFd) -> bool {
    let mut p = libc::pollfd {
        fd: pidfd,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one pollfd on this stack.
    unsafe { libc::poll(&raw mut p, 1, 0) == 0 }
}

fn say(board: &Board, text: &[u8]) {
    let fd = board.status.load(Ordering::Acquire);
    if fd < 0 {
        return;
    }
    // SAFETY: a timespec on this stack, of which all zeros is one.
    let now = unsafe {
        let mut now: libc::timespec = std::mem::zeroed();
        libc::clock_gettime(libc::CLOCK_REALTIME, &raw mut now);
        now.tv_sec
    };
    let when = utc(u64::try_from(now).unwrap_or(0));
    for part in [&when[..], text] {
        // SAFETY: a slice of known length.
        unsafe { libc::write(fd, part.as_ptr().cast(), part.len()) };
    }
}

fn kill_all(board: &Board) {
    let n = usize::try_from(board.watched.load(Ordering::Acquire)).unwrap_or(0);
    for (slot, pid) in board.pidfds.iter().zip(&board.pids).take(n) {
        let fd = slot.load(Ordering::Acquire);
        if lives(fd) {
            // First, while it is known whose they are.
            family::kill_children(pid.load(Ordering::Acquire));
        }
        // SAFETY: the siginfo pointer may be null.
        unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                fd,
                libc::SIGKILL,
                ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
    }
}
