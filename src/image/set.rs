//! The small files of an image directory, in memory.

use super::frame::{self, Entry, Reader};
use super::kind::{Kind, Magic};
use super::records::Record;
use crate::base::{Error, Result};
use prost::Message;
use std::collections::BTreeMap;

/// All files of an image but the contents of pages: name to bytes.
///
/// Writing to it costs an encoding and no system call, so it can be filled while
/// a container is stopped. Reading from it decodes on each call: keep what you
/// need.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Set {
    known: BTreeMap<(Kind, u32), Vec<u8>>,
    other: BTreeMap<String, Vec<u8>>,
}

impl Set {
    /// An image without files.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes the file of this type and id hold this one record.
    pub fn put(&mut self, kind: Kind, id: u32, message: &impl Message) {
        let mut bytes = kind.head();
        frame::push(&mut bytes, message);
        self.known.insert(key(kind, id), bytes);
    }

    /// Makes the file of this type and id exist, without records if it is new.
    pub fn touch(&mut self, kind: Kind, id: u32) {
        self.file(kind, id);
    }

    /// Appends a record to the file of this type and id.
    pub fn push(&mut self, kind: Kind, id: u32, message: &impl Message) {
        frame::push(self.file(kind, id), message);
    }

    /// Appends a record and what follows it; its length must be the one that the
    /// record tells.
    pub fn push_payload(&mut self, kind: Kind, id: u32, message: &impl Message, payload: &[u8]) {
        let file = self.file(kind, id);
        frame::push(file, message);
        frame::push_payload(file, kind, payload);
    }

    /// Makes the file of this name hold these bytes, with its magic if it has one.
    ///
    /// Errors: a name that is no plain file name.
    pub fn put_raw(&mut self, name: impl Into<String>, bytes: Vec<u8>) -> Result<()> {
        let name = name.into();
        if !is_plain(&name) {
            return Err(Error::image(
                format!("file {name:?}"),
                "is no plain file name",
            ));
        }
        match Kind::of_file_name(&name) {
            Some(key) => self.known.insert(key, bytes),
            None => self.other.insert(name, bytes),
        };
        Ok(())
    }

    /// Takes over all files of another one, in the place of those of the same name.
    pub fn append(&mut self, other: Self) {
        self.known.extend(other.known);
        self.other.extend(other.other);
    }

    /// The first record of a file; `None` if there is no such file.
    ///
    /// Errors: the file is damaged, or has no record.
    pub fn get<T: Record>(&self, kind: Kind, id: u32) -> Result<Option<T>> {
        let Some(bytes) = self.known.get(&key(kind, id)) else {
            return Ok(None);
        };
        Reader::new(kind, &kind.file_name(id), bytes)?
            .first()
            .map(Some)
    }

    /// The first record of a file that must be there.
    ///
    /// Errors: as [`Set::get`], and no such file.
    pub fn require<T: Record>(&self, kind: Kind, id: u32) -> Result<T> {
        self.get(kind, id)?
            .ok_or_else(|| Error::image(kind.file_name(id), "is not in the image"))
    }

    /// All records of a file; none if there is no such file.
    ///
    /// Errors: the file is damaged.
    pub fn all<T: Record>(&self, kind: Kind, id: u32) -> Result<Vec<T>> {
        let entries = self.entries(kind, id)?;
        Ok(entries.into_iter().map(|entry| entry.record).collect())
    }

    /// All records of a file with what follows each; none if there is no such file.
    ///
    /// Errors: the file is damaged.
    pub fn entries<T: Record>(&self, kind: Kind, id: u32) -> Result<Vec<Entry<'_, T>>> {
        let mut entries = Vec::new();
        if let Some(bytes) = self.known.get(&key(kind, id)) {
            let name = kind.file_name(id);
            let mut reader = Reader::new(kind, &name, bytes)?;
            while let Some(entry) = reader.next_entry()? {
                entries.push(entry);
            }
        }
        Ok(entries)
    }

    /// The bytes of a file by its name, with its magic if it has one.
    pub fn raw(&self, name: &str) -> Option<&[u8]> {
        match Kind::of_file_name(name) {
            Some(key) => self.known.get(&key),
            None => self.other.get(name),
        }
        .map(Vec::as_slice)
    }

    /// Whether the file of this type and id is there.
    pub fn contains(&self, kind: Kind, id: u32) -> bool {
        self.known.contains_key(&key(kind, id))
    }

    /// Removes a file, by its name.
    pub fn remove(&mut self, name: &str) -> Option<Vec<u8>> {
        match Kind::of_file_name(name) {
            Some(key) => self.known.remove(&key),
            None => self.other.remove(name),
        }
    }

    /// Ids of all files of this type, in ascending order.
    pub fn ids(&self, kind: Kind) -> Vec<u32> {
        self.known
            .range((kind, 0)..=(kind, u32::MAX))
            .map(|((_, id), _)| *id)
            .collect()
    }

    /// All files with their bytes.
    pub fn files(&self) -> impl Iterator<Item = (String, &[u8])> {
        let known = self
            .known
            .iter()
            .map(|((kind, id), bytes)| (kind.file_name(*id), bytes.as_slice()));
        let other = self
            .other
            .iter()
            .map(|(name, bytes)| (name.clone(), bytes.as_slice()));
        known.chain(other)
    }

    /// Bytes of all files together.
    pub fn total_bytes(&self) -> usize {
        self.files().map(|(_, bytes)| bytes.len()).sum()
    }

    fn file(&mut self, kind: Kind, id: u32) -> &mut Vec<u8> {
        debug_assert_ne!(kind.magic(), Magic::Raw, "{kind} holds no records");
        self.known
            .entry(key(kind, id))
            .or_insert_with(|| kind.head())
    }
}

/// A type of which there is one file has it under id 0.
fn key(kind: Kind, id: u32) -> (Kind, u32) {
    match kind.id_form() {
        super::IdForm::None => (kind, 0),
        super::IdForm::Decimal | super::IdForm::Hex => (kind, id),
    }
}

/// Whether this can be the name of a file directly in a directory.
pub(super) fn is_plain(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 255
        && name != "."
        && name != ".."
        && !name.contains(['/', '\0'])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::records::{InventoryEntry, PipeDataEntry, PstreeEntry};

    #[test]
    fn the_bytes_are_those_that_criu_writes() {
        let mut set = Set::new();
        let task = PstreeEntry {
            pid: 1,
            ppid: 0,
            pgid: 1,
            sid: 1,
            threads: vec![1, 300],
        };
        set.push(Kind::Pstree, 0, &task);
        assert_eq!(
            set.raw("pstree.img").unwrap(),
            [
                0x19, 0x43, 0x56, 0x54, 0x30, 0x30, 0x27, 0x50, 13, 0, 0, 0, 8, 1, 16, 0, 24, 1,
                32, 1, 40, 1, 40, 0xac, 2
            ]
        );
        let inventory = InventoryEntry {
            img_version: 2,
            ..Default::default()
        };
        set.put(Kind::Inventory, 0, &inventory);
        assert_eq!(
            set.raw("inventory.img").unwrap(),
            [0x16, 0x31, 0x31, 0x58, 2, 0, 0, 0, 8, 2]
        );
    }

    #[test]
    fn what_was_put_comes_back() {
        let mut set = Set::new();
        for (pipe_id, data) in [(7, &b"abc"[..]), (8, b""), (9, b"defg")] {
            let record = PipeDataEntry {
                pipe_id,
                bytes: u32::try_from(data.len()).unwrap(),
                size: Some(65536),
            };
            set.push_payload(Kind::PipesData, 0, &record, data);
        }
        let entries = set.entries::<PipeDataEntry>(Kind::PipesData, 0).unwrap();
        let seen: Vec<_> = entries
            .iter()
            .map(|e| (e.record.pipe_id, e.payload))
            .collect();
        assert_eq!(seen, [(7, &b"abc"[..]), (8, b""), (9, b"defg")]);
        assert_eq!(set.ids(Kind::PipesData), [0]);
        assert_eq!(set.all::<PstreeEntry>(Kind::Pstree, 0).unwrap(), []);
        assert_eq!(set.get::<PstreeEntry>(Kind::Pstree, 0).unwrap(), None);
        assert!(set.require::<PstreeEntry>(Kind::Pstree, 0).is_err());
    }
}
