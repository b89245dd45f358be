//! Mount options as mountinfo spells them, `MS_*` bits as images keep them,
//! and attributes as the kernel takes them.

use crate::base::{Error, Result};
use crate::sys::mounts::attr;

pub(crate) const RDONLY: u32 = 1;
const NOSUID: u32 = 2;
const NODEV: u32 = 4;
const NOEXEC: u32 = 8;
const SYNCHRONOUS: u32 = 16;
const MANDLOCK: u32 = 64;
const DIRSYNC: u32 = 128;
const NOSYMFOLLOW: u32 = 256;
const NOATIME: u32 = 1024;
const NODIRATIME: u32 = 2048;
pub(crate) const UNBINDABLE: u32 = 1 << 17;
const PRIVATE: u32 = 1 << 18;
pub(crate) const SLAVE: u32 = 1 << 19;
pub(crate) const SHARED: u32 = 1 << 20;
const RELATIME: u32 = 1 << 21;
const STRICTATIME: u32 = 1 << 24;

/// `MS_*` bits of the options of a mount.
pub(super) fn of_mount(options: &str, at: &str) -> Result<u32> {
    let mut flags = 0;
    for option in options.split(',') {
        flags |= match option {
            "rw" => 0,
            "ro" => RDONLY,
            "nosuid" => NOSUID,
            "nodev" => NODEV,
            "noexec" => NOEXEC,
            "noatime" => NOATIME,
            "nodiratime" => NODIRATIME,
            "relatime" => RELATIME,
            "nosymfollow" => NOSYMFOLLOW,
            other => {
                return Err(Error::refused(
                    format!("mount {at}"),
                    format!("its option {other} is not carried"),
                ));
            }
        };
    }
    if flags & (RELATIME | NOATIME) == 0 {
        flags |= STRICTATIME;
    }
    Ok(flags)
}

/// `MS_*` bits of the options of a file system, and the options that have none.
pub(super) fn of_fs(options: &str) -> (u32, String) {
    let mut flags = 0;
    let mut rest = Vec::new();
    for option in options.split(',') {
        match option {
            "rw" => {}
            "ro" => flags |= RDONLY,
            "sync" => flags |= SYNCHRONOUS,
            "dirsync" => flags |= DIRSYNC,
            "mand" => flags |= MANDLOCK,
            other => rest.push(other),
        }
    }
    (flags, rest.join(","))
}

/// Attributes of mount_setattr(2) for the `MS_*` bits of a mount.
pub(super) fn attributes(flags: u32, at: &str) -> Result<u64> {
    let known = RDONLY
        | NOSUID
        | NODEV
        | NOEXEC
        | NOATIME
        | NODIRATIME
        | RELATIME
        | STRICTATIME
        | NOSYMFOLLOW
        | SHARED
        | SLAVE
        | PRIVATE
        | UNBINDABLE;
    if flags & !known != 0 {
        let odd = flags & !known;
        return Err(Error::image(
            format!("mount {at}"),
            format!("unknown flags {odd:#x}"),
        ));
    }
    let mut attrs = 0;
    for (bit, a) in [
        (RDONLY, attr::RDONLY),
        (NOSUID, attr::NOSUID),
        (NODEV, attr::NODEV),
        (NOEXEC, attr::NOEXEC),
        (NODIRATIME, attr::NODIRATIME),
        (NOSYMFOLLOW, attr::NOSYMFOLLOW),
    ] {
        if flags & bit != 0 {
            attrs |= a;
        }
    }
    if flags & NOATIME != 0 {
        attrs |= attr::NOATIME;
    } else if flags & STRICTATIME != 0 {
        attrs |= attr::STRICTATIME;
    }
    Ok(attrs)
}

/// Names of the file-system flags, for fsconfig(2).
pub(super) fn fs_flags(flags: u32, at: &str) -> Result<Vec<&'static str>> {
    let mut names = Vec::new();
    for (bit, name) in [
        (RDONLY, "ro"),
        (SYNCHRONOUS, "sync"),
        (DIRSYNC, "dirsync"),
        (MANDLOCK, "mand"),
    ] {
        if flags & bit != 0 {
            names.push(name);
        }
    }
    let odd = flags & !(RDONLY | SYNCHRONOUS | DIRSYNC | MANDLOCK);
    if odd != 0 {
        return Err(Error::image(
            format!("mount {at}"),
            format!("unknown file system flags {odd:#x}"),
        ));
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_options_that_criu_wrote_for_a_runc_container_give_its_numbers() {
        assert_eq!(of_mount("rw,relatime", "/").unwrap(), 2_097_152);
        assert_eq!(of_mount("rw,nosuid", "/dev").unwrap(), 16_777_218);
        assert_eq!(
            of_mount("ro,nosuid,nodev,noexec,relatime", "/sys").unwrap(),
            2_097_167
        );
        assert_eq!(
            of_fs("rw,size=65536k,mode=755"),
            (0, "size=65536k,mode=755".to_owned())
        );
        assert_eq!(of_fs("ro"), (1, String::new()));
    }

    #[test]
    fn an_option_that_we_do_not_know_is_refused_with_the_mount() {
        let e = of_mount("rw,idmapped", "/data").unwrap_err();
        assert!(
            e.to_string().contains("/data") && e.to_string().contains("idmapped"),
            "{e}"
        );
        assert!(attributes(1 << 30, "/x").is_err());
        assert!(fs_flags(2, "/x").is_err());
    }

    #[test]
    fn flags_become_the_attributes_that_give_the_same_options() {
        let a = attributes(of_mount("ro,nosuid,noexec,nodiratime", "/x").unwrap(), "/x").unwrap();
        assert_eq!(
            a,
            attr::RDONLY | attr::NOSUID | attr::NOEXEC | attr::NODIRATIME | attr::STRICTATIME
        );
    }
}
