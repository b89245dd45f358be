//! A wire that is cut: at any byte of a migration, and before, within or behind
//! each frame from READY on, also of the connections that are made again.

use std::collections::{BTreeSet, VecDeque};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::{FINE, Outcome, left, migrate_over};
use crate::wire::frame::{HEADER, Header, Kind};

/// Forwards to `to` until `cut` bytes went either way, then cuts everything; new
/// connections are served again, or refused for good.
fn cut_at_byte(to: SocketAddr, cut: u64, heals: bool) -> SocketAddr {
    let l = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = l.local_addr().unwrap();
    let gone = Arc::new(AtomicU64::new(0));
    std::thread::spawn(move || {
        let mut pairs: Vec<(TcpStream, TcpStream)> = Vec::new();
        let cut_now = Arc::new(AtomicBool::new(false));
        for a in l.incoming() {
            let a = a.unwrap();
            if cut_now.load(Ordering::SeqCst) && !heals {
                continue; // dropped: closed at once
            }
            let Ok(b) = TcpStream::connect(to) else {
                continue;
            };
            pairs.push((a.try_clone().unwrap(), b.try_clone().unwrap()));
            let list: Vec<_> = pairs
                .iter()
                .map(|(a, b)| (a.try_clone().unwrap(), b.try_clone().unwrap()))
                .collect();
            let mine = list.len() - 1;
            let shared = Arc::new(list);
            for back in [false, true] {
                let (list, gone, cut_now) = (shared.clone(), gone.clone(), cut_now.clone());
                std::thread::spawn(move || {
                    let (a, b) = &list[mine];
                    let (mut from, mut to) = if back { (b, a) } else { (a, b) };
                    let mut buf = [0u8; 4096];
                    while let Ok(n) = from.read(&mut buf) {
                        if n == 0 {
                            break;
                        }
                        let sum = gone.fetch_add(n as u64, Ordering::SeqCst);
                        if sum < cut && sum + n as u64 >= cut {
                            cut_now.store(true, Ordering::SeqCst);
                            for (x, y) in list.iter() {
                                let _ = x.shutdown(std::net::Shutdown::Both);
                                let _ = y.shutdown(std::net::Shutdown::Both);
                            }
                            break;
                        }
                        if to.write_all(&buf[..n]).is_err() {
                            break;
                        }
                    }
                    let _ = to.shutdown(std::net::Shutdown::Both);
                });
            }
        }
    });
    at
}

/// Where a frame is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum How {
    /// It is lost.
    Before,
    /// Half of it arrives.
    Within,
    /// It arrives, and nothing behind it.
    Behind,
}

/// Which frame: by number since READY or since the last cut, or the first of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Nth(usize),
    First(Kind),
}

/// What the wire has seen, and will do.
#[derive(Debug, Default)]
struct Wire {
    plan: VecDeque<(At, How)>,
    heals: bool,
    /// READY has passed: frames count.
    armed: bool,
    count: usize,
    cut: Vec<Kind>,
    open: Vec<TcpStream>,
    dead: bool,
}

impl Wire {
    /// Passes a frame on, or cuts; false: this connection is over.
    fn frame(&mut self, kind: Kind, frame: &[u8], to: &mut TcpStream) -> bool {
        self.armed |= kind == Kind::Ready;
        let here = |at: &At| match at {
            At::Nth(n) => *n == self.count,
            At::First(k) => *k == kind,
        };
        let how = match self.plan.front() {
            Some((at, how)) if self.armed && here(at) => *how,
            _ => {
                self.count += usize::from(self.armed);
                return to.write_all(frame).is_ok();
            }
        };
        let part = match how {
            How::Before => 0,
            How::Within => frame.len() / 2,
            How::Behind => frame.len(),
        };
        let _ = to.write_all(&frame[..part]);
        for s in self.open.drain(..) {
            let _ = s.shutdown(Shutdown::Both);
        }
        self.plan.pop_front();
        self.count = 0;
        self.cut.push(kind);
        self.dead = !self.heals;
        false
    }
}

/// A plain wire to `to` that is cut at frames.
fn cut_at_frames(to: SocketAddr, wire: &Arc<Mutex<Wire>>) -> SocketAddr {
    let l = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = l.local_addr().unwrap();
    let wire = Arc::clone(wire);
    std::thread::spawn(move || {
        for a in l.incoming() {
            let a = a.unwrap();
            let Ok(b) = TcpStream::connect(to) else {
                continue;
            };
            let mut w = wire.lock().unwrap();
            if w.dead {
                continue; // dropped: closed at once
            }
            for s in [&a, &b] {
                w.open.push(s.try_clone().unwrap());
            }
            for (from, to) in [(&a, &b), (&b, &a)] {
                let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                let wire = Arc::clone(&wire);
                std::thread::spawn(move || forward(from, to, &wire));
            }
        }
    });
    at
}

fn forward(mut from: TcpStream, mut to: TcpStream, wire: &Mutex<Wire>) {
    loop {
        let mut frame = vec![0u8; HEADER];
        if from.read_exact(&mut frame).is_err() {
            break;
        }
        let header = Header::parse(frame.first_chunk().unwrap()).unwrap();
        frame.resize(HEADER + header.len, 0);
        if from.read_exact(&mut frame[HEADER..]).is_err() {
            break;
        }
        if !wire.lock().unwrap().frame(header.kind, &frame, &mut to) {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

/// What must be true however the wire was cut.
fn judge(o: &Outcome, heals: bool, case: &str) {
    o.world.check();
    let here = o.world.source_runs.load(Ordering::SeqCst);
    let there = o.world.destination_runs.load(Ordering::SeqCst);
    let dead = o.world.source_dead.load(Ordering::SeqCst);
    let held = left(o, "src-state");
    if dead {
        assert_eq!(o.missing, 0, "{case}: killed while pages were missing");
        assert!(there, "{case}: nowhere");
        assert!(
            o.source.is_ok() && held.is_empty(),
            "{case}: {:?}",
            o.source
        );
    }
    if here {
        assert!(!there && !dead && o.source.is_err(), "{case}");
        assert!(held.is_empty(), "{case}: {held:?}");
        assert!(left(o, "in").is_empty(), "{case}: left there");
        assert!(left(o, "dst-state").is_empty(), "{case}: left there");
    }
    if !here && !dead {
        // Held: the journal must say so, and only a wire that stays dead excuses it.
        assert_eq!(held, ["model.source"], "{case}");
        assert!(!heals, "{case}: held for ever: {:?}", o.source);
    }
}

/// One migration over a wire with this plan; the kinds of frames that were cut.
fn cut(plan: &[(At, How)], heals: bool) -> Vec<Kind> {
    let wire = Arc::new(Mutex::new(Wire {
        plan: plan.iter().copied().collect(),
        heals,
        ..Wire::default()
    }));
    let patience = Duration::from_millis(if heals { 2000 } else { 300 });
    let begun = Instant::now();
    let o = migrate_over(FINE, patience, |to| cut_at_frames(to, &wire));
    let cut = wire.lock().unwrap().cut.clone();
    let said = |r: Option<String>| r.unwrap_or_else(|| "done".into());
    let case = format!(
        "{plan:?} heals {heals} cut {cut:?} {:?}: source {}, destination {}",
        begun.elapsed(),
        said(o.source.as_ref().err().map(ToString::to_string)),
        said(o.destination.as_ref().err().map(ToString::to_string)),
    );
    eprintln!("{case}");
    judge(&o, heals, &case);
    cut
}

/// Whatever byte the wire breaks at: never two copies, never a wrong page, and
/// each end's journal tells the truth about what it left behind.
#[test]
fn a_wire_cut_anywhere_never_makes_two_copies() {
    let total = 3_600_000u64;
    for heals in [true, false] {
        let cuts = [
            100, 400, 900, 1500, 2500, 3000, 4000, 5000, 6000, 150_000, 301_000, 305_000,
        ];
        let steps = (0..8).map(|i| 310_000 + i * (total - 310_000) / 8);
        for cut in cuts.into_iter().chain(steps) {
            let begun = Instant::now();
            let patience = Duration::from_millis(if heals { 5000 } else { 300 });
            let o = migrate_over(FINE, patience, |to| cut_at_byte(to, cut, heals));
            eprintln!(
                "cut {cut} heals {heals}: {:?}, source {}, destination {}",
                begun.elapsed(),
                o.source
                    .as_ref()
                    .map_or_else(|e| e.to_string(), |_| "moved".into()),
                o.destination
                    .as_ref()
                    .map_or_else(|e| e.to_string(), |_| "took".into()),
            );
            judge(&o, heals, &format!("byte {cut}"));
        }
    }
}

const ALL: [How; 3] = [How::Before, How::Within, How::Behind];

#[test]
fn a_wire_cut_at_any_frame_from_ready_on_leaves_one_copy() {
    let lanes = [true, false].map(|heals| ALL.map(|how| (heals, how)));
    let kinds = side_by_side(lanes.concat(), |(heals, how)| {
        let mut kinds = BTreeSet::new();
        for n in 0.. {
            match cut(&[(At::Nth(n), how)], heals).first() {
                Some(k) => kinds.insert(*k as u8),
                None => break, // it was over before
            };
        }
        kinds
    });
    for k in [
        Kind::Ready,
        Kind::Grant,
        Kind::Resumed,
        Kind::Fault,
        Kind::Pages,
        Kind::Complete,
        Kind::Forget,
    ] {
        assert!(kinds.contains(&(k as u8)), "{k:?} was never cut");
    }
}

/// All at once: they mostly wait.
fn side_by_side<T: Send>(all: Vec<T>, each: impl Fn(T) -> BTreeSet<u8> + Sync) -> BTreeSet<u8> {
    let each = &each;
    std::thread::scope(|s| {
        let threads: Vec<_> = all.into_iter().map(|x| s.spawn(move || each(x))).collect();
        threads
            .into_iter()
            .flat_map(|t| t.join().unwrap())
            .collect()
    })
}

/// What is said in an epoch that was opened again.
const AGAIN: [Kind; 10] = [
    Kind::Hello,
    Kind::Challenge,
    Kind::Proof,
    Kind::Welcome,
    Kind::Resumed,
    Kind::Missing,
    Kind::Pages,
    Kind::Aborted,
    Kind::Forget,
    Kind::Complete,
];

/// After a first cut at `first`, each frame of what is connected again, by number
/// and by kind: how many come in which order differs a little.
fn again(first: (At, How)) -> BTreeSet<u8> {
    let mut kinds = BTreeSet::new();
    for n in 0.. {
        let cuts = cut(&[first, (At::Nth(n), How::Before)], true);
        let Some(second) = cuts.get(1) else {
            break; // it was over before
        };
        kinds.insert(*second as u8);
    }
    for kind in AGAIN {
        let cuts = cut(&[first, (At::First(kind), How::Before)], true);
        kinds.extend(cuts.get(1).map(|k| *k as u8));
    }
    kinds
}

#[test]
fn a_wire_cut_again_at_any_frame_of_the_next_epoch_leaves_one_copy() {
    let firsts = [
        (At::First(Kind::Grant), How::Before),
        (At::First(Kind::Grant), How::Behind),
        (At::First(Kind::Resumed), How::Before),
        (At::First(Kind::Resumed), How::Behind),
        (At::First(Kind::Complete), How::Before),
    ];
    let kinds = side_by_side(firsts.into(), again);
    for k in AGAIN {
        assert!(kinds.contains(&(k as u8)), "{k:?} was never cut");
    }
}
