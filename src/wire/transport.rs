//! Lanes: connections that carry frames. Opening one runs the handshake
//! (HELLO, CHALLENGE, PROOF, WELCOME); after that this file knows no meaning.
//!
//! A peer that has not proved the secret may send a kilobyte and has
//! [`HANDSHAKE`] time; it cannot make this end allocate or wait longer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::frame::{self, Builder, Frame, HEADER, Header, Kind};
use super::message::{self, Challenge, Hello, Lane, Proof, Reasons};
use super::secret::{Side, Token, random};
use super::tls::{self, Identity};
use crate::base::{Blame, Error, PAGE_SIZE, Result, ResultExt};

/// How long a handshake may take.
pub const HANDSHAKE: Duration = Duration::from_secs(10);
/// After how long without an answer from the other host a connection counts as lost.
pub const LOST: Duration = Duration::from_secs(15);

const EXPORTER: &[u8] = b"EXPORTER-dunlin-lane";

/// What a lane runs on.
trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// Most bytes of a body before its sender has proved that it knows the secret.
const STRANGER: usize = 1 << 10;

/// The receiving half of a lane.
pub struct Reader {
    io: ReadHalf<Box<dyn Duplex>>,
    spare: Vec<u8>,
    peer: SocketAddr,
    /// Most bytes of a body, beside the limit of its kind.
    most: usize,
}

/// The sending half of a lane.
pub struct Writer {
    io: WriteHalf<Box<dyn Duplex>>,
    spare: Vec<u8>,
    sent: u64,
    peer: SocketAddr,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Reader({})", self.peer)
    }
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Writer({})", self.peer)
    }
}

impl Reader {
    /// The next frame; `None` when the peer closed between two frames.
    ///
    /// # Errors
    /// The connection fails or is cut inside a frame; the frame is malformed.
    pub async fn next(&mut self) -> Result<Option<Frame>> {
        let mut head = [0u8; HEADER];
        let what = || format!("receive from {}", self.peer);
        let first = linked(self.io.read(&mut head).await, what)?;
        if first == 0 {
            return Ok(None);
        }
        if first < HEADER {
            let rest = self.io.read_exact(&mut head[first..]).await;
            linked(rest, || format!("receive frame header from {}", self.peer))?;
        }
        let header = Header::parse(&head)?;
        if header.len > self.most {
            let why = format!("{:?} of {} bytes, unproved", header.kind, header.len);
            return Err(Error::peer(format!("receive from {}", self.peer), why));
        }
        let mut body = std::mem::take(&mut self.spare);
        // Bounded by the limit of the kind, which `parse` has checked.
        body.clear();
        body.resize(header.len, 0);
        let whole = self.io.read_exact(&mut body).await;
        linked(whole, || {
            format!("receive {:?} from {}", header.kind, self.peer)
        })?;
        header.check(&body)?;
        Ok(Some(Frame {
            kind: header.kind,
            body,
        }))
    }

    /// The next frame, which must be there within `limit`.
    ///
    /// # Errors
    /// As [`Reader::next`]; also when the peer closed or said nothing in time.
    pub async fn expect(&mut self, limit: Duration) -> Result<Frame> {
        match timeout(limit, self.next()).await {
            Err(_) => Err(Error::link(
                format!("wait for {}", self.peer),
                format!("no answer within {} s", limit.as_secs()),
            )),
            Ok(Ok(None)) => Err(Error::link(
                format!("receive from {}", self.peer),
                "the peer closed the connection",
            )),
            Ok(Ok(Some(f))) => Ok(f),
            Ok(Err(e)) => Err(e),
        }
    }

    /// Gives the memory of a body back, for the next frame.
    pub fn recycle(&mut self, body: Vec<u8>) {
        self.spare = body;
    }

    /// Who is at the other end.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }
}

impl Writer {
    /// Sends whole frame bytes.
    ///
    /// # Errors
    /// The connection fails.
    pub async fn send_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        let what = || format!("send to {}", self.peer);
        linked(self.io.write_all(bytes).await, what)?;
        linked(self.io.flush().await, what)?;
        self.sent += bytes.len() as u64;
        Ok(())
    }

    /// Sends a message.
    ///
    /// # Errors
    /// As [`Writer::send_bytes`]; the message is too large.
    pub async fn send<M: prost::Message>(&mut self, kind: Kind, m: &M) -> Result<()> {
        let bytes = message::frame(kind, m)?;
        self.send_bytes(&bytes).await
    }

    /// Sends a frame whose body `fill` appends; its memory is kept for the next.
    ///
    /// # Errors
    /// As [`Writer::send_bytes`]; what `fill` says.
    pub async fn send_built(
        &mut self,
        kind: Kind,
        fill: impl FnOnce(&mut Vec<u8>) -> Result<()>,
    ) -> Result<()> {
        let mut b = Builder::new(kind, std::mem::take(&mut self.spare));
        fill(b.buf())?;
        let bytes = b.finish()?;
        let done = self.send_bytes(&bytes).await;
        self.spare = bytes;
        done
    }

    /// Bytes sent so far, headers included.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Closes this direction: the peer reads the end after the last frame.
    ///
    /// # Errors
    /// The connection fails.
    pub async fn close(&mut self) -> Result<()> {
        linked(self.io.shutdown().await, || {
            format!("close lane to {}", self.peer)
        })
    }
}

/// A lane that is open: both ends have proved the secret.
#[derive(Debug)]
pub struct Opened {
    /// What it carries.
    pub lane: Lane,
    /// In which epoch it was opened.
    pub epoch: u64,
    /// Incoming frames.
    pub reader: Reader,
    /// Outgoing frames.
    pub writer: Writer,
}

/// What fails in the kernel here is the connection, not the peer.
fn linked<T>(done: std::io::Result<T>, what: impl FnOnce() -> String) -> Result<T> {
    done.map_err(|e| Error::os(what(), e).blamed(Blame::Link))
}

fn halves(io: Box<dyn Duplex>, peer: SocketAddr, most: usize) -> (Reader, Writer) {
    let (r, w) = tokio::io::split(io);
    (
        Reader {
            io: r,
            spare: Vec::new(),
            peer,
            most,
        },
        Writer {
            io: w,
            spare: Vec::new(),
            sent: 0,
            peer,
        },
    )
}

/// Sets what every lane's socket needs: no delay for small frames, and a dead
/// host noticed within [`LOST`].
fn tune(s: &TcpStream) -> Result<()> {
    let what = || "set up connection".to_owned();
    s.set_nodelay(true).context(what)?;
    setsockopt(s, sockopt::KeepAlive, &true).context(what)?;
    setsockopt(s, sockopt::TcpKeepIdle, &5).context(what)?;
    setsockopt(s, sockopt::TcpKeepInterval, &2).context(what)?;
    setsockopt(s, sockopt::TcpKeepCount, &5).context(what)?;
    let ms = u32::try_from(LOST.as_millis()).unwrap_or(u32::MAX);
    setsockopt(s, sockopt::TcpUserTimeout, &ms).context(what)
}

/// The source opens a lane to the receiver at `to`.
///
/// # Errors
/// No connection, another certificate, another secret, no common version, or
/// the receiver's own words why not.
pub async fn open(to: SocketAddr, token: &Token, lane: Lane, epoch: u64) -> Result<Opened> {
    timeout(HANDSHAKE, open_inner(to, token, lane, epoch))
        .await
        .unwrap_or_else(|_| {
            Err(Error::link(
                format!("connect to {to}"),
                format!("no answer within {} s", HANDSHAKE.as_secs()),
            ))
        })
}

async fn open_inner(to: SocketAddr, token: &Token, lane: Lane, epoch: u64) -> Result<Opened> {
    let tcp = linked(TcpStream::connect(to).await, || format!("connect to {to}"))?;
    tune(&tcp)?;
    let mut channel = Vec::new();
    let io: Box<dyn Duplex> = match token.fingerprint {
        None => Box::new(tcp),
        Some(pin) => {
            let name = ServerName::try_from(tls::NAME)
                .map_err(|e| Error::other(Blame::Us, "name the receiver", e))?;
            let s = tokio_rustls::TlsConnector::from(tls::pinned_client(pin)?)
                .connect(name, tcp)
                .await
                .map_err(|e| {
                    Error::other(
                        Blame::Peer,
                        format!("TLS with {to} (is this its token, and is it not --plain?)"),
                        e,
                    )
                })?;
            channel = binding(s.get_ref().1)?;
            Box::new(s)
        }
    };
    let (mut reader, mut writer) = halves(io, to, Kind::Failure.limit());
    let nonce: [u8; 32] = random()?;
    let hello = Hello {
        versions: vec![u32::from(frame::VERSION)],
        session: token.session.to_vec(),
        lane: lane.number(),
        epoch,
        nonce: nonce.to_vec(),
        page_size: PAGE_SIZE,
    };
    writer.send(Kind::Hello, &hello).await?;
    let c: Challenge = expect_kind(&mut reader, Kind::Challenge).await?;
    if c.version != u32::from(frame::VERSION) || c.nonce.len() != 32 {
        return Err(Error::peer(
            format!("open lane to {to}"),
            "it chose a version that was not offered",
        ));
    }
    let proofs = token.lane(lane, epoch, &nonce, &c.nonce, &channel);
    let mac = proofs.make(Side::Source);
    writer.send(Kind::Proof, &Proof { mac }).await?;
    let w: Proof = expect_kind(&mut reader, Kind::Welcome).await?;
    proofs.check(Side::Receiver, &w.mac)?;
    reader.most = usize::MAX;
    Ok(Opened {
        lane,
        epoch,
        reader,
        writer,
    })
}

/// What both ends of a TLS connection know, and nobody in between. RFC 5705
fn binding<Side>(tls: &rustls::ConnectionCommon<Side>) -> Result<Vec<u8>> {
    tls.export_keying_material(vec![0u8; 32], EXPORTER, None)
        .map_err(|e| Error::other(Blame::Us, "bind to TLS channel", e))
}

/// The receiver takes a connection that came in. `admit` says whether this lane
/// and epoch may be opened now; it is asked only after the proof.
///
/// # Errors
/// The peer is not the source of this session; it was told why, as far as it
/// has a right to know.
pub async fn accept(
    tcp: TcpStream,
    peer: SocketAddr,
    token: &Token,
    identity: Option<&Identity>,
    admit: impl FnOnce(Lane, u64) -> Result<()>,
) -> Result<Opened> {
    timeout(HANDSHAKE, accept_inner(tcp, peer, token, identity, admit))
        .await
        .unwrap_or_else(|_| {
            Err(Error::link(
                format!("handshake with {peer}"),
                format!("not done within {} s", HANDSHAKE.as_secs()),
            ))
        })
}

async fn accept_inner(
    tcp: TcpStream,
    peer: SocketAddr,
    token: &Token,
    identity: Option<&Identity>,
    admit: impl FnOnce(Lane, u64) -> Result<()>,
) -> Result<Opened> {
    tune(&tcp)?;
    let mut channel = Vec::new();
    let io: Box<dyn Duplex> = match identity {
        None => Box::new(tcp),
        Some(id) => {
            let s = tokio_rustls::TlsAcceptor::from(Arc::clone(&id.config))
                .accept(tcp)
                .await
                .map_err(|e| Error::other(Blame::Peer, format!("TLS with {peer}"), e))?;
            channel = binding(s.get_ref().1)?;
            Box::new(s)
        }
    };
    let (mut reader, mut writer) = halves(io, peer, STRANGER);
    match prove(&mut reader, &mut writer, token, &channel, admit).await {
        Ok((lane, epoch)) => Ok(Opened {
            lane,
            epoch,
            reader,
            writer,
        }),
        Err(e) => {
            let why = Reasons {
                reasons: vec![e.to_string()],
            };
            // It is closed anyway: whether the words arrive changes nothing.
            let _ = writer.send(Kind::Failure, &why).await;
            let _ = writer.close().await;
            Err(e.within(format!("refuse {peer}")))
        }
    }
}

async fn prove(
    reader: &mut Reader,
    writer: &mut Writer,
    token: &Token,
    channel: &[u8],
    admit: impl FnOnce(Lane, u64) -> Result<()>,
) -> Result<(Lane, u64)> {
    let h: Hello = expect_kind(reader, Kind::Hello).await?;
    if !h.versions.contains(&u32::from(frame::VERSION)) {
        return Err(Error::peer(
            "open lane",
            format!(
                "no common version: {:?} offered, {} spoken here",
                h.versions,
                frame::VERSION
            ),
        ));
    }
    if h.page_size != PAGE_SIZE {
        return Err(Error::peer(
            "open lane",
            format!("pages of {} bytes there, {PAGE_SIZE} here", h.page_size),
        ));
    }
    let lane = Lane::from_number(h.lane)?;
    if h.nonce.len() != 32 {
        return Err(Error::peer("open lane", "nonce of another length"));
    }
    let nonce: [u8; 32] = random()?;
    let challenge = Challenge {
        version: u32::from(frame::VERSION),
        nonce: nonce.to_vec(),
    };
    writer.send(Kind::Challenge, &challenge).await?;
    let p: Proof = expect_kind(reader, Kind::Proof).await?;
    let proofs = token.lane(lane, h.epoch, &h.nonce, &nonce, channel);
    proofs.check(Side::Source, &p.mac)?;
    reader.most = usize::MAX;
    if h.session != token.session {
        return Err(Error::peer("open lane", "another session"));
    }
    admit(lane, h.epoch)?;
    let mac = proofs.make(Side::Receiver);
    writer.send(Kind::Welcome, &Proof { mac }).await?;
    Ok((lane, h.epoch))
}

/// The next frame, which must be of `kind` (within the caller's time limit).
///
/// # Errors
/// Another kind; the peer's own words if it says FAILURE.
pub async fn expect_kind<M: prost::Message + Default>(
    reader: &mut Reader,
    kind: Kind,
) -> Result<M> {
    let f = reader.expect(HANDSHAKE).await?;
    if f.kind == Kind::Failure {
        return Err(told(&f));
    }
    if f.kind != kind {
        return Err(Error::peer(
            format!("wait for {kind:?}"),
            format!("{:?} came", f.kind),
        ));
    }
    message::parse(kind, &f.body)
}

/// The error that the peer put into words: its blame is the peer's, never the
/// link's.
pub fn told(f: &Frame) -> Error {
    let why = match message::parse::<Reasons>(f.kind, &f.body) {
        Ok(r) if !r.reasons.is_empty() => r
            .reasons
            .iter()
            .map(|s| printable(s))
            .collect::<Vec<_>>()
            .join("; "),
        _ => "no reason given".to_owned(),
    };
    Error::peer("the other end says", why)
}

/// A peer's words without control characters, at most 400 bytes or so.
pub fn printable(s: &str) -> String {
    s.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(400)
        .collect()
}

#[cfg(test)]
#[path = "transport_tests.rs"]
mod tests;
