//! Writing an archive.

use super::{BLOCK, MAX_EXTENDED, MAX_MEMBERS, MAX_PATH, MAX_PIECES};
use crate::base::{Error, Result, ResultExt};
use flate2::Compression;
use flate2::write::GzEncoder;
use nix::dir::Dir;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};
use nix::unistd::{Whence, lseek};
use std::collections::HashMap;
use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use tar::{EntryType, GnuExtSparseHeader, Header};

/// Deepest directory that is packed: each level holds a descriptor.
const MAX_DEPTH: usize = 512;

/// Writes all below `dir` (which is opened for reading), and `dir` itself, as an
/// archive. Returns how many members it has.
///
/// Other file systems are not entered, but what they are mounted on is made. Sockets
/// are left out. Nothing may change meanwhile.
///
/// Errors: read or write calls; a tree that is too deep, or beyond what [`super::unpack`]
/// takes, by the name of the file.
pub fn pack(dir: BorrowedFd<'_>, out: impl Write) -> Result<usize> {
    let mut packer = Packer {
        out: GzEncoder::new(out, Compression::fast()),
        links: HashMap::new(),
        device: fstat(dir)
            .context(|| String::from("stat directory"))?
            .st_dev,
        members: 0,
        headers: 0,
    };
    let top = openat(dir, c".", directory_flags(), Mode::empty())
        .context(|| String::from("open directory"))?;
    packer.directory(top, b"./", 0)?;
    packer.put(&[0; 2 * BLOCK])?;
    packer
        .out
        .finish()
        .context(|| String::from("write archive"))?;
    Ok(packer.members)
}

struct Packer<W: Write> {
    out: GzEncoder<W>,
    /// Path of the first name of each inode with several.
    links: HashMap<u64, Vec<u8>>,
    device: u64,
    members: usize,
    /// Members, and what stands before them in members of its own.
    headers: usize,
}

fn directory_flags() -> OFlag {
    OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC
}

fn named(path: &[u8]) -> impl Fn() -> String {
    move || format!("pack {}", OsStr::from_bytes(path).display())
}

impl<W: Write> Packer<W> {
    fn directory(&mut self, dir: OwnedFd, path: &[u8], depth: usize) -> Result<()> {
        if depth > MAX_DEPTH {
            return Err(Error::refused(named(path)(), "is too deep"));
        }
        let stat = fstat(&dir).context(named(path))?;
        let xattrs = xattrs(&dir, c".").context(named(path))?;
        self.header(path, &stat, EntryType::Directory, b"", &xattrs, 0, None)?;
        let mut names: Vec<CString> = Vec::new();
        let listed = openat(&dir, c".", directory_flags(), Mode::empty()).context(named(path))?;
        let mut listed = Dir::from_fd(listed).context(named(path))?;
        for entry in listed.iter() {
            let entry = entry.context(named(path))?;
            let name = entry.file_name();
            if name != c"." && name != c".." {
                names.push(name.to_owned());
            }
        }
        names.sort();
        for name in names {
            let full = [path, name.as_bytes()].concat();
            self.entry(&dir, &name, full, depth)?;
        }
        Ok(())
    }

    fn entry(&mut self, dir: &OwnedFd, name: &CStr, mut path: Vec<u8>, depth: usize) -> Result<()> {
        let stat = fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW).context(named(&path))?;
        let format = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits());
        let elsewhere = stat.st_dev != self.device;
        if format == SFlag::S_IFDIR {
            path.push(b'/');
            if elsewhere {
                return self.header(&path, &stat, EntryType::Directory, b"", &[], 0, None);
            }
            let child =
                openat(dir, name, directory_flags(), Mode::empty()).context(named(&path))?;
            return self.directory(child, &path, depth + 1);
        }
        if elsewhere {
            // Something is mounted on a file: an empty one will do for that again.
            return self.header(&path, &stat, EntryType::Regular, b"", &[], 0, None);
        }
        if format == SFlag::S_IFSOCK {
            // A socket's file is made by whoever binds it.
            return Ok(());
        }
        if stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&stat.st_ino) {
                let first = first.clone();
                return self.header(&path, &stat, EntryType::Link, &first, &[], 0, None);
            }
            self.links.insert(stat.st_ino, path.clone());
        }
        let xattrs = xattrs(dir, name).context(named(&path))?;
        match format {
            SFlag::S_IFREG => self.file(dir, name, &path, &stat, &xattrs),
            SFlag::S_IFLNK => {
                let target: OsString = readlinkat(dir, name).context(named(&path))?;
                let target = target.into_vec();
                self.header(&path, &stat, EntryType::Symlink, &target, &xattrs, 0, None)
            }
            SFlag::S_IFCHR => self.header(&path, &stat, EntryType::Char, b"", &xattrs, 0, None),
            SFlag::S_IFBLK => self.header(&path, &stat, EntryType::Block, b"", &xattrs, 0, None),
            SFlag::S_IFIFO => self.header(&path, &stat, EntryType::Fifo, b"", &xattrs, 0, None),
            _ => Err(Error::refused(named(&path)(), "is of no known kind")),
        }
    }

    fn file(
        &mut self,
        dir: &OwnedFd,
        name: &CStr,
        path: &[u8],
        stat: &FileStat,
        xattrs: &Xattrs,
    ) -> Result<()> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let file = File::from(openat(dir, name, flags, Mode::empty()).context(named(path))?);
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let blocks = u64::try_from(stat.st_blocks).unwrap_or(0);
        let holes = blocks * 512 < size;
        let pieces = if holes {
            pieces(&file, size).context(named(path))?
        } else {
            vec![(0, size)]
        };
        let content: u64 = pieces.iter().map(|(_, length)| length).sum();
        let kind = if holes {
            EntryType::GNUSparse
        } else {
            EntryType::Regular
        };
        let sparse = holes.then_some((pieces.as_slice(), size));
        self.header(path, stat, kind, b"", xattrs, content, sparse)?;
        let mut buffer = vec![0; 64 << 10];
        for (offset, length) in pieces {
            let mut done = 0;
            while done < length {
                let want = usize::try_from(length - done)
                    .unwrap_or(usize::MAX)
                    .min(buffer.len());
                file.read_exact_at(&mut buffer[..want], offset + done)
                    .context(named(path))?;
                self.put(&buffer[..want])?;
                done += want as u64;
            }
        }
        self.pad(content)
    }

    /// Records that do not fit the header, then the header.
    #[allow(
        clippy::too_many_arguments,
        reason = "they are the fields of the header that it writes"
    )]
    fn header(
        &mut self,
        path: &[u8],
        stat: &FileStat,
        kind: EntryType,
        link: &[u8],
        xattrs: &[(Vec<u8>, Vec<u8>)],
        content: u64,
        sparse: Option<(&[(u64, u64)], u64)>,
    ) -> Result<()> {
        self.members += 1;
        let pieces = sparse.map_or(0, |(pieces, _)| pieces.len());
        if path.len().max(link.len()) > MAX_PATH || pieces > MAX_PIECES {
            let why = "has too long a path, or too many holes";
            return Err(Error::refused(named(path)(), why));
        }
        let mut records = Vec::new();
        let nanos = stat.st_mtime_nsec;
        if nanos != 0 || stat.st_mtime < 0 {
            record(
                &mut records,
                b"mtime",
                time(stat.st_mtime, nanos).as_bytes(),
            );
        }
        for (name, value) in xattrs {
            record(&mut records, &[b"SCHILY.xattr.", &name[..]].concat(), value);
        }
        if records.len() as u64 > MAX_EXTENDED {
            return Err(Error::refused(named(path)(), "has too many attributes"));
        }
        if !records.is_empty() {
            let mut header = Header::new_ustar();
            header.set_entry_type(EntryType::XHeader);
            header.as_old_mut().name[..14].copy_from_slice(b"./PaxHeaders/x");
            header.set_mode(0o644);
            header.set_size(records.len() as u64);
            self.member(&mut header, &records)?;
        }
        for (kind, name) in [
            (EntryType::GNULongLink, link),
            (EntryType::GNULongName, path),
        ] {
            if name.len() > 100 {
                let mut header = Header::new_gnu();
                header.set_entry_type(kind);
                header.as_old_mut().name[..13].copy_from_slice(b"././@LongLink");
                header.set_mode(0o644);
                header.set_size(name.len() as u64 + 1);
                self.member(&mut header, &[name, &[0]].concat())?;
            }
        }
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        fill(&mut header.as_old_mut().name, path);
        fill(&mut header.as_old_mut().linkname, link);
        header.set_mode(stat.st_mode & 0o7777);
        header.set_uid(u64::from(stat.st_uid));
        header.set_gid(u64::from(stat.st_gid));
        header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
        header.set_size(content);
        if matches!(kind, EntryType::Char | EntryType::Block) {
            let major = u32::try_from(nix::sys::stat::major(stat.st_rdev)).unwrap_or(u32::MAX);
            let minor = u32::try_from(nix::sys::stat::minor(stat.st_rdev)).unwrap_or(u32::MAX);
            header
                .set_device_major(major)
                .and_then(|()| header.set_device_minor(minor))
                .context(named(path))?;
        }
        let more = sparse.map_or(&[][..], |(pieces, real)| {
            sparse_fields(&mut header, pieces, real)
        });
        self.head(&mut header).context(named(path))?;
        let mut chunks = more.chunks(21).peekable();
        while let Some(chunk) = chunks.next() {
            let mut block = GnuExtSparseHeader::new();
            for (field, &(offset, length)) in block.sparse_mut().iter_mut().zip(chunk) {
                field.set_offset(offset);
                field.set_length(length);
            }
            block.set_is_extended(chunks.peek().is_some());
            self.put(block.as_bytes())?;
        }
        Ok(())
    }

    fn member(&mut self, header: &mut Header, content: &[u8]) -> Result<()> {
        self.head(header)?;
        self.put(content)?;
        self.pad(content.len() as u64)
    }

    fn head(&mut self, header: &mut Header) -> Result<()> {
        self.headers += 1;
        if self.headers > MAX_MEMBERS {
            return Err(Error::refused("pack", "there are too many files"));
        }
        header.set_cksum();
        self.put(header.as_bytes())
    }

    fn pad(&mut self, length: u64) -> Result<()> {
        let block = BLOCK as u64;
        let padding = usize::try_from(length.next_multiple_of(block) - length).unwrap_or(0);
        self.put(&[0; BLOCK][..padding])
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.out
            .write_all(bytes)
            .context(|| String::from("write archive"))
    }
}

/// The first pieces go into the header; returns the others.
fn sparse_fields<'a>(header: &mut Header, pieces: &'a [(u64, u64)], real: u64) -> &'a [(u64, u64)] {
    let (first, more) = pieces.split_at(pieces.len().min(4));
    if let Some(gnu) = header.as_gnu_mut() {
        gnu.set_real_size(real);
        gnu.set_is_extended(!more.is_empty());
        for (field, &(offset, length)) in gnu.sparse.iter_mut().zip(first) {
            field.set_offset(offset);
            field.set_length(length);
        }
    }
    more
}

fn fill(field: &mut [u8; 100], bytes: &[u8]) {
    let len = bytes.len().min(field.len());
    field[..len].copy_from_slice(&bytes[..len]);
}

/// `LENGTH KEY=VALUE\n`, where the length counts its own digits.
fn record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    out.extend_from_slice(length.to_string().as_bytes());
    out.push(b' ');
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

/// Nanoseconds count upwards; in text the fraction counts away from zero.
fn time(seconds: i64, nanos: i64) -> String {
    if seconds < 0 && nanos > 0 {
        return format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanos);
    }
    format!("{seconds}.{nanos:09}")
}

/// Where the file has content; a last empty piece marks a hole at the end.
fn pieces(file: &File, size: u64) -> nix::Result<Vec<(u64, u64)>> {
    let mut pieces = Vec::new();
    let mut at = 0;
    while at < size {
        let from = i64::try_from(at).unwrap_or(i64::MAX);
        let start = match lseek(file.as_fd(), from, Whence::SeekData) {
            Ok(start) => u64::try_from(start).unwrap_or(size).min(size),
            Err(nix::errno::Errno::ENXIO) => size,
            Err(errno) => return Err(errno),
        };
        if start >= size {
            break;
        }
        let from = i64::try_from(start).unwrap_or(i64::MAX);
        let end = lseek(file.as_fd(), from, Whence::SeekHole)?;
        let end = u64::try_from(end).unwrap_or(size).min(size);
        pieces.push((start, end.saturating_sub(start)));
        at = end.max(start + 1);
    }
    if pieces
        .last()
        .is_none_or(|(start, length)| start + length < size)
    {
        pieces.push((size, 0));
    }
    Ok(pieces)
}

type Xattrs = [(Vec<u8>, Vec<u8>)];

/// All extended attributes of a name in a directory, not following links.
fn xattrs(dir: &OwnedFd, name: &CStr) -> std::io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let path = super::unpack::path_at(dir.as_fd().as_raw_fd(), name);
    let names = match xattr::list(&path) {
        Ok(names) => names,
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut found = Vec::new();
    for name in names {
        if let Some(value) = xattr::get(&path, &name)? {
            found.push((name.into_vec(), value));
        }
    }
    Ok(found)
}
