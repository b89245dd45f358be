//! The one-time token, and the proofs made from it.
//!
//! A receiver makes a token for one session: session id, secret, and the
//! SHA-256 of the certificate that it made for this run. It travels to the
//! source by the operator's hand (a 0600 file), never in argv.
//!
//! A proof is HMAC-SHA-256 under the secret over: a label for the side, the
//! session, lane, epoch, both nonces, and the TLS exporter of the channel (empty
//! with `--plain`). So a proof can neither be replayed (the other side's nonce
//! is fresh), nor reflected (labels differ), nor carried to another channel.

use std::fmt;

use ring::rand::{SecureRandom, SystemRandom};
use ring::{digest, hmac};

use super::message::Lane;
use crate::base::{Error, Result};

/// Identity and secret of a session.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// Names the session; no secret.
    pub session: [u8; 16],
    secret: [u8; 32],
    /// SHA-256 of the receiver's certificate; `None`: `--plain`.
    pub fingerprint: Option<[u8; 32]>,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("session", &hex(&self.session))
            .field("tls", &self.fingerprint.is_some())
            .finish_non_exhaustive()
    }
}

const PREFIX: &str = "dunlin1-";

impl Token {
    /// A fresh token; `certificate` is the receiver's, in DER.
    ///
    /// # Errors
    /// The kernel gives no random bytes.
    pub fn fresh(certificate: Option<&[u8]>) -> Result<Self> {
        Ok(Self {
            session: random()?,
            secret: random()?,
            fingerprint: certificate.map(fingerprint),
        })
    }

    /// As people carry it: one word of printable ASCII.
    pub fn to_text(&self) -> String {
        let mut s = format!("{PREFIX}{}{}", hex(&self.session), hex(&self.secret));
        if let Some(f) = &self.fingerprint {
            s.push_str(&hex(f));
        }
        s
    }

    /// Reads it back; white space around it is ignored.
    ///
    /// # Errors
    /// Not a token. The text is not repeated in the error.
    pub fn from_text(text: &str) -> Result<Self> {
        let bad = || Error::caller("read token", "not a token of dunlin receive");
        let bytes = text
            .trim()
            .strip_prefix(PREFIX)
            .and_then(unhex)
            .ok_or_else(bad)?;
        let session = *bytes.first_chunk::<16>().ok_or_else(bad)?;
        let secret = *bytes
            .get(16..)
            .and_then(|b| b.first_chunk::<32>())
            .ok_or_else(bad)?;
        let fingerprint = match bytes.get(48..) {
            None | Some([]) => None,
            Some(f) => Some(f.try_into().map_err(|_| bad())?),
        };
        Ok(Self {
            session,
            secret,
            fingerprint,
        })
    }

    /// Makes or checks proofs of this lane.
    pub fn lane(
        &self,
        lane: Lane,
        epoch: u64,
        source: &[u8],
        receiver: &[u8],
        channel: &[u8],
    ) -> Proofs {
        let mut words = Vec::with_capacity(160);
        for part in [
            &self.session[..],
            &lane.number().to_le_bytes(),
            &epoch.to_le_bytes(),
            source,
            receiver,
            channel,
        ] {
            words.extend_from_slice(&(part.len() as u64).to_le_bytes());
            words.extend_from_slice(part);
        }
        Proofs {
            key: hmac::Key::new(hmac::HMAC_SHA256, &self.secret),
            words,
        }
    }
}

/// Who proves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The end that has the container.
    Source,
    /// The end that receives it.
    Receiver,
}

/// What both ends prove on one lane.
pub struct Proofs {
    key: hmac::Key,
    words: Vec<u8>,
}

impl fmt::Debug for Proofs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Proofs")
    }
}

impl Proofs {
    fn text(&self, side: Side) -> Vec<u8> {
        let label: &[u8] = match side {
            Side::Source => b"dunlin lane proof of source\0",
            Side::Receiver => b"dunlin lane proof of receiver\0",
        };
        [label, &self.words].concat()
    }

    /// The proof of `side`.
    pub fn make(&self, side: Side) -> Vec<u8> {
        hmac::sign(&self.key, &self.text(side)).as_ref().to_vec()
    }

    /// Whether `mac` is the proof of `side`; takes the same time whatever it is.
    ///
    /// # Errors
    /// It is not.
    pub fn check(&self, side: Side, mac: &[u8]) -> Result<()> {
        hmac::verify(&self.key, &self.text(side), mac).map_err(|_| {
            Error::peer(
                "open lane",
                match side {
                    Side::Source => "the source does not know this session's secret",
                    Side::Receiver => "the receiver does not know this session's secret",
                },
            )
        })
    }
}

/// Fresh random bytes.
///
/// # Errors
/// The kernel gives none.
pub fn random<const N: usize>() -> Result<[u8; N]> {
    let mut b = [0u8; N];
    SystemRandom::new()
        .fill(&mut b)
        .map_err(|_| Error::bug("get random bytes", "the system's generator failed"))?;
    Ok(b)
}

/// SHA-256 of a certificate in DER.
pub fn fingerprint(certificate: &[u8]) -> [u8; 32] {
    let mut f = [0u8; 32];
    f.copy_from_slice(digest::digest(&digest::SHA256, certificate).as_ref());
    f
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Bytes from hexadecimal; `None` if it is not.
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    let t = text.as_bytes();
    if !t.len().is_multiple_of(2) || t.len() > 4096 {
        return None;
    }
    t.chunks(2)
        .map(|p| {
            let d = |c: u8| char::from(c).to_digit(16);
            u8::try_from(d(p[0])? * 16 + d(p[1])?).ok()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_comes_back_from_its_text_and_hides_its_secret_in_debug() {
        for cert in [None, Some(&b"certificate"[..])] {
            let t = Token::fresh(cert).unwrap();
            assert_eq!(Token::from_text(&format!(" {}\n", t.to_text())).unwrap(), t);
            assert!(!format!("{t:?}").contains(&hex(&t.secret)));
        }
    }

    #[test]
    fn what_is_no_token_is_refused_without_repeating_it() {
        for text in ["", "dunlin1-", "dunlin1-zz", "dunlin1-00", "x"] {
            let e = Token::from_text(text).unwrap_err().to_string();
            assert!(e.contains("not a token"));
        }
    }

    #[test]
    fn a_proof_holds_for_one_side_lane_epoch_nonce_and_channel_only() {
        let t = Token::fresh(None).unwrap();
        let p = t.lane(Lane::Bulk, 1, b"a", b"b", b"c");
        let mac = p.make(Side::Source);
        p.check(Side::Source, &mac).unwrap();
        assert!(p.check(Side::Receiver, &mac).is_err(), "reflected");
        for other in [
            t.lane(Lane::Fault, 1, b"a", b"b", b"c"),
            t.lane(Lane::Bulk, 2, b"a", b"b", b"c"),
            t.lane(Lane::Bulk, 1, b"x", b"b", b"c"),
            t.lane(Lane::Bulk, 1, b"a", b"x", b"c"),
            t.lane(Lane::Bulk, 1, b"a", b"b", b"x"),
            t.lane(Lane::Bulk, 1, b"ab", b"", b"c"),
            Token::fresh(None)
                .unwrap()
                .lane(Lane::Bulk, 1, b"a", b"b", b"c"),
        ] {
            assert!(other.check(Side::Source, &mac).is_err());
        }
    }
}
