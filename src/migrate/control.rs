//! One end's control lane: frames in the order that the session allows, each
//! within a time limit.

use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use super::bundle::walk::Sink;
use crate::base::{Error, Result};
use crate::wire::frame::{Frame, Kind};
use crate::wire::message::{Entry, Reasons, Remove};
use crate::wire::secret::Side;
use crate::wire::session::{Session, State};
use crate::wire::transport::{Opened, Reader, Writer, told};

/// How long one frame may take to be taken by the other host.
const SEND: Duration = Duration::from_secs(30);

/// A control lane with its session. All calls block.
#[derive(Debug)]
pub struct Control {
    rt: Handle,
    /// Incoming frames.
    pub reader: Reader,
    writer: Writer,
    session: Session,
    until: Option<Instant>,
}

impl Control {
    /// Begins a session on a fresh lane.
    pub fn new(rt: Handle, lane: Opened, side: Side) -> Self {
        Self {
            rt,
            reader: lane.reader,
            writer: lane.writer,
            session: Session::new(side),
            until: None,
        }
    }

    /// Goes on with a session on a lane of a new epoch.
    pub fn again(rt: Handle, lane: Opened, side: Side, state: State) -> Self {
        Self {
            rt,
            reader: lane.reader,
            writer: lane.writer,
            session: Session::at(side, state),
            until: None,
        }
    }

    /// What is said from now on is taken by the other host before `end`, or the link
    /// counts as lost.
    pub fn until(&mut self, end: Option<Instant>) {
        self.until = end;
    }

    fn limit(&self) -> Duration {
        let left = |end: Instant| end.saturating_duration_since(Instant::now());
        self.until.map_or(SEND, |end| SEND.min(left(end)))
    }

    /// Where the session stands.
    pub fn state(&self) -> State {
        self.session.state()
    }

    /// Bytes sent on this lane.
    pub fn sent(&self) -> u64 {
        self.writer.sent()
    }

    /// Says something.
    ///
    /// # Errors
    /// Out of order (a bug), or the connection; then the peer's last words, if
    /// there are any.
    pub fn say<M: prost::Message>(&mut self, kind: Kind, m: &M) -> Result<()> {
        self.session.sending(kind)?;
        let limit = self.limit();
        let done = self.rt.clone().block_on(async {
            tokio::time::timeout(limit, self.writer.send(kind, m))
                .await
                .ok()
        });
        self.sent_or_told(kind, done, limit)
    }

    /// Says something whose body `fill` appends.
    ///
    /// # Errors
    /// As [`Control::say`].
    pub fn say_built(
        &mut self,
        kind: Kind,
        fill: impl FnOnce(&mut Vec<u8>) -> Result<()>,
    ) -> Result<()> {
        self.session.sending(kind)?;
        let limit = self.limit();
        let done = self.rt.clone().block_on(async {
            tokio::time::timeout(limit, self.writer.send_built(kind, fill))
                .await
                .ok()
        });
        self.sent_or_told(kind, done, limit)
    }

    fn sent_or_told(
        &mut self,
        kind: Kind,
        done: Option<Result<()>>,
        limit: Duration,
    ) -> Result<()> {
        match done {
            Some(Ok(())) => Ok(()),
            None => Err(Error::link(
                format!("send {kind:?}"),
                format!("not taken within {} s", limit.as_secs()),
            )),
            Some(Err(e)) => {
                // The peer may have said why before it closed.
                match self.hear(Duration::from_millis(200)) {
                    Ok(f) if matches!(f.kind, Kind::Aborted | Kind::Refused) => Err(told(&f)),
                    _ => Err(e),
                }
            }
        }
    }

    /// The next frame, checked against the session.
    ///
    /// # Errors
    /// Nothing within `limit`, the connection, out of order, or the peer's own
    /// words (FAILURE).
    pub fn hear(&mut self, limit: Duration) -> Result<Frame> {
        let f = self.rt.clone().block_on(self.reader.expect(limit))?;
        self.check(f)
    }

    /// The last word of a session, FORGET.
    ///
    /// # Errors
    /// As [`Control::hear`]; another word.
    pub fn hear_forget(&mut self, limit: Duration) -> Result<()> {
        match self.hear(limit)?.kind {
            Kind::Forget => Ok(()),
            other => Err(Error::peer(format!("receive {other:?}"), "out of order")),
        }
    }

    /// As [`Control::hear`] does, for a frame that was read elsewhere.
    ///
    /// # Errors
    /// Out of order, or FAILURE.
    pub fn check(&mut self, f: Frame) -> Result<Frame> {
        if f.kind == Kind::Failure {
            return Err(told(&f));
        }
        self.session.received(f.kind)?;
        Ok(f)
    }

    /// Says why this end gives up, and closes; whether that arrives changes
    /// nothing.
    pub fn part(&mut self, kind: Kind, e: &Error) {
        let why = Reasons {
            reasons: vec![e.to_string()],
        };
        let _ = self.rt.clone().block_on(async {
            tokio::time::timeout(Duration::from_secs(2), self.writer.send(kind, &why)).await
        });
    }

    /// Both halves, for the time of the pages.
    pub fn halves(&mut self) -> (&mut Reader, &mut Writer) {
        (&mut self.reader, &mut self.writer)
    }
}

impl Sink for Control {
    fn entry(&mut self, e: &Entry) -> Result<()> {
        self.say(Kind::Entry, e)
    }

    fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.say_built(Kind::Data, |b| {
            b.extend_from_slice(&offset.to_le_bytes());
            b.extend_from_slice(bytes);
            Ok(())
        })
    }

    fn remove(&mut self, path: &[u8]) -> Result<()> {
        let path = path.to_vec();
        self.say(Kind::Remove, &Remove { path })
    }
}
