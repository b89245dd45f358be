//! A process under remote control, for tests: it maps, touches, forks and
//! unmaps what it is told, and nothing else. It is forked from a process with
//! threads, so it only makes raw calls and uses its stack.

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use crate::base::HostPid;
use crate::sys::{pidfd, poll};

/// Forks that one child can make.
const FORKS: usize = 4;

#[derive(Clone, Copy)]
#[repr(C)]
struct Order {
    what: u64,
    args: [u64; 6],
}

const CALL: u64 = 1;
const FILL: u64 = 2;
const SUM: u64 = 3;
const FORK: u64 = 4;

/// A process that does what it is told. Killed when dropped.
#[derive(Debug)]
pub(crate) struct Child {
    pid: HostPid,
    pidfd: OwnedFd,
    socket: OwnedFd,
    spare: Mutex<Vec<(RawFd, OwnedFd)>>,
    ours: bool,
}

impl Child {
    /// Forks this process.
    pub(crate) fn fork() -> Self {
        let (socket, theirs) = pair();
        let mut spare = Vec::new();
        let mut kept = Vec::new();
        for _ in 0..FORKS {
            let (a, b) = pair();
            spare.push((b.as_raw_fd(), a));
            kept.push(b);
        }
        // SAFETY: the child makes raw calls only and never returns.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "fork: {}", io::Error::last_os_error());
        if pid == 0 {
            serve(
                theirs.as_raw_fd(),
                &spare.iter().map(|s| s.0).collect::<Keep>().0,
            );
        }
        let pid = HostPid(pid);
        Self {
            pid,
            pidfd: pidfd::open(pid).unwrap(),
            socket,
            spare: Mutex::new(spare),
            ours: true,
        }
    }

    /// Its pid.
    pub(crate) fn pid(&self) -> HostPid {
        self.pid
    }

    /// Its pidfd.
    pub(crate) fn pidfd(&self) -> &OwnedFd {
        &self.pidfd
    }

    fn send(&self, what: u64, args: [u64; 6]) {
        let order = Order { what, args };
        // SAFETY: `order` is plain memory of the given length.
        let n = unsafe {
            libc::send(
                self.socket.as_raw_fd(),
                (&raw const order).cast(),
                mem::size_of::<Order>(),
                libc::MSG_NOSIGNAL,
            )
        };
        assert_eq!(usize::try_from(n).unwrap(), mem::size_of::<Order>());
    }

    /// Waits for the answer to the last `start_*`.
    pub(crate) fn finish(&self) -> u64 {
        self.finish_within(Duration::from_secs(30))
            .expect("the child did not answer")
    }

    /// The answer, if it comes within `wait` and the child lives.
    pub(crate) fn finish_within(&self, wait: Duration) -> Option<u64> {
        if !poll::readable(self.socket.as_fd(), Some(wait)).unwrap() {
            return None;
        }
        let mut answer = 0u64;
        // SAFETY: `answer` is plain memory of the given length.
        let n = unsafe {
            libc::recv(
                self.socket.as_raw_fd(),
                (&raw mut answer).cast(),
                8,
                libc::MSG_DONTWAIT,
            )
        };
        (n == 8).then_some(answer)
    }

    /// A system call; the raw result (negative errno on failure).
    pub(crate) fn call(&self, nr: i64, args: [u64; 5]) -> i64 {
        self.start_call(nr, args);
        self.finish() as i64
    }

    /// Starts a system call.
    pub(crate) fn start_call(&self, nr: i64, args: [u64; 5]) {
        let [a, b, c, d, e] = args;
        self.send(CALL, [nr as u64, a, b, c, d, e]);
    }

    /// Maps private anonymous memory.
    pub(crate) fn mmap(&self, len: u64) -> u64 {
        self.mmap_with(0, len, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)
    }

    /// Maps read-write memory of any kind, at `addr` if that is not 0. The sixth
    /// argument of mmap (the offset) is 0.
    pub(crate) fn mmap_with(&self, addr: u64, len: u64, flags: i32, fd: RawFd) -> u64 {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let r = self.call(
            libc::SYS_mmap,
            [addr, len, prot as u64, flags as u64, fd as u64],
        );
        assert!(r > 0, "mmap: {r}");
        r as u64
    }

    /// munmap.
    pub(crate) fn munmap(&self, addr: u64, len: u64) {
        assert_eq!(self.call(libc::SYS_munmap, [addr, len, 0, 0, 0]), 0);
    }

    /// mprotect.
    pub(crate) fn mprotect(&self, addr: u64, len: u64, prot: i32) {
        assert_eq!(
            self.call(libc::SYS_mprotect, [addr, len, prot as u64, 0, 0]),
            0
        );
    }

    /// Writes `byte` all over the range.
    pub(crate) fn fill(&self, addr: u64, len: u64, byte: u8) {
        self.send(FILL, [addr, len, u64::from(byte), 0, 0, 0]);
        self.finish();
    }

    /// The sum of all bytes of the range.
    pub(crate) fn sum(&self, addr: u64, len: u64) -> u64 {
        self.start_sum(addr, len);
        self.finish()
    }

    /// Starts to sum.
    pub(crate) fn start_sum(&self, addr: u64, len: u64) {
        self.send(SUM, [addr, len, 0, 0, 0, 0]);
    }

    /// Lets it fork; the new process takes orders as well.
    pub(crate) fn spawn(&self) -> Self {
        let (theirs, socket) = self.spare.lock().unwrap().pop().expect("forks left");
        self.send(FORK, [theirs as u64, 0, 0, 0, 0, 0]);
        let pid = self.finish() as i64;
        assert!(pid > 0, "fork in the child: {pid}");
        let pid = HostPid(pid as i32);
        Self {
            pid,
            pidfd: pidfd::open(pid).unwrap(),
            socket,
            spare: Mutex::new(Vec::new()),
            ours: false,
        }
    }

    /// A userfaultfd of the child, fetched into this process.
    pub(crate) fn userfaultfd(&self) -> OwnedFd {
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
        let fd = self.call(libc::SYS_userfaultfd, [flags as u64, 0, 0, 0, 0]);
        assert!(fd >= 0, "userfaultfd: {fd}");
        let ours = pidfd::getfd(self.pidfd.as_fd(), fd as RawFd).unwrap();
        assert_eq!(self.call(libc::SYS_close, [fd as u64, 0, 0, 0, 0]), 0);
        ours
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = pidfd::send_signal(self.pidfd.as_fd(), libc::SIGKILL);
        if self.ours {
            // SAFETY: the status pointer may be null.
            unsafe { libc::waitpid(self.pid.0, std::ptr::null_mut(), 0) };
        }
    }
}

/// Runs what follows in a process in which no other test runs: none that forks,
/// so that a descriptor is closed when it is closed here, and none that holds
/// much memory. The first line of a test: the process is this test's program
/// again, told to run this test only.
macro_rules! alone {
    () => {
        fn here() {}
        if !crate::sys::testing::is_alone(std::any::type_name_of_val(&here)) {
            return;
        }
    };
}
pub(crate) use alone;

/// Whether this is the process of its own for the test around `here`, as
/// [`alone`] names it; if not, that process has run, and passed.
pub(crate) fn is_alone(here: &str) -> bool {
    const ALONE: &str = "DUNLIN_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let name = here
        .strip_prefix("dunlin::")
        .and_then(|n| n.strip_suffix("::here"));
    let run = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name.expect("the name of a test")])
        .args(["--nocapture", "--test-threads=1"])
        .env(ALONE, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stdout);
    assert!(
        run.status.success() && said.contains(" 1 passed"),
        "in a process of its own: {}\n{said}{}",
        run.status,
        String::from_utf8_lossy(&run.stderr)
    );
    false
}

/// Orphans below us become our children.
pub(crate) fn become_subreaper() {
    // SAFETY: plain values.
    let r = unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) };
    assert_eq!(r, 0);
}

/// Waits for a process that became our child; its exit code, or the signal that
/// killed it.
pub(crate) fn wait_adopted(pid: HostPid) -> Result<i32, i32> {
    let mut status = 0;
    // SAFETY: `status` has room for the answer.
    let r = unsafe { libc::waitpid(pid.0, &raw mut status, libc::__WALL) };
    assert_eq!(r, pid.0, "waitpid: {}", io::Error::last_os_error());
    if libc::WIFSIGNALED(status) {
        Err(libc::WTERMSIG(status))
    } else {
        Ok(libc::WEXITSTATUS(status))
    }
}

/// A list on the stack, since a forked child must not allocate.
struct Keep([RawFd; FORKS]);

impl FromIterator<RawFd> for Keep {
    fn from_iter<I: IntoIterator<Item = RawFd>>(iter: I) -> Self {
        let mut all = [-1; FORKS];
        for (slot, fd) in all.iter_mut().zip(iter) {
            *slot = fd;
        }
        Self(all)
    }
}

fn pair() -> (OwnedFd, OwnedFd) {
    let mut fds = [0; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: `fds` has room for two descriptors.
    let r = unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) };
    assert_eq!(r, 0, "socketpair: {}", io::Error::last_os_error());
    // SAFETY: both were just made, for us alone.
    unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) }
}

fn serve(socket: RawFd, keep: &[RawFd; FORKS]) -> ! {
    // SAFETY: descriptors are closed by number; nothing in this process uses
    // them again, as it never returns to the code that owns them.
    unsafe {
        // Other tests beside may have opened any number.
        let last = keep.iter().fold(socket, |last, fd| last.max(*fd));
        for fd in 3..last {
            if fd != socket && !keep.contains(&fd) {
                libc::close(fd);
            }
        }
        libc::close_range(last as u32 + 1, u32::MAX, 0);
    }
    obey(socket)
}

fn obey(socket: RawFd) -> ! {
    loop {
        let mut order = Order {
            what: 0,
            args: [0; 6],
        };
        // SAFETY: `order` is plain memory of the given length.
        let n = unsafe { libc::recv(socket, (&raw mut order).cast(), mem::size_of::<Order>(), 0) };
        if n <= 0 {
            // SAFETY: ends the process at once.
            unsafe { libc::_exit(0) };
        }
        let [a, b, c, d, e, f] = order.args;
        let answer = match order.what {
            CALL => {
                // SAFETY: the test says what to call; this process is its victim.
                let r = unsafe { libc::syscall(a as i64, b, c, d, e, f, 0u64) };
                if r == -1 {
                    // SAFETY: the address is this thread's errno.
                    (unsafe { -i64::from(*libc::__errno_location()) }) as u64
                } else {
                    r as u64
                }
            }
            FILL => {
                for at in a..a + b {
                    // SAFETY: the test has mapped this address.
                    unsafe { std::ptr::write_volatile(at as *mut u8, c as u8) };
                }
                0
            }
            // SAFETY: the test has mapped this range.
            SUM => (a..a + b)
                .map(|at| u64::from(unsafe { std::ptr::read_volatile(at as *const u8) }))
                .sum(),
            FORK => {
                // SAFETY: both sides go on with raw calls only.
                let pid = unsafe { libc::fork() };
                if pid == 0 {
                    obey(a as RawFd);
                }
                pid as u64
            }
            _ => 0,
        };
        // SAFETY: `answer` is plain memory of the given length.
        unsafe { libc::send(socket, (&raw const answer).cast(), 8, libc::MSG_NOSIGNAL) };
    }
}
