//! Whole migrations over real sockets, with a model of a container and of a host
//! in place of the kernel, and a wire that is cut at any byte.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::destination;
use super::ports::{Capture, Container, Host, Landed, Serving};
use super::probe::Probe;
use super::remote::Remote;
use super::source;
use crate::base::{Error, PAGE_SIZE, PageRange, Result};
use crate::engine::hold::Verdict;
use crate::memory::{Object, Origin, PageReader, PageSink, PageSource, SpaceId, Want};
use crate::wire::message::Offer;
use crate::wire::secret::Token;
use crate::wire::tls::Identity;

/// What the world can see.
#[derive(Debug, Default)]
struct World {
    source_runs: AtomicBool,
    source_dead: AtomicBool,
    destination_runs: AtomicBool,
    discarded: AtomicBool,
}

impl World {
    fn check(&self) {
        let here = self.source_runs.load(Ordering::SeqCst);
        let there = self.destination_runs.load(Ordering::SeqCst);
        assert!(!(here && there), "two copies run");
    }
}

const SPACE: Object = Object::Private(SpaceId(1));
const SHARED: Object = Object::Shared(9);
const PAGES: u64 = 900;

/// What page `n` of an object holds; every 7th is zero.
fn fill(object: Object, n: u64) -> u8 {
    if n.is_multiple_of(7) {
        0
    } else {
        u8::try_from((n + u64::from(object == SHARED)) % 250).unwrap() + 1
    }
}

struct Pages;

impl PageReader for Pages {
    fn read(&self, object: Object, at: u64, buf: &mut [u8]) -> Result<()> {
        for (i, p) in buf.chunks_mut(4096).enumerate() {
            p.fill(fill(object, at / PAGE_SIZE + i as u64));
        }
        Ok(())
    }
}

struct Model {
    world: Arc<World>,
    rootfs: PathBuf,
    fail_at: &'static str,
}

impl Model {
    fn step(&self, name: &str) -> Result<()> {
        if self.fail_at == name {
            return Err(Error::refused("model", format!("cannot {name}")));
        }
        Ok(())
    }
}

impl Container for Model {
    fn offer(&self) -> Result<Offer> {
        Ok(Offer {
            id: "model".into(),
            config: br#"{"ociVersion":"1.0.2","root":{"path":"rootfs"}}"#.to_vec(),
            machine: std::env::consts::ARCH.into(),
            descriptors: vec!["/dev/null".into(); 3],
            ..Offer::default()
        })
    }
    fn rootfs(&self) -> &Path {
        &self.rootfs
    }
    fn mapped_files(&self) -> Result<std::collections::BTreeSet<u64>> {
        Ok(std::collections::BTreeSet::new())
    }
    fn place(&self) -> Value {
        Value::Null
    }
    fn freeze(&mut self) -> Result<Instant> {
        self.step("freeze")?;
        self.world.source_runs.store(false, Ordering::SeqCst);
        Ok(Instant::now())
    }
    fn capture(&mut self) -> Result<Capture> {
        self.step("capture")?;
        let r = |from, to| PageRange::new(from * PAGE_SIZE, to * PAGE_SIZE).unwrap();
        Ok(Capture {
            images: vec![("inventory.img".into(), vec![5; 300_000])],
            pages: Arc::new(Pages),
            objects: vec![
                (SPACE, vec![r(0, 100), r(200, 200 + PAGES - 100)]),
                (SHARED, vec![r(0, 50)]),
            ],
        })
    }
    fn hold(&mut self) -> Result<()> {
        self.step("hold")
    }
    fn thaw(&mut self, _verdict: Verdict) -> Result<()> {
        assert!(!self.world.source_dead.load(Ordering::SeqCst));
        self.world.source_runs.store(true, Ordering::SeqCst);
        self.world.check();
        Ok(())
    }
    fn finish(&mut self, _verdict: Verdict) -> Result<()> {
        self.world.source_dead.store(true, Ordering::SeqCst);
        Ok(())
    }
}

fn all_pages() -> BTreeSet<(Object, u64)> {
    let space = (0..100).chain(200..100 + PAGES).map(|n| (SPACE, n));
    space.chain((0..50).map(|n| (SHARED, n))).collect()
}

/// A memory that knows what it lacks.
struct Memory {
    missing: Mutex<BTreeSet<(Object, u64)>>,
    failed: Mutex<Option<String>>,
    done: Condvar,
}

impl PageSink for Arc<Memory> {
    fn place(&self, object: Object, at: u64, bytes: &[u8]) -> Result<()> {
        for (i, p) in bytes.chunks(4096).enumerate() {
            let n = at / PAGE_SIZE + i as u64;
            assert!(p.iter().all(|b| *b == fill(object, n)), "page {n} is wrong");
            assert_ne!(fill(object, n), 0, "a zero page was sent as bytes");
            self.missing.lock().unwrap().remove(&(object, n));
        }
        self.done.notify_all();
        Ok(())
    }
    fn place_zeros(&self, object: Object, range: PageRange) -> Result<()> {
        for n in range.start() / PAGE_SIZE..range.end() / PAGE_SIZE {
            assert_eq!(fill(object, n), 0, "page {n} came as zeros");
            self.missing.lock().unwrap().remove(&(object, n));
        }
        self.done.notify_all();
        Ok(())
    }
    fn lost(&self, why: Error) {
        *self.failed.lock().unwrap() = Some(why.to_string());
        self.done.notify_all();
    }
}

struct ServingModel {
    memory: Arc<Memory>,
    world: Arc<World>,
}

impl Serving for ServingModel {
    fn sink(&self) -> Arc<dyn PageSink> {
        Arc::new(Arc::clone(&self.memory))
    }
    fn wait(&self) -> Result<()> {
        let mut missing = self.memory.missing.lock().unwrap();
        loop {
            if missing.is_empty() {
                return Ok(());
            }
            if let Some(e) = &*self.memory.failed.lock().unwrap() {
                return Err(Error::peer("memory", e.clone()));
            }
            let (m, _) = self
                .memory
                .done
                .wait_timeout(missing, Duration::from_millis(20))
                .unwrap();
            missing = m;
        }
    }
    fn missing(&self) -> Result<Vec<(Object, PageRange)>> {
        let m = self.memory.missing.lock().unwrap();
        Ok(m.iter()
            .map(|(o, n)| (*o, PageRange::with_pages(n * PAGE_SIZE, 1).unwrap()))
            .collect())
    }
    fn fail(&self, _why: Error) {
        self.world.destination_runs.store(false, Ordering::SeqCst);
    }
}

struct HostModel {
    world: Arc<World>,
    memory: Arc<Memory>,
    remote: Option<Arc<Remote>>,
    fail: bool,
}

impl Host for HostModel {
    fn fit(&mut self, _offer: &Offer, _landed: &Landed) -> Result<(), Vec<String>> {
        Ok(())
    }
    fn place(&self, _landed: &Landed) -> Value {
        Value::Null
    }
    fn begin(&mut self, landed: &Landed) -> Result<()> {
        assert!(landed.bundle.join("rootfs/file").exists());
        Ok(())
    }
    fn rebuild(&mut self, landed: &Landed, pages: Arc<Remote>) -> Result<Arc<dyn Serving>> {
        if self.fail {
            return Err(Error::refused("model", "cannot rebuild"));
        }
        assert_eq!(
            std::fs::read(landed.images.join("inventory.img"))
                .unwrap()
                .len(),
            300_000
        );
        assert_eq!(
            std::fs::read(landed.bundle.join("rootfs/file")).unwrap(),
            b"content"
        );
        self.remote = Some(pages);
        Ok(Arc::new(ServingModel {
            memory: Arc::clone(&self.memory),
            world: Arc::clone(&self.world),
        }))
    }
    fn stands(&mut self) -> Result<()> {
        Ok(())
    }
    fn resume(&mut self) -> Result<()> {
        self.world.destination_runs.store(true, Ordering::SeqCst);
        self.world.check();
        let sink = Arc::clone(&self.memory);
        for n in [3, 850, 17] {
            let page = Origin {
                object: SPACE,
                at: n * PAGE_SIZE,
            };
            let window = PageRange::with_pages(n * PAGE_SIZE, 4).unwrap();
            self.remote
                .as_ref()
                .unwrap()
                .want(Want { page, window }, &sink)?;
        }
        Ok(())
    }
    fn settle(&mut self) -> Result<()> {
        Ok(())
    }
    fn discard(&mut self) {
        assert!(!self.world.destination_runs.load(Ordering::SeqCst));
        self.world.discarded.store(true, Ordering::SeqCst);
    }
}

/// Forwards to `to` until `cut` bytes went either way, then cuts everything; new
/// connections are served again, or refused for good.
fn wire(to: SocketAddr, cut: u64, heals: bool) -> SocketAddr {
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

struct Outcome {
    world: Arc<World>,
    source: Result<super::budget::Report>,
    destination: Result<destination::Received>,
    missing: usize,
    dir: tempfile::TempDir,
}

#[derive(Clone, Copy)]
struct Case {
    plain: bool,
    cut: Option<(u64, bool)>,
    fail_at: &'static str,
    fail_rebuild: bool,
}

const FINE: Case = Case {
    plain: true,
    cut: None,
    fail_at: "",
    fail_rebuild: false,
};

fn migrate(case: Case) -> Outcome {
    let dir = tempfile::tempdir().unwrap();
    let rootfs = dir.path().join("src-rootfs");
    std::fs::create_dir(&rootfs).unwrap();
    std::fs::write(rootfs.join("file"), b"content").unwrap();
    let world = Arc::new(World::default());
    world.source_runs.store(true, Ordering::SeqCst);
    let identity = (!case.plain).then(|| Identity::fresh().unwrap());
    let token = Token::fresh(identity.as_ref().map(|i| &i.certificate[..])).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut to = listener.local_addr().unwrap();
    if let Some((at, heals)) = case.cut {
        to = wire(to, at, heals);
    }
    let memory = Arc::new(Memory {
        missing: Mutex::new(all_pages()),
        failed: Mutex::new(None),
        done: Condvar::new(),
    });
    let patience = Duration::from_millis(if matches!(case.cut, Some((_, false))) {
        300
    } else {
        5000
    });
    let mut host = HostModel {
        world: world.clone(),
        memory: memory.clone(),
        remote: None,
        fail: case.fail_rebuild,
    };
    let options = destination::Options {
        listener,
        token: token.clone(),
        identity,
        dir: dir.path().join("in"),
        state: dir.path().join("dst-state"),
        policy: Default::default(),
        max_bundle: 1 << 30,
        wait: Some(Duration::from_secs(1)),
        patience,
        probe: Probe::default(),
    };
    let there = std::thread::spawn(move || {
        let rt = super::runtime().unwrap();
        destination::run(&mut host, &options, rt.handle())
    });
    let mut model = Model {
        world: world.clone(),
        rootfs,
        fail_at: case.fail_at,
    };
    let rt = super::runtime().unwrap();
    let source = source::run(
        &mut model,
        &source::Options {
            to,
            token,
            state: dir.path().join("src-state"),
            bulk: 2,
            patience,
            max_pause: Duration::from_secs(5),
            probe: Probe::default(),
        },
        rt.handle(),
    );
    let destination = there.join().unwrap();
    let missing = memory.missing.lock().unwrap().len();
    Outcome {
        world,
        source,
        destination,
        missing,
        dir,
    }
}

fn left(o: &Outcome, sub: &str) -> Vec<String> {
    std::fs::read_dir(o.dir.path().join(sub))
        .map(|d| {
            d.map(|e| e.unwrap().file_name().into_string().unwrap())
                .collect()
        })
        .unwrap_or_default()
}

#[test]
fn a_container_moves_whole_and_nothing_is_left_at_the_source() {
    for plain in [true, false] {
        let o = migrate(Case { plain, ..FINE });
        let r = o.source.as_ref().unwrap();
        assert_eq!(o.missing, 0);
        assert!(o.world.destination_runs.load(Ordering::SeqCst));
        assert!(o.world.source_dead.load(Ordering::SeqCst));
        assert_eq!(r.pages, 950);
        assert_eq!(r.faults, 3);
        assert!(
            r.bytes_after_resume < 950 * PAGE_SIZE,
            "zero pages travelled"
        );
        assert!(r.text().contains("pause"));
        assert!(o.destination.is_ok());
        assert!(left(&o, "src-state").is_empty() && left(&o, "dst-state").is_empty());
        assert_eq!(left(&o, "in"), ["model"]);
    }
}

#[test]
fn a_failure_before_grant_thaws_the_source_and_leaves_nothing_there() {
    for (fail_at, fail_rebuild) in [
        ("freeze", false),
        ("capture", false),
        ("hold", false),
        ("", true),
    ] {
        let o = migrate(Case {
            fail_at,
            fail_rebuild,
            ..FINE
        });
        let e = o.source.as_ref().unwrap_err().to_string();
        assert!(e.contains("cannot"), "{e}");
        assert!(o.destination.is_err());
        assert!(o.world.source_runs.load(Ordering::SeqCst), "{fail_at}");
        assert!(!o.world.destination_runs.load(Ordering::SeqCst));
        assert!(left(&o, "in").is_empty(), "{:?}", left(&o, "in"));
        assert!(left(&o, "src-state").is_empty() && left(&o, "dst-state").is_empty());
    }
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
        // Around the switch-over every few bytes count.
        let switch = (0..24).map(|i| 303_000 + i * 250);
        for cut in cuts.into_iter().chain(switch).chain(steps) {
            let begun = std::time::Instant::now();
            let o = migrate(Case {
                cut: Some((cut, heals)),
                ..FINE
            });
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
            o.world.check();
            let here = o.world.source_runs.load(Ordering::SeqCst);
            let there = o.world.destination_runs.load(Ordering::SeqCst);
            let dead = o.world.source_dead.load(Ordering::SeqCst);
            if dead {
                assert_eq!(o.missing, 0, "cut {cut}: killed while pages were missing");
                assert!(there);
            }
            if here {
                assert!(!there && o.source.is_err());
                assert!(left(&o, "src-state").is_empty(), "cut {cut}");
            }
            if !here && !dead {
                // Held: the journal must say so.
                assert_eq!(left(&o, "src-state"), ["model.source"], "cut {cut}");
            }
            if heals && there {
                assert!(
                    dead,
                    "cut {cut}: a healed wire must end well: {:?}",
                    o.source
                );
            }
        }
    }
}

#[test]
fn what_the_journal_says_is_what_may_be_done() {
    let all: BTreeMap<&str, super::journal::Phase> = [
        ("prepared", super::journal::Phase::Prepared),
        ("granted", super::journal::Phase::Granted),
        ("resumed", super::journal::Phase::Resumed),
        ("aborted", super::journal::Phase::Aborted),
    ]
    .into();
    assert!(all["prepared"].source_may_thaw() && all["aborted"].source_may_thaw());
    assert!(!all["granted"].source_may_thaw() && !all["resumed"].source_may_thaw());
}
