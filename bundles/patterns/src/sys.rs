//! The kernel, as little of it as is needed. All `unsafe` but that of `memory` is here.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, Ordering};

fn check(result: i64, what: &str) -> i64 {
    assert!(result >= 0, "{what}: {}", io::Error::last_os_error());
    result
}

fn owned(fd: i32, what: &str) -> OwnedFd {
    check(i64::from(fd), what);
    // SAFETY: a descriptor that the kernel just made, nobody else has it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Microseconds on a clock.
pub fn now_us(clock: i32) -> i64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes one timespec.
    unsafe { libc::clock_gettime(clock, &mut time) };
    time.tv_sec * 1_000_000 + time.tv_nsec / 1000
}

/// A pipe: reading end, writing end.
pub fn pipe() -> (File, File) {
    let mut ends = [0; 2];
    // SAFETY: writes two descriptors.
    let result = unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) };
    check(i64::from(result), "pipe2");
    (owned(ends[0], "pipe").into(), owned(ends[1], "pipe").into())
}

/// A pair of Unix sockets of type `kind`.
pub fn socketpair(kind: i32) -> (File, File) {
    let mut ends = [0; 2];
    // SAFETY: writes two descriptors.
    let result = unsafe {
        libc::socketpair(
            libc::AF_UNIX,
            kind | libc::SOCK_CLOEXEC,
            0,
            ends.as_mut_ptr(),
        )
    };
    check(i64::from(result), "socketpair");
    (
        owned(ends[0], "socket").into(),
        owned(ends[1], "socket").into(),
    )
}

/// An eventfd that holds `value`.
pub fn eventfd(value: u32) -> File {
    // SAFETY: takes two integers.
    owned(
        unsafe { libc::eventfd(value, libc::EFD_CLOEXEC) },
        "eventfd",
    )
    .into()
}

/// A timerfd on CLOCK_MONOTONIC: first after `first_us`, then each `every_us`
/// (0: once only).
pub fn timerfd(first_us: i64, every_us: i64) -> File {
    // SAFETY: takes two integers.
    let fd = unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_CLOEXEC) };
    let fd = owned(fd, "timerfd_create");
    let spec = |us: i64| libc::timespec {
        tv_sec: us / 1_000_000,
        tv_nsec: us % 1_000_000 * 1000,
    };
    let timer = libc::itimerspec {
        it_interval: spec(every_us),
        it_value: spec(first_us),
    };
    // SAFETY: reads one itimerspec.
    let result = unsafe { libc::timerfd_settime(fd.as_raw_fd(), 0, &timer, std::ptr::null_mut()) };
    check(i64::from(result), "timerfd_settime");
    fd.into()
}

/// Microseconds until `timer` fires, and its interval.
pub fn timer_left(timer: &File) -> (i64, i64) {
    let zero = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let mut spec = libc::itimerspec {
        it_interval: zero,
        it_value: zero,
    };
    // SAFETY: writes one itimerspec.
    let result = unsafe { libc::timerfd_gettime(timer.as_raw_fd(), &mut spec) };
    check(i64::from(result), "timerfd_gettime");
    let us = |t: libc::timespec| t.tv_sec * 1_000_000 + t.tv_nsec / 1000;
    (us(spec.it_value), us(spec.it_interval))
}

/// An epoll set; `watch` adds a descriptor under a name.
#[derive(Debug)]
pub struct Epoll(OwnedFd);

impl Epoll {
    pub fn new() -> Self {
        // SAFETY: takes an integer.
        Self(owned(
            unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) },
            "epoll_create1",
        ))
    }

    pub fn watch(&self, fd: RawFd, name: u64) {
        let mut event = libc::epoll_event {
            events: libc::EPOLLIN.cast_unsigned(),
            u64: name,
        };
        // SAFETY: reads one epoll_event.
        let result =
            unsafe { libc::epoll_ctl(self.0.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &mut event) };
        check(i64::from(result), "epoll_ctl");
    }

    /// The names that are ready; waits at most `timeout_ms` (-1: for ever).
    pub fn wait(&self, timeout_ms: i32) -> Vec<u64> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 16];
        loop {
            // SAFETY: writes at most 16 events.
            let n = unsafe {
                libc::epoll_wait(self.0.as_raw_fd(), events.as_mut_ptr(), 16, timeout_ms)
            };
            if let Ok(n) = usize::try_from(n) {
                return events[..n].iter().map(|event| event.u64).collect();
            }
            let error = io::Error::last_os_error();
            assert!(
                error.kind() == io::ErrorKind::Interrupted,
                "epoll_wait: {error}"
            );
        }
    }
}

/// The position of an open file.
pub fn position(file: &File) -> i64 {
    // SAFETY: takes integers.
    check(
        unsafe { libc::lseek(file.as_raw_fd(), 0, libc::SEEK_CUR) },
        "lseek",
    )
}

static SIGNAL_PIPE: AtomicI32 = AtomicI32::new(-1);

extern "C" fn on_signal(signal: i32) {
    let byte = [u8::try_from(signal).unwrap_or(0)];
    // SAFETY: write(2) is async-signal-safe; reads one byte.
    unsafe { libc::write(SIGNAL_PIPE.load(Ordering::Relaxed), byte.as_ptr().cast(), 1) };
}

/// Lets `signals` write their numbers into a pipe, whose reading end is given.
pub fn signals_to_pipe(signals: &[i32]) -> File {
    let (read, write) = pipe();
    SIGNAL_PIPE.store(write.as_raw_fd(), Ordering::Relaxed);
    std::mem::forget(write);
    for &signal in signals {
        handle(signal, on_signal as *const () as usize);
    }
    read
}

/// Ignores a signal.
pub fn ignore(signal: i32) {
    handle(signal, libc::SIG_IGN);
}

fn handle(signal: i32, handler: usize) {
    // SAFETY: an all-zero sigaction is a valid one; the handler is async-signal-safe.
    let result = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler;
        action.sa_flags = libc::SA_RESTART;
        libc::sigaction(signal, &action, std::ptr::null_mut())
    };
    check(i64::from(result), "sigaction");
}

/// Forks; the child runs `work`, which must neither allocate nor lock, and exits
/// with what it gives.
pub fn fork(work: impl FnOnce() -> i32) -> i32 {
    // SAFETY: the child only runs `work`, which keeps to what may be done after fork.
    match unsafe { libc::fork() } {
        0 => {
            let code = work();
            // SAFETY: ends this process at once.
            unsafe { libc::_exit(code) }
        }
        pid => i32::try_from(check(i64::from(pid), "fork")).unwrap_or(-1),
    }
}

/// Waits for a child; gives its exit code, or -1 if a signal ended it.
pub fn wait_for(pid: i32) -> i32 {
    let mut status = 0;
    loop {
        // SAFETY: writes one integer.
        let result = unsafe { libc::waitpid(pid, &mut status, 0) };
        if result == pid {
            break;
        }
        let error = io::Error::last_os_error();
        assert!(
            error.kind() == io::ErrorKind::Interrupted,
            "waitpid {pid}: {error}"
        );
    }
    if libc::WIFEXITED(status) {
        libc::WEXITSTATUS(status)
    } else {
        -1
    }
}

/// The parent's pid.
pub fn parent() -> i32 {
    // SAFETY: cannot fail.
    unsafe { libc::getppid() }
}
