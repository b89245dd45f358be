//! A destination that says one thing, and later another.

use super::*;
use crate::migrate::control::Control;
use crate::migrate::gate::{self, Gate};
use crate::wire::frame::Kind;
use crate::wire::message::{Lane, Reasons, Step};
use crate::wire::secret::Side;
use crate::wire::session::State;
use crate::wire::transport::Opened;

const LONG: Duration = Duration::from_secs(20);

/// Takes the container, says that it runs, breaks the link, and says in the next
/// epoch that nothing ever ran.
fn runs_and_aborts(listener: TcpListener, token: Token, world: &World) {
    let rt = crate::migrate::runtime().unwrap();
    let gate = Gate::default();
    gate.allow_again();
    listener.set_nonblocking(true).unwrap();
    let mut lanes = rt.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        gate::listen(listener, token, None, gate.clone())
    });
    let mut next = |sort: Lane| loop {
        let lane: Opened = rt.block_on(lanes.recv()).unwrap();
        if lane.lane == sort {
            return lane;
        }
    };
    let lane = next(Lane::Control);
    let mut control = Control::new(rt.handle().clone(), lane, Side::Receiver);
    let until = |control: &mut Control, kind: Kind| {
        while control.hear(LONG).unwrap().kind != kind {}
    };
    until(&mut control, Kind::Offer);
    for (said, heard) in [
        (Kind::Fit, Kind::BundleEnd),
        (Kind::Taken, Kind::StateEnd),
        (Kind::Ready, Kind::Grant),
    ] {
        control.say(said, &Step::default()).unwrap();
        until(&mut control, heard);
    }
    world.destination_runs.store(true, Ordering::SeqCst);
    control.say(Kind::Resumed, &Step::default()).unwrap();
    // The source has to have heard it.
    let mut pages = next(Lane::Bulk);
    rt.block_on(pages.reader.next()).unwrap();
    drop((control, pages));
    let lane = next(Lane::Control);
    let mut control = Control::again(rt.handle().clone(), lane, Side::Receiver, State::Granted);
    let why = Reasons {
        reasons: vec!["it never ran".into()],
    };
    control.say(Kind::Aborted, &why).unwrap();
    let _ = control.hear(LONG);
}

#[test]
fn who_said_that_it_runs_is_not_believed_that_it_never_did() {
    let dir = tempfile::tempdir().unwrap();
    let rootfs = dir.path().join("rootfs");
    std::fs::create_dir(&rootfs).unwrap();
    let world = Arc::new(World::default());
    world.source_runs.store(true, Ordering::SeqCst);
    let token = Token::fresh(None).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = listener.local_addr().unwrap();
    let mut model = Model {
        world: world.clone(),
        rootfs,
        fail_at: "",
    };
    let (theirs, there) = (token.clone(), world.clone());
    let liar = std::thread::spawn(move || runs_and_aborts(listener, theirs, &there));
    let rt = crate::migrate::runtime().unwrap();
    let options = source::Options {
        to,
        token,
        state: dir.path().join("state"),
        bulk: 1,
        patience: Duration::from_secs(5),
        answer: LONG,
        max_pause: Duration::from_secs(5),
        probe: Probe::default(),
    };
    let e = source::run(&mut model, &options, rt.handle()).unwrap_err();
    liar.join().unwrap();
    assert!(e.to_string().contains("is held here"), "{e}");
    assert!(!world.source_runs.load(Ordering::SeqCst));
    world.check();
}
