//! Making and reconfiguring file systems: fsopen(2), fsconfig(2), fsmount(2),
//! fspick(2).

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use super::{done, owned, path_arg};
use crate::base::{Error, Result, ResultExt};

/// A file system context: fsopen(2) or fspick(2).
#[derive(Debug)]
pub struct FsContext {
    fd: OwnedFd,
    what: String,
}

const FSCONFIG_SET_FLAG: u32 = 0;
const FSCONFIG_SET_STRING: u32 = 1;
const FSCONFIG_CMD_CREATE: u32 = 6;
const FSCONFIG_CMD_RECONFIGURE: u32 = 7;

impl FsContext {
    /// For a new file system of this type.
    ///
    /// # Errors
    /// ENODEV for an unknown type, EPERM.
    pub fn open(fstype: &str) -> Result<Self> {
        let c = path_arg(Path::new(fstype))?;
        // SAFETY: the string outlives the call.
        let r = unsafe {
            libc::syscall(libc::SYS_fsopen, c.as_ptr(), 1 /* FSOPEN_CLOEXEC */)
        };
        let what = format!("fsopen {fstype}");
        Ok(Self {
            fd: owned(r).context(|| what.clone())?,
            what,
        })
    }

    /// For the existing file system that `at` lies in.
    ///
    /// # Errors
    /// Those of fspick(2).
    pub fn pick(at: BorrowedFd<'_>) -> Result<Self> {
        const FLAGS: u32 = 1 /* CLOEXEC */ | 8 /* EMPTY_PATH */;
        // SAFETY: the empty string is static.
        let r = unsafe { libc::syscall(libc::SYS_fspick, at.as_raw_fd(), c"".as_ptr(), FLAGS) };
        let what = "fspick".to_owned();
        Ok(Self {
            fd: owned(r).context(|| what.clone())?,
            what,
        })
    }

    /// Sets an option that has no value.
    ///
    /// # Errors
    /// EINVAL with the kernel's words when it is not known.
    pub fn flag(&self, key: &str) -> Result<()> {
        self.config(FSCONFIG_SET_FLAG, Some(key), None)
    }

    /// Sets `key=value`.
    ///
    /// # Errors
    /// EINVAL with the kernel's words when it is not known.
    pub fn string(&self, key: &str, value: &str) -> Result<()> {
        self.config(FSCONFIG_SET_STRING, Some(key), Some(value))
    }

    /// Sets every option of a comma-separated list as mount(8) writes it.
    ///
    /// # Errors
    /// The first option that is refused.
    pub fn options(&self, list: &str) -> Result<()> {
        for option in list.split(',').filter(|o| !o.is_empty()) {
            match option.split_once('=') {
                Some((key, value)) => self.string(key, value)?,
                None => self.flag(option)?,
            }
        }
        Ok(())
    }

    /// Makes the file system and a detached mount of it with `attrs`.
    ///
    /// # Errors
    /// Whatever the file system says, with its words.
    pub fn mount(&self, attrs: u64) -> Result<OwnedFd> {
        self.config(FSCONFIG_CMD_CREATE, None, None)?;
        // SAFETY: no pointers are passed.
        let r = unsafe {
            libc::syscall(
                libc::SYS_fsmount,
                self.fd.as_raw_fd(),
                1, /* CLOEXEC */
                attrs,
            )
        };
        owned(r).map_err(|e| self.error("fsmount", e))
    }

    /// Applies the options to the picked file system.
    ///
    /// # Errors
    /// Whatever the file system says, with its words.
    pub fn reconfigure(&self) -> Result<()> {
        self.config(FSCONFIG_CMD_RECONFIGURE, None, None)
    }

    fn config(&self, cmd: u32, key: Option<&str>, value: Option<&str>) -> Result<()> {
        let k = key.map(|k| path_arg(Path::new(k))).transpose()?;
        let v = value.map(|v| path_arg(Path::new(v))).transpose()?;
        let ptr = |s: &Option<CString>| s.as_ref().map_or(std::ptr::null(), |s| s.as_ptr());
        // SAFETY: both strings are null or outlive the call.
        let r = unsafe {
            libc::syscall(
                libc::SYS_fsconfig,
                self.fd.as_raw_fd(),
                cmd,
                ptr(&k),
                ptr(&v),
                0,
            )
        };
        done(r).map_err(|e| {
            let mut step = key.unwrap_or("create").to_owned();
            if let Some(v) = value {
                step = format!("{step}={v}");
            }
            self.error(&step, e)
        })
    }

    /// The errno with what the kernel logged into the context.
    fn error(&self, step: &str, e: io::Error) -> Error {
        let mut log = [0u8; 256];
        let said = nix::unistd::read(&self.fd, &mut log)
            .ok()
            .and_then(|n| log.get(..n))
            .map(|b| String::from_utf8_lossy(b).trim_end().to_owned())
            .unwrap_or_default();
        let context = if said.is_empty() {
            format!("{} {step}", self.what)
        } else {
            format!("{} {step} ({said})", self.what)
        };
        Error::os(context, e)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::mounts::{BENEATH, NO_SYMLINKS, attr, mount_id, open_at};

    #[test]
    fn an_unknown_option_is_refused_in_the_kernels_words() {
        let tmpfs = FsContext::open("tmpfs").unwrap();
        let e = tmpfs.options("size=1m,nonsense=3").unwrap_err();
        assert!(e.to_string().contains("nonsense"), "{e}");
        assert_eq!(e.raw_os_error(), Some(libc::EINVAL));
    }

    #[test]
    fn a_detached_tmpfs_is_written_before_it_is_attached_anywhere() {
        use std::os::fd::AsFd;
        let fs = FsContext::open("tmpfs").unwrap();
        fs.options("size=64k,mode=700").unwrap();
        let m = fs.mount(attr::NOSUID | attr::NODEV).unwrap();
        std::fs::write(format!("/proc/self/fd/{}/x", m.as_raw_fd()), b"1").unwrap();
        let f = open_at(
            m.as_fd(),
            Path::new("x"),
            libc::O_RDONLY,
            BENEATH | NO_SYMLINKS,
        )
        .unwrap();
        assert!(mount_id(f.as_fd()).unwrap() > 0);
    }
}
