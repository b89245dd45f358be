//! Content of a temporary file system as tar.gz, in-process.
//!
//! The names begin with `./` as GNU tar writes them, so that CRIU unpacks what
//! we pack; what GNU tar packs (its sparse files too) is unpacked here. Times
//! with nanoseconds and extended attributes go into pax headers. Unpacking
//! trusts nothing: each name is looked up below the directory, through no
//! symbolic link, and nothing that exists is opened.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, makedev, mknod, utimensat};
use nix::sys::time::TimeSpec;
use tar::{Archive, Builder, EntryType, Header};
use tracing::warn;

use crate::base::{Error, Result, ResultExt};
use crate::sys::mounts::{self, BENEATH, NO_SYMLINKS, NO_XDEV};

/// Packs all that is in the directory `dir` (not what is mounted below it).
///
/// # Errors
/// Those of reading; a file of a kind that tar cannot hold is left out with a
/// warning (sockets, which whoever rebuilds the socket makes again).
pub(super) fn pack(dir: BorrowedFd<'_>) -> Result<Vec<u8>> {
    let mut tar = Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    let mut packer = Packer {
        top: PathBuf::from(own_path(dir)),
        links: HashMap::new(),
        device: None,
    };
    packer.walk(Path::new(""), &mut tar)?;
    let gz = tar
        .into_inner()
        .context(|| "finish the archive".to_owned())?;
    gz.finish().context(|| "finish the archive".to_owned())
}

type Out = Builder<GzEncoder<Vec<u8>>>;

struct Packer {
    top: PathBuf,
    /// Inode of a file with several names to its first name.
    links: HashMap<u64, PathBuf>,
    device: Option<u64>,
}

impl Packer {
    fn walk(&mut self, at: &Path, tar: &mut Out) -> Result<()> {
        let full = self.full(at);
        let shown = || format!("pack {}", at.display());
        let meta = if at.as_os_str().is_empty() {
            fs::metadata(&full)
        } else {
            fs::symlink_metadata(&full)
        };
        let meta = meta.context(shown)?;
        if *self.device.get_or_insert(meta.dev()) != meta.dev() {
            return Ok(());
        }
        self.one(at, &full, &meta, tar)?;
        if meta.is_dir() {
            let mut names = Vec::new();
            for entry in fs::read_dir(&full).context(shown)? {
                names.push(entry.context(shown)?.file_name());
            }
            names.sort();
            for name in names {
                self.walk(&at.join(name), tar)?;
            }
        }
        Ok(())
    }

    /// A path by which the kernel finds it: the top is a magic link, which is
    /// followed only with something behind it.
    fn full(&self, at: &Path) -> PathBuf {
        self.top.join(if at.as_os_str().is_empty() {
            Path::new(".")
        } else {
            at
        })
    }

    fn one(&mut self, at: &Path, full: &Path, meta: &Metadata, tar: &mut Out) -> Result<()> {
        let shown = || format!("pack {}", at.display());
        let kind = meta.file_type();
        if kind.is_socket() {
            warn!(path = %at.display(), "a socket file is not archived");
            return Ok(());
        }
        let mut header = Header::new_gnu();
        header.set_mode(meta.mode() & 0o7777);
        header.set_uid(meta.uid().into());
        header.set_gid(meta.gid().into());
        header.set_mtime(u64::try_from(meta.mtime()).unwrap_or(0));
        header.set_size(0);
        let mut name = PathBuf::from(".").join(at);
        if meta.is_dir() {
            name.push("");
        }
        self.extras(full, meta, tar).context(shown)?;
        if !meta.is_dir() && meta.nlink() > 1 {
            if let Some(first) = self.links.get(&meta.ino()) {
                header.set_entry_type(EntryType::Link);
                return tar.append_link(&mut header, &name, first).context(shown);
            }
            self.links.insert(meta.ino(), name.clone());
        }
        if kind.is_symlink() {
            header.set_entry_type(EntryType::Symlink);
            let target = fs::read_link(full).context(shown)?;
            return tar.append_link(&mut header, &name, target).context(shown);
        }
        if kind.is_file() {
            header.set_entry_type(EntryType::Regular);
            header.set_size(meta.len());
            // The tree is stopped, but others may share the file system.
            let file = File::open(full).context(shown)?;
            let padded = file
                .take(meta.len())
                .chain(std::io::repeat(0))
                .take(meta.len());
            return tar.append_data(&mut header, &name, padded).context(shown);
        }
        let entry_type = if kind.is_dir() {
            EntryType::Directory
        } else if kind.is_fifo() {
            EntryType::Fifo
        } else {
            let device = meta.rdev();
            let part = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
            header
                .set_device_major(part(nix::sys::stat::major(device)))
                .and_then(|()| header.set_device_minor(part(nix::sys::stat::minor(device))))
                .context(shown)?;
            if kind.is_char_device() {
                EntryType::Char
            } else {
                EntryType::Block
            }
        };
        header.set_entry_type(entry_type);
        tar.append_data(&mut header, &name, std::io::empty())
            .context(shown)
    }

    /// What a plain header has no place for.
    fn extras(&self, full: &Path, meta: &Metadata, tar: &mut Out) -> std::io::Result<()> {
        let mut all: Vec<(String, Vec<u8>)> = Vec::new();
        if meta.mtime_nsec() != 0 {
            let text = format!("{}.{:09}", meta.mtime(), meta.mtime_nsec());
            all.push(("mtime".to_owned(), text.into_bytes()));
        }
        if !meta.file_type().is_symlink() {
            for (name, value) in crate::sys::xattr::all(full)? {
                all.push((format!("{XATTR}{name}"), value));
            }
        }
        tar.append_pax_extensions(all.iter().map(|(k, v)| (k.as_str(), v.as_slice())))
    }
}

const XATTR: &str = "SCHILY.xattr.";

/// Unpacks into the (empty, writable) directory `dir`.
///
/// # Errors
/// A damaged archive, names that leave the directory, those of making files.
pub(super) fn unpack(bytes: &[u8], dir: BorrowedFd<'_>) -> Result<()> {
    let mut tar = Archive::new(MultiGzDecoder::new(bytes));
    let mut times = Vec::new();
    let bad = |e: std::io::Error| Error::image("tmpfs archive", e.to_string());
    for entry in tar.entries().map_err(bad)? {
        let mut entry = entry.map_err(bad)?;
        let path = entry.path().map_err(bad)?.into_owned();
        let at = plain(&path)?;
        let shown = || format!("unpack {}", at.display());
        let (mtime, attributes) = extras(&mut entry).map_err(bad)?;
        let header = entry.header().clone();
        let mtime = mtime.unwrap_or((i64::try_from(header.mtime().map_err(bad)?).unwrap_or(0), 0));
        let place = Place::of(dir, &at)?;
        let mode = header.mode().map_err(bad)?;
        let kind = header.entry_type();
        match kind {
            EntryType::Directory => {
                if !at.as_os_str().is_empty()
                    && let Err(e) = fs::create_dir(&place.path)
                    && e.kind() != std::io::ErrorKind::AlreadyExists
                {
                    return Err(Error::os(shown(), e));
                }
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let mut file = File::options()
                    .write(true)
                    .create_new(true)
                    .custom_flags(libc::O_NOFOLLOW)
                    .open(&place.path)
                    .context(shown)?;
                copy_with_holes(&mut entry, &mut file).context(shown)?;
            }
            EntryType::Symlink => {
                let target = entry.link_name().map_err(bad)?.unwrap_or_default();
                std::os::unix::fs::symlink(target, &place.path).context(shown)?;
            }
            EntryType::Link => {
                let target = entry
                    .link_name()
                    .map_err(bad)?
                    .unwrap_or_default()
                    .into_owned();
                let first = Place::of(dir, &plain(&target)?)?;
                fs::hard_link(&first.path, &place.path).context(shown)?;
                continue;
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                let device = if kind == EntryType::Fifo {
                    0
                } else {
                    let part = |n: Option<u32>| u64::from(n.unwrap_or(0));
                    makedev(
                        part(header.device_major().map_err(bad)?),
                        part(header.device_minor().map_err(bad)?),
                    )
                };
                let flag = match kind {
                    EntryType::Char => SFlag::S_IFCHR,
                    EntryType::Block => SFlag::S_IFBLK,
                    _ => SFlag::S_IFIFO,
                };
                mknod(
                    &place.path,
                    flag,
                    Mode::from_bits_truncate(mode & 0o777),
                    device,
                )
                .context(shown)?;
            }
            other => {
                return Err(Error::image(
                    "tmpfs archive",
                    format!("{} is of an unknown kind {other:?}", path.display()),
                ));
            }
        }
        let id = |n: u64| u32::try_from(n).unwrap_or(0);
        std::os::unix::fs::lchown(
            &place.path,
            Some(id(header.uid().map_err(bad)?)),
            Some(id(header.gid().map_err(bad)?)),
        )
        .context(shown)?;
        if kind != EntryType::Symlink {
            fs::set_permissions(&place.path, fs::Permissions::from_mode(mode & 0o7777))
                .context(shown)?;
            for (name, value) in attributes {
                crate::sys::xattr::set(&place.path, &name, &value)?;
            }
        }
        if kind == EntryType::Directory {
            times.push((at, mtime));
        } else {
            set_time(&place.path, mtime).context(shown)?;
        }
    }
    // The checksum stands behind the last entry.
    std::io::copy(&mut tar.into_inner(), &mut std::io::sink()).map_err(bad)?;
    // Filling a directory changes its time.
    for (at, mtime) in times.into_iter().rev() {
        let place = Place::of(dir, &at)?;
        set_time(&place.path, mtime).context(|| format!("unpack {}", at.display()))?;
    }
    Ok(())
}

/// A name to be made: its directory, held open, and a path through it.
struct Place {
    path: PathBuf,
    _dir: Option<OwnedFd>,
}

impl Place {
    fn of(top: BorrowedFd<'_>, at: &Path) -> Result<Self> {
        let Some(name) = at.file_name() else {
            return Ok(Self {
                path: PathBuf::from(own_path(top)).join("."),
                _dir: None,
            });
        };
        let parent = at.parent().unwrap_or(Path::new(""));
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        let dir = mounts::open_at(top, parent, flags, BENEATH | NO_SYMLINKS | NO_XDEV)
            .context(|| format!("unpack {}", at.display()))?;
        Ok(Self {
            path: PathBuf::from(own_path(dir.as_fd())).join(name),
            _dir: Some(dir),
        })
    }
}

fn own_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// The name without `./`; refused if it climbs.
fn plain(path: &Path) -> Result<PathBuf> {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::Normal(p) => out.push(p),
            Component::RootDir | Component::ParentDir | Component::Prefix(_) => {
                return Err(Error::image(
                    "tmpfs archive",
                    format!("{} leads out of it", path.display()),
                ));
            }
        }
    }
    if out.as_os_str().as_bytes().contains(&0) {
        return Err(Error::image("tmpfs archive", "a name holds a zero byte"));
    }
    Ok(out)
}

/// Seconds and nanoseconds; names and values.
type Extras = (Option<(i64, i64)>, Vec<(String, Vec<u8>)>);

fn extras<R: Read>(entry: &mut tar::Entry<'_, R>) -> std::io::Result<Extras> {
    let (mut mtime, mut attributes) = (None, Vec::new());
    if let Some(all) = entry.pax_extensions()? {
        for one in all {
            let one = one?;
            let Ok(key) = one.key() else { continue };
            if key == "mtime" {
                mtime = one.value().ok().and_then(seconds);
            } else if let Some(name) = key.strip_prefix(XATTR) {
                attributes.push((name.to_owned(), one.value_bytes().to_vec()));
            }
        }
    }
    Ok((mtime, attributes))
}

fn seconds(text: &str) -> Option<(i64, i64)> {
    let (sec, frac) = text.split_once('.').unwrap_or((text, "0"));
    let digits: String = frac.chars().chain("000000000".chars()).take(9).collect();
    Some((sec.parse().ok()?, digits.parse().ok()?))
}

fn set_time(path: &Path, (sec, nsec): (i64, i64)) -> nix::Result<()> {
    let t = TimeSpec::new(sec, nsec);
    utimensat(
        nix::fcntl::AT_FDCWD,
        path,
        &t,
        &t,
        UtimensatFlags::NoFollowSymlink,
    )
}

/// Copies, but leaves pages of zeros as holes: they would cost memory.
fn copy_with_holes(from: &mut impl Read, to: &mut File) -> std::io::Result<()> {
    let mut block = vec![0; 64 * 1024];
    let mut length = 0;
    loop {
        let mut filled = 0;
        while filled < block.len() {
            match from.read(&mut block[filled..])? {
                0 => break,
                n => filled += n,
            }
        }
        for page in block[..filled].chunks(4096) {
            let n = i64::try_from(page.len()).unwrap_or(0);
            if page.iter().all(|b| *b == 0) {
                to.seek(SeekFrom::Current(n))?;
            } else {
                to.write_all(page)?;
            }
            length += page.len();
        }
        if filled < block.len() {
            return to.set_len(length as u64);
        }
    }
}

#[cfg(test)]
mod tests;
