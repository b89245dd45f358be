//! Decoding as proto2 asks for: a record without one of its required fields is
//! refused.
//!
//! prost reads a missing required field as zero. An image that lost a field must
//! not restore something else, so the bytes are walked before they are decoded.
//! The walk also keeps the decoded record within a small multiple of its bytes,
//! since nearly every record that may be repeated has required fields.

use crate::base::limits::MAX_RECORD;
use prost::Message;
use std::fmt;

/// A record of the image format or of the RPC.
pub trait Record: Message + Default {
    /// Numbers of the fields that must be there.
    const REQUIRED: &'static [u32];

    /// What checks the field of this number, if it is a record itself.
    fn nested(tag: u32) -> Option<Check>;
}

/// Checks the bytes of a record, at this depth of nesting.
pub type Check = fn(&[u8], u32) -> Result<(), Refused>;

/// Why the bytes are not this record.
#[derive(Debug, Clone, PartialEq)]
pub enum Refused {
    /// The bytes are not protocol buffers at all.
    Malformed,
    /// Records within records beyond any that are written.
    TooDeep,
    /// More bytes than a record may have.
    TooLong,
    /// The field of this number must be there.
    Missing(u32),
    /// Within the field of this number.
    Within(u32, Box<Refused>),
    /// A field has another type, or text is no UTF-8.
    Decode(prost::DecodeError),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::Malformed => f.write_str("is damaged"),
            Refused::TooDeep => f.write_str("is nested too deeply"),
            Refused::TooLong => write!(f, "is longer than {MAX_RECORD} bytes"),
            Refused::Missing(tag) => write!(f, "lacks its required field {tag}"),
            Refused::Within(tag, inner) => write!(f, "field {tag} {inner}"),
            Refused::Decode(e) => e.fmt(f),
        }
    }
}

impl std::error::Error for Refused {}

/// Decodes a record, which must have all of its required fields.
pub fn decode<T: Record>(bytes: &[u8]) -> Result<T, Refused> {
    if bytes.len() > MAX_RECORD {
        return Err(Refused::TooLong);
    }
    check::<T>(bytes, 0)?;
    T::decode(bytes).map_err(Refused::Decode)
}

/// Deepest nesting: directories of control groups are records within records.
const MAX_DEPTH: u32 = 64;

/// Walks over the fields of `T`.
pub(super) fn check<T: Record>(mut bytes: &[u8], depth: u32) -> Result<(), Refused> {
    if depth > MAX_DEPTH {
        return Err(Refused::TooDeep);
    }
    let mut seen = 0u64;
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        let tag = u32::try_from(key >> 3).map_err(|_| Refused::Malformed)?;
        if tag < 64 {
            seen |= 1 << tag;
        }
        match key & 7 {
            0 => {
                varint(&mut bytes)?;
            }
            1 => {
                take(&mut bytes, 8)?;
            }
            2 => {
                let len = varint(&mut bytes)?;
                let field = take(&mut bytes, len)?;
                if let Some(nested) = T::nested(tag) {
                    nested(field, depth + 1)
                        .map_err(|inner| Refused::Within(tag, Box::new(inner)))?;
                }
            }
            5 => {
                take(&mut bytes, 4)?;
            }
            _ => return Err(Refused::Malformed),
        }
    }
    match T::REQUIRED.iter().find(|&&tag| seen & (1 << tag) == 0) {
        Some(&tag) => Err(Refused::Missing(tag)),
        None => Ok(()),
    }
}

fn varint(bytes: &mut &[u8]) -> Result<u64, Refused> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first().ok_or(Refused::Malformed)?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(Refused::Malformed)
}

fn take<'a>(bytes: &mut &'a [u8], len: u64) -> Result<&'a [u8], Refused> {
    let len = usize::try_from(len).map_err(|_| Refused::Malformed)?;
    let (taken, rest) = bytes.split_at_checked(len).ok_or(Refused::Malformed)?;
    *bytes = rest;
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::records::{FileEntry, FownEntry, PstreeEntry, RegFileEntry};

    #[test]
    fn a_record_without_a_required_field_is_refused() {
        let whole = PstreeEntry {
            pid: 1,
            ppid: 0,
            pgid: 1,
            sid: 1,
            threads: vec![1],
        };
        let bytes = whole.encode_to_vec();
        assert_eq!(decode::<PstreeEntry>(&bytes), Ok(whole));
        // Without `sid`, which is the third pair of bytes from the end.
        let mut less = bytes.clone();
        less.drain(6..8);
        assert_eq!(decode::<PstreeEntry>(&less), Err(Refused::Missing(4)));
        assert_eq!(decode::<PstreeEntry>(&[]), Err(Refused::Missing(1)));
    }

    #[test]
    fn a_record_within_a_record_is_held_to_it_too() {
        let file = FileEntry {
            r#type: 1,
            id: 1,
            reg: Some(RegFileEntry {
                fown: FownEntry::default(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let bytes = file.encode_to_vec();
        assert_eq!(decode::<FileEntry>(&bytes), Ok(file));
        let torn = [&[8, 1, 16, 1, 26, 2][..], &[8, 1]].concat();
        assert_eq!(
            decode::<FileEntry>(&torn),
            Err(Refused::Within(3, Box::new(Refused::Missing(2))))
        );
    }

    #[test]
    fn endless_nesting_is_refused() {
        use crate::image::records::CgroupDirEntry;
        let mut dir = CgroupDirEntry {
            dir_name: String::from("x"),
            ..Default::default()
        };
        for _ in 0..90 {
            dir = CgroupDirEntry {
                dir_name: String::from("x"),
                children: vec![dir],
                ..Default::default()
            };
        }
        let error = decode::<CgroupDirEntry>(&dir.encode_to_vec()).unwrap_err();
        assert!(error.to_string().contains("too deeply"), "{error}");
    }
}
