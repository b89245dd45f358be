//! What is in the temporary file systems of a container.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use tracing::debug;

use super::capture::Mounts;
use super::model::{Fs, How, Mount};
use crate::base::{Error, HostPid, Result, ResultExt};
use crate::image::{Kind as Image, Set, archive};
use crate::sys::mounts;
use crate::sys::ns::{self, Kind};

/// Packs every temporary file system that the container has of its own.
pub(crate) fn capture(pid: HostPid, all: &Mounts, set: &mut Set) -> Result<()> {
    let wanted: Vec<&Mount> = all
        .mounts
        .iter()
        .filter(|m| m.how == How::New(Fs::Tmpfs))
        .collect();
    if wanted.is_empty() {
        return Ok(());
    }
    // Copies without what is mounted on them show all that is in them.
    let copies = ns::inside(pid, &[Kind::Mnt], || {
        wanted
            .iter()
            .map(|m| copy_of(m, &all.mounts))
            .collect::<Result<Vec<_>>>()
    })?;
    for (m, copy) in wanted.iter().zip(&copies) {
        let what = || format!("content of the tmpfs at {}", m.entry.mountpoint);
        let flags = libc::O_RDONLY | libc::O_DIRECTORY;
        let top =
            mounts::open_at(copy.as_fd(), Path::new("."), flags, mounts::BENEATH).context(what)?;
        let mut bytes = Vec::new();
        archive::pack(top.as_fd(), &mut bytes).context(what)?;
        debug!(
            mountpoint = m.entry.mountpoint,
            bytes = bytes.len(),
            "tmpfs content"
        );
        set.put_raw(Image::TmpfsDev.file_name(m.entry.root_dev), bytes)?;
    }
    mounts::close_later(copies);
    Ok(())
}

/// A detached copy of the mount, or of another one of the same whole file
/// system if this one is covered.
fn copy_of(m: &Mount, all: &[Mount]) -> Result<OwnedFd> {
    let same = |o: &&Mount| o.entry.root_dev == m.entry.root_dev && o.entry.root == "/";
    for candidate in std::iter::once(m).chain(all.iter().filter(same)) {
        if let Some(fd) = open_if_visible(candidate)? {
            return mounts::clone_at(fd.as_fd())
                .context(|| format!("copy the mount {}", candidate.entry.mountpoint));
        }
    }
    Err(Error::refused(
        format!("tmpfs at {}", m.entry.mountpoint),
        "another mount covers it, so that its content cannot be read",
    ))
}

fn open_if_visible(m: &Mount) -> Result<Option<OwnedFd>> {
    let root = std::fs::File::open("/").context(|| "open /".to_owned())?;
    let path = m.entry.mountpoint.trim_start_matches('/');
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW;
    match mounts::open_at(root.as_fd(), Path::new(path), flags, mounts::NO_SYMLINKS) {
        Ok(fd) => Ok((mounts::mount_id(fd.as_fd())? == m.entry.mnt_id).then_some(fd)),
        Err(e)
            if matches!(
                e.raw_os_error(),
                Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP)
            ) =>
        {
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

/// The packed content for the file system of a mount record; CRIU of old named
/// it by the mount.
pub(crate) fn packed<'a>(set: &'a Set, m: &Mount) -> Option<&'a [u8]> {
    set.raw(&Image::TmpfsDev.file_name(m.entry.root_dev))
        .or_else(|| set.raw(&Image::Tmpfs.file_name(m.entry.mnt_id)))
}
