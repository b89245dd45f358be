//! Who may open which lane when: the receiver's door. One session, one control
//! lane an epoch, epochs only forwards and only after READY.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::mpsc::{Receiver, channel};
use tokio::task::AbortHandle;
use tracing::{debug, warn};

use crate::base::{Error, Result};
use crate::wire::message::Lane;
use crate::wire::secret::Token;
use crate::wire::tls::Identity;
use crate::wire::transport::{Opened, accept};

/// Most bulk lanes of an epoch.
pub const MAX_BULK: u32 = 8;
/// Most connections that have not proved anything yet. The oldest goes when another
/// one comes: who only connects must not keep the source out.
const MAX_STRANGERS: usize = 16;

#[derive(Debug, Default)]
struct Open {
    epoch: u64,
    fault: bool,
    bulk: u32,
    again: bool,
    closed: bool,
}

/// The door.
#[derive(Debug, Clone, Default)]
pub struct Gate {
    open: Arc<Mutex<Open>>,
}

impl Gate {
    fn open(&self) -> MutexGuard<'_, Open> {
        // Whole between any two statements that could panic.
        self.open
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// From now on a lost link may be made again in a new epoch.
    pub fn allow_again(&self) {
        self.open().again = true;
    }

    /// Nothing is admitted any more.
    pub fn close(&self) {
        self.open().closed = true;
    }

    /// A lane whose opener has proved the secret wants in.
    ///
    /// # Errors
    /// Not now: says why.
    pub fn admit(&self, lane: Lane, epoch: u64) -> Result<()> {
        let no = |why: &'static str| Err(Error::peer(format!("open {lane:?} lane"), why));
        let mut o = self.open();
        if o.closed {
            return no("the session is over");
        }
        match lane {
            Lane::Control if epoch == 1 && o.epoch == 0 => {}
            Lane::Control if o.epoch == 0 => return no("the first epoch is 1"),
            Lane::Control if epoch <= o.epoch => {
                return no("this session is used already");
            }
            Lane::Control if !o.again => return no("too early for a new epoch"),
            Lane::Control => {}
            Lane::Fault | Lane::Bulk if epoch != o.epoch => return no("another epoch"),
            Lane::Fault if o.fault => return no("there is one already"),
            Lane::Bulk if o.bulk >= MAX_BULK => return no("there are enough"),
            Lane::Fault => {
                o.fault = true;
                return Ok(());
            }
            Lane::Bulk => {
                o.bulk += 1;
                return Ok(());
            }
        }
        o.epoch = epoch;
        o.fault = false;
        o.bulk = 0;
        Ok(())
    }
}

/// Connections whose openers have not proved the secret, oldest first.
#[derive(Default)]
struct Strangers(VecDeque<(Arc<AtomicBool>, AbortHandle)>);

impl Strangers {
    /// Room for another one, which tells in the returned flag that it has proved it.
    fn make_room(&mut self) -> Arc<AtomicBool> {
        self.0
            .retain(|(proved, task)| !proved.load(Ordering::Acquire) && !task.is_finished());
        while self.0.len() >= MAX_STRANGERS
            && let Some((_, oldest)) = self.0.pop_front()
        {
            oldest.abort();
        }
        Arc::default()
    }

    fn add(&mut self, proved: Arc<AtomicBool>, task: AbortHandle) {
        self.0.push_back((proved, task));
    }
}

/// Accepts connections for as long as the returned channel lives; what proves
/// the secret and is admitted comes out of it.
pub fn listen(
    listener: TcpListener,
    token: Token,
    identity: Option<Identity>,
    gate: Gate,
) -> Receiver<Opened> {
    let (tx, rx) = channel(32);
    let mut strangers = Strangers::default();
    tokio::spawn(async move {
        loop {
            let (tcp, peer): (_, SocketAddr) = tokio::select! {
                () = tx.closed() => return,
                got = listener.accept() => match got {
                    Ok(x) => x,
                    Err(e) => {
                        // Out of descriptors or the like: others may close some.
                        warn!("accept: {e}");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                },
            };
            let proved = strangers.make_room();
            let tells = Arc::clone(&proved);
            let (tx, token, identity, gate) =
                (tx.clone(), token.clone(), identity.clone(), gate.clone());
            let task = tokio::spawn(async move {
                let admit = |lane, epoch| {
                    // Before anything that could be waited for.
                    tells.store(true, Ordering::Release);
                    gate.admit(lane, epoch)
                };
                match accept(tcp, peer, &token, identity.as_ref(), admit).await {
                    Ok(lane) => {
                        debug!(%peer, lane = ?lane.lane, epoch = lane.epoch, "lane open");
                        // Nobody listens any more: the session is over.
                        let _ = tx.send(lane).await;
                    }
                    Err(e) => warn!("{e}"),
                }
            });
            strangers.add(proved, task.abort_handle());
        }
    });
    rx
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_used_once_and_epochs_go_forwards_only() {
        let g = Gate::default();
        assert!(g.admit(Lane::Bulk, 1).is_err(), "no control lane yet");
        assert!(g.admit(Lane::Control, 2).is_err());
        g.admit(Lane::Control, 1).unwrap();
        assert!(g.admit(Lane::Control, 1).is_err(), "used already");
        assert!(g.admit(Lane::Control, 2).is_err(), "too early");
        g.admit(Lane::Fault, 1).unwrap();
        assert!(g.admit(Lane::Fault, 1).is_err());
        for _ in 0..MAX_BULK {
            g.admit(Lane::Bulk, 1).unwrap();
        }
        assert!(g.admit(Lane::Bulk, 1).is_err());
        g.allow_again();
        g.admit(Lane::Control, 5).unwrap();
        assert!(g.admit(Lane::Fault, 1).is_err(), "old epoch");
        assert!(g.admit(Lane::Control, 4).is_err());
        g.admit(Lane::Fault, 5).unwrap();
        g.close();
        assert!(g.admit(Lane::Control, 6).is_err());
    }

    #[test]
    fn who_only_connects_does_not_keep_the_source_out() {
        let rt = crate::migrate::runtime().unwrap();
        rt.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let at = listener.local_addr().unwrap();
            let token = Token::fresh(None).unwrap();
            let gate = Gate::default();
            let mut lanes = listen(listener, token.clone(), None, gate);
            let mut idle = Vec::new();
            for _ in 0..3 * MAX_STRANGERS {
                idle.push(tokio::net::TcpStream::connect(at).await.unwrap());
            }
            let begun = std::time::Instant::now();
            let _lane = crate::wire::transport::open(at, &token, Lane::Control, 1)
                .await
                .unwrap();
            assert_eq!(lanes.recv().await.unwrap().lane, Lane::Control);
            // Not only when their time was over.
            assert!(begun.elapsed() < crate::wire::transport::HANDSHAKE / 2);
        });
    }
}
