//! How records lie in a file: magic, then for each record its length (u32, little
//! endian) and its bytes; some are followed by bytes that are no record.

use super::kind::{COMMON_MAGIC, Kind, Layout, Magic, SERVICE_MAGIC};
use super::records::{
    self, BpfmapDataEntry, GhostChunkEntry, GhostFileEntry, IpcMsg, IpcMsgEntry, IpcSemEntry,
    IpcShmEntry, PagemapEntry, PagemapHead, PipeDataEntry, Record, SkPacketEntry, TcpStreamEntry,
};
use crate::base::limits::MAX_RECORD;
use crate::base::{Error, Result};
use prost::Message;

/// Most records in a file: a large one decodes to about 2 KiB.
const MAX_RECORDS: usize = 1 << 20;

/// One record of a file with the bytes that follow it.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry<'a, T> {
    /// The record.
    pub record: T,
    /// What follows it, without padding; empty for most types.
    pub payload: &'a [u8],
}

/// Appends length and record.
pub(super) fn push(out: &mut Vec<u8>, message: &impl Message) {
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    message
        .encode(out)
        .expect("a Vec grows as far as it is needed");
    let len = u32::try_from(out.len() - at - 4).expect("a record is below 4 GiB");
    out[at..at + 4].copy_from_slice(&len.to_le_bytes());
}

/// Appends what follows a record of this type, padded as the type asks for.
pub(super) fn push_payload(out: &mut Vec<u8>, kind: Kind, payload: &[u8]) {
    out.extend_from_slice(payload);
    let align = match kind {
        Kind::IpcnsSem | Kind::IpcnsMsg => 8,
        Kind::IpcnsShm => 4,
        _ => 1,
    };
    out.resize(
        out.len() + payload.len().next_multiple_of(align) - payload.len(),
        0,
    );
}

/// Walks over the records of a file.
pub(super) struct Reader<'a> {
    kind: Kind,
    name: String,
    rest: &'a [u8],
    index: usize,
}

impl<'a> Reader<'a> {
    /// Checks the magic of `bytes`, which `name` holds.
    pub(super) fn new(kind: Kind, name: &str, bytes: &'a [u8]) -> Result<Self> {
        let mut reader = Self {
            kind,
            name: name.to_owned(),
            rest: bytes,
            index: 0,
        };
        let own = match kind.magic() {
            Magic::Raw => return Ok(reader),
            Magic::Own(own) => own,
            Magic::Common(own) => {
                reader.expect_word(COMMON_MAGIC, "is no image of format 1.1")?;
                own
            }
            Magic::Service(own) => {
                reader.expect_word(SERVICE_MAGIC, "is no service file of format 1.1")?;
                own
            }
        };
        reader.expect_word(own, "is an image of another type")?;
        Ok(reader)
    }

    fn expect_word(&mut self, word: u32, otherwise: &'static str) -> Result<()> {
        let Some(found) = self.word() else {
            return Err(Error::image(self.name.as_str(), "ends within its magic"));
        };
        if found == word {
            return Ok(());
        }
        Err(Error::image(
            self.name.as_str(),
            format!("{otherwise} (magic {found:#010x} instead of {word:#010x})"),
        ))
    }

    fn word(&mut self) -> Option<u32> {
        let (word, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(u32::from_le_bytes(*word))
    }

    /// An error about the record that was read last.
    pub(super) fn error(&self, why: impl Into<std::borrow::Cow<'static, str>>) -> Error {
        Error::image(
            format!("{} record {}", self.name, self.index.saturating_sub(1)),
            why,
        )
    }

    /// The next record undecoded; `None` at the end.
    pub(super) fn next_bytes(&mut self) -> Result<Option<&'a [u8]>> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        self.index += 1;
        if self.index > MAX_RECORDS {
            return Err(self.error("is one more than a file may hold"));
        }
        let len = self
            .word()
            .ok_or_else(|| self.error("ends within the length"))?;
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        if len > MAX_RECORD {
            return Err(self.error(format!("claims {len} bytes, more than {MAX_RECORD}")));
        }
        self.take(len, "record").map(Some)
    }

    /// The next record.
    pub(super) fn next<T: Record>(&mut self) -> Result<Option<T>> {
        let Some(bytes) = self.next_bytes()? else {
            return Ok(None);
        };
        self.decode(bytes).map(Some)
    }

    /// Decodes the record that was read last.
    pub(super) fn decode<T: Record>(&self, bytes: &[u8]) -> Result<T> {
        records::decode(bytes).map_err(|refused| self.error(refused.to_string()))
    }

    /// The next record with what follows it.
    pub(super) fn next_entry<T: Record>(&mut self) -> Result<Option<Entry<'a, T>>> {
        let Some(bytes) = self.next_bytes()? else {
            return Ok(None);
        };
        Ok(Some(Entry {
            record: self.decode(bytes)?,
            payload: self.payload(bytes)?,
        }))
    }

    /// What follows the record `bytes`, which was read last.
    pub(super) fn payload(&mut self, bytes: &[u8]) -> Result<&'a [u8]> {
        match self.kind.layout() {
            Layout::Records(_) | Layout::Pagemap | Layout::Raw => return Ok(&[]),
            Layout::Ghost => {
                let rest = self.rest;
                self.rest = &[];
                return Ok(rest);
            }
            Layout::Payload(_) => {}
        }
        if self.kind == Kind::IpcnsMsg {
            return self.messages(bytes);
        }
        let (len, align) = match self.kind {
            Kind::PipesData | Kind::FifoData => {
                (u64::from(self.decode::<PipeDataEntry>(bytes)?.bytes), 1)
            }
            Kind::SkQueues => (u64::from(self.decode::<SkPacketEntry>(bytes)?.length), 1),
            Kind::TcpStream => {
                let stream: TcpStreamEntry = self.decode(bytes)?;
                (u64::from(stream.inq_len) + u64::from(stream.outq_len), 1)
            }
            Kind::BpfmapData => {
                let data: BpfmapDataEntry = self.decode(bytes)?;
                (u64::from(data.keys_bytes) + u64::from(data.values_bytes), 1)
            }
            Kind::IpcnsSem => (u64::from(self.decode::<IpcSemEntry>(bytes)?.nsems) * 2, 8),
            Kind::IpcnsShm => {
                let shm: IpcShmEntry = self.decode(bytes)?;
                let here = if shm.in_pagemaps() { 0 } else { shm.size };
                (here, 4)
            }
            _ => (0, 1),
        };
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let payload = self.take(len, "content")?;
        self.take(padding(len, align), "padding")?;
        Ok(payload)
    }

    /// The messages of a queue: each a record of its own with bytes behind it.
    fn messages(&mut self, queue: &[u8]) -> Result<&'a [u8]> {
        let queue: IpcMsgEntry = self.decode(queue)?;
        let start = self.rest;
        for _ in 0..queue.qnum {
            let len = self
                .word()
                .ok_or_else(|| self.error("ends before its messages do"))?;
            let len = usize::try_from(len).unwrap_or(usize::MAX);
            let bytes = self.take(len, "message")?;
            let message: IpcMsg = self.decode(bytes)?;
            let len = usize::try_from(message.msize).unwrap_or(usize::MAX);
            self.take(len, "message")?;
            self.take(padding(len, 8), "padding")?;
        }
        Ok(&start[..start.len() - self.rest.len()])
    }

    /// Walks to the end, decoding all that is there.
    pub(super) fn check(mut self) -> Result<()> {
        match self.kind.layout() {
            Layout::Raw => {}
            Layout::Records(check) => {
                while let Some(bytes) = self.next_bytes()? {
                    check(&self, bytes)?;
                }
            }
            Layout::Payload(check) => {
                while let Some(bytes) = self.next_bytes()? {
                    check(&self, bytes)?;
                    self.payload(bytes)?;
                }
            }
            Layout::Pagemap => {
                self.first::<PagemapHead>()?;
                while self.next::<PagemapEntry>()?.is_some() {}
            }
            Layout::Ghost => {
                let ghost: GhostFileEntry = self.first()?;
                if ghost.chunks() {
                    while let Some(chunk) = self.next::<GhostChunkEntry>()? {
                        let len = usize::try_from(chunk.len).unwrap_or(usize::MAX);
                        self.take(len, "chunk")?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The next record, which must be there.
    pub(super) fn first<T: Record>(&mut self) -> Result<T> {
        match self.next()? {
            Some(record) => Ok(record),
            None => Err(Error::image(self.name.as_str(), "holds no record")),
        }
    }

    fn take(&mut self, len: usize, what: &str) -> Result<&'a [u8]> {
        match self.rest.split_at_checked(len) {
            Some((taken, rest)) => {
                self.rest = rest;
                Ok(taken)
            }
            None => Err(self.error(format!(
                "{what} of {len} bytes, of which {} are there",
                self.rest.len()
            ))),
        }
    }
}

fn padding(len: usize, align: usize) -> usize {
    len.checked_next_multiple_of(align)
        .map_or(0, |padded| padded - len)
}
