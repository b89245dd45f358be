//! Pipes and FIFOs with what is in them: pipe(7), fifo(7).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::capture::{Capture, Open};
use crate::base::{Error, Result};
use crate::image::records::{FdTypes, FifoEntry, FileEntry, PipeDataEntry, PipeEntry};
use crate::image::{Kind as Image, Set};
use crate::sys::fdops;

const O_DIRECT: u32 = libc::O_DIRECT.cast_unsigned();
const O_ACCMODE: u32 = libc::O_ACCMODE.cast_unsigned();
const O_WRONLY: u32 = libc::O_WRONLY.cast_unsigned();

/// Largest pipe that is rebuilt, bytes.
const MAX_PIPE: u32 = 64 << 20;

fn pipe_id(open: &Open<'_>) -> Result<u32> {
    u32::try_from(open.stat.st_ino)
        .map_err(|_| Error::refused(open.link.clone(), "has an inode number above 32 bits"))
}

impl Capture {
    pub(super) fn pipe(&mut self, open: &Open<'_>) -> Result<FileEntry> {
        if open.flags() & O_DIRECT != 0 {
            return Err(Error::refused(
                format!("{} in packet mode (O_DIRECT)", open.link),
                "cannot be carried",
            ));
        }
        let pipe_id = pipe_id(open)?;
        self.pipe_data(Image::PipesData, pipe_id, open)?;
        Ok(FileEntry {
            r#type: FdTypes::Pipe.into(),
            id: open.id,
            pipe: Some(PipeEntry {
                id: open.id,
                pipe_id,
                flags: open.flags(),
                fown: open.fown.clone(),
            }),
            ..FileEntry::default()
        })
    }

    pub(super) fn fifo(&mut self, open: &Open<'_>) -> Result<FileEntry> {
        let regf_id = self.ids.fresh();
        let path = self.path(open, regf_id)?;
        self.image.push(Image::Files, 0, &path);
        let pipe_id = pipe_id(open)?;
        self.pipe_data(Image::FifoData, pipe_id, open)?;
        Ok(FileEntry {
            r#type: FdTypes::Fifo.into(),
            id: open.id,
            fifo: Some(FifoEntry {
                id: open.id,
                pipe_id,
                regf_id: Some(regf_id),
            }),
            ..FileEntry::default()
        })
    }

    /// Copies what is in the pipe, once, from a descriptor that can read it.
    fn pipe_data(&mut self, image: Image, pipe_id: u32, open: &Open<'_>) -> Result<()> {
        if open.flags() & O_ACCMODE == O_WRONLY || !self.pipes.insert((image, pipe_id)) {
            return Ok(());
        }
        let size = fdops::pipe_size(open.fd)?;
        let data = contents(open.fd, size)?;
        let entry = PipeDataEntry {
            pipe_id,
            bytes: u32::try_from(data.len()).map_err(|_| Error::bug("pipe", "above 4 GiB"))?,
            size: Some(size),
        };
        self.image.push_payload(image, 0, &entry, &data);
        Ok(())
    }
}

fn contents(fd: BorrowedFd<'_>, size: u32) -> Result<Vec<u8>> {
    let (read, write) = fdops::pipe()?;
    fdops::set_pipe_size(write.as_fd(), size)?;
    let len = usize::try_from(size).unwrap_or(usize::MAX);
    let there = fdops::tee(fd, write.as_fd(), len)?;
    let mut data = vec![0; there];
    File::from(read)
        .read_exact(&mut data)
        .map_err(|e| Error::os("read a copied pipe", e))?;
    Ok(data)
}

/// What pipes or FIFOs hold, by their id.
#[derive(Debug, Default)]
pub(super) struct Data(BTreeMap<u32, (Option<u32>, Vec<u8>)>);

impl Data {
    pub(super) fn read(set: &Set, image: Image) -> Result<Self> {
        let mut map = BTreeMap::new();
        for entry in set.entries::<PipeDataEntry>(image, 0)? {
            let PipeDataEntry { pipe_id, size, .. } = entry.record;
            if size.is_some_and(|s| s > MAX_PIPE) || entry.payload.len() > MAX_PIPE as usize {
                return Err(Error::image(format!("pipe {pipe_id}"), "is too large"));
            }
            map.insert(pipe_id, (size, entry.payload.to_vec()));
        }
        Ok(Self(map))
    }

    /// Gives the pipe its size and its content, through any writable end.
    pub(super) fn fill(&self, pipe_id: u32, write: BorrowedFd<'_>) -> Result<()> {
        let Some((size, data)) = self.0.get(&pipe_id) else {
            return Ok(());
        };
        let now = fdops::pipe_size(write)?;
        if let Some(size) = size.filter(|s| *s != now) {
            fdops::set_pipe_size(write, size)?;
        }
        let was = fdops::status_flags(write)?;
        fdops::set_status_flags(write, was | libc::O_NONBLOCK)?;
        let mut file = File::from(
            write
                .try_clone_to_owned()
                .map_err(|e| Error::os("dup", e))?,
        );
        file.write_all(data)
            .map_err(|e| Error::os(format!("write {} bytes into a pipe", data.len()), e))?;
        fdops::set_status_flags(write, was)
    }
}

/// A fresh pipe, filled.
pub(super) fn make(data: &Data, pipe_id: u32) -> Result<(OwnedFd, OwnedFd)> {
    let (read, write) = fdops::pipe()?;
    data.fill(pipe_id, write.as_fd())?;
    Ok((read, write))
}

/// Another open file description of the pipe behind `end`.
pub(super) fn reopen(end: BorrowedFd<'_>, flags: u32) -> Result<OwnedFd> {
    use nix::fcntl::{OFlag, open};
    let path = format!("/proc/self/fd/{}", end.as_raw_fd());
    let access = OFlag::from_bits_truncate((flags & O_ACCMODE).cast_signed());
    // Without O_NONBLOCK a read end would wait for a writer.
    open(
        path.as_str(),
        access | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC,
        nix::sys::stat::Mode::empty(),
    )
    .map_err(|e| Error::errno(format!("open {path}"), e as i32))
}
