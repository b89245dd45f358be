//! Reading an archive into a directory.

use super::stream::{Kind, Member, Stream, damaged};
use crate::base::{Result, ResultExt};
use flate2::read::GzDecoder;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{
    FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, futimens, makedev, mkdirat,
    mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{
    Gid, LinkatFlags, Uid, UnlinkatFlags, fchown, fchownat, linkat, symlinkat, unlinkat,
};
use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// Bytes that are read at a time.
const PIECE: usize = 64 << 10;
/// Below this, zeros are left as a hole.
const PAGE: usize = 4096;

/// Makes what an archive holds below `dir`, with owners, modes, times and extended
/// attributes. Files that are there are replaced, directories kept. Returns how many
/// members it had.
///
/// Errors: a damaged archive; a member outside of `dir`; any call, for example
/// ENOSPC. What was made until then stays.
pub fn unpack(archive: impl Read, dir: BorrowedFd<'_>) -> Result<usize> {
    let mut stream = Stream::new(GzDecoder::new(archive));
    let mut unpacker = Unpacker {
        top: reopen(dir).context(|| String::from("open directory"))?,
        last: None,
        late: Vec::new(),
        members: 0,
    };
    while let Some(member) = stream.next()? {
        let name = OsStr::from_bytes(&member.path).display().to_string();
        unpacker
            .member(&mut stream, member)
            .context(|| format!("unpack {name}"))?;
    }
    unpacker.finish()?;
    Ok(unpacker.members)
}

/// A path that names what lies in a directory, however that was opened.
pub(super) fn path_at(dir: RawFd, name: &CStr) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{dir}")).join(OsStr::from_bytes(name.to_bytes()))
}

struct Unpacker {
    top: OwnedFd,
    /// The directory that the last member was in: the next one often is, too.
    last: Option<(Vec<CString>, OwnedFd)>,
    /// Directories get their times when nothing is made in them any more.
    late: Vec<Member>,
    members: usize,
}

impl Unpacker {
    fn member(&mut self, stream: &mut Stream<impl Read>, member: Member) -> Result<()> {
        self.members += 1;
        let mut parts = parts(&member.path)?;
        if member.kind == Kind::Directory {
            self.enter(&parts)?;
            self.late.push(member);
            return Ok(());
        }
        let name = parts
            .pop()
            .ok_or_else(|| damaged("member without a name that is no directory"))?;
        let parent = self.enter(&parts)?;
        match unlinkat(&parent, name.as_c_str(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => return Err(errno).context(|| String::from("unlink")),
        }
        match member.kind {
            Kind::File => return file(stream, &parent, &name, &member),
            Kind::Hardlink => return self.hardlink(&parent, &name, &member),
            Kind::Symlink => {
                let target = OsStr::from_bytes(&member.link);
                symlinkat(target, &parent, name.as_c_str()).context(|| String::from("symlink"))?;
            }
            Kind::Character => node(&parent, &name, SFlag::S_IFCHR, &member)?,
            Kind::Block => node(&parent, &name, SFlag::S_IFBLK, &member)?,
            Kind::Fifo => node(&parent, &name, SFlag::S_IFIFO, &member)?,
            Kind::Directory => {}
        }
        dress(&parent, &name, &member)
    }

    fn hardlink(&mut self, parent: &OwnedFd, name: &CStr, member: &Member) -> Result<()> {
        let mut target = parts(&member.link)?;
        let first = target
            .pop()
            .ok_or_else(|| damaged("hard link to a directory"))?;
        let from = self.enter(&target)?;
        linkat(&from, first.as_c_str(), parent, name, LinkatFlags::empty())
            .context(|| String::from("link"))
    }

    /// Opens a directory below the top, making what is missing.
    fn enter(&mut self, parts: &[CString]) -> Result<OwnedFd> {
        if let Some((at, dir)) = &self.last
            && at == parts
        {
            return reopen(dir.as_fd()).context(|| String::from("open directory"));
        }
        let mut dir = reopen(self.top.as_fd()).context(|| String::from("open directory"))?;
        for part in parts {
            let what = || format!("enter {}", part.to_string_lossy());
            dir = match openat(&dir, part.as_c_str(), flags(), Mode::empty()) {
                Err(Errno::ENOENT) => {
                    mkdirat(&dir, part.as_c_str(), Mode::S_IRWXU).context(what)?;
                    openat(&dir, part.as_c_str(), flags(), Mode::empty()).context(what)?
                }
                opened => opened.context(what)?,
            };
        }
        let kept = reopen(dir.as_fd()).context(|| String::from("open directory"))?;
        self.last = Some((parts.to_vec(), kept));
        Ok(dir)
    }

    /// The deepest directories last got something; the top is dressed last.
    fn finish(&mut self) -> Result<()> {
        while let Some(member) = self.late.pop() {
            let name = OsStr::from_bytes(&member.path).display().to_string();
            let what = || format!("unpack {name}");
            let dir = self.enter(&parts(&member.path)?).context(what)?;
            fchown(&dir, uid(&member), gid(&member)).context(what)?;
            fchmod(&dir, Mode::from_bits_truncate(member.mode)).context(what)?;
            attributes(dir.as_raw_fd(), c".", &member).context(what)?;
            let (atime, mtime) = times(&member);
            futimens(&dir, &atime, &mtime).context(what)?;
        }
        Ok(())
    }
}

fn flags() -> OFlag {
    OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC
}

fn reopen(dir: BorrowedFd<'_>) -> nix::Result<OwnedFd> {
    openat(dir, c".", flags(), Mode::empty())
}

/// The parts of a path below the top.
fn parts(path: &[u8]) -> Result<Vec<CString>> {
    if path.first() == Some(&b'/') {
        return Err(damaged("member with an absolute path"));
    }
    path.split(|byte| *byte == b'/')
        .filter(|part| !part.is_empty() && *part != b".")
        .map(|part| match part {
            b".." => Err(damaged("member outside of its directory")),
            part => CString::new(part).map_err(|_| damaged("member with a zero byte in its name")),
        })
        .collect()
}

fn file(
    stream: &mut Stream<impl Read>,
    parent: &OwnedFd,
    name: &CStr,
    member: &Member,
) -> Result<()> {
    let what = || String::from("write");
    let flags =
        OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let file = openat(parent, name, flags, Mode::S_IRUSR | Mode::S_IWUSR).context(what)?;
    let file = File::from(file);
    let mut buffer = vec![0; PIECE];
    for &(offset, length) in &member.pieces {
        let mut done = 0;
        while done < length {
            let want = usize::try_from(length - done)
                .unwrap_or(usize::MAX)
                .min(PIECE);
            stream.read_content(&mut buffer[..want])?;
            for (index, page) in buffer[..want].chunks(PAGE).enumerate() {
                if page.iter().any(|byte| *byte != 0) {
                    let at = offset + done + (index * PAGE) as u64;
                    file.write_all_at(page, at).context(what)?;
                }
            }
            done += want as u64;
        }
    }
    file.set_len(member.size).context(what)?;
    fchown(&file, uid(member), gid(member)).context(what)?;
    fchmod(&file, Mode::from_bits_truncate(member.mode)).context(what)?;
    attributes(parent.as_raw_fd(), name, member)?;
    let (atime, mtime) = times(member);
    futimens(&file, &atime, &mtime).context(what)
}

fn node(parent: &OwnedFd, name: &CStr, kind: SFlag, member: &Member) -> Result<()> {
    let (major, minor) = member.device;
    let device = makedev(u64::from(major), u64::from(minor));
    mknodat(parent, name, kind, Mode::S_IRUSR, device).context(|| String::from("mknod"))
}

/// Owner, mode, attributes and times of what is not opened.
fn dress(parent: &OwnedFd, name: &CStr, member: &Member) -> Result<()> {
    let what = || String::from("set attributes");
    let nofollow = AtFlags::AT_SYMLINK_NOFOLLOW;
    fchownat(parent, name, uid(member), gid(member), nofollow).context(what)?;
    if member.kind != Kind::Symlink {
        let mode = Mode::from_bits_truncate(member.mode);
        // It was just made and is no link, so there is nothing to follow.
        fchmodat(parent, name, mode, FchmodatFlags::FollowSymlink).context(what)?;
    }
    attributes(parent.as_raw_fd(), name, member)?;
    let (atime, mtime) = times(member);
    let nofollow = UtimensatFlags::NoFollowSymlink;
    utimensat(parent, name, &atime, &mtime, nofollow).context(what)
}

fn attributes(parent: RawFd, name: &CStr, member: &Member) -> Result<()> {
    for (key, value) in &member.xattrs {
        let key = OsStr::from_bytes(key);
        xattr::set(path_at(parent, name), key, value)
            .context(|| format!("set extended attribute {}", key.display()))?;
    }
    Ok(())
}

fn uid(member: &Member) -> Option<Uid> {
    Some(Uid::from_raw(member.uid))
}

fn gid(member: &Member) -> Option<Gid> {
    Some(Gid::from_raw(member.gid))
}

/// The time of access is not kept: reading to pack changed it.
fn times(member: &Member) -> (TimeSpec, TimeSpec) {
    let (seconds, nanos) = member.mtime;
    let time = TimeSpec::new(seconds, nanos);
    (time, time)
}
