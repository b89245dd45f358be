//! memfd_create(2): an inode of the kernel's own tmpfs, and who has it open.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

use super::capture::{Capture, Open, stat};
use super::pipe::reopen;
use crate::base::{Error, Result};
use crate::image::Kind as Image;
use crate::image::records::{FdTypes, FileEntry, MemfdFileEntry, MemfdInodeEntry};
use crate::sys::fdops;

/// The contents of a memfd, which are saved and filled like shared memory.
#[derive(Debug)]
pub struct Contents {
    /// Number of the shared memory in the image.
    pub shmid: u32,
    /// Bytes.
    pub size: u64,
    /// A descriptor of it: readable after capture, writable at rebuild.
    pub fd: OwnedFd,
}

/// The device that memfds lie on.
pub(super) fn device() -> Result<u64> {
    let probe = fdops::memfd(c"probe", 0)?;
    Ok(stat(probe.as_fd())?.st_dev)
}

impl Capture {
    pub(super) fn memfd(&mut self, open: &Open<'_>) -> Result<FileEntry> {
        let inode_id = match self.memfds.get(&open.stat.st_ino) {
            Some(known) => *known,
            None => self.memfd_inode(open)?,
        };
        Ok(FileEntry {
            r#type: FdTypes::Memfd.into(),
            id: open.id,
            memfd: Some(MemfdFileEntry {
                id: open.id,
                flags: open.flags(),
                pos: open.info.pos,
                fown: open.fown.clone(),
                inode_id,
            }),
            ..FileEntry::default()
        })
    }

    fn memfd_inode(&mut self, open: &Open<'_>) -> Result<u32> {
        let id =
            u32::try_from(self.memfds.len() + 1).map_err(|_| Error::bug("memfds", "too many"))?;
        let s = &open.stat;
        let name = open
            .link
            .strip_prefix("/memfd:")
            .map(|n| n.strip_suffix(" (deleted)").unwrap_or(n))
            .ok_or_else(|| Error::bug(&open.link, "is no memfd"))?;
        let shmid = u32::try_from(s.st_ino)
            .map_err(|_| Error::refused(open.link.clone(), "has an inode number above 32 bits"))?;
        let size = u64::try_from(s.st_size).unwrap_or(0);
        let entry = MemfdInodeEntry {
            name: name.to_owned(),
            uid: s.st_uid,
            gid: s.st_gid,
            size,
            shmid,
            seals: fdops::seals(open.fd)?.cast_unsigned(),
            inode_id: u64::from(id),
            hugetlb_flag: None,
            mode: Some(s.st_mode),
        };
        self.image.push(Image::Memfd, 0, &entry);
        self.memfds.insert(s.st_ino, id);
        self.contents.push(Contents {
            shmid,
            size,
            fd: reopen(open.fd, libc::O_RDONLY.cast_unsigned())?,
        });
        Ok(id)
    }
}

/// The inode again, empty and unsealed but of its size.
pub(super) fn make(entry: &MemfdInodeEntry) -> Result<OwnedFd> {
    let bad = |why: &'static str| Error::image(format!("memfd {:?}", entry.name), why);
    if entry.hugetlb_flag.is_some() {
        return Err(bad("of huge pages cannot be restored"));
    }
    let name = CString::new(entry.name.as_str()).map_err(|_| bad("has a zero byte in its name"))?;
    let flags = if entry.seals == libc::F_SEAL_SEAL.cast_unsigned() {
        0
    } else {
        libc::MFD_ALLOW_SEALING
    };
    let fd = fdops::memfd(&name, flags)?;
    let size = i64::try_from(entry.size).map_err(|_| bad("is too large"))?;
    let nix = |e: nix::errno::Errno| {
        Error::errno(
            format!("size, owner and mode of memfd {:?}", entry.name),
            e as i32,
        )
    };
    nix::unistd::ftruncate(&fd, size).map_err(nix)?;
    let uid = Some(nix::unistd::Uid::from_raw(entry.uid));
    let gid = Some(nix::unistd::Gid::from_raw(entry.gid));
    nix::unistd::fchown(&fd, uid, gid).map_err(nix)?;
    if let Some(mode) = entry.mode {
        let mode = nix::sys::stat::Mode::from_bits_truncate(mode);
        nix::sys::stat::fchmod(&fd, mode).map_err(nix)?;
    }
    Ok(fd)
}
