//! Image files of a migration, written as they come; and what else is put beside
//! them for runc.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use crate::base::{Error, Result, ResultExt, limits};
use crate::sys::mounts::FsContext;
use crate::sys::private;
use crate::wire::message::{Image, StateEnd};
use crate::wire::transport::printable;

/// A directory in memory, in a file system that is mounted nowhere: it is gone when
/// nobody holds it any more. On a disk the files of a small container take some
/// milliseconds of its pause.
#[derive(Debug)]
pub(super) struct Room(OwnedFd);

impl Room {
    /// An empty one.
    ///
    /// # Errors
    /// EPERM without CAP_SYS_ADMIN.
    pub(super) fn make() -> Result<Self> {
        let fs = FsContext::open("tmpfs")?;
        fs.string("mode", "0700")?;
        let attrs = libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC;
        fs.mount(attrs).map(Self)
    }

    /// Its path, for this process and those that it starts.
    pub(super) fn path(&self) -> PathBuf {
        let me = std::process::id();
        PathBuf::from(format!("/proc/{me}/fd/{}", self.0.as_raw_fd()))
    }
}

/// Image files as they come.
pub(super) struct Images<'a> {
    dir: &'a Path,
    open: Option<(File, u64)>,
    count: u64,
    bytes: u64,
}

impl<'a> Images<'a> {
    pub(super) fn new(dir: &'a Path) -> Self {
        Self {
            dir,
            open: None,
            count: 0,
            bytes: 0,
        }
    }

    fn whole(&mut self) -> Result<()> {
        match self.open.take() {
            Some((_, left)) if left > 0 => Err(Error::peer("receive image", "it is cut short")),
            _ => Ok(()),
        }
    }

    pub(super) fn begin(&mut self, i: &Image) -> Result<()> {
        self.whole()?;
        let plain = !i.name.is_empty()
            && i.name.len() <= 200
            && !i.name.starts_with('.')
            && i.name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if !plain || i.name == "descriptors.json" || i.size > limits::MAX_IMAGE_FILE {
            return Err(Error::peer(
                format!("receive image {:?}", printable(&i.name)),
                "no such name or size is allowed",
            ));
        }
        self.count += 1;
        self.open = Some((private::create(&self.dir.join(&i.name))?, i.size));
        Ok(())
    }

    pub(super) fn data(&mut self, bytes: &[u8]) -> Result<()> {
        let len = bytes.len() as u64;
        match &mut self.open {
            Some((file, left)) if len <= *left => {
                *left -= len;
                self.bytes += len;
                file.write_all(bytes).context(|| "write image".to_owned())
            }
            _ => Err(Error::peer("receive image", "more bytes than it has")),
        }
    }

    pub(super) fn end(&mut self, e: &StateEnd) -> Result<()> {
        self.whole()?;
        if (self.count, self.bytes) != (e.images, e.bytes) {
            return Err(Error::peer("receive state", "images are missing"));
        }
        Ok(())
    }
}
