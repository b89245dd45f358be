//! Namespaces: namespaces(7), setns(2), unshare(2), time_namespaces(7).

use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use crate::base::{Blame, Error, HostPid, Result, ResultExt};

/// The kinds of namespaces, in the order in which images number them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Process ids.
    Pid,
    /// Network.
    Net,
    /// System V objects and POSIX message queues.
    Ipc,
    /// Host and domain name.
    Uts,
    /// Offsets of the monotonic and boot clocks.
    Time,
    /// Mounts.
    Mnt,
    /// Users and capabilities.
    User,
    /// Root of the visible control groups.
    Cgroup,
}

impl Kind {
    /// All kinds, in the order of the images.
    pub const ALL: [Self; 8] = [
        Self::Pid,
        Self::Net,
        Self::Ipc,
        Self::Uts,
        Self::Time,
        Self::Mnt,
        Self::User,
        Self::Cgroup,
    ];

    /// Name of the file in /proc/PID/ns.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pid => "pid",
            Self::Net => "net",
            Self::Ipc => "ipc",
            Self::Uts => "uts",
            Self::Time => "time",
            Self::Mnt => "mnt",
            Self::User => "user",
            Self::Cgroup => "cgroup",
        }
    }

    /// The kind of this name, as /proc/PID/ns or `--join-ns` spell it.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|k| k.name() == name)
    }

    /// CLONE_NEW* bit.
    pub fn flag(self) -> u64 {
        u64::from(match self {
            Self::Pid => 0x2000_0000_u32,
            Self::Net => 0x4000_0000,
            Self::Ipc => 0x0800_0000,
            Self::Uts => 0x0400_0000,
            Self::Time => 0x80,
            Self::Mnt => 0x0002_0000,
            Self::User => 0x1000_0000,
            Self::Cgroup => 0x0200_0000,
        })
    }

    fn c_flag(self) -> i32 {
        // Every bit is below 2^31.
        i32::try_from(self.flag()).unwrap_or(0)
    }
}

/// Inode of the namespace of `kind` that `pid` is in; two tasks are in the
/// same namespace exactly when these are equal.
///
/// # Errors
/// ENOENT when the task is gone or the kernel has no such namespaces.
pub fn inode(pid: HostPid, kind: Kind) -> Result<u64> {
    inode_of(&format!("/proc/{pid}/ns/{}", kind.name()))
}

/// Inode of the namespace in which `pid` will have children (pid and time).
///
/// # Errors
/// As [`inode`].
pub fn inode_for_children(pid: HostPid, kind: Kind) -> Result<u64> {
    inode_of(&format!("/proc/{pid}/ns/{}_for_children", kind.name()))
}

/// Inode of our own namespace of `kind` (of the calling thread).
///
/// # Errors
/// As [`inode`].
pub fn own_inode(kind: Kind) -> Result<u64> {
    inode_of(&format!("/proc/thread-self/ns/{}", kind.name()))
}

fn inode_of(path: &str) -> Result<u64> {
    Ok(fs::metadata(path).context(|| format!("stat {path}"))?.ino())
}

/// A descriptor of the namespace of `kind` that `pid` is in.
///
/// # Errors
/// As [`inode`].
pub fn open(pid: HostPid, kind: Kind) -> Result<OwnedFd> {
    let path = format!("/proc/{pid}/ns/{}", kind.name());
    Ok(fs::File::open(&path)
        .context(|| format!("open {path}"))?
        .into())
}

/// Moves the calling thread into the namespace that `ns` names, which must be
/// of `kind`.
///
/// # Errors
/// Those of setns(2): EINVAL for another kind, or when the caller is
/// multi-threaded (mount, user and time namespaces).
pub fn enter(ns: BorrowedFd<'_>, kind: Kind) -> Result<()> {
    // SAFETY: no pointers are passed.
    let r = unsafe { libc::setns(ns.as_raw_fd(), kind.c_flag()) };
    if r == 0 {
        Ok(())
    } else {
        Err(Error::last_os(format!(
            "setns to a {} namespace",
            kind.name()
        )))
    }
}

/// Gives the calling thread new namespaces of these kinds.
///
/// # Errors
/// Those of unshare(2).
pub fn unshare(kinds: &[Kind]) -> Result<()> {
    let flags = kinds.iter().fold(0, |f, k| f | k.c_flag());
    // SAFETY: no pointers are passed.
    if unsafe { libc::unshare(flags) } == 0 {
        return Ok(());
    }
    let names: Vec<_> = kinds.iter().map(|k| k.name()).collect();
    Err(Error::last_os(format!("unshare {}", names.join(", "))))
}

/// Runs `job` on a thread of its own that has entered the namespaces `kinds`
/// of `pid` (of all but pid, time and user), and brings its result back. The
/// caller stays where it is.
///
/// # Errors
/// Those of [`open`], [`enter`] and of `job`.
pub fn inside<T: Send>(
    pid: HostPid,
    kinds: &[Kind],
    job: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    let spaces = kinds
        .iter()
        .map(|k| Ok((open(pid, *k)?, *k)))
        .collect::<Result<Vec<_>>>()?;
    let run = move || -> Result<T> {
        if spaces.iter().any(|(_, k)| *k == Kind::Mnt) {
            // setns(2) to a mount namespace wants a root directory of its own.
            // SAFETY: no pointers are passed.
            if unsafe { libc::unshare(libc::CLONE_FS) } != 0 {
                return Err(Error::last_os("unshare CLONE_FS"));
            }
        }
        for (fd, kind) in &spaces {
            enter(fd.as_fd(), *kind)?;
        }
        job()
    };
    std::thread::scope(|s| {
        std::thread::Builder::new()
            .name("in-ns".to_owned())
            .spawn_scoped(s, run)
            .context(|| "start a thread".to_owned())?
            .join()
            .map_err(|_| Error::bug("thread in a foreign namespace", "panicked"))?
    })
}

/// Host and domain name of the calling thread's UTS namespace: uname(2).
///
/// # Errors
/// A name that is not UTF-8.
pub fn uts_names() -> Result<(String, String)> {
    let u = nix::sys::utsname::uname().context(|| "uname".to_owned())?;
    let text = |s: &std::ffi::OsStr| {
        s.to_str()
            .map(str::to_owned)
            .ok_or_else(|| Error::refused("uts namespace", "its host or domain name is not UTF-8"))
    };
    Ok((text(u.nodename())?, text(u.domainname())?))
}

/// Sets host and domain name of our UTS namespace: sethostname(2).
///
/// # Errors
/// EINVAL when a name is longer than 64 bytes, EPERM.
pub fn set_uts_names(host: &str, domain: &str) -> Result<()> {
    nix::unistd::sethostname(host).context(|| format!("sethostname {host}"))?;
    // SAFETY: pointer and length are those of the string.
    if unsafe { libc::setdomainname(domain.as_ptr().cast(), domain.len()) } == 0 {
        Ok(())
    } else {
        Err(Error::last_os(format!("setdomainname {domain}")))
    }
}

/// The two clocks that a time namespace shifts, nanoseconds since boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clocks {
    /// CLOCK_MONOTONIC.
    pub monotonic: i128,
    /// CLOCK_BOOTTIME.
    pub boottime: i128,
}

/// Both clocks as the calling thread sees them: clock_gettime(2).
///
/// # Errors
/// None in practice.
pub fn clocks() -> Result<Clocks> {
    use nix::time::{ClockId, clock_gettime};
    let read = |id: ClockId| -> Result<i128> {
        let t = clock_gettime(id).context(|| "clock_gettime".to_owned())?;
        Ok(i128::from(t.tv_sec()) * 1_000_000_000 + i128::from(t.tv_nsec()))
    };
    Ok(Clocks {
        monotonic: read(ClockId::CLOCK_MONOTONIC)?,
        boottime: read(ClockId::CLOCK_BOOTTIME)?,
    })
}

/// Offsets of the time namespace in which children of `pid` (`None`: of the
/// caller) will be, nanoseconds: /proc/PID/timens_offsets.
///
/// # Errors
/// ENOENT when the task is gone or the kernel has no time namespaces.
pub fn clock_offsets(pid: Option<HostPid>) -> Result<Clocks> {
    let path = match pid {
        Some(p) => format!("/proc/{p}/timens_offsets"),
        None => "/proc/self/timens_offsets".to_owned(),
    };
    let text = fs::read_to_string(&path).context(|| format!("read {path}"))?;
    let find = |name: &str| -> Option<i128> {
        let line = text.lines().find(|l| l.starts_with(name))?;
        let mut words = line.split_ascii_whitespace().skip(1);
        let (sec, nsec): (i128, i128) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some(sec * 1_000_000_000 + nsec)
    };
    match (find("monotonic"), find("boottime")) {
        (Some(monotonic), Some(boottime)) => Ok(Clocks {
            monotonic,
            boottime,
        }),
        _ => Err(Error::new(Blame::Kernel, path, "not understood")),
    }
}

/// Moves the caller, which must be single-threaded, into a new time namespace
/// with these offsets against the host's clocks, nanoseconds.
///
/// The order matters: offsets can be written only while nobody is in the
/// namespace, so it is made for children first and entered afterwards.
///
/// # Errors
/// ERANGE for offsets that would make a clock negative, EPERM.
pub fn enter_new_time(offsets: Clocks) -> Result<()> {
    unshare(&[Kind::Time])?;
    let pair = |n: i128| (n.div_euclid(1_000_000_000), n.rem_euclid(1_000_000_000));
    let (ms, mn) = pair(offsets.monotonic);
    let (bs, bn) = pair(offsets.boottime);
    let text = format!("monotonic {ms} {mn}\nboottime {bs} {bn}\n");
    let path = "/proc/self/timens_offsets";
    fs::write(path, &text).context(|| format!("write {text:?} to {path}"))?;
    let path = "/proc/self/ns/time_for_children";
    let ns = fs::File::open(path).context(|| format!("open {path}"))?;
    enter(ns.as_fd(), Kind::Time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_inside_a_foreign_namespace_leaves_the_caller_outside() {
        let mut child = std::process::Command::new("unshare")
            .args([
                "-u",
                "-i",
                "sh",
                "-c",
                "hostname inner-ns-test && echo ok && exec sleep 1000",
            ])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = [0; 3];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut line).unwrap();
        let pid = HostPid(i32::try_from(child.id()).unwrap());
        let before = uts_names().unwrap();
        let (host, ino) = inside(pid, &[Kind::Uts], || {
            Ok((uts_names()?.0, own_inode(Kind::Uts)?))
        })
        .unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(host, "inner-ns-test");
        assert_ne!(ino, own_inode(Kind::Uts).unwrap());
        assert_eq!(before, uts_names().unwrap());
    }

    #[test]
    fn namespaces_of_a_task_that_is_gone_are_an_error_with_its_errno() {
        let e = inode(HostPid(i32::MAX), Kind::Net).unwrap_err();
        assert_eq!(e.raw_os_error(), Some(libc::ENOENT));
    }

    #[test]
    fn offsets_of_the_own_time_namespace_are_read() {
        clock_offsets(None).unwrap();
        let c = clocks().unwrap();
        assert!(c.boottime >= c.monotonic);
    }
}
