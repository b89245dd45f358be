//! The destination's half: makes what the source names, below one directory and
//! nowhere else.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{
    Mode, SFlag, UtimensatFlags, fchmod, fstatat, futimens, mkdirat, mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, LinkatFlags, Uid, UnlinkatFlags, fchownat, linkat, symlinkat, unlinkat};
use xattr::FileExt as _;

use super::walk::show;
use super::{MAX_DEPTH, MAX_ENTRIES, MAX_PATH};
use crate::base::{Error, Result, ResultExt};
use crate::wire::message::Entry;

/// A root file system that is being written.
#[derive(Debug)]
pub struct Landing {
    root: OwnedFd,
    /// The file that DATA frames belong to, its size, its name.
    open: Option<(File, u64, Vec<u8>)>,
    /// Times are set last, children before parents: writing changes them.
    times: Vec<(Vec<u8>, i64, u32)>,
    entries: u64,
    bytes: u64,
    max_bytes: u64,
}

impl Landing {
    /// Writes below `dir`, at most `max_bytes` of content.
    ///
    /// # Errors
    /// It is no directory.
    pub fn new(dir: &Path, max_bytes: u64) -> Result<Self> {
        let root = nix::fcntl::open(
            dir,
            OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW,
            Mode::empty(),
        )
        .context(|| format!("open {}", dir.display()))?;
        Ok(Self {
            root,
            open: None,
            times: Vec::new(),
            entries: 0,
            bytes: 0,
            max_bytes,
        })
    }

    /// Bytes of content written.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Makes the entry, in place of whatever is there.
    ///
    /// # Errors
    /// Its path or kind is not allowed (the peer is wrong); the disk is full;
    /// other failures of the file system.
    pub fn entry(&mut self, e: &Entry) -> Result<()> {
        self.open = None;
        self.entries += 1;
        if self.entries > MAX_ENTRIES {
            return Err(Error::peer("bundle", "too many files"));
        }
        let what = || format!("make /{}", show(&e.path));
        let kind = SFlag::from_bits_truncate(e.mode) & SFlag::S_IFMT;
        let mode = Mode::from_bits_truncate(e.mode & 0o7777);
        if e.path.is_empty() {
            if kind != SFlag::S_IFDIR {
                return Err(Error::peer(what(), "the root must be a directory"));
            }
            let root = self.root.try_clone().context(what)?;
            self.times.push((Vec::new(), e.mtime, e.mtime_nsec));
            return dress(root.as_fd(), e, mode);
        }
        let (parent, name) = self.parent(&e.path)?;
        let found = match fstatat(&parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(s) => Some(SFlag::from_bits_truncate(s.st_mode) & SFlag::S_IFMT),
            Err(Errno::ENOENT) => None,
            Err(x) => return Err(x).context(what),
        };
        let in_place = e.hard_link.is_empty() && matches!(kind, SFlag::S_IFDIR | SFlag::S_IFREG);
        if let Some(f) = found
            && !(f == kind && in_place)
        {
            remove_at(parent.as_fd(), name, f, 0).context(what)?;
        }
        if !e.hard_link.is_empty() {
            if kind == SFlag::S_IFDIR {
                return Err(Error::peer(what(), "a hard link to a directory"));
            }
            let (old_parent, old) = self.parent(&e.hard_link)?;
            return linkat(&old_parent, old, &parent, name, LinkatFlags::empty()).context(what);
        }
        match kind {
            SFlag::S_IFDIR => {
                if found != Some(SFlag::S_IFDIR) {
                    mkdirat(&parent, name, Mode::S_IRWXU).context(what)?;
                }
                let fd = beneath(
                    parent.as_fd(),
                    name,
                    OFlag::O_DIRECTORY | OFlag::O_RDONLY,
                    0,
                )
                .context(what)?;
                self.times.push((e.path.clone(), e.mtime, e.mtime_nsec));
                dress(fd.as_fd(), e, mode)
            }
            SFlag::S_IFREG => {
                let flags = OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_WRONLY | OFlag::O_NONBLOCK;
                let file = File::from(beneath(parent.as_fd(), name, flags, 0o600).context(what)?);
                if e.size > self.max_bytes {
                    return Err(Error::peer(what(), "larger than the bundle may be"));
                }
                file.set_len(e.size).context(what)?;
                dress(file.as_fd(), e, mode)?;
                let t = TimeSpec::new(e.mtime, i64::from(e.mtime_nsec));
                futimens(&file, &t, &t).context(what)?;
                self.open = Some((file, e.size, e.path.clone()));
                self.times.push((e.path.clone(), e.mtime, e.mtime_nsec));
                Ok(())
            }
            SFlag::S_IFLNK => {
                if e.target.is_empty() || e.target.len() > MAX_PATH || e.target.contains(&0) {
                    return Err(Error::peer(what(), "not a link's target"));
                }
                symlinkat(OsStr::from_bytes(&e.target), &parent, name).context(what)?;
                bare(parent.as_fd(), name, e).context(what)
            }
            SFlag::S_IFIFO | SFlag::S_IFSOCK => {
                mknodat(&parent, name, kind, mode, 0).context(what)?;
                bare(parent.as_fd(), name, e).context(what)
            }
            _ => Err(Error::peer(what(), "a kind of file that is not allowed")),
        }
    }

    /// Writes bytes of the last entry.
    ///
    /// # Errors
    /// No file is open, or the bytes lie outside it (the peer is wrong); over
    /// the limit; the disk is full.
    pub fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let Some((file, size, path)) = &self.open else {
            return Err(Error::peer("bundle data", "belongs to no file"));
        };
        let what = || format!("write /{}", show(path));
        let end = offset.checked_add(bytes.len() as u64);
        if end.is_none_or(|e| e > *size) {
            return Err(Error::peer(what(), "bytes past its end"));
        }
        self.bytes += bytes.len() as u64;
        if self.bytes > self.max_bytes {
            return Err(Error::peer(what(), "the bundle is larger than it may be"));
        }
        file.write_all_at(bytes, offset).context(what)
    }

    /// Removes a path that was made before; it may be gone already.
    ///
    /// # Errors
    /// The path is not allowed; failures of the file system.
    pub fn remove(&mut self, path: &[u8]) -> Result<()> {
        self.open = None;
        let what = || format!("remove /{}", show(path));
        let (parent, name) = match self.parent(path) {
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => return Ok(()),
            other => other?,
        };
        match fstatat(&parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Err(Errno::ENOENT) => Ok(()),
            Err(e) => Err(e).context(what),
            Ok(s) => {
                let kind = SFlag::from_bits_truncate(s.st_mode) & SFlag::S_IFMT;
                remove_at(parent.as_fd(), name, kind, 0).context(what)
            }
        }
    }

    /// Puts times on what was made since the last call (writing changed them).
    ///
    /// # Errors
    /// Failures of the file system.
    pub fn settle(&mut self) -> Result<()> {
        self.open = None;
        for (path, sec, nsec) in std::mem::take(&mut self.times).into_iter().rev() {
            let what = || format!("set times of /{}", show(&path));
            let t = TimeSpec::new(sec, i64::from(nsec));
            if path.is_empty() {
                futimens(&self.root, &t, &t).context(what)?;
                continue;
            }
            let done = self.parent(&path).and_then(|(parent, name)| {
                utimensat(&parent, name, &t, &t, UtimensatFlags::NoFollowSymlink).context(what)
            });
            match done {
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {} // removed later
                other => other?,
            }
        }
        Ok(())
    }

    /// Opens the parent of a foreign path, beneath the root and through no link.
    fn parent<'p>(&self, path: &'p [u8]) -> Result<(OwnedFd, &'p OsStr)> {
        let bad = |why: &'static str| Error::peer(format!("bundle path {:?}", show(path)), why);
        if path.is_empty() || path.len() > MAX_PATH || path.contains(&0) {
            return Err(bad("empty, too long, or with a zero byte"));
        }
        let parts: Vec<&[u8]> = path.split(|b| *b == b'/').collect();
        if parts.len() > MAX_DEPTH {
            return Err(bad("too deep"));
        }
        if parts
            .iter()
            .any(|p| p.is_empty() || *p == b"." || *p == b"..")
        {
            return Err(bad("must be relative, without empty, . or .. parts"));
        }
        let (name, dirs) = parts.split_last().ok_or_else(|| bad("empty"))?;
        let dir = if dirs.is_empty() {
            b".".to_vec()
        } else {
            dirs.join(&b'/')
        };
        let fd = beneath(
            self.root.as_fd(),
            OsStr::from_bytes(&dir),
            OFlag::O_DIRECTORY | OFlag::O_PATH,
            0,
        )
        .context(|| format!("open directory of /{}", show(path)))?;
        Ok((fd, OsStr::from_bytes(name)))
    }
}

fn beneath(
    dir: BorrowedFd<'_>,
    path: &OsStr,
    flags: OFlag,
    mode: u32,
) -> std::result::Result<OwnedFd, Errno> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW)
        .mode(Mode::from_bits_truncate(mode))
        .resolve(
            ResolveFlag::RESOLVE_BENEATH
                | ResolveFlag::RESOLVE_NO_SYMLINKS
                | ResolveFlag::RESOLVE_NO_MAGICLINKS
                | ResolveFlag::RESOLVE_NO_XDEV,
        );
    openat2(dir, path, how)
}

/// Owner, attributes, mode: in this order, since chown clears set-id bits and
/// file capabilities.
fn dress(fd: BorrowedFd<'_>, e: &Entry, mode: Mode) -> Result<()> {
    let what = || format!("set owner and mode of /{}", show(&e.path));
    nix::unistd::fchown(fd, Some(Uid::from_raw(e.uid)), Some(Gid::from_raw(e.gid)))
        .context(what)?;
    let file = File::from(fd.try_clone_to_owned().context(what)?);
    // What an earlier round left and this one does not have must go.
    let old = match file.list_xattr() {
        Ok(names) => names.collect(),
        Err(_) => Vec::new(), // no attributes on this file system
    };
    for name in old {
        if !e.xattrs.iter().any(|x| x.name == name.as_bytes()) {
            // A security module's own label cannot be removed, and need not.
            let _ = file.remove_xattr(&name);
        }
    }
    for x in &e.xattrs {
        let name = OsStr::from_bytes(&x.name);
        file.set_xattr(name, &x.value)
            .context(|| format!("set attribute {name:?} of /{}", show(&e.path)))?;
    }
    fchmod(fd, mode).context(what)
}

/// Owner and time of what cannot be opened.
fn bare(dir: BorrowedFd<'_>, name: &OsStr, e: &Entry) -> std::result::Result<(), Errno> {
    fchownat(
        dir,
        name,
        Some(Uid::from_raw(e.uid)),
        Some(Gid::from_raw(e.gid)),
        AtFlags::AT_SYMLINK_NOFOLLOW,
    )?;
    let t = TimeSpec::new(e.mtime, i64::from(e.mtime_nsec));
    utimensat(dir, name, &t, &t, UtimensatFlags::NoFollowSymlink)
}

fn remove_at(
    dir: BorrowedFd<'_>,
    name: &OsStr,
    kind: SFlag,
    depth: usize,
) -> std::result::Result<(), Errno> {
    if kind != SFlag::S_IFDIR {
        return unlinkat(dir, name, UnlinkatFlags::NoRemoveDir);
    }
    if depth > MAX_DEPTH {
        return Err(Errno::ELOOP);
    }
    let fd = beneath(dir, name, OFlag::O_DIRECTORY | OFlag::O_RDONLY, 0)?;
    let mut inner = nix::dir::Dir::from_fd(fd)?;
    let mut names = Vec::new();
    for e in inner.iter() {
        let n = e?.file_name().to_owned();
        if n.as_bytes() != b"." && n.as_bytes() != b".." {
            names.push(n);
        }
    }
    for n in names {
        let n = OsStr::from_bytes(n.as_bytes());
        let s = fstatat(inner.as_fd(), n, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        let k = SFlag::from_bits_truncate(s.st_mode) & SFlag::S_IFMT;
        remove_at(inner.as_fd(), n, k, depth + 1)?;
    }
    unlinkat(dir, name, UnlinkatFlags::RemoveDir)
}
