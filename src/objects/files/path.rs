//! Files that are opened by path: regular files, directories, devices.
//!
//! The path is the one inside the mount namespace of the tasks, and is looked
//! up again before it is believed. A file that has lost its name is carried
//! with its content (`ghost`); one on a mount outside the container is carried
//! only as what the caller gives again: declared as external, or a standard
//! stream of the root task.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::sys::stat::FileStat;

use super::capture::{Capture, Open, stat};
use super::fdinfo;
use crate::base::{Error, Result};
use crate::image::Kind as Image;
use crate::image::records::{FdTypes, FileEntry, RegFileEntry, RemapFilePathEntry, RemapType};
use crate::sys::fdops;

const O_ACCMODE: u32 = libc::O_ACCMODE.cast_unsigned();
const O_WRONLY: u32 = libc::O_WRONLY.cast_unsigned();
const O_APPEND: u32 = libc::O_APPEND.cast_unsigned();
const O_PATH: u32 = libc::O_PATH.cast_unsigned();
const O_TMPFILE: u32 = (libc::O_TMPFILE & !libc::O_DIRECTORY).cast_unsigned();

const OVERLAYFS: i64 = 0x794c_7630;
const PROCFS: i64 = 0x9fa0;

const DELETED: &str = " (deleted)";

impl Capture {
    pub(super) fn path(&mut self, open: &Open<'_>, id: u32) -> Result<FileEntry> {
        let key = format!("file[{:x}:{:x}]", open.info.mnt_id, open.stat.st_ino);
        let mut entry = RegFileEntry {
            id,
            flags: open.flags(),
            pos: open.info.pos,
            fown: open.fown.clone(),
            name: open.link.clone(),
            mode: Some(open.stat.st_mode),
            ..RegFileEntry::default()
        };
        if self.policy.external.contains(&key) {
            (entry.name, entry.ext) = (key, Some(true));
        } else if self.mounts.contains(&open.info.mnt_id) {
            entry.mnt_id = self.own_mounts.then_some(open.info.mnt_id);
            self.locate(open, id, &mut entry)?;
        } else {
            self.outside(open, key, &mut entry)?;
        }
        if entry.ext != Some(true) && is_kind(&open.stat, libc::S_IFREG) && has_size(open.flags()) {
            entry.size = u64::try_from(open.stat.st_size).ok();
        }
        Ok(FileEntry {
            r#type: FdTypes::Reg.into(),
            id,
            reg: Some(entry),
            ..FileEntry::default()
        })
    }

    /// Makes sure that the path leads to the file again, or carries the file.
    fn locate(&mut self, open: &Open<'_>, id: u32, entry: &mut RegFileEntry) -> Result<()> {
        let link = open.link.as_str();
        let bare = link.strip_suffix(DELETED).unwrap_or(link);
        if open.stat.st_nlink == 0 {
            bare.clone_into(&mut entry.name);
            return self.ghost(open, id);
        }
        match self.lookup(link)? {
            Some((found, _)) if same(&found, &open.stat) => Ok(()),
            Some((found, _)) if same_device(&found, &open.stat) => Ok(()),
            Some(_) => Err(Error::refused(
                format!("file {link}"),
                "is hidden: another file has its name now",
            )),
            None if fs_type(open.fd)? == PROCFS => Err(Error::refused(
                format!("file {link}"),
                "belongs to a process that is gone",
            )),
            // A file from a lower layer keeps its link count.
            None if link != bare && open.stat.st_nlink == 1 && fs_type(open.fd)? == OVERLAYFS => {
                bare.clone_into(&mut entry.name);
                self.ghost(open, id)
            }
            None => {
                entry.name = self.other_name(Path::new(bare), &open.stat)?;
                Ok(())
            }
        }
    }

    /// A file on a mount that is not the container's.
    fn outside(&self, open: &Open<'_>, key: String, entry: &mut RegFileEntry) -> Result<()> {
        if is_kind(&open.stat, libc::S_IFCHR)
            && let Some((found, mnt_id)) = self.lookup(&open.link)?
            && same_device(&found, &open.stat)
        {
            entry.mnt_id = self.own_mounts.then_some(mnt_id);
            return Ok(());
        }
        if self
            .standard
            .contains(&(open.stat.st_dev, open.stat.st_ino))
        {
            (entry.name, entry.ext) = (key, Some(true));
            return Ok(());
        }
        Err(Error::refused(
            format!("file {} ({key})", open.link),
            "lies outside the container and is not declared as external",
        ))
    }

    /// What is at a path in the tasks' mount namespace, and on which mount.
    pub(super) fn lookup(&self, path: &str) -> Result<Option<(FileStat, i32)>> {
        let flags = libc::O_PATH | libc::O_NOFOLLOW;
        match fdops::open_in_root(self.root.as_fd(), Path::new(path), flags, 0) {
            Ok(fd) => Ok(Some((stat(fd.as_fd())?, mnt_id(&fd)?))),
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => Ok(None),
            Err(e) => Err(e),
        }
    }

    pub(super) fn remap(&mut self, orig_id: u32, remap_id: u32) {
        let entry = RemapFilePathEntry {
            orig_id,
            remap_id,
            remap_type: Some(RemapType::Ghost.into()),
        };
        self.image.push(Image::RemapFpath, 0, &entry);
    }
}

fn mnt_id(fd: &OwnedFd) -> Result<i32> {
    use std::os::fd::AsRawFd;
    let me = crate::base::HostPid(std::process::id().cast_signed());
    Ok(fdinfo::read(me, fd.as_raw_fd())?.mnt_id)
}

pub(super) fn fs_type(fd: BorrowedFd<'_>) -> Result<i64> {
    let fs = nix::sys::statfs::fstatfs(fd).map_err(|e| Error::errno("fstatfs", e as i32))?;
    Ok(fs.filesystem_type().0)
}

fn is_kind(stat: &FileStat, kind: u32) -> bool {
    stat.st_mode & libc::S_IFMT == kind
}

pub(super) fn same(a: &FileStat, b: &FileStat) -> bool {
    (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)
}

/// Two nodes of one device, wherever they lie.
fn same_device(a: &FileStat, b: &FileStat) -> bool {
    let device = |s: &FileStat| is_kind(s, libc::S_IFCHR) || is_kind(s, libc::S_IFBLK);
    device(a) && a.st_mode & libc::S_IFMT == b.st_mode & libc::S_IFMT && a.st_rdev == b.st_rdev
}

/// A log that is only appended to may grow until the restore.
fn has_size(flags: u32) -> bool {
    !(flags & O_ACCMODE == O_WRONLY && flags & O_APPEND != 0)
}

/// Flags of open(2) that say how an open file behaves from then on; the
/// others only mattered to the open that made the file, or would change it.
fn reopen_flags(entry: &RegFileEntry) -> i32 {
    const PATH: i32 = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW;
    const LASTING: i32 = libc::O_ACCMODE
        | libc::O_APPEND
        | libc::O_NONBLOCK
        | libc::O_SYNC
        | libc::O_DIRECT
        | libc::O_LARGEFILE
        | libc::O_DIRECTORY
        | libc::O_NOATIME;
    let flags = entry.flags.cast_signed();
    let link = entry.mode.unwrap_or(0) & libc::S_IFMT == libc::S_IFLNK;
    if flags & libc::O_PATH != 0 {
        return flags & PATH | if link { libc::O_NOFOLLOW } else { 0 };
    }
    // O_TMPFILE holds O_DIRECTORY.
    let mut lasting = flags & LASTING;
    if flags & O_TMPFILE.cast_signed() != 0 {
        lasting &= !libc::O_DIRECTORY;
    }
    lasting | libc::O_NOCTTY
}

/// Opens the file of a record below `root`, at its position.
pub(super) fn open(root: BorrowedFd<'_>, name: &str, entry: &RegFileEntry) -> Result<OwnedFd> {
    let flags = reopen_flags(entry);
    let fd = fdops::open_in_root(root, Path::new(name), flags, 0)
        .map_err(|e| e.within(format!("open file {name} again")))?;
    let found = stat(fd.as_fd())?;
    check(name, entry, &found)?;
    let seekable = matches!(
        found.st_mode & libc::S_IFMT,
        libc::S_IFREG | libc::S_IFDIR | libc::S_IFBLK
    );
    if entry.flags & O_PATH == 0 && entry.pos != u64::MAX && (seekable || entry.pos != 0) {
        let pos = entry.pos.cast_signed();
        nix::unistd::lseek(&fd, pos, nix::unistd::Whence::SeekSet)
            .map_err(|e| Error::errno(format!("seek file {name} to {pos}"), e as i32))?;
    }
    Ok(fd)
}

/// Whether the file is still the one that was open.
fn check(name: &str, entry: &RegFileEntry, found: &FileStat) -> Result<()> {
    let subject = || format!("file {name}");
    if let Some(mode) = entry.mode
        && mode != found.st_mode
    {
        let why = format!("has mode {:#o} now, had {mode:#o}", found.st_mode);
        return Err(Error::image(subject(), why));
    }
    if let Some(size) = entry.size
        && u64::try_from(found.st_size) != Ok(size)
    {
        let why = format!("has {} bytes now, had {size}", found.st_size);
        return Err(Error::image(subject(), why));
    }
    Ok(())
}
