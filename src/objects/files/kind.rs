//! What a descriptor is, told by stat(2) and by the link in `/proc/PID/fd`.
//!
//! The list is closed: whatever is not on it is refused by its name.

use nix::sys::stat::FileStat;

/// Kinds of descriptors that can be carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// A regular file, directory, block device or O_PATH link, by path.
    Path,
    /// A character device that has no state: null, zero, full, random, urandom.
    Device,
    /// A terminal.
    Terminal,
    /// pipe(2).
    Pipe,
    /// A named pipe.
    Fifo,
    /// memfd_create(2).
    Memfd,
    /// eventfd(2).
    Eventfd,
    /// epoll(7).
    Epoll,
    /// timerfd_create(2).
    Timerfd,
    /// signalfd(2).
    Signalfd,
    /// socket(2).
    Socket,
}

const S_IFMT: u32 = libc::S_IFMT;

fn major_minor(dev: u64) -> (u32, u32) {
    (libc::major(dev), libc::minor(dev))
}

/// The kind of a descriptor with this stat and link, or how it is called.
///
/// `shmem` is the device of the kernel's own tmpfs, on which memfds lie.
///
/// # Errors
/// The name of what cannot be carried.
pub(super) fn classify(stat: &FileStat, link: &str, shmem: u64) -> Result<Kind, String> {
    let mode = stat.st_mode & S_IFMT;
    if let Some(anonymous) = link.strip_prefix("anon_inode:") {
        return match anonymous.trim_matches(['[', ']']) {
            "eventfd" => Ok(Kind::Eventfd),
            "eventpoll" => Ok(Kind::Epoll),
            "timerfd" => Ok(Kind::Timerfd),
            "signalfd" => Ok(Kind::Signalfd),
            other => Err(format!("{other} descriptor")),
        };
    }
    match mode {
        libc::S_IFSOCK => Ok(Kind::Socket),
        libc::S_IFIFO if link.starts_with("pipe:[") => Ok(Kind::Pipe),
        libc::S_IFIFO if link.starts_with('/') => Ok(Kind::Fifo),
        libc::S_IFCHR => device(stat.st_rdev, link),
        libc::S_IFREG if stat.st_dev == shmem && link.starts_with("/memfd:") => Ok(Kind::Memfd),
        libc::S_IFREG if link.starts_with("/memfd:") && stat.st_nlink == 0 => {
            Err("memfd of huge pages".into())
        }
        libc::S_IFREG if stat.st_dev == shmem => Err(format!("shared memory {link}")),
        libc::S_IFREG | libc::S_IFDIR | libc::S_IFLNK | libc::S_IFBLK if link.starts_with('/') => {
            Ok(Kind::Path)
        }
        libc::S_IFREG if link.contains(":[") => Err(format!("namespace descriptor {link}")),
        _ => Err(format!("descriptor of {link}")),
    }
}

fn device(rdev: u64, link: &str) -> Result<Kind, String> {
    match major_minor(rdev) {
        (1, 3 | 5 | 7 | 8 | 9) => Ok(Kind::Device),
        (4 | 5 | 136..=143, _) => Ok(Kind::Terminal),
        (major, minor) => Err(format!("device {link} ({major}:{minor})")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stat(mode: u32, rdev: u64, dev: u64) -> FileStat {
        let file = std::fs::File::open("/").unwrap();
        let mut s = nix::sys::stat::fstat(&file).unwrap();
        (s.st_mode, s.st_rdev, s.st_dev, s.st_nlink) = (mode, rdev, dev, 0);
        s
    }

    #[test]
    fn what_cannot_be_carried_is_called_by_its_name() {
        let anon = stat(0o600, 0, 15);
        for (link, name) in [
            ("anon_inode:[io_uring]", "io_uring"),
            ("anon_inode:[userfaultfd]", "userfaultfd"),
            ("anon_inode:bpf-map", "bpf-map"),
            ("anon_inode:[perf_event]", "perf_event"),
        ] {
            assert_eq!(
                classify(&anon, link, 1).unwrap_err(),
                format!("{name} descriptor")
            );
        }
        let tun = stat(libc::S_IFCHR, libc::makedev(10, 200), 5);
        assert_eq!(
            classify(&tun, "/dev/net/tun", 1).unwrap_err(),
            "device /dev/net/tun (10:200)"
        );
        let ns = stat(libc::S_IFREG | 0o444, 0, 4);
        assert!(
            classify(&ns, "net:[4026531840]", 1)
                .unwrap_err()
                .contains("namespace")
        );
        let mem = stat(libc::S_IFCHR, libc::makedev(1, 1), 5);
        assert!(classify(&mem, "/dev/mem", 1).is_err());
    }

    #[test]
    fn a_file_that_only_calls_itself_memfd_is_a_file() {
        let mut s = stat(libc::S_IFREG | 0o600, 0, 9);
        s.st_nlink = 1;
        assert_eq!(classify(&s, "/memfd:x", 1), Ok(Kind::Path));
        assert_eq!(classify(&s, "/memfd:x (deleted)", 9), Ok(Kind::Memfd));
    }

    proptest! {
        #[test]
        fn every_descriptor_is_of_a_known_kind_or_has_a_name(
            mode in any::<u32>(), rdev in any::<u64>(), link in ".{0,40}"
        ) {
            if let Err(name) = classify(&stat(mode, rdev, 7), &link, 3) {
                prop_assert!(!name.trim().is_empty());
            }
        }

        #[test]
        fn only_a_path_leads_to_a_file_that_is_opened_by_path(
            mode in any::<u32>(), link in "[^/].{0,20}"
        ) {
            prop_assert_ne!(classify(&stat(mode, 0, 7), &link, 3), Ok(Kind::Path));
        }
    }
}
