//! Which message may follow which: one table, walked by both ends.
//!
//! ```text
//! source                                     destination
//!   HELLO/CHALLENGE/PROOF/WELCOME open each lane (see `transport`)
//!   OFFER ------------------------------------->
//!   <------------------------------ FIT, or REFUSED and the end
//!   ENTRY, DATA, REMOVE ...  BUNDLE_END -------->   (the container runs)
//!   <---------------------------------------- TAKEN
//!   [freeze]
//!   ENTRY, DATA, REMOVE, IMAGE, IMAGE_DATA ----->
//!   STATE_END ---------------------------------->
//!   <---------------------------------------- READY
//!   [journal GRANTED]
//!   GRANT -------------------------------------->   [journal RESUMING]
//!   <-------------------------------------- RESUMED
//!   PAGES on bulk lanes, FAULT and PAGES on the fault lane
//!   <------------------------------------- COMPLETE
//!   [kill the held tasks]
//!   FORGET ------------------------------------->   [forget the session]
//! ```
//!
//! Giving up:
//!
//! ```text
//!   Offered .. Ready   source may say ABORT; the destination discards, answers ABORTED
//!   Offered .. Granted destination may say ABORTED by itself (until it has journaled RESUMING)
//!   Granted            the source goes back only on ABORTED, and answers FORGET
//!   Running ..         nobody goes back; a lost link is reconnected in a new epoch
//! ```
//!
//! Messages cross: after ABORTED was said, what the other end had sent already is
//! swallowed; a GRANT that comes after ABORTED is refused by having no effect.

use super::frame::Kind;
use super::secret::Side;
use crate::base::{Error, Result};

/// Where a session stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Lanes are open, nothing was said.
    Open,
    /// OFFER was sent.
    Offered,
    /// FIT was answered; the bundle is on its way.
    Bundle,
    /// BUNDLE_END was sent.
    Landing,
    /// TAKEN was answered; state may come.
    Settled,
    /// STATE_END was sent; the destination rebuilds.
    Rebuilding,
    /// READY was answered.
    Ready,
    /// GRANT was sent.
    Granted,
    /// RESUMED was answered.
    Running,
    /// COMPLETE was said.
    Complete,
    /// FORGET was said.
    Done,
    /// ABORT was said, ABORTED is awaited.
    Aborting,
    /// ABORTED was said: nothing ran, nothing will.
    Aborted,
    /// REFUSED was said.
    Refused,
}

impl State {
    /// Every state, for tests.
    pub const ALL: [State; 14] = [
        State::Open,
        State::Offered,
        State::Bundle,
        State::Landing,
        State::Settled,
        State::Rebuilding,
        State::Ready,
        State::Granted,
        State::Running,
        State::Complete,
        State::Done,
        State::Aborting,
        State::Aborted,
        State::Refused,
    ];

    /// Whether the destination may have run the container.
    pub fn may_have_run(self) -> bool {
        matches!(
            self,
            State::Granted | State::Running | State::Complete | State::Done
        )
    }

    /// The state after `side` said `kind`; `None`: not allowed here.
    pub fn after(self, side: Side, kind: Kind) -> Option<State> {
        use Side::{Receiver, Source};
        use State as S;
        Some(match (self, side, kind) {
            (S::Aborted, Source, Kind::Forget) => S::Done,
            // Crossing messages: once given up, the rest is swallowed.
            (S::Aborted, Source, k) if of_source(k) => S::Aborted,
            (S::Aborting, Receiver, Kind::Aborted) => S::Aborted,
            (S::Aborting, Receiver, k) if of_destination(k) => S::Aborting,

            (S::Open, Source, Kind::Offer) => S::Offered,
            (S::Offered, Receiver, Kind::Fit) => S::Bundle,
            (S::Offered, Receiver, Kind::Refused) => S::Refused,
            (S::Bundle, Source, Kind::Entry | Kind::Data | Kind::Remove) => S::Bundle,
            (S::Bundle, Source, Kind::BundleEnd) => S::Landing,
            (S::Landing, Receiver, Kind::Taken) => S::Settled,
            (
                S::Settled,
                Source,
                Kind::Entry | Kind::Data | Kind::Remove | Kind::Image | Kind::ImageData,
            ) => S::Settled,
            (S::Settled, Source, Kind::StateEnd) => S::Rebuilding,
            (S::Rebuilding, Receiver, Kind::Ready) => S::Ready,
            (S::Ready, Source, Kind::Grant) => S::Granted,
            (S::Granted, Receiver, Kind::Resumed) => S::Running,
            (S::Running, Receiver, Kind::Missing) => S::Running,
            (S::Running, Receiver, Kind::Complete) => S::Complete,
            (S::Complete, Source, Kind::Forget) => S::Done,

            (
                S::Offered | S::Bundle | S::Landing | S::Settled | S::Rebuilding | S::Ready,
                Source,
                Kind::Abort,
            ) => S::Aborting,
            (
                S::Offered
                | S::Bundle
                | S::Landing
                | S::Settled
                | S::Rebuilding
                | S::Ready
                | S::Granted,
                Receiver,
                Kind::Aborted,
            ) => S::Aborted,
            _ => return None,
        })
    }
}

fn of_source(k: Kind) -> bool {
    matches!(
        k,
        Kind::Entry
            | Kind::Data
            | Kind::Remove
            | Kind::BundleEnd
            | Kind::Image
            | Kind::ImageData
            | Kind::StateEnd
            | Kind::Grant
            | Kind::Abort
    )
}

fn of_destination(k: Kind) -> bool {
    matches!(k, Kind::Fit | Kind::Refused | Kind::Taken | Kind::Ready)
}

/// One end's view of the control lane.
#[derive(Debug, Clone)]
pub struct Session {
    side: Side,
    state: State,
}

impl Session {
    /// A new session; `side` is this end.
    pub fn new(side: Side) -> Self {
        Self {
            side,
            state: State::Open,
        }
    }

    /// A session that goes on in a new epoch.
    pub fn at(side: Side, state: State) -> Self {
        Self { side, state }
    }

    /// Where it stands.
    pub fn state(&self) -> State {
        self.state
    }

    /// This end is about to say `kind`.
    ///
    /// # Errors
    /// Not allowed here: a bug of ours.
    pub fn sending(&mut self, kind: Kind) -> Result<()> {
        self.state = self.state.after(self.side, kind).ok_or_else(|| {
            Error::bug(
                format!("send {kind:?}"),
                format!("not allowed in {:?}", self.state),
            )
        })?;
        Ok(())
    }

    /// The other end said `kind`.
    ///
    /// # Errors
    /// Not allowed here: the peer is wrong.
    pub fn received(&mut self, kind: Kind) -> Result<()> {
        let other = match self.side {
            Side::Source => Side::Receiver,
            Side::Receiver => Side::Source,
        };
        self.state = self.state.after(other, kind).ok_or_else(|| {
            Error::peer(
                format!("receive {kind:?}"),
                format!("out of order: session is {:?}", self.state),
            )
        })?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn moves() -> impl Strategy<Value = Vec<(bool, prop::sample::Index)>> {
        proptest::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 0..60)
    }

    /// Walks legal moves only, chosen by the strategy.
    fn walk(choices: &[(bool, prop::sample::Index)]) -> Vec<(Side, Kind, State)> {
        let mut state = State::Open;
        let mut path = Vec::new();
        for (source, pick) in choices {
            let side = if *source {
                Side::Source
            } else {
                Side::Receiver
            };
            let legal: Vec<Kind> = Kind::ALL
                .into_iter()
                .filter(|k| state.after(side, *k).is_some())
                .collect();
            if legal.is_empty() {
                continue;
            }
            let k = legal[pick.index(legal.len())];
            state = state.after(side, k).unwrap();
            path.push((side, k, state));
        }
        path
    }

    proptest! {
        #[test]
        fn only_one_end_may_ever_run_it(choices in moves()) {
            let path = walk(&choices);
            let kinds: Vec<Kind> = path.iter().map(|p| p.1).collect();
            let aborted = kinds.contains(&Kind::Aborted);
            let resumed = kinds.contains(&Kind::Resumed);
            prop_assert!(!(aborted && resumed), "both gave up and ran: {kinds:?}");
            if resumed {
                let g = kinds.iter().position(|k| *k == Kind::Grant).unwrap();
                let r = kinds.iter().position(|k| *k == Kind::Resumed).unwrap();
                prop_assert!(g < r);
                prop_assert_eq!(kinds.iter().filter(|k| **k == Kind::Grant).count(), 1);
            }
        }

        #[test]
        fn nothing_is_said_after_the_end(choices in moves()) {
            for w in walk(&choices).windows(2) {
                prop_assert!(!matches!(w[0].2, State::Done | State::Refused));
            }
        }
    }

    #[test]
    fn a_whole_migration_is_legal_and_each_step_only_once() {
        use Kind as K;
        let mut src = Session::new(Side::Source);
        let mut dst = Session::new(Side::Receiver);
        for (side, kind) in [
            (Side::Source, K::Offer),
            (Side::Receiver, K::Fit),
            (Side::Source, K::Entry),
            (Side::Source, K::Data),
            (Side::Source, K::BundleEnd),
            (Side::Receiver, K::Taken),
            (Side::Source, K::Entry),
            (Side::Source, K::Image),
            (Side::Source, K::ImageData),
            (Side::Source, K::StateEnd),
            (Side::Receiver, K::Ready),
            (Side::Source, K::Grant),
            (Side::Receiver, K::Resumed),
            (Side::Receiver, K::Complete),
            (Side::Source, K::Forget),
        ] {
            let (a, b) = match side {
                Side::Source => (&mut src, &mut dst),
                Side::Receiver => (&mut dst, &mut src),
            };
            a.sending(kind).unwrap();
            b.received(kind).unwrap();
            if !matches!(kind, K::Entry | K::Data | K::Image | K::ImageData) {
                assert!(b.clone().received(kind).is_err(), "{kind:?} twice");
            }
        }
        assert_eq!(src.state(), State::Done);
    }

    #[test]
    fn a_grant_after_aborted_has_no_effect() {
        assert_eq!(
            State::Aborted.after(Side::Source, Kind::Grant),
            Some(State::Aborted)
        );
        for s in State::ALL {
            if matches!(s, State::Running | State::Complete | State::Done) {
                assert_eq!(s.after(Side::Receiver, Kind::Aborted), None);
                assert_eq!(s.after(Side::Source, Kind::Abort), None);
            }
        }
    }
}
