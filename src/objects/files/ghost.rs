//! Files that have lost their name: the content travels with the image.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use prost::Message;

use super::capture::{Capture, Open, link_of};
use crate::base::{Error, Result, limits};
use crate::image::Kind as Image;
use crate::image::records::{GhostChunkEntry, GhostFileEntry, Timeval};
use crate::sys::fdops;

/// From this size on only what is not a hole is saved.
const CHUNKS_FROM: u64 = 3 * 4096;

impl Capture {
    /// Saves the file behind `open` and says that file `id` is opened from it.
    pub(super) fn ghost(&mut self, open: &Open<'_>, id: u32) -> Result<()> {
        let inode = (open.stat.st_dev, open.stat.st_ino);
        if let Some(known) = self.ghosts.get(&inode).copied() {
            self.remap(id, known);
            return Ok(());
        }
        let ghost = u32::try_from(self.ghosts.len() + 1)
            .map_err(|_| Error::bug("files without a name", "too many"))?;
        let bytes = u64::try_from(open.stat.st_blocks)
            .unwrap_or(0)
            .saturating_mul(512);
        if bytes > self.policy.ghost_limit {
            return Err(Error::refused(
                format!(
                    "file {} of {bytes} bytes, which has no name any more,",
                    open.link
                ),
                format!(
                    "is above the limit of {} (--ghost-limit)",
                    self.policy.ghost_limit
                ),
            ));
        }
        let (entry, payload) = record(open)?;
        self.image
            .push_payload(Image::GhostFile, ghost, &entry, &payload);
        self.ghosts.insert(inode, ghost);
        self.remap(id, ghost);
        Ok(())
    }
}

fn record(open: &Open<'_>) -> Result<(GhostFileEntry, Vec<u8>)> {
    let s = &open.stat;
    let kind = s.st_mode & libc::S_IFMT;
    let time = |sec: i64, nsec: i64| Timeval {
        tv_sec: sec.cast_unsigned(),
        tv_usec: nsec.cast_unsigned() / 1000,
    };
    let size = u64::try_from(s.st_size).unwrap_or(0);
    let mut entry = GhostFileEntry {
        uid: s.st_uid,
        gid: s.st_gid,
        mode: s.st_mode,
        dev: Some(kernel_dev(s.st_dev)),
        ino: Some(s.st_ino),
        atim: Some(time(s.st_atime, s.st_atime_nsec)),
        mtim: Some(time(s.st_mtime, s.st_mtime_nsec)),
        ..GhostFileEntry::default()
    };
    match kind {
        libc::S_IFREG => {
            let file = readable(open.fd)?;
            if size >= CHUNKS_FROM {
                (entry.chunks, entry.size) = (Some(true), Some(size));
                return Ok((entry, chunks(&file, size)?));
            }
            let payload = piece(&file, 0, size)?;
            Ok((entry, payload))
        }
        libc::S_IFCHR | libc::S_IFBLK => {
            entry.rdev = u32::try_from(s.st_rdev).ok();
            Ok((entry, Vec::new()))
        }
        libc::S_IFDIR | libc::S_IFIFO => Ok((entry, Vec::new())),
        _ => Err(Error::refused(
            format!("{} without a name", link_of(open.fd)?),
            "cannot be carried",
        )),
    }
}

/// A device number as the kernel packs it: 20 bits of minor.
pub(super) fn kernel_dev(dev: u64) -> u32 {
    libc::major(dev) << 20 | libc::minor(dev) & 0xf_ffff
}

/// The descriptor may be open for writing only.
fn readable(fd: BorrowedFd<'_>) -> Result<File> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    File::open(&path).map_err(|e| Error::os(format!("open {path}"), e))
}

fn piece(file: &File, from: u64, len: u64) -> Result<Vec<u8>> {
    let mut data = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
    file.read_exact_at(&mut data, from)
        .map_err(|e| Error::os(format!("read {len} bytes at {from}"), e))?;
    Ok(data)
}

/// What is not a hole, each piece after its record.
fn chunks(mut file: &File, size: u64) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    let mut at = 0;
    while at < size {
        let Some(start) = seek(&mut file, at, libc::SEEK_DATA)? else {
            break;
        };
        let end = seek(&mut file, start, libc::SEEK_HOLE)?
            .unwrap_or(size)
            .min(size);
        let chunk = GhostChunkEntry {
            len: end.saturating_sub(start),
            off: start,
        };
        out.extend_from_slice(
            &u32::try_from(chunk.encoded_len())
                .unwrap_or(0)
                .to_le_bytes(),
        );
        out.extend_from_slice(&chunk.encode_to_vec());
        out.extend_from_slice(&piece(file, start, chunk.len)?);
        at = end;
    }
    Ok(out)
}

/// lseek(2) with SEEK_DATA or SEEK_HOLE; `None` behind the last data.
fn seek(file: &mut &File, at: u64, whence: i32) -> Result<Option<u64>> {
    use nix::unistd::{Whence, lseek};
    let whence = if whence == libc::SEEK_DATA {
        Whence::SeekData
    } else {
        Whence::SeekHole
    };
    match lseek(file.as_fd(), at.cast_signed(), whence) {
        Ok(at) => Ok(u64::try_from(at).ok()),
        Err(nix::errno::Errno::ENXIO) => Ok(None),
        Err(e) => Err(Error::errno(format!("lseek from {at}"), e as i32)),
    }
}

/// A ghost of an image, checked.
#[derive(Debug)]
pub(super) struct Ghost {
    entry: GhostFileEntry,
    pieces: Vec<Piece>,
}

/// Where it lies, and its bytes.
type Piece = (u64, Vec<u8>);

impl Ghost {
    pub(super) fn parse(entry: GhostFileEntry, payload: &[u8]) -> Result<Self> {
        let mut pieces = Vec::new();
        if entry.chunks == Some(true) {
            let size = entry
                .size
                .ok_or_else(|| Error::image("ghost file", "has no size"))?;
            let mut rest = payload;
            while !rest.is_empty() {
                let (piece, after) = next_chunk(rest, size)
                    .ok_or_else(|| Error::image("ghost file", "has a damaged chunk"))?;
                pieces.push(piece);
                rest = after;
            }
        } else if !payload.is_empty() {
            pieces.push((0, payload.to_vec()));
        }
        match entry.mode & libc::S_IFMT {
            libc::S_IFREG | libc::S_IFDIR | libc::S_IFIFO => {}
            libc::S_IFCHR | libc::S_IFBLK if entry.rdev.is_some() => {}
            _ => {
                return Err(Error::image(
                    "ghost file",
                    format!("of mode {:#o} cannot be made", entry.mode),
                ));
            }
        }
        Ok(Self { entry, pieces })
    }

    pub(super) fn is_dir(&self) -> bool {
        self.entry.mode & libc::S_IFMT == libc::S_IFDIR
    }

    /// Makes it below `root` under `name`, which must be free.
    pub(super) fn make(&self, root: BorrowedFd<'_>, name: &Path) -> Result<()> {
        use nix::sys::stat::{Mode, SFlag, mkdirat, mknodat};
        let what = || format!("make file {} again for its content", name.display());
        let nix = |e: nix::errno::Errno| Error::errno(what(), e as i32);
        let (dir, last) = parent(root, name)?;
        let mode = Mode::from_bits_truncate(self.entry.mode);
        match self.entry.mode & libc::S_IFMT {
            libc::S_IFREG => {
                let flags = libc::O_CREAT | libc::O_EXCL | libc::O_RDWR;
                let file = File::from(fdops::open_in_root(dir.as_fd(), last, flags, 0o600)?);
                self.write(&file).map_err(|e| Error::os(what(), e))?;
            }
            libc::S_IFDIR => mkdirat(&dir, last, mode).map_err(nix)?,
            kind => {
                let rdev = u64::from(self.entry.rdev.unwrap_or(0));
                let kind = SFlag::from_bits_truncate(kind);
                mknodat(&dir, last, kind, mode, rdev).map_err(nix)?;
            }
        }
        self.dress(&dir, last)
    }

    fn write(&self, file: &File) -> std::io::Result<()> {
        for (at, data) in &self.pieces {
            file.write_all_at(data, *at)?;
        }
        if let Some(size) = self.entry.size {
            file.set_len(size)?;
        }
        (&*file).seek(SeekFrom::Start(0)).map(drop)
    }

    /// Owner, mode, times.
    fn dress(&self, dir: &OwnedFd, name: &Path) -> Result<()> {
        use nix::sys::stat::{FchmodatFlags, Mode, UtimensatFlags, fchmodat, utimensat};
        use nix::sys::time::TimeSpec;
        use nix::unistd::{Gid, Uid, fchownat};
        let e = &self.entry;
        let mode = Mode::from_bits_truncate(e.mode);
        let time = |t: &Timeval| {
            let nsec = (t.tv_usec % 1_000_000).cast_signed() * 1000;
            TimeSpec::new(t.tv_sec.cast_signed(), nsec)
        };
        let no_follow = nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW;
        fchownat(
            dir,
            name,
            Some(Uid::from_raw(e.uid)),
            Some(Gid::from_raw(e.gid)),
            no_follow,
        )
        .and_then(|()| fchmodat(dir, name, mode, FchmodatFlags::FollowSymlink))
        .and_then(|()| match (&e.atim, &e.mtim) {
            (Some(a), Some(m)) => {
                let how = UtimensatFlags::NoFollowSymlink;
                utimensat(dir, name, &time(a), &time(m), how)
            }
            _ => Ok(()),
        })
        .map_err(|e| Error::errno(format!("owner and mode of {}", name.display()), e as i32))
    }
}

fn next_chunk(bytes: &[u8], size: u64) -> Option<(Piece, &[u8])> {
    let (len, rest) = bytes.split_first_chunk::<4>()?;
    let len = usize::try_from(u32::from_le_bytes(*len)).ok()?;
    let chunk = GhostChunkEntry::decode(rest.get(..len)?).ok()?;
    let rest = rest.get(len..)?;
    let end = chunk.off.checked_add(chunk.len)?;
    if end > size || chunk.len > limits::MAX_IMAGE_FILE {
        return None;
    }
    let (data, rest) = rest.split_at_checked(usize::try_from(chunk.len).ok()?)?;
    Some(((chunk.off, data.to_vec()), rest))
}

/// The directory of `name` below `root`, and its last component.
pub(super) fn parent<'n>(root: BorrowedFd<'_>, name: &'n Path) -> Result<(OwnedFd, &'n Path)> {
    let bad = || Error::image(format!("file {}", name.display()), "has no plain name");
    let last = name.file_name().ok_or_else(bad)?;
    let dir = name.parent().ok_or_else(bad)?;
    let dir = fdops::open_in_root(root, dir, libc::O_PATH | libc::O_DIRECTORY, 0)?;
    Ok((dir, Path::new(last)))
}

/// Removes what [`Ghost::make`] made.
pub(super) fn remove(root: BorrowedFd<'_>, name: &Path, is_dir: bool) -> Result<()> {
    use nix::unistd::{UnlinkatFlags, unlinkat};
    let (dir, last) = parent(root, name)?;
    let how = if is_dir {
        UnlinkatFlags::RemoveDir
    } else {
        UnlinkatFlags::NoRemoveDir
    };
    unlinkat(&dir, last, how)
        .map_err(|e| Error::errno(format!("unlink {}", name.display()), e as i32))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_damaged_ghost_is_an_error_and_no_panic(payload in prop::collection::vec(any::<u8>(), 0..64), size in any::<u64>()) {
            let entry = GhostFileEntry { mode: libc::S_IFREG, chunks: Some(true), size: Some(size), ..Default::default() };
            let _ = Ghost::parse(entry, &payload);
        }
    }

    #[test]
    fn a_sparse_file_comes_back_sparse_and_equal() {
        let dir = tempfile::tempdir().unwrap();
        let a = File::create_new(dir.path().join("a")).unwrap();
        a.write_all_at(b"head", 0).unwrap();
        a.write_all_at(b"tail", 1 << 20).unwrap();
        let size = (1 << 20) + 4;
        let entry = GhostFileEntry {
            mode: libc::S_IFREG | 0o640,
            chunks: Some(true),
            size: Some(size),
            ..Default::default()
        };
        let a = File::open(dir.path().join("a")).unwrap();
        let ghost = Ghost::parse(entry, &chunks(&a, size).unwrap()).unwrap();
        let root = File::open(dir.path()).unwrap();
        ghost.make(root.as_fd(), Path::new("/b")).unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        assert_eq!(std::fs::read(a).unwrap(), std::fs::read(&b).unwrap());
        use std::os::unix::fs::MetadataExt;
        let b = std::fs::metadata(b).unwrap();
        assert!(b.blocks() * 512 < 1 << 19, "{} blocks", b.blocks());
        assert_eq!(b.mode() & 0o7777, 0o640);
    }
}
