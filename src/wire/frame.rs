//! Frames: a header of 16 bytes, then the body.
//!
//! ```text
//!  0  u32  magic "DNLN"
//!  4  u8   version of the framing (2)
//!  5  u8   type (see `Kind`; 0 is invalid)
//!  6  u16  flags (0; any other value is refused)
//!  8  u32  length of the body, bytes; each type has its own limit
//! 12  u32  CRC-32 (IEEE) of bytes 0..12 and the body
//! ```
//!
//! All numbers are little-endian.

use crate::base::{Error, Result};

/// First bytes of every frame.
pub const MAGIC: [u8; 4] = *b"DNLN";
/// Version of the framing, and of the protocol offered in HELLO.
pub const VERSION: u8 = 2;
/// Bytes in a header.
pub const HEADER: usize = 16;
/// Most bytes of file or image content in one frame.
pub const DATA_CHUNK: usize = 256 << 10;
/// Most bytes of page content in one batch.
pub const BATCH_BYTES: usize = 1 << 20;

/// What a frame says. Discriminants are the bytes on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Source opens a lane.
    Hello = 1,
    /// Receiver answers with its nonce.
    Challenge = 2,
    /// Source proves the secret.
    Proof = 3,
    /// Receiver proves the secret; the lane is open.
    Welcome = 4,
    /// Source: container, its configuration, what it needs.
    Offer = 10,
    /// Destination: it can be had here.
    Fit = 11,
    /// Destination: it cannot; reasons by name.
    Refused = 12,
    /// Source: one file, directory, link of the bundle.
    Entry = 20,
    /// Source: bytes of the last entry that is a regular file.
    Data = 21,
    /// Source: a path that is no more.
    Remove = 22,
    /// Source: the bundle has been sent once.
    BundleEnd = 23,
    /// Destination: it lies on disk.
    Taken = 24,
    /// Source: one image file is to follow.
    Image = 30,
    /// Source: bytes of the last image.
    ImageData = 31,
    /// Source: all state has been sent.
    StateEnd = 32,
    /// Destination: rebuilt, nothing runs.
    Ready = 40,
    /// Source: yours (journaled before it is sent).
    Grant = 41,
    /// Destination: it runs here.
    Resumed = 42,
    /// Source: give up (only before GRANT).
    Abort = 43,
    /// Destination: given up, nothing ran and nothing will.
    Aborted = 44,
    /// Destination: a task waits for this page.
    Fault = 50,
    /// Source: pages.
    Pages = 51,
    /// Destination, in a new epoch: pages that it still lacks.
    Missing = 52,
    /// Source: pages that do not exist, or are guard pages.
    Absent = 53,
    /// Destination: every page is accounted for.
    Complete = 60,
    /// Source: its copy is gone.
    Forget = 61,
    /// Either: why the lane is about to be closed.
    Failure = 70,
}

impl Kind {
    /// Every kind, for tests and tables.
    pub const ALL: [Kind; 27] = [
        Kind::Hello,
        Kind::Challenge,
        Kind::Proof,
        Kind::Welcome,
        Kind::Offer,
        Kind::Fit,
        Kind::Refused,
        Kind::Entry,
        Kind::Data,
        Kind::Remove,
        Kind::BundleEnd,
        Kind::Taken,
        Kind::Image,
        Kind::ImageData,
        Kind::StateEnd,
        Kind::Ready,
        Kind::Grant,
        Kind::Resumed,
        Kind::Abort,
        Kind::Aborted,
        Kind::Fault,
        Kind::Pages,
        Kind::Missing,
        Kind::Absent,
        Kind::Complete,
        Kind::Forget,
        Kind::Failure,
    ];

    fn from_byte(b: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|k| *k as u8 == b)
    }

    /// Most bytes that a body of this kind may have.
    pub fn limit(self) -> usize {
        match self {
            Kind::Hello | Kind::Challenge | Kind::Proof | Kind::Welcome => 1 << 10,
            Kind::Offer => 4 << 20,
            Kind::Entry => 1 << 20,
            Kind::Data | Kind::ImageData => DATA_CHUNK + 16,
            Kind::Pages => BATCH_BYTES + super::batch::MAX_OVERHEAD,
            Kind::Missing | Kind::Absent => 8 << 20,
            Kind::Fit
            | Kind::Refused
            | Kind::Remove
            | Kind::BundleEnd
            | Kind::Taken
            | Kind::Image
            | Kind::StateEnd
            | Kind::Ready
            | Kind::Grant
            | Kind::Resumed
            | Kind::Abort
            | Kind::Aborted
            | Kind::Fault
            | Kind::Complete
            | Kind::Forget
            | Kind::Failure => 64 << 10,
        }
    }
}

/// A checked header: its body may be read now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What the frame says.
    pub kind: Kind,
    /// Bytes of body, at most `kind.limit()`.
    pub len: usize,
    crc: u32,
    head: [u8; 12],
}

impl Header {
    /// Judges a header.
    ///
    /// # Errors
    /// Names the field that is wrong; the peer is to blame.
    pub fn parse(b: &[u8; HEADER]) -> Result<Self> {
        let bad = |why: String| Error::peer("read frame header", why);
        let mut head = [0u8; 12];
        head.copy_from_slice(&b[..12]);
        if b[..4] != MAGIC {
            return Err(bad(format!("not ours: magic {:02x?}", &b[..4])));
        }
        if b[4] != VERSION {
            return Err(bad(format!(
                "version {} is not spoken here, only {VERSION}",
                b[4]
            )));
        }
        let kind = Kind::from_byte(b[5])
            .ok_or_else(|| bad(format!("unknown type {} in version {VERSION}", b[5])))?;
        let flags = u16::from_le_bytes([b[6], b[7]]);
        if flags != 0 {
            return Err(bad(format!("{kind:?} has unknown flags {flags:#x}")));
        }
        let len = u32::from_le_bytes([b[8], b[9], b[10], b[11]]);
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        if len > kind.limit() {
            return Err(bad(format!(
                "{kind:?} of {len} bytes, at most {} are allowed",
                kind.limit()
            )));
        }
        let crc = u32::from_le_bytes([b[12], b[13], b[14], b[15]]);
        Ok(Self {
            kind,
            len,
            crc,
            head,
        })
    }

    /// Checks the body that was read after this header.
    ///
    /// # Errors
    /// The checksum differs.
    pub fn check(&self, body: &[u8]) -> Result<()> {
        let mut crc = crc32fast::Hasher::new();
        crc.update(&self.head);
        crc.update(body);
        if body.len() == self.len && crc.finalize() == self.crc {
            Ok(())
        } else {
            Err(Error::link(
                format!("read {:?} frame", self.kind),
                "checksum differs: damaged on the way",
            ))
        }
    }
}

/// A frame that came in whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What it says.
    pub kind: Kind,
    /// Its body, checked against the checksum only.
    pub body: Vec<u8>,
}

/// A frame under construction: the body is appended in place, the header is
/// filled in at the end, so that a batch is written once and never copied.
#[derive(Debug)]
pub struct Builder {
    kind: Kind,
    buf: Vec<u8>,
}

impl Builder {
    /// An empty frame; `buf` is emptied and used (its capacity is kept).
    pub fn new(kind: Kind, mut buf: Vec<u8>) -> Self {
        buf.clear();
        buf.resize(HEADER, 0);
        Self { kind, buf }
    }

    /// Where the body is appended; bytes 0..16 belong to the header.
    pub fn buf(&mut self) -> &mut Vec<u8> {
        &mut self.buf
    }

    /// The bytes for the wire.
    ///
    /// # Errors
    /// The body is over the limit of its kind: a bug of ours.
    pub fn finish(mut self) -> Result<Vec<u8>> {
        let len = self.buf.len().saturating_sub(HEADER);
        let wire_len = u32::try_from(len)
            .ok()
            .filter(|_| len <= self.kind.limit())
            .ok_or_else(|| {
                Error::bug(
                    format!("build {:?} frame", self.kind),
                    format!("{len} bytes, at most {}", self.kind.limit()),
                )
            })?;
        self.buf[..4].copy_from_slice(&MAGIC);
        self.buf[4] = VERSION;
        self.buf[5] = self.kind as u8;
        self.buf[6..8].fill(0);
        self.buf[8..12].copy_from_slice(&wire_len.to_le_bytes());
        let mut crc = crc32fast::Hasher::new();
        crc.update(&self.buf[..12]);
        crc.update(&self.buf[HEADER..]);
        self.buf[12..16].copy_from_slice(&crc.finalize().to_le_bytes());
        Ok(self.buf)
    }
}

/// A whole frame from a body.
///
/// # Errors
/// As [`Builder::finish`].
pub fn encode(kind: Kind, body: &[u8]) -> Result<Vec<u8>> {
    let mut b = Builder::new(kind, Vec::with_capacity(HEADER + body.len()));
    b.buf().extend_from_slice(body);
    b.finish()
}

/// Takes one whole frame from the front of `bytes`: the frame and the bytes it
/// used, or `None` if more are needed. The door of the fuzzer.
///
/// # Errors
/// As [`Header::parse`] and [`Header::check`].
pub fn decode(bytes: &[u8]) -> Result<Option<(Frame, usize)>> {
    let Some(head) = bytes.first_chunk::<HEADER>() else {
        return Ok(None);
    };
    let header = Header::parse(head)?;
    let Some(body) = bytes.get(HEADER..HEADER + header.len) else {
        return Ok(None);
    };
    header.check(body)?;
    let frame = Frame {
        kind: header.kind,
        body: body.to_vec(),
    };
    Ok(Some((frame, HEADER + header.len)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_kind_has_its_own_number_and_zero_is_none() {
        let mut seen = std::collections::BTreeSet::new();
        for k in &Kind::ALL {
            assert!(seen.insert(*k as u8), "{k:?} shares its number");
            assert_eq!(Kind::from_byte(*k as u8), Some(*k));
        }
        for b in 0..=255u8 {
            assert_eq!(Kind::from_byte(b).is_some(), seen.contains(&b));
        }
        assert!(!seen.contains(&0));
    }

    #[test]
    fn another_version_is_refused_by_name() {
        let mut f = encode(Kind::Ready, b"").unwrap();
        f[4] = VERSION + 1;
        let e = decode(&f).unwrap_err().to_string();
        assert!(e.contains(&format!("version {}", VERSION + 1)), "{e}");
    }

    #[test]
    fn an_oversized_length_is_refused_before_the_body() {
        let mut f = encode(Kind::Hello, b"").unwrap();
        f[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        let e = decode(&f).unwrap_err().to_string();
        assert!(e.contains("at most"), "{e}");
    }

    proptest! {
        #[test]
        fn a_frame_comes_back_as_it_went(body in proptest::collection::vec(any::<u8>(), 0..900), tail in 0usize..20) {
            let mut bytes = encode(Kind::Offer, &body).unwrap();
            let len = bytes.len();
            bytes.resize(len + tail, 0x55);
            let (f, used) = decode(&bytes).unwrap().unwrap();
            prop_assert_eq!(used, len);
            prop_assert_eq!(f.body, body);
        }

        #[test]
        fn a_flipped_bit_never_passes(body in proptest::collection::vec(any::<u8>(), 1..200), bit in any::<prop::sample::Index>()) {
            let mut bytes = encode(Kind::Offer, &body).unwrap();
            let bit = bit.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            let whole = matches!(decode(&bytes), Ok(Some(_)));
            prop_assert!(!whole);
        }

        #[test]
        fn a_cut_frame_is_never_whole(body in proptest::collection::vec(any::<u8>(), 0..200), cut in any::<prop::sample::Index>()) {
            let bytes = encode(Kind::Offer, &body).unwrap();
            let cut = cut.index(bytes.len());
            prop_assert!(decode(&bytes[..cut]).unwrap().is_none());
        }

        #[test]
        fn noise_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = decode(&bytes);
        }
    }
}
