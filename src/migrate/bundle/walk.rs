//! The source's half: walks a root file system and says what is in it, first all,
//! later what has changed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};
use xattr::FileExt as _;

use super::{MAX_DEPTH, MAX_ENTRIES, MAX_PATH};
use crate::base::{Error, Result, ResultExt};
use crate::wire::frame::DATA_CHUNK;
use crate::wire::message::{Entry, Xattr};

/// Where entries go: the control lane.
pub trait Sink {
    /// An entry; for a regular file its data follow.
    ///
    /// # Errors
    /// The connection.
    fn entry(&mut self, e: &Entry) -> Result<()>;
    /// Bytes of the last entry, at `offset`.
    ///
    /// # Errors
    /// The connection.
    fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<()>;
    /// A path that was said before is no more.
    ///
    /// # Errors
    /// The connection.
    fn remove(&mut self, path: &[u8]) -> Result<()>;
}

/// What tells whether a file has changed since it was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    inode: u64,
    mode: u32,
    size: i64,
    mtime: (i64, i64),
    ctime: (i64, i64),
    owner: (u32, u32),
    links: u64,
}

impl Mark {
    fn of(s: &FileStat) -> Self {
        Self {
            inode: s.st_ino,
            mode: s.st_mode,
            size: s.st_size,
            mtime: (s.st_mtime, s.st_mtime_nsec),
            ctime: (s.st_ctime, s.st_ctime_nsec),
            owner: (s.st_uid, s.st_gid),
            links: s.st_nlink,
        }
    }
}

/// How coarse the times of files may be, with room: older kernels count them in
/// ticks, of which the longest is 10 ms.
const GRAIN: Duration = Duration::from_millis(40);

/// Whether a change now would show in the file's times: one in the tick of the last
/// one does not.
fn is_old(stat: &FileStat, grain: Duration) -> bool {
    let since = |n: i64| u64::try_from(n).unwrap_or(u64::MAX);
    let nanos = u32::try_from(stat.st_ctime_nsec).unwrap_or(0);
    let changed = Duration::new(since(stat.st_ctime), nanos);
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    changed.saturating_add(grain) <= now.unwrap_or_default()
}

/// What one walk sent.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// Entries looked at.
    pub seen: u64,
    /// Entries sent.
    pub entries: u64,
    /// Bytes of content sent.
    pub bytes: u64,
    /// Paths removed.
    pub removed: u64,
}

/// A root file system, and what of it has been sent.
#[derive(Debug)]
pub struct Tree {
    root: OwnedFd,
    device: u64,
    known: BTreeMap<Vec<u8>, Option<Mark>>,
    mapped: BTreeSet<u64>,
    pub(super) grain: Duration,
}

struct Walk<'a> {
    known: BTreeMap<Vec<u8>, Option<Mark>>,
    old: &'a BTreeMap<Vec<u8>, Option<Mark>>,
    grain: Duration,
    mapped: &'a BTreeSet<u64>,
    links: HashMap<u64, Vec<u8>>,
    device: u64,
    sink: &'a mut dyn Sink,
    sent: Sent,
}

impl Tree {
    /// Opens the root file system at `path`; nothing is sent yet.
    ///
    /// # Errors
    /// It is no directory.
    pub fn open(path: &Path) -> Result<Self> {
        let root = nix::fcntl::open(
            path,
            OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )
        .context(|| format!("open root file system {}", path.display()))?;
        let device = fstat(&root)
            .context(|| format!("stat {}", path.display()))?
            .st_dev;
        Ok(Self {
            root,
            device,
            known: BTreeMap::new(),
            mapped: BTreeSet::new(),
            grain: GRAIN,
        })
    }

    /// From now on, files with these inode numbers are sent by every walk: they
    /// are mapped shared, and writing to a page of a mapping that is dirty already
    /// changes none of a file's times.
    pub fn distrust(&mut self, inodes: impl IntoIterator<Item = u64>) {
        self.mapped.extend(inodes);
    }

    /// Sends everything that has not been sent as it now is. Other file systems
    /// mounted below are not entered.
    ///
    /// # Errors
    /// A file cannot be read; one is of a kind that is not carried (device
    /// nodes); too many or too deep; what the sink says.
    pub fn send(&mut self, sink: &mut dyn Sink) -> Result<Sent> {
        let mut walk = Walk {
            known: BTreeMap::new(),
            old: &self.known,
            grain: self.grain,
            mapped: &self.mapped,
            links: HashMap::new(),
            device: self.device,
            sink,
            sent: Sent::default(),
        };
        let root = openat(
            &self.root,
            ".",
            OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )
        .context(|| "open root file system".to_owned())?;
        let stat = fstat(&root).context(|| "stat root file system".to_owned())?;
        let xattrs = read_xattrs(&root, b"")?;
        walk.one(Vec::new(), &stat, Vec::new(), xattrs, None)?;
        walk.directory(root, &[], 0)?;
        let Walk {
            known, mut sent, ..
        } = walk;
        // Children before parents.
        for path in self.known.keys().rev() {
            if !known.contains_key(path) {
                sink.remove(path)?;
                sent.removed += 1;
            }
        }
        self.known = known;
        Ok(sent)
    }
}

impl Walk<'_> {
    fn directory(&mut self, fd: OwnedFd, path: &[u8], depth: usize) -> Result<()> {
        let what = || format!("read directory /{}", show(path));
        if depth > MAX_DEPTH {
            return Err(Error::refused(what(), "too deep"));
        }
        let mut dir = Dir::from_fd(fd).context(what)?;
        let mut names: Vec<CString> = Vec::new();
        for e in dir.iter() {
            let name = e.context(what)?.file_name().to_owned();
            if name.as_bytes() != b"." && name.as_bytes() != b".." {
                names.push(name);
            }
        }
        names.sort();
        for name in names {
            let mut full = path.to_vec();
            if !full.is_empty() {
                full.push(b'/');
            }
            full.extend_from_slice(name.as_bytes());
            match self.child(&dir, &name, full, depth) {
                // It went away while we looked; the next walk sees that.
                Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ESTALE)) => {}
                // It was replaced by a link or by something else; likewise.
                Err(e) if matches!(e.raw_os_error(), Some(libc::ELOOP | libc::ENOTDIR)) => {}
                other => other?,
            }
        }
        Ok(())
    }

    fn child(&mut self, dir: &Dir, name: &CString, path: Vec<u8>, depth: usize) -> Result<()> {
        let what = || format!("/{}", show(&path));
        if path.len() > MAX_PATH {
            return Err(Error::refused(what(), "path too long"));
        }
        let name: &OsStr = OsStr::from_bytes(name.as_bytes());
        let look = fstatat(dir.as_fd(), name, AtFlags::AT_SYMLINK_NOFOLLOW)
            .context(|| format!("stat {}", what()))?;
        let kind = SFlag::from_bits_truncate(look.st_mode) & SFlag::S_IFMT;
        let open = |flags: OFlag| {
            openat(
                dir.as_fd(),
                name,
                flags | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC,
                Mode::empty(),
            )
            .context(|| format!("open {}", what()))
        };
        match kind {
            SFlag::S_IFDIR => {
                let fd = open(OFlag::O_DIRECTORY | OFlag::O_RDONLY)?;
                let stat = fstat(&fd).context(|| format!("stat {}", what()))?;
                let xattrs = read_xattrs(&fd, &path)?;
                self.one(path.clone(), &stat, Vec::new(), xattrs, None)?;
                if stat.st_dev != self.device {
                    return Ok(()); // something is mounted here
                }
                self.directory(fd, &path, depth + 1)
            }
            SFlag::S_IFREG => {
                if self.unchanged(&path, &look) {
                    return self.one(path, &look, Vec::new(), Vec::new(), None);
                }
                let fd = open(OFlag::O_RDONLY)?;
                let stat = fstat(&fd).context(|| format!("stat {}", what()))?;
                if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
                    return Ok(()); // replaced meanwhile; the next walk sees it
                }
                let xattrs = read_xattrs(&fd, &path)?;
                self.one(path, &stat, Vec::new(), xattrs, Some(File::from(fd)))
            }
            SFlag::S_IFLNK => {
                let target: OsString =
                    readlinkat(dir.as_fd(), name).context(|| format!("readlink {}", what()))?;
                self.one(path, &look, target.into_vec(), Vec::new(), None)
            }
            SFlag::S_IFIFO | SFlag::S_IFSOCK => self.one(path, &look, Vec::new(), Vec::new(), None),
            _ => Err(Error::refused(
                what(),
                "a device node in the root file system is not carried",
            )),
        }
    }

    fn unchanged(&self, path: &[u8], stat: &FileStat) -> bool {
        self.old.get(path) == Some(&Some(Mark::of(stat))) && !self.mapped.contains(&stat.st_ino)
    }

    fn one(
        &mut self,
        path: Vec<u8>,
        stat: &FileStat,
        target: Vec<u8>,
        xattrs: Vec<Xattr>,
        content: Option<File>,
    ) -> Result<()> {
        self.sent.seen += 1;
        if self.sent.seen > MAX_ENTRIES {
            return Err(Error::refused("root file system", "too many files"));
        }
        let kind = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
        let mut hard_link = Vec::new();
        if kind != SFlag::S_IFDIR && stat.st_nlink > 1 {
            match self.links.get(&stat.st_ino) {
                Some(first) => hard_link.clone_from(first),
                None => {
                    self.links.insert(stat.st_ino, path.clone());
                }
            }
        }
        if !self.unchanged(&path, stat) {
            let size = u64::try_from(stat.st_size).unwrap_or(0);
            let linked = !hard_link.is_empty();
            self.sink.entry(&Entry {
                path: path.clone(),
                mode: stat.st_mode,
                uid: stat.st_uid,
                gid: stat.st_gid,
                size: if kind == SFlag::S_IFREG { size } else { 0 },
                mtime: stat.st_mtime,
                mtime_nsec: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
                target,
                hard_link,
                xattrs,
            })?;
            self.sent.entries += 1;
            if let Some(file) = content.filter(|_| !linked) {
                self.content(&path, &file, size)?;
            }
        }
        // One that may change unseen is no known one.
        let regular = kind == SFlag::S_IFREG;
        let mark = (!regular || is_old(stat, self.grain)).then(|| Mark::of(stat));
        self.known.insert(path, mark);
        Ok(())
    }

    /// Sends what of the file is not zero; the other end makes holes.
    fn content(&mut self, path: &[u8], file: &File, size: u64) -> Result<()> {
        let mut buf = vec![0u8; DATA_CHUNK];
        let mut at = 0u64;
        while at < size {
            let want = usize::try_from(size - at).map_or(DATA_CHUNK, |w| w.min(DATA_CHUNK));
            let n = file
                .read_at(&mut buf[..want], at)
                .context(|| format!("read /{}", show(path)))?;
            if n == 0 {
                break; // it shrank; its ctime says so to the next walk
            }
            if !crate::wire::batch::is_zero(&buf[..n]) {
                self.sink.data(at, &buf[..n])?;
                self.sent.bytes += n as u64;
            }
            at += n as u64;
        }
        Ok(())
    }
}

fn read_xattrs(fd: &OwnedFd, path: &[u8]) -> Result<Vec<Xattr>> {
    let what = || format!("read attributes of /{}", show(path));
    let file = File::from(fd.try_clone().context(what)?);
    let names = match file.list_xattr() {
        Err(e) if e.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => return Ok(Vec::new()),
        other => other.context(what)?,
    };
    let mut out = Vec::new();
    for name in names {
        // Overlay's own bookkeeping belongs to this host's layers.
        if name.as_bytes().starts_with(b"trusted.overlay.") {
            continue;
        }
        if let Some(value) = file.get_xattr(&name).context(what)? {
            out.push(Xattr {
                name: name.into_vec(),
                value,
            });
        }
    }
    Ok(out)
}

/// A path for people.
pub(super) fn show(path: &[u8]) -> String {
    String::from_utf8_lossy(path)
        .chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}
