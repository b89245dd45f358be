//! `/proc/PID/fdinfo/N`, parsed: proc(5), Documentation/filesystems/proc.rst.

use crate::base::{Error, HostPid, Result};

/// A lock that a descriptor holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lock {
    /// How it was taken.
    pub kind: LockKind,
    /// For writing rather than reading.
    pub write: bool,
    /// First byte.
    pub start: i64,
    /// Bytes; 0 reaches to the end of the file, however it grows.
    pub len: i64,
}

/// How a lock was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LockKind {
    /// fcntl(2), F_SETLK.
    Posix,
    /// flock(2).
    Flock,
    /// fcntl(2), F_OFD_SETLK.
    Ofd,
}

/// A timerfd beside what timerfd_gettime(2) tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Timer {
    /// Clock, CLOCK_*.
    pub clock: u32,
    /// Expiries that nobody has read.
    pub ticks: u64,
    /// Flags of timerfd_settime(2).
    pub flags: u32,
}

/// A target of an epoll set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Target {
    /// Number under which it was added.
    pub fd: u32,
    /// EPOLL* bits.
    pub events: u32,
    /// What epoll_wait(2) gives back.
    pub data: u64,
    /// Position of the file.
    pub pos: u64,
    /// Its inode.
    pub ino: u64,
    /// Its device, as the kernel packs it (minor in 20 bits).
    pub dev: u32,
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Fdinfo {
    /// Position, bytes.
    pub pos: u64,
    /// Open flags, O_CLOEXEC for the descriptor itself.
    pub flags: u32,
    /// Mount.
    pub mnt_id: i32,
    /// Locks held through it.
    pub locks: Vec<Lock>,
    /// Counter of an eventfd.
    pub count: Option<u64>,
    /// EFD_SEMAPHORE.
    pub semaphore: bool,
    /// Signals of a signalfd, bit n-1 for signal n.
    pub sigmask: Option<u64>,
    /// A timerfd.
    pub timer: Option<Timer>,
    /// Targets of an epoll set, in its order.
    pub targets: Vec<Target>,
    /// Watches of an inotify group.
    pub watches: usize,
}

/// Reads the fdinfo of `fd` of `pid`.
///
/// # Errors
/// ENOENT when there is no such descriptor; a line of unknown form; a lease
/// or a mandatory lock, which we cannot carry.
pub(super) fn read(pid: HostPid, fd: i32) -> Result<Fdinfo> {
    let path = format!("/proc/{pid}/fdinfo/{fd}");
    let text = std::fs::read_to_string(&path).map_err(|e| Error::os(format!("read {path}"), e))?;
    parse(&text).map_err(|e| e.within(path))
}

/// Parses the text of an fdinfo.
///
/// # Errors
/// As [`read`].
pub(super) fn parse(text: &str) -> Result<Fdinfo> {
    let mut info = Fdinfo {
        mnt_id: -1,
        ..Fdinfo::default()
    };
    for line in text.lines() {
        let known = field(&mut info, line)?;
        if known.is_none() {
            return Err(Error::errno(format!("line {line:?}"), libc::EBADMSG));
        }
    }
    Ok(info)
}

fn field(info: &mut Fdinfo, line: &str) -> Result<Option<()>> {
    let Some((key, value)) = line.split_once(':') else {
        return Ok(Some(()));
    };
    let value = value.trim();
    Ok(match key {
        "lock" => {
            info.locks.push(lock(value)?);
            Some(())
        }
        "inotify wd" => {
            info.watches += 1;
            Some(())
        }
        _ => number(info, key, value),
    })
}

/// The lines that hold numbers; `None` when one does not parse.
fn number(info: &mut Fdinfo, key: &str, value: &str) -> Option<()> {
    let hex64 = |v: &str| u64::from_str_radix(v, 16).ok();
    let octal = |v: &str| u32::from_str_radix(v, 8).ok();
    match key {
        "pos" => info.pos = signed(value)?,
        "flags" => info.flags = octal(value)?,
        "mnt_id" => info.mnt_id = value.parse().ok()?,
        "eventfd-count" => info.count = Some(hex64(value)?),
        "eventfd-semaphore" => info.semaphore = value != "0",
        "sigmask" => info.sigmask = Some(hex64(value)?),
        "clockid" => info.timer.get_or_insert_default().clock = value.parse().ok()?,
        "ticks" => info.timer.get_or_insert_default().ticks = value.parse().ok()?,
        "settime flags" => info.timer.get_or_insert_default().flags = octal(value)?,
        "tfd" => info.targets.push(target(value)?),
        _ => {}
    }
    Some(())
}

/// A position is printed as a signed number.
fn signed(value: &str) -> Option<u64> {
    value.parse::<i64>().ok().map(i64::cast_unsigned)
}

/// `5 events: 19 data: 7  pos:0 ino:ab sdev:f`
fn target(value: &str) -> Option<Target> {
    let words = value.replace(':', " ");
    let mut words = words.split_ascii_whitespace();
    let fd = words.next()?.parse().ok()?;
    let mut next = |key: &str| (words.next()? == key).then(|| words.next())?;
    Some(Target {
        fd,
        events: u32::from_str_radix(next("events")?, 16).ok()?,
        data: u64::from_str_radix(next("data")?, 16).ok()?,
        pos: signed(next("pos")?)?,
        ino: u64::from_str_radix(next("ino")?, 16).ok()?,
        dev: u32::from_str_radix(next("sdev")?, 16).ok()?,
    })
}

/// `1: POSIX  ADVISORY  WRITE 12 fe:00:34 0 EOF`
fn lock(value: &str) -> Result<Lock> {
    let refuse = |why: &'static str| Error::refused(format!("lock {value:?}"), why);
    let words: Vec<&str> = value.split_ascii_whitespace().collect();
    let [_, kind, how, mode, _, _, start, end] = words.as_slice() else {
        return Err(refuse("is of unknown form"));
    };
    let kind = match *kind {
        "POSIX" => LockKind::Posix,
        "FLOCK" => LockKind::Flock,
        "OFDLCK" => LockKind::Ofd,
        _ => return Err(refuse("cannot be carried (a lease or another kind)")),
    };
    if *how != "ADVISORY" {
        return Err(refuse("cannot be carried (not advisory)"));
    }
    let write = match *mode {
        "WRITE" => true,
        "READ" => false,
        _ => return Err(refuse("is of unknown mode")),
    };
    let form = || refuse("is of unknown form");
    let start: i64 = start.parse().map_err(|_| form())?;
    let len = match *end {
        "EOF" => 0,
        end => end
            .parse::<i64>()
            .ok()
            .and_then(|end| end.checked_sub(start)?.checked_add(1))
            .ok_or_else(form)?,
    };
    Ok(Lock {
        kind,
        write,
        start,
        len,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn all_that_the_kernel_prints_is_understood() {
        let info = parse(
            "pos:\t12\nflags:\t02100002\nmnt_id:\t34\nino:\t9\n\
             lock:\t1: POSIX  ADVISORY  WRITE 77 fe:00:10 5 11\n\
             lock:\t2: FLOCK  ADVISORY  READ 77 fe:00:10 0 EOF\n\
             tfd:        7 events:       19 data:        ffffffff00000007  pos:0 ino:2b sdev:f\n\
             clockid: 1\nticks: 3\nsettime flags: 01\nit_value: (1, 2)\nit_interval: (0, 0)\n\
             sigmask:\t0000000000000200\neventfd-count:               2a\neventfd-id: 3\neventfd-semaphore: 1\n",
        )
        .unwrap();
        assert_eq!((info.pos, info.flags, info.mnt_id), (12, 0o2_100_002, 34));
        assert_eq!((info.count, info.semaphore), (Some(42), true));
        assert_eq!(info.sigmask, Some(0x200));
        let timer = info.timer.unwrap();
        assert_eq!((timer.clock, timer.ticks, timer.flags), (1, 3, 1));
        let t = info.targets[0];
        assert_eq!(
            (t.fd, t.events, t.data, t.ino, t.dev),
            (7, 0x19, 0xffff_ffff_0000_0007, 0x2b, 15)
        );
        let (a, b) = (&info.locks[0], &info.locks[1]);
        assert_eq!(
            (a.kind, a.write, a.start, a.len),
            (LockKind::Posix, true, 5, 7)
        );
        assert_eq!((b.kind, b.write, b.len), (LockKind::Flock, false, 0));
    }

    #[test]
    fn a_lease_is_refused_by_name() {
        let e = parse("lock:\t1: LEASE  ACTIVE    READ 77 fe:00:10 0 EOF\n").unwrap_err();
        assert!(e.to_string().contains("lease"), "{e}");
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "(pos|flags|tfd|lock|ticks|sigmask)?[:a-z0-9 \n-]{0,60}") {
            let _ = parse(&text);
        }
    }
}
