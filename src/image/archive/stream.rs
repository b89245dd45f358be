//! Members of a tar archive, one after the other.

use super::{BLOCK, MAX_CONTENT, MAX_EXTENDED, MAX_MEMBERS, MAX_PATH, MAX_PIECES};
use crate::base::{Error, Result, ResultExt};
use std::io::Read;
use tar::{EntryType, GnuExtSparseHeader, Header};

/// What a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Hardlink,
    Symlink,
    Character,
    Block,
    Directory,
    Fifo,
}

/// One member; its content follows in the stream.
#[derive(Debug, Clone)]
pub(super) struct Member {
    pub(super) kind: Kind,
    pub(super) path: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Seconds and nanoseconds.
    pub(super) mtime: (i64, i64),
    pub(super) device: (u32, u32),
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Bytes of the file, holes included.
    pub(super) size: u64,
    /// Offset and length of what is in the archive.
    pub(super) pieces: Vec<(u64, u64)>,
}

/// Extended records that apply to the next member.
#[derive(Debug, Default)]
struct Extended {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<(i64, i64)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: bool,
    sparse_name: Option<Vec<u8>>,
    real_size: Option<u64>,
}

/// Reads members from a decompressed stream.
#[derive(Debug)]
pub(super) struct Stream<R> {
    input: R,
    /// Bytes of the present member that were not read, then its padding.
    content: u64,
    padding: u64,
    members: usize,
    total: u64,
}

pub(super) fn damaged(why: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::image("archive", why)
}

impl<R: Read> Stream<R> {
    pub(super) fn new(input: R) -> Self {
        Self {
            input,
            content: 0,
            padding: 0,
            members: 0,
            total: 0,
        }
    }

    /// The next member; what is left of the present one is skipped.
    pub(super) fn next(&mut self) -> Result<Option<Member>> {
        let mut extended = Extended::default();
        loop {
            self.skip()?;
            let mut block = [0; BLOCK];
            self.fill(&mut block)?;
            if block.iter().all(|byte| *byte == 0) {
                self.drain()?;
                return Ok(None);
            }
            self.members += 1;
            if self.members > MAX_MEMBERS {
                return Err(damaged(format!("has more than {MAX_MEMBERS} members")));
            }
            let header = Header::from_byte_slice(&block);
            check_sum(header)?;
            let size = header.entry_size().context(field("size"))?;
            self.expect(size)?;
            match header.entry_type() {
                EntryType::XHeader => {
                    let records = self.small(size)?;
                    extended.read(&records)?;
                }
                EntryType::XGlobalHeader => {
                    self.small(size)?;
                }
                EntryType::GNULongName => extended.path = Some(trimmed(self.small(size)?)),
                EntryType::GNULongLink => extended.link = Some(trimmed(self.small(size)?)),
                kind => return self.member(header, kind, extended).map(Some),
            }
        }
    }

    fn member(&mut self, header: &Header, kind: EntryType, extended: Extended) -> Result<Member> {
        let kind = match kind {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => Kind::File,
            EntryType::Link => Kind::Hardlink,
            EntryType::Symlink => Kind::Symlink,
            EntryType::Char => Kind::Character,
            EntryType::Block => Kind::Block,
            EntryType::Directory => Kind::Directory,
            EntryType::Fifo => Kind::Fifo,
            other => return Err(damaged(format!("member of unknown type {other:?}"))),
        };
        let mut size = extended.size.unwrap_or(self.content);
        self.expect(size)?;
        let pieces = if header.entry_type() == EntryType::GNUSparse {
            let (pieces, real) = self.gnu_sparse(header)?;
            size = real;
            pieces
        } else if extended.sparse {
            let pieces = self.pax_sparse()?;
            size = extended.real_size.unwrap_or(size);
            pieces
        } else {
            vec![(0, size)]
        };
        check_pieces(&pieces, size, self.content)?;
        if kind != Kind::File && self.content != 0 {
            return Err(damaged("member with a content that it cannot have"));
        }
        let path = extended
            .sparse_name
            .or(extended.path)
            .unwrap_or_else(|| header.path_bytes().into_owned());
        let link = extended
            .link
            .or_else(|| header.link_name_bytes().map(|link| link.into_owned()))
            .unwrap_or_default();
        if path.len() > MAX_PATH || link.len() > MAX_PATH {
            return Err(damaged("member with a path that is too long"));
        }
        let id = |id: std::io::Result<u64>, name: &'static str| {
            let id = id.context(field(name))?;
            u32::try_from(id).map_err(|_| damaged(format!("{name} {id} is none")))
        };
        let seconds = header.mtime().context(field("mtime"))?;
        Ok(Member {
            kind,
            path,
            link,
            mode: header.mode().context(field("mode"))? & 0o7777,
            uid: match extended.uid {
                Some(uid) => uid,
                None => id(header.uid(), "uid")?,
            },
            gid: match extended.gid {
                Some(gid) => gid,
                None => id(header.gid(), "gid")?,
            },
            mtime: extended
                .mtime
                .unwrap_or((i64::try_from(seconds).unwrap_or(i64::MAX), 0)),
            device: match kind {
                Kind::Character | Kind::Block => (
                    header.device_major().context(field("major"))?.unwrap_or(0),
                    header.device_minor().context(field("minor"))?.unwrap_or(0),
                ),
                _ => (0, 0),
            },
            xattrs: extended.xattrs,
            size,
            pieces,
        })
    }

    /// Old GNU format: four pieces in the header, more in blocks behind it.
    fn gnu_sparse(&mut self, header: &Header) -> Result<(Vec<(u64, u64)>, u64)> {
        let gnu = header
            .as_gnu()
            .ok_or_else(|| damaged("sparse member without its header"))?;
        let real = gnu.real_size().context(field("real size"))?;
        let mut pieces = Vec::new();
        let mut add = |entries: &[tar::GnuSparseHeader]| -> Result<()> {
            for entry in entries.iter().filter(|entry| !entry.is_empty()) {
                if pieces.len() >= MAX_PIECES {
                    return Err(damaged("sparse member with too many pieces"));
                }
                let offset = entry.offset().context(field("offset"))?;
                pieces.push((offset, entry.length().context(field("length"))?));
            }
            Ok(())
        };
        add(&gnu.sparse)?;
        let mut more = gnu.is_extended();
        while more {
            let mut block = GnuExtSparseHeader::new();
            self.input
                .read_exact(block.as_mut_bytes())
                .context(|| String::from("read archive"))?;
            add(block.sparse())?;
            more = block.is_extended();
        }
        Ok((pieces, real))
    }

    /// PAX format 1.0: decimal numbers, a line each, padded to a block.
    fn pax_sparse(&mut self) -> Result<Vec<(u64, u64)>> {
        let mut block = [0; BLOCK];
        let mut at = BLOCK;
        let mut number = |stream: &mut Self| -> Result<u64> {
            let mut value = 0u64;
            loop {
                if at == BLOCK {
                    stream.read_content(&mut block)?;
                    at = 0;
                }
                let byte = block[at];
                at += 1;
                match byte {
                    b'\n' => return Ok(value),
                    b'0'..=b'9' => {
                        value = value
                            .checked_mul(10)
                            .and_then(|v| v.checked_add(u64::from(byte - b'0')))
                            .ok_or_else(|| damaged("sparse map with a huge number"))?;
                    }
                    _ => return Err(damaged("sparse map that is no list of numbers")),
                }
            }
        };
        let count = number(self)?;
        if count > MAX_PIECES as u64 {
            return Err(damaged("sparse member with too many pieces"));
        }
        let mut pieces = Vec::new();
        for _ in 0..count {
            pieces.push((number(self)?, number(self)?));
        }
        Ok(pieces)
    }

    /// Reads from the content of the present member.
    pub(super) fn read_content(&mut self, buffer: &mut [u8]) -> Result<()> {
        if buffer.len() as u64 > self.content {
            return Err(damaged("member that is shorter than it claims"));
        }
        self.fill(buffer)?;
        self.content -= buffer.len() as u64;
        Ok(())
    }

    /// Announces the content of a member.
    fn expect(&mut self, size: u64) -> Result<()> {
        self.total = self.total.saturating_add(size);
        if self.total > MAX_CONTENT {
            return Err(damaged(format!("holds more than {MAX_CONTENT} bytes")));
        }
        self.content = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        Ok(())
    }

    /// All of a content that is not for a file.
    fn small(&mut self, size: u64) -> Result<Vec<u8>> {
        if size > MAX_EXTENDED {
            return Err(damaged(format!("has {size} bytes of extended records")));
        }
        let len = usize::try_from(size).map_err(|_| damaged("too long"))?;
        let mut bytes = vec![0; len];
        self.read_content(&mut bytes)?;
        Ok(bytes)
    }

    fn skip(&mut self) -> Result<()> {
        let left = self.content + self.padding;
        let skipped = std::io::copy(&mut (&mut self.input).take(left), &mut std::io::sink())
            .context(|| String::from("read archive"))?;
        if skipped != left {
            return Err(damaged("ends within a member"));
        }
        (self.content, self.padding) = (0, 0);
        Ok(())
    }

    /// Behind the end mark there is padding only; reading it checks the sums.
    fn drain(&mut self) -> Result<()> {
        let most = MAX_EXTENDED;
        let read = std::io::copy(&mut (&mut self.input).take(most), &mut std::io::sink())
            .context(|| String::from("read archive"))?;
        if read == most {
            return Err(damaged("goes on behind its end"));
        }
        Ok(())
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<()> {
        self.input
            .read_exact(buffer)
            .context(|| String::from("read archive"))
    }
}

fn field(name: &'static str) -> impl FnOnce() -> String {
    move || format!("archive: {name} of a member")
}

fn trimmed(mut name: Vec<u8>) -> Vec<u8> {
    while name.last() == Some(&0) {
        name.pop();
    }
    name
}

fn check_sum(header: &Header) -> Result<()> {
    let bytes = header.as_bytes();
    let sum: u32 = bytes
        .iter()
        .enumerate()
        .map(|(at, byte)| match at {
            148..156 => u32::from(b' '),
            _ => u32::from(*byte),
        })
        .sum();
    match header.cksum() {
        Ok(found) if found == sum => Ok(()),
        _ => Err(damaged("header with a wrong sum")),
    }
}

/// Pieces ascend, stay within the file, and are as long as the content.
fn check_pieces(pieces: &[(u64, u64)], size: u64, content: u64) -> Result<()> {
    let mut end = 0u64;
    let mut sum = 0u64;
    for &(offset, length) in pieces {
        let next = offset.checked_add(length);
        match next {
            Some(next) if offset >= end && next <= size => end = next,
            _ => return Err(damaged("sparse member with pieces that overlap")),
        }
        sum += length;
    }
    // A file may be larger than all that an archive holds: most of it is a hole.
    if sum != content || i64::try_from(size).is_err() {
        return Err(damaged("member whose lengths contradict one another"));
    }
    Ok(())
}

impl Extended {
    /// Records are `LENGTH KEY=VALUE\n`, the length counting all of it.
    fn read(&mut self, mut bytes: &[u8]) -> Result<()> {
        let wrong = || damaged("extended record that is none");
        while !bytes.is_empty() {
            let space = bytes
                .iter()
                .take(20)
                .position(|byte| *byte == b' ')
                .ok_or_else(wrong)?;
            let length: usize = number(&bytes[..space]).ok_or_else(wrong)?;
            let (record, rest) = bytes.split_at_checked(length).ok_or_else(wrong)?;
            bytes = rest;
            let record = record
                .get(space + 1..)
                .and_then(|record| record.strip_suffix(b"\n"))
                .ok_or_else(wrong)?;
            let equals = record
                .iter()
                .position(|byte| *byte == b'=')
                .ok_or_else(wrong)?;
            self.apply(&record[..equals], &record[equals + 1..])?;
        }
        Ok(())
    }

    fn apply(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let wrong = || {
            damaged(format!(
                "extended record {} with a wrong value",
                String::from_utf8_lossy(key)
            ))
        };
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            self.xattrs.push((name.to_vec(), value.to_vec()));
            return Ok(());
        }
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(number(value).ok_or_else(wrong)?),
            b"uid" => self.uid = Some(number(value).ok_or_else(wrong)?),
            b"gid" => self.gid = Some(number(value).ok_or_else(wrong)?),
            b"mtime" => self.mtime = Some(time(value).ok_or_else(wrong)?),
            b"GNU.sparse.major" if value == b"1" => self.sparse = true,
            b"GNU.sparse.minor" if value == b"0" => {}
            b"GNU.sparse.name" => self.sparse_name = Some(value.to_vec()),
            b"GNU.sparse.realsize" => self.real_size = Some(number(value).ok_or_else(wrong)?),
            _ if key.starts_with(b"GNU.sparse.") => {
                return Err(damaged("sparse member of a kind that is not read here"));
            }
            // Comments, access times, names of users: nothing that is restored.
            _ => {}
        }
        Ok(())
    }
}

fn number<T: std::str::FromStr>(text: &[u8]) -> Option<T> {
    let text = std::str::from_utf8(text).ok()?;
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

/// `[-]SECONDS[.FRACTION]` to seconds and nanoseconds.
fn time(text: &[u8]) -> Option<(i64, i64)> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits = format!("{fraction:0<9}");
    let nanos: i64 = digits.get(..9)?.parse().ok()?;
    // Before 1970 the fraction counts away from zero, in the file upwards.
    if text.starts_with('-') && nanos > 0 {
        return Some((seconds.checked_sub(1)?, 1_000_000_000 - nanos));
    }
    Some((seconds, nanos))
}
