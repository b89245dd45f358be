//! Each kind of file: held by another process, captured from outside, opened
//! again here, and looked at. Each test has a process of its own: a test that
//! forks beside it would keep its files open for a moment.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::{Command, Stdio};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use super::*;
use crate::base::{HostPid, NsPid, Result};
use crate::image::{Kind as Image, Set};
use crate::sys::socket::{self, Place};
use crate::sys::testing::alone;
use crate::sys::{fdops, pidfd};

/// A process that has these descriptors open under our numbers, and waits to
/// read from its standard input. It dies with this.
struct Task {
    child: std::process::Child,
    pidfd: OwnedFd,
}

impl Task {
    fn with(fds: &[BorrowedFd<'_>]) -> Self {
        let inherit = |flag| {
            for fd in fds {
                fcntl(fd, FcntlArg::F_SETFD(flag)).unwrap();
            }
        };
        inherit(FdFlag::empty());
        let mut child = Command::new("cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        inherit(FdFlag::FD_CLOEXEC);
        // Its answer says that it has started and opens nothing any more.
        child.stdin.as_ref().unwrap().write_all(b"?").unwrap();
        let mut answer = [0];
        child
            .stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut answer)
            .unwrap();
        let pid = HostPid(i32::try_from(child.id()).unwrap());
        let pidfd = pidfd::open(pid).unwrap();
        Self { child, pidfd }
    }

    fn pid(&self) -> HostPid {
        HostPid(i32::try_from(self.child.id()).unwrap())
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn capture(tasks: &[&Task], policy: Policy) -> Result<Set> {
    let mut capture = Capture::new(policy, tasks[0].pid())?;
    for task in tasks {
        capture.table(task.pid(), task.pidfd.as_fd())?;
    }
    let mut set = Set::new();
    capture.finish(&mut set)?;
    Ok(set)
}

/// What came back: the plan, and all files open.
struct Back {
    plan: Plan,
    holder: Holder,
}

impl Back {
    fn from(set: &Set, policy: &RestorePolicy, inherit: &[(String, OwnedFd)]) -> Result<Self> {
        let plan = Plan::read(set, policy)?;
        let root = File::open("/").unwrap();
        let holder = Holder::new(&plan, root.as_fd(), None, inherit, &[], &mut |_, _| {
            Ok(None)
        })?;
        Ok(Self { plan, holder })
    }

    /// What stood at `fd` in the nth table.
    fn nth(&self, table: usize, fd: &impl AsRawFd) -> File {
        let (_, table) = self.plan.tables().iter().nth(table).unwrap();
        let entry = table.iter().find(|d| d.fd == fd.as_raw_fd()).unwrap();
        let fd = self.holder.open(entry.file).unwrap();
        File::from(fd.try_clone_to_owned().unwrap())
    }

    fn at(&self, fd: &impl AsRawFd) -> File {
        self.nth(0, fd)
    }
}

fn around(fds: &[BorrowedFd<'_>]) -> Back {
    let task = Task::with(fds);
    let set = capture(&[&task], Policy::default()).unwrap();
    Back::from(&set, &RestorePolicy::default(), &[]).unwrap()
}

fn refusal(fds: &[BorrowedFd<'_>]) -> String {
    let task = Task::with(fds);
    capture(&[&task], Policy::default())
        .unwrap_err()
        .to_string()
}

fn read_now(file: &File) -> Vec<u8> {
    let flags = fdops::status_flags(file.as_fd()).unwrap();
    fdops::set_status_flags(file.as_fd(), flags | libc::O_NONBLOCK).unwrap();
    let mut data = vec![0; 1 << 20];
    let n = (&*file).read(&mut data).unwrap_or(0);
    fdops::set_status_flags(file.as_fd(), flags).unwrap();
    data.truncate(n);
    data
}

fn position(file: &File) -> i64 {
    nix::unistd::lseek(file, 0, nix::unistd::Whence::SeekCur).unwrap()
}

fn info(fd: RawFd) -> fdinfo::Fdinfo {
    fdinfo::read(HostPid(std::process::id().cast_signed()), fd).unwrap()
}

fn same_file(a: &File, b: &File) -> bool {
    let me = HostPid(std::process::id().cast_signed());
    let spot = |f: &File| (me, f.as_raw_fd());
    crate::sys::kcmp::file(spot(a), spot(b)).unwrap() == std::cmp::Ordering::Equal
}

#[test]
fn a_regular_file_keeps_position_and_flags() {
    alone!();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    fs::write(&path, "0123456789").unwrap();
    let mut a = File::options().read(true).append(true).open(&path).unwrap();
    a.read_exact(&mut [0; 4]).unwrap();
    let back = around(&[a.as_fd()]);
    let b = back.at(&a);
    assert_eq!(position(&b), 4);
    (&b).write_all(b"x").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"0123456789x", "O_APPEND is lost");
}

#[test]
fn duplicates_stay_one_file_and_two_opens_stay_two() {
    alone!();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    fs::write(&path, "0123456789").unwrap();
    let a = File::open(&path).unwrap();
    let twin = a.try_clone().unwrap();
    let other = File::open(&path).unwrap();
    let back = around(&[a.as_fd(), twin.as_fd(), other.as_fd()]);
    assert!(same_file(&back.at(&a), &back.at(&twin)));
    assert!(!same_file(&back.at(&a), &back.at(&other)));
}

#[test]
fn two_tasks_share_what_they_shared() {
    alone!();
    let (r, w) = fdops::pipe().unwrap();
    let (one, two) = (
        Task::with(&[r.as_fd(), w.as_fd()]),
        Task::with(&[w.as_fd()]),
    );
    let set = capture(&[&one, &two], Policy::default()).unwrap();
    let back = Back::from(&set, &RestorePolicy::default(), &[]).unwrap();
    assert!(same_file(&back.nth(0, &w), &back.nth(1, &w)));
    (&back.nth(1, &w)).write_all(b"over").unwrap();
    assert_eq!(read_now(&back.nth(0, &r)), b"over");
}

#[test]
fn a_file_without_a_name_keeps_its_content_and_stays_without_a_name() {
    alone!();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    let mut a = File::options()
        .create_new(true)
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    a.write_all(b"still here").unwrap();
    fs::remove_file(&path).unwrap();
    let sparse = File::create_new(&path).unwrap();
    sparse.write_all_at(b"end", 100_000).unwrap();
    fs::remove_file(&path).unwrap();
    let back = around(&[a.as_fd(), sparse.as_fd()]);
    let b = back.at(&a);
    let mut text = [0; 10];
    b.read_exact_at(&mut text, 0).unwrap();
    assert_eq!((&text, position(&b)), (b"still here", 10));
    assert_eq!(back.at(&sparse).metadata().unwrap().len(), 100_003);
    assert_eq!(
        fs::read_dir(dir.path()).unwrap().count(),
        0,
        "a ghost stayed behind"
    );
    let link = fs::read_link(format!("/proc/self/fd/{}", b.as_raw_fd())).unwrap();
    assert_eq!(
        link.to_str().unwrap(),
        format!("{} (deleted)", path.display())
    );
}

#[test]
fn a_large_file_without_a_name_is_refused_by_name() {
    alone!();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("huge");
    let mut a = File::create_new(&path).unwrap();
    a.write_all(&vec![1; 2 << 20]).unwrap();
    fs::remove_file(&path).unwrap();
    let why = refusal(&[a.as_fd()]);
    let fd = a.as_raw_fd();
    assert!(
        why.contains(&format!("fd {fd}")) && why.contains("huge") && why.contains("limit"),
        "{why}"
    );
}

#[test]
fn a_file_that_has_lost_a_name_comes_back_by_another_in_the_same_directory() {
    alone!();
    let dir = tempfile::tempdir().unwrap();
    let (x, y) = (dir.path().join("x"), dir.path().join("y"));
    let mut a = File::create_new(&x).unwrap();
    a.write_all(b"text").unwrap();
    fs::hard_link(&x, &y).unwrap();
    fs::remove_file(&x).unwrap();
    let b = around(&[a.as_fd()]).at(&a);
    assert_eq!(b.metadata().unwrap().ino(), fs::metadata(&y).unwrap().ino());
    assert_eq!(position(&b), 4);
    assert!(!x.exists(), "the lost name is back");
}

#[test]
fn a_file_whose_other_names_are_elsewhere_is_refused() {
    alone!();
    let dir = tempfile::tempdir().unwrap();
    let (x, y) = (dir.path().join("x"), dir.path().join("below/y"));
    fs::create_dir(dir.path().join("below")).unwrap();
    let a = File::create_new(&x).unwrap();
    fs::hard_link(&x, &y).unwrap();
    fs::remove_file(&x).unwrap();
    assert!(refusal(&[a.as_fd()]).contains("has lost this name"));
    // another file beside it is not taken for it
    fs::write(dir.path().join("z"), "another").unwrap();
    assert!(refusal(&[a.as_fd()]).contains("has lost this name"));
}

#[test]
fn a_directory_and_a_device_come_back() {
    alone!();
    let dir = tempfile::tempdir().unwrap();
    let d = File::open(dir.path()).unwrap();
    let zero = File::open("/dev/zero").unwrap();
    let back = around(&[d.as_fd(), zero.as_fd()]);
    assert!(back.at(&d).metadata().unwrap().is_dir());
    let mut byte = [1];
    back.at(&zero).read_exact(&mut byte).unwrap();
    assert_eq!(byte, [0]);
}

#[test]
fn a_descriptor_without_access_and_one_made_without_a_name_come_back() {
    alone!();
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("f"), "text").unwrap();
    let root = File::open(dir.path()).unwrap();
    let path = |flags, name: &str| {
        fdops::open_in_root(root.as_fd(), std::path::Path::new(name), flags, 0o600).unwrap()
    };
    let bare = path(libc::O_PATH, "f");
    let unnamed = File::from(path(libc::O_TMPFILE | libc::O_RDWR, "."));
    (&unnamed).write_all(b"never named").unwrap();
    // The names of a FIFO and of a socket, not what is behind them.
    nix::unistd::mkfifo(&dir.path().join("p"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let _listener = std::os::unix::net::UnixListener::bind(dir.path().join("s")).unwrap();
    let names = [path(libc::O_PATH, "p"), path(libc::O_PATH, "s")];
    let back = around(&[
        bare.as_fd(),
        unnamed.as_fd(),
        names[0].as_fd(),
        names[1].as_fd(),
    ]);
    for name in &names {
        let inode = |f: BorrowedFd<'_>| nix::sys::stat::fstat(f).unwrap().st_ino;
        assert_eq!(inode(back.at(name).as_fd()), inode(name.as_fd()));
    }
    let flags = fdops::status_flags(back.at(&bare).as_fd()).unwrap();
    assert_ne!(flags & libc::O_PATH, 0);
    let mut text = [0; 11];
    back.at(&unnamed).read_exact_at(&mut text, 0).unwrap();
    assert_eq!(&text, b"never named");
}

#[test]
fn a_pipe_keeps_content_size_flags_and_its_ends() {
    alone!();
    let (r, w) = fdops::pipe().unwrap();
    fdops::set_pipe_size(w.as_fd(), 1 << 20).unwrap();
    fdops::set_status_flags(r.as_fd(), libc::O_NONBLOCK).unwrap();
    let sent: Vec<u8> = (0..300_000u32)
        .flat_map(u32::to_le_bytes)
        .take(1_000_000)
        .collect();
    (&File::from(w.try_clone().unwrap()))
        .write_all(&sent)
        .unwrap();
    let back = around(&[r.as_fd(), w.as_fd()]);
    let (r2, w2) = (back.at(&r), back.at(&w));
    assert_eq!(fdops::pipe_size(r2.as_fd()).unwrap(), 1 << 20);
    assert_ne!(
        fdops::status_flags(r2.as_fd()).unwrap() & libc::O_NONBLOCK,
        0
    );
    assert_eq!(
        fdops::status_flags(w2.as_fd()).unwrap() & libc::O_NONBLOCK,
        0
    );
    assert!(read_now(&r2) == sent);
    drop((w2, back));
    // The last writer is gone: end of file, no waiting.
    assert_eq!((&r2).read(&mut [0; 4]).unwrap(), 0);
    // And the first pipe still has it all.
    assert!(read_now(&File::from(r)) == sent);
}

#[test]
fn a_pipe_from_outside_is_the_one_that_the_caller_gives() {
    alone!();
    let (r, w) = fdops::pipe().unwrap();
    let task = Task::with(&[w.as_fd()]);
    let set = capture(&[&task], Policy::default()).unwrap();
    let key = format!("pipe:[{}]", nix::sys::stat::fstat(&w).unwrap().st_ino);
    let (r2, w2) = fdops::pipe().unwrap();
    let policy = RestorePolicy {
        inherit: vec![key.clone()],
        ..RestorePolicy::default()
    };
    let back = Back::from(&set, &policy, &[(key, w2)]).unwrap();
    (&back.at(&w)).write_all(b"hello").unwrap();
    assert_eq!(read_now(&File::from(r2)), b"hello");
    drop(r);
}

#[test]
fn a_fifo_keeps_its_content() {
    alone!();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fifo");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let both = File::options().read(true).write(true).open(&path).unwrap();
    let r = File::open(&path).unwrap();
    let w = File::options().write(true).open(&path).unwrap();
    drop(both);
    (&w).write_all(b"queued").unwrap();
    let set = {
        let task = Task::with(&[r.as_fd(), w.as_fd()]);
        capture(&[&task], Policy::default()).unwrap()
    };
    // As if the tasks were gone: nobody has it open any more.
    let numbers = (r.as_raw_fd(), w.as_raw_fd());
    drop((r, w));
    let back = Back::from(&set, &RestorePolicy::default(), &[]).unwrap();
    assert_eq!(read_now(&back.at(&numbers.0)), b"queued");
    (&back.at(&numbers.1)).write_all(b"more").unwrap();
    assert_eq!(read_now(&back.at(&numbers.0)), b"more");
}

#[test]
fn an_eventfd_keeps_its_count_and_that_it_is_a_semaphore() {
    alone!();
    let plain = fdops::eventfd(0).unwrap();
    let semaphore = fdops::eventfd(libc::EFD_SEMAPHORE | libc::EFD_NONBLOCK).unwrap();
    let count = |fd: &OwnedFd, n: u64| {
        (&File::from(fd.try_clone().unwrap()))
            .write_all(&n.to_ne_bytes())
            .unwrap();
    };
    count(&plain, u64::MAX - 1);
    count(&semaphore, 2);
    let back = around(&[plain.as_fd(), semaphore.as_fd()]);
    let read = |f: File| u64::from_ne_bytes(read_now(&f).try_into().unwrap_or([0; 8]));
    assert_eq!(read(back.at(&plain)), u64::MAX - 1);
    assert_eq!(read(back.at(&semaphore)), 1);
    assert_eq!(read(back.at(&semaphore)), 1);
    let blocks = |f: File| fdops::status_flags(f.as_fd()).unwrap() & libc::O_NONBLOCK == 0;
    assert!(blocks(back.at(&plain)) && !blocks(back.at(&semaphore)));
}

#[test]
fn timers_go_on_with_what_was_left() {
    alone!();
    let make = |value, interval| {
        let fd = fdops::timerfd(libc::CLOCK_MONOTONIC).unwrap();
        fdops::timerfd_set(fd.as_fd(), 0, fdops::Timer { value, interval }).unwrap();
        fd
    };
    const HOUR: u64 = 3_600_000_000_000;
    let far = make(HOUR, 0);
    let off = make(0, 0);
    let once = make(1, 0);
    let often = make(1, HOUR);
    for fd in [&once, &often] {
        crate::sys::poll::readable(fd.as_fd(), None).unwrap();
    }
    let back = around(&[far.as_fd(), off.as_fd(), once.as_fd(), often.as_fd()]);
    let left = |fd: &OwnedFd| fdops::timerfd_get(back.at(fd).as_fd()).unwrap();
    let ticks =
        |fd: &OwnedFd| u64::from_ne_bytes(read_now(&back.at(fd)).try_into().unwrap_or([0; 8]));
    let near = |t: u64| t <= HOUR && t > HOUR - 60_000_000_000;
    assert!(near(left(&far).value));
    assert_eq!(left(&off), fdops::Timer::default());
    assert_eq!((ticks(&once), left(&once).value), (1, 0));
    assert_eq!((ticks(&often), left(&often).interval), (1, HOUR));
    assert!(
        near(left(&often).value),
        "an expired interval timer was disarmed"
    );
}

#[test]
fn a_signalfd_keeps_its_signals() {
    alone!();
    let fd = fdops::signalfd(1 << 9 | 1 << 33).unwrap();
    let back = around(&[fd.as_fd()]);
    assert_eq!(
        info(back.at(&fd).as_raw_fd()).sigmask,
        Some(1 << 9 | 1 << 33)
    );
}

#[test]
fn an_epoll_set_is_refilled_under_its_numbers() {
    alone!();
    let ep = fdops::epoll().unwrap();
    let (r, w) = fdops::pipe().unwrap();
    let ev = fdops::eventfd(0).unwrap();
    let add = |ep: &OwnedFd, fd: &OwnedFd, data| {
        let event = nix::sys::epoll::EpollEvent::new(nix::sys::epoll::EpollFlags::EPOLLIN, data);
        let set = nix::sys::epoll::Epoll(ep.try_clone().unwrap());
        set.add(fd, event).unwrap();
    };
    add(&ep, &r, 7);
    // A member that has moved to another number since.
    let moved = {
        let old = ev.try_clone().unwrap();
        add(&ep, &old, 8);
        ev
    };
    let task = Task::with(&[ep.as_fd(), r.as_fd(), w.as_fd(), moved.as_fd()]);
    let set = capture(&[&task], Policy::default()).unwrap();
    let plan = Plan::read(&set, &RestorePolicy::default()).unwrap();
    let table = *plan.tables().keys().next().unwrap();
    let calls = plan.after(NsPid(1), table, true);
    let mut adds: Vec<_> = calls
        .iter()
        .filter(|c| c.nr == libc::SYS_epoll_ctl)
        .map(|c| c.args.clone())
        .collect();
    adds.sort_by_key(|a| format!("{a:?}"));
    let value = |fd: &OwnedFd| CallArg::Value(u64::try_from(fd.as_raw_fd()).unwrap());
    assert_eq!(adds.len(), 2);
    for args in &adds {
        assert_eq!(args[0], value(&ep));
        let CallArg::Bytes(event) = &args[3] else {
            panic!("{args:?}")
        };
        assert_eq!(event.len(), 12);
        let target = if event[4] == 7 { &r } else { &moved };
        assert_eq!(args[2], value(target));
    }
    assert!(plan.after(NsPid(1), table, false).is_empty());
}

#[test]
fn an_epoll_member_that_nobody_has_open_is_refused() {
    alone!();
    let ep = fdops::epoll().unwrap();
    let ev = fdops::eventfd(0).unwrap();
    let set = nix::sys::epoll::Epoll(ep.try_clone().unwrap());
    let event = nix::sys::epoll::EpollEvent::new(nix::sys::epoll::EpollFlags::EPOLLIN, 1);
    set.add(&ev, event).unwrap();
    let why = refusal(&[ep.as_fd()]);
    assert!(why.contains("epoll member"), "{why}");
}

#[test]
fn a_memfd_keeps_name_size_mode_and_seals() {
    alone!();
    let fd = fdops::memfd(c"cache", libc::MFD_ALLOW_SEALING).unwrap();
    let a = File::from(fd);
    (&a).write_all(b"data").unwrap();
    fdops::add_seals(a.as_fd(), libc::F_SEAL_SHRINK).unwrap();
    let task = Task::with(&[a.as_fd()]);
    let mut capture = Capture::new(Policy::default(), task.pid()).unwrap();
    capture.table(task.pid(), task.pidfd.as_fd()).unwrap();
    let mut set = Set::new();
    let contents = capture.finish(&mut set).unwrap();
    let mut bytes = [0; 4];
    File::from(contents[0].fd.try_clone().unwrap())
        .read_exact_at(&mut bytes, 0)
        .unwrap();
    assert_eq!((&bytes, contents.len(), contents[0].size), (b"data", 1, 4));
    let back = Back::from(&set, &RestorePolicy::default(), &[]).unwrap();
    for c in back.holder.contents().unwrap() {
        assert_eq!(c.shmid, contents[0].shmid);
        File::from(c.fd).write_all_at(&bytes, 0).unwrap();
    }
    back.holder.seal().unwrap();
    let b = back.at(&a);
    assert_eq!(position(&b), 4);
    b.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"data");
    assert_eq!(fdops::seals(b.as_fd()).unwrap(), libc::F_SEAL_SHRINK);
    let link = fs::read_link(format!("/proc/self/fd/{}", b.as_raw_fd())).unwrap();
    assert_eq!(link.to_str(), Some("/memfd:cache (deleted)"));
}

#[test]
fn what_cannot_be_carried_is_refused_by_task_descriptor_and_name() {
    alone!();
    let inotify =
        nix::sys::inotify::Inotify::init(nix::sys::inotify::InitFlags::IN_CLOEXEC).unwrap();
    let netlink = socket::socket(libc::AF_NETLINK, libc::SOCK_RAW, 0).unwrap();
    for (fd, name) in [(inotify.as_fd(), "inotify"), (netlink.as_fd(), "netlink")] {
        let why = refusal(&[fd]);
        let place = format!("fd {}", fd.as_raw_fd());
        let named = why.contains("task ") && why.contains(&place) && why.contains(name);
        assert!(named && why.ends_with("cannot be carried"), "{why}");
    }
}

#[test]
fn locks_are_refused_unless_asked_for_and_then_taken_again_by_the_task() {
    alone!();
    let a = tempfile::NamedTempFile::new().unwrap();
    let file = a.as_file();
    fdops::set_ofd_lock(file.as_fd(), true, 3, 4).unwrap();
    fdops::flock(file.as_fd(), libc::LOCK_SH).unwrap();
    let why = refusal(&[file.as_fd()]);
    assert!(
        why.contains("lock") && why.contains("--file-locks"),
        "{why}"
    );
    let task = Task::with(&[file.as_fd()]);
    let policy = Policy {
        file_locks: true,
        ..Policy::default()
    };
    let set = capture(&[&task], policy).unwrap();
    let allow = RestorePolicy {
        file_locks: true,
        ..RestorePolicy::default()
    };
    assert!(Plan::read(&set, &RestorePolicy::default()).is_err());
    let calls = Plan::read(&set, &allow)
        .unwrap()
        .after(NsPid(task.pid().0), 1, true);
    let what: Vec<_> = calls.iter().map(|c| c.what).collect();
    assert_eq!(what, ["flock", "lock a file"]);
}

#[test]
fn a_standard_stream_from_outside_needs_a_descriptor_of_the_caller() {
    alone!();
    // No mount of ours: a file of another mount namespace looks just so.
    let dir = tempfile::tempdir().unwrap();
    let file = File::create_new(dir.path().join("log")).unwrap();
    let task = Task::with(&[file.as_fd()]);
    let mut capture = Capture::new(Policy::default(), task.pid()).unwrap();
    capture.mounts.clear();
    use std::os::linux::fs::MetadataExt;
    let m = file.metadata().unwrap();
    capture.standard.insert((m.st_dev(), m.st_ino()));
    capture.table(task.pid(), task.pidfd.as_fd()).unwrap();
    let mut set = Set::new();
    capture.finish(&mut set).unwrap();
    let e = Plan::read(&set, &RestorePolicy::default()).unwrap_err();
    assert!(e.to_string().contains("--inherit-fd"), "{e}");
    let key = format!("file[{:x}:{:x}]", info(file.as_raw_fd()).mnt_id, m.st_ino());
    let policy = RestorePolicy {
        inherit: vec![key.clone()],
        ..RestorePolicy::default()
    };
    let (r, w) = fdops::pipe().unwrap();
    let back = Back::from(&set, &policy, &[(key, w)]).unwrap();
    (&back.at(&file)).write_all(b"line").unwrap();
    assert_eq!(read_now(&File::from(r)), b"line");
}

#[test]
fn a_file_on_a_foreign_mount_that_is_no_standard_stream_is_refused() {
    alone!();
    let dir = tempfile::tempdir().unwrap();
    let file = File::create_new(dir.path().join("secret")).unwrap();
    let task = Task::with(&[file.as_fd()]);
    let mut capture = Capture::new(Policy::default(), task.pid()).unwrap();
    capture.mounts.clear();
    let e = capture.table(task.pid(), task.pidfd.as_fd()).unwrap_err();
    assert!(e.to_string().contains("outside the container"), "{e}");
}

#[test]
fn a_damaged_image_is_an_error_and_no_panic() {
    alone!();
    let (r, w) = fdops::pipe().unwrap();
    (&File::from(w.try_clone().unwrap()))
        .write_all(b"some")
        .unwrap();
    let task = Task::with(&[r.as_fd(), w.as_fd()]);
    let set = capture(&[&task], Policy::default()).unwrap();
    let files: Vec<_> = set.files().map(|(n, b)| (n, b.to_vec())).collect();
    for (name, bytes) in files {
        for at in 8..bytes.len() {
            let mut damaged = set.clone();
            let mut bytes = bytes.clone();
            bytes[at] ^= 0x41;
            damaged.put_raw(name.clone(), bytes).unwrap();
            let _ = Back::from(&damaged, &RestorePolicy::default(), &[]);
        }
    }
}

#[test]
fn the_program_and_directories_of_a_task_are_recorded_once() {
    alone!();
    let task = Task::with(&[]);
    let mut capture = Capture::new(Policy::default(), task.pid()).unwrap();
    let exe = capture.exe(task.pid()).unwrap();
    assert_eq!(capture.exe(task.pid()).unwrap(), exe);
    let (cwd, root) = capture.cwd_root(task.pid()).unwrap();
    let mut set = Set::new();
    capture.finish(&mut set).unwrap();
    let plan = Plan::read(&set, &RestorePolicy::default()).unwrap();
    assert_eq!(plan.path(root), Some("/"));
    let here = std::env::current_dir().unwrap();
    assert_eq!(plan.path(cwd), here.to_str());
    assert!(plan.path(exe).unwrap().starts_with('/'));
}

fn unix(kind: i32) -> OwnedFd {
    socket::socket(libc::AF_UNIX, kind, 0).unwrap()
}

fn name(text: &str) -> Vec<u8> {
    let mut bytes = 1u16.to_ne_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

#[test]
fn unix_pairs_keep_queues_descriptors_in_flight_and_shutdown() {
    alone!();
    for kind in [libc::SOCK_STREAM, libc::SOCK_DGRAM, libc::SOCK_SEQPACKET] {
        let (a, b) = socket::unix_pair(kind).unwrap();
        let (r, w) = fdops::pipe().unwrap();
        (&File::from(w.try_clone().unwrap()))
            .write_all(b"in the pipe")
            .unwrap();
        socket::send(a.as_fd(), b"one", &[]).unwrap();
        socket::send(a.as_fd(), b"two", &[r.as_fd()]).unwrap();
        socket::send(b.as_fd(), b"back", &[]).unwrap();
        if kind != libc::SOCK_DGRAM {
            socket::shutdown(a.as_fd(), libc::SHUT_WR).unwrap();
        }
        let back = around(&[a.as_fd(), b.as_fd()]);
        let (a, b) = (back.at(&a), back.at(&b));
        let mut seen = Vec::new();
        let mut rights = Vec::new();
        socket::set_option(b.as_fd(), libc::SOL_SOCKET, libc::SO_PEEK_OFF, 0).unwrap();
        while let Some(m) = socket::peek(b.as_fd(), 100)
            .unwrap()
            .filter(|m| !m.data.is_empty())
        {
            seen.extend_from_slice(&m.data);
            rights.extend(m.rights);
        }
        assert_eq!(seen, b"onetwo");
        assert_eq!(read_now(&File::from(rights.remove(0))), b"in the pipe");
        assert_eq!(socket::peek(a.as_fd(), 100).unwrap().unwrap().data, b"back");
        if kind != libc::SOCK_DGRAM {
            assert!((&a).write(b"x").is_err(), "shutdown is lost");
        }
    }
}

#[test]
fn a_unix_connection_keeps_the_names_of_both_ends() {
    alone!();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sock");
    let listener = unix(libc::SOCK_STREAM);
    socket::bind(listener.as_fd(), &name(path.to_str().unwrap())).unwrap();
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o640)).unwrap();
    socket::listen(listener.as_fd(), 5).unwrap();
    let client = unix(libc::SOCK_STREAM);
    socket::connect(client.as_fd(), &name(path.to_str().unwrap())).unwrap();
    let server = socket::accept(listener.as_fd()).unwrap();
    socket::send(client.as_fd(), b"hi", &[]).unwrap();
    let back = around(&[listener.as_fd(), client.as_fd(), server.as_fd()]);
    let (listener, client, server) = (back.at(&listener), back.at(&client), back.at(&server));
    let peer = socket::peer_address(client.as_fd()).unwrap().unwrap();
    assert_eq!(peer, socket::local_address(server.as_fd()).unwrap());
    assert!(peer.starts_with(&name(path.to_str().unwrap())));
    assert_eq!(read_now(&server), b"hi");
    let m = fs::metadata(&path).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::mode(&m) & 0o7777, 0o640);
    let another = unix(libc::SOCK_STREAM);
    socket::connect(another.as_fd(), &name(path.to_str().unwrap())).unwrap();
    socket::accept(listener.as_fd()).unwrap();
}

#[test]
fn a_connection_that_nobody_accepted_is_refused() {
    alone!();
    let listener = unix(libc::SOCK_STREAM);
    socket::bind(listener.as_fd(), &name("\0dunlin-test-unaccepted")).unwrap();
    socket::listen(listener.as_fd(), 5).unwrap();
    let client = unix(libc::SOCK_STREAM);
    socket::connect(client.as_fd(), &name("\0dunlin-test-unaccepted")).unwrap();
    assert!(refusal(&[listener.as_fd()]).contains("nobody has accepted"));
    assert!(refusal(&[client.as_fd()]).contains("waits to be accepted"));
}

#[test]
fn the_survivor_of_a_pair_reads_what_is_left_and_then_the_end() {
    alone!();
    let (a, b) = socket::unix_pair(libc::SOCK_STREAM).unwrap();
    socket::send(a.as_fd(), b"last words", &[]).unwrap();
    drop(a);
    let back = around(&[b.as_fd()]);
    let b = back.at(&b);
    assert_eq!(read_now(&b), b"last words");
    assert_eq!((&b).read(&mut [0; 4]).unwrap(), 0);
}

#[test]
fn a_socket_connected_to_the_outside_is_refused() {
    alone!();
    let (a, _b) = socket::unix_pair(libc::SOCK_STREAM).unwrap();
    assert!(refusal(&[a.as_fd()]).contains("outside of the container"));
}

#[test]
fn datagrams_wait_for_a_bound_socket_and_others_reach_it() {
    alone!();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let log = unix(libc::SOCK_DGRAM);
    socket::bind(log.as_fd(), &name(path.to_str().unwrap())).unwrap();
    let client = unix(libc::SOCK_DGRAM);
    socket::connect(client.as_fd(), &name(path.to_str().unwrap())).unwrap();
    socket::send(client.as_fd(), b"first", &[]).unwrap();
    socket::send(client.as_fd(), b"second", &[]).unwrap();
    let back = around(&[log.as_fd(), client.as_fd()]);
    let (log, client) = (back.at(&log), back.at(&client));
    (&client).write_all(b"third").unwrap();
    for expected in ["first", "second", "third"] {
        assert_eq!(read_now(&log), expected.as_bytes());
    }
}

#[test]
fn a_datagram_socket_finds_its_peer_outside_again_if_that_is_allowed() {
    alone!();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let log = unix(libc::SOCK_DGRAM);
    socket::bind(log.as_fd(), &name(path.to_str().unwrap())).unwrap();
    let client = unix(libc::SOCK_DGRAM);
    socket::connect(client.as_fd(), &name(path.to_str().unwrap())).unwrap();
    assert!(refusal(&[client.as_fd()]).contains("--ext-unix-sk"));
    let task = Task::with(&[client.as_fd()]);
    let policy = Policy {
        ext_unix_sk: true,
        ..Policy::default()
    };
    let set = capture(&[&task], policy).unwrap();
    assert!(Plan::read(&set, &RestorePolicy::default()).is_err());
    let allow = RestorePolicy {
        ext_unix_sk: true,
        ..RestorePolicy::default()
    };
    let back = Back::from(&set, &allow, &[]).unwrap();
    (&back.at(&client)).write_all(b"again").unwrap();
    assert_eq!(read_now(&File::from(log)), b"again");
}

/// An empty network namespace, kept by its descriptor.
fn network() -> OwnedFd {
    std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        OwnedFd::from(File::open("/proc/thread-self/ns/net").unwrap())
    })
    .join()
    .unwrap()
}

fn internet(family: i32, kind: i32, address: Vec<u8>) -> OwnedFd {
    let fd = socket::socket(family, kind, 0).unwrap();
    socket::bind(fd.as_fd(), &address).unwrap();
    fd
}

#[test]
fn listening_and_unconnected_sockets_come_back_in_another_network() {
    alone!();
    let any = |family: u16, len| {
        let mut bytes = family.to_ne_bytes().to_vec();
        bytes.resize(len, 0);
        bytes
    };
    let tcp = internet(libc::AF_INET, libc::SOCK_STREAM, any(2, 16));
    socket::set_option(tcp.as_fd(), libc::SOL_TCP, libc::TCP_NODELAY, 1).unwrap();
    socket::listen(tcp.as_fd(), 77).unwrap();
    let tcp6 = internet(libc::AF_INET6, libc::SOCK_STREAM, any(10, 28));
    socket::listen(tcp6.as_fd(), 3).unwrap();
    let udp = internet(libc::AF_INET, libc::SOCK_DGRAM, any(2, 16));
    let fresh = socket::socket(libc::AF_INET, libc::SOCK_STREAM, 0).unwrap();
    let task = Task::with(&[tcp.as_fd(), tcp6.as_fd(), udp.as_fd(), fresh.as_fd()]);
    let set = capture(&[&task], Policy::default()).unwrap();
    let plan = Plan::read(&set, &RestorePolicy::default()).unwrap();
    let (root, net) = (File::open("/").unwrap(), network());
    let holder = Holder::new(
        &plan,
        root.as_fd(),
        Some(net.as_fd()),
        &[],
        &[],
        &mut |_, _| Ok(None),
    )
    .unwrap();
    let back = Back { plan, holder };
    for fd in [&tcp, &tcp6, &udp, &fresh] {
        let b = back.at(fd);
        let address = |f: BorrowedFd<'_>| socket::local_address(f).unwrap();
        assert_eq!(address(b.as_fd()), address(fd.as_fd()));
        let int = |f: BorrowedFd<'_>, name| socket::option(f, libc::SOL_SOCKET, name).unwrap();
        for name in [libc::SO_ACCEPTCONN, libc::SO_REUSEADDR, libc::SO_RCVBUF] {
            assert_eq!(int(b.as_fd(), name), int(fd.as_fd(), name));
        }
        let there = socket::namespace(b.as_fd()).unwrap();
        let inode = |f: &OwnedFd| nix::sys::stat::fstat(f).unwrap().st_ino;
        assert_eq!(inode(&there), inode(&net));
    }
    let nodelay = socket::option(back.at(&tcp).as_fd(), libc::SOL_TCP, libc::TCP_NODELAY);
    assert_eq!(nodelay.unwrap(), 1);
}

#[test]
fn a_tcp_connection_is_refused_by_name() {
    alone!();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let why = refusal(&[client.as_fd()]);
    assert!(why.contains("TCP connection"), "{why}");
    assert!(refusal(&[listener.as_fd()]).contains("nobody has accepted"));
}

#[test]
fn a_socket_of_another_network_is_refused() {
    alone!();
    let net = network();
    let place = Place {
        net: Some(net.as_fd()),
        root: None,
    };
    let fd =
        socket::at_place(place, || socket::socket(libc::AF_INET, libc::SOCK_DGRAM, 0)).unwrap();
    assert!(refusal(&[fd.as_fd()]).contains("another network namespace"));
}

#[test]
fn the_image_says_what_criu_looks_for() {
    alone!();
    use crate::image::records::{FdTypes, FdinfoEntry, FileEntry};
    let (r, w) = fdops::pipe().unwrap();
    let task = Task::with(&[w.as_fd(), r.as_fd()]);
    let set = capture(&[&task], Policy::default()).unwrap();
    let table = set.ids(Image::Fdinfo)[0];
    let table = set.all::<FdinfoEntry>(Image::Fdinfo, table).unwrap();
    assert!(table.len() >= 5);
    assert!(
        table.windows(2).all(|w| w[0].fd < w[1].fd),
        "not in ascending order"
    );
    let files = set.all::<FileEntry>(Image::Files, 0).unwrap();
    for entry in &table {
        let file = files.iter().find(|f| f.id == entry.id).unwrap();
        assert_eq!(file.r#type, entry.r#type);
        assert_eq!(entry.flags, 0);
    }
    assert!(
        files
            .iter()
            .any(|f| f.r#type() == FdTypes::Pipe && f.pipe.is_some())
    );
}
