//! Whole migrations over real sockets, with a model of a container and of a host
//! in place of the kernel, and (in [`cuts`]) a wire that is cut anywhere.

mod cuts;
mod liar;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::destination;
use super::ports::{Capture, Container, Host, Landed, Lister, Serving};
use super::probe::Probe;
use super::remote::Remote;
use super::source;
use crate::base::{Error, PAGE_SIZE, PageRange, Result};
use crate::engine::hold::Verdict;
use crate::memory::held::Existing;
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

/// Guard pages of [`SPACE`] that the images do not list.
struct Guards(u64, u64);

const GUARDS: Guards = Guards(1010, 1012);
/// Where the areas of [`SPACE`] end.
const LAST: u64 = 1100;

impl Guards {
    fn pages(&self) -> std::ops::Range<u64> {
        self.0..self.1
    }
}

/// Knows which pages exist; the first look at all of an object waits for a moment in
/// which pages are asked for.
struct Lists {
    takes: Duration,
    panics: bool,
}

impl Lister for Lists {
    fn existing(&self, object: Object, range: PageRange) -> Result<Existing> {
        if range.pages() > 64 {
            std::thread::sleep(self.takes);
            assert!(!self.panics, "made to");
        }
        let page = |n: u64| PageRange::with_pages(n * PAGE_SIZE, 1).unwrap();
        let of = |n: &u64| range.contains(n * PAGE_SIZE);
        let exists = all_pages()
            .into_iter()
            .filter(|(o, n)| *o == object && of(n));
        let guards = GUARDS.pages().filter(|n| object == SPACE && of(n));
        Ok(Existing {
            content: exists.map(|(_, n)| page(n)).collect(),
            guards: guards.map(page).collect(),
        })
    }
    fn guards(&self) -> Result<Vec<(SpaceId, PageRange)>> {
        Ok(Vec::new())
    }
}

/// Readable up to a page of [`SPACE`].
struct Pages(u64);

impl PageReader for Pages {
    fn read(&self, object: Object, at: u64, buf: &mut [u8]) -> Result<()> {
        if object == SPACE && at + buf.len() as u64 > self.0 * PAGE_SIZE {
            return Err(Error::errno("read pages of task 1", libc::EFAULT));
        }
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
            config: br#"{"ociVersion":"1.0.2","root":{"path":"rootfs"},"linux":{"namespaces":[
                {"type":"pid"},{"type":"network"},{"type":"ipc"},{"type":"uts"},{"type":"mount"}]}}"#
                .to_vec(),
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
            pages: Arc::new(Pages(if self.fail_at == "read" { 500 } else { 1000 })),
            objects: vec![
                (SPACE, vec![r(0, 120), r(130, LAST)]),
                (SHARED, vec![r(0, 64)]),
            ],
            lister: Some(Arc::new(Lists {
                takes: Duration::from_millis(20),
                panics: self.fail_at == "list",
            })),
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

/// What the images say: these may exist.
fn possible_pages() -> BTreeSet<(Object, u64)> {
    let space = (0..120).chain(130..LAST).map(|n| (SPACE, n));
    space.chain((0..64).map(|n| (SHARED, n))).collect()
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
    fn never_were(&self, object: Object, range: PageRange) -> Result<()> {
        let all = all_pages();
        for n in range.start() / PAGE_SIZE..range.end() / PAGE_SIZE {
            assert!(!all.contains(&(object, n)), "page {n} exists");
            self.missing.lock().unwrap().remove(&(object, n));
        }
        self.done.notify_all();
        Ok(())
    }
    fn guards(&self, id: SpaceId, ranges: &[PageRange]) -> Result<()> {
        assert_eq!(Object::Private(id), SPACE);
        for n in ranges
            .iter()
            .flat_map(|r| r.start() / PAGE_SIZE..r.end() / PAGE_SIZE)
        {
            assert!(GUARDS.pages().contains(&n), "page {n} is no guard page");
            self.missing.lock().unwrap().remove(&(SPACE, n));
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
    fail_at: &'static str,
}

impl HostModel {
    fn step(&self, name: &str) -> Result<()> {
        if self.fail_at == name {
            return Err(Error::refused("model", format!("cannot {name}")));
        }
        Ok(())
    }
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
        self.step("rebuild")?;
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
        self.step("stand")
    }
    fn resume(&mut self) -> Result<()> {
        self.world.destination_runs.store(true, Ordering::SeqCst);
        self.world.check();
        let sink = Arc::clone(&self.memory);
        // Two that exist, one that does not, a guard page, and one more.
        for n in [3, 850, 150, 1011, 17] {
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
        self.step("settle")
    }
    fn discard(&mut self) {
        assert!(!self.world.destination_runs.load(Ordering::SeqCst));
        self.world.discarded.store(true, Ordering::SeqCst);
    }
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
    fail_at: &'static str,
    fail_there: &'static str,
}

const FINE: Case = Case {
    plain: true,
    fail_at: "",
    fail_there: "",
};

fn migrate(case: Case) -> Outcome {
    migrate_over(case, Duration::from_secs(5), |to| to)
}

/// `wire` gives the address to connect to in place of the receiver's.
fn migrate_over(
    case: Case,
    patience: Duration,
    wire: impl FnOnce(SocketAddr) -> SocketAddr,
) -> Outcome {
    let dir = tempfile::tempdir().unwrap();
    let rootfs = dir.path().join("src-rootfs");
    std::fs::create_dir(&rootfs).unwrap();
    std::fs::write(rootfs.join("file"), b"content").unwrap();
    let world = Arc::new(World::default());
    world.source_runs.store(true, Ordering::SeqCst);
    let identity = (!case.plain).then(|| Identity::fresh().unwrap());
    let token = Token::fresh(identity.as_ref().map(|i| &i.certificate[..])).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = wire(listener.local_addr().unwrap());
    let memory = Arc::new(Memory {
        missing: Mutex::new(possible_pages()),
        failed: Mutex::new(None),
        done: Condvar::new(),
    });
    let mut host = HostModel {
        world: world.clone(),
        memory: memory.clone(),
        remote: None,
        fail_at: case.fail_there,
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
        answer: Duration::from_secs(300),
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
            answer: Duration::from_secs(300),
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
        assert_eq!(r.faults, 5);
        // Zero pages are told apart where pages arrive; what was under way when a
        // lane was lost is sent again.
        let content = all_pages().into_iter().filter(|(o, n)| fill(*o, *n) != 0);
        assert!(r.bytes_after_resume >= content.count() as u64 * PAGE_SIZE);
        assert!(r.text().contains("pause"));
        assert!(o.destination.is_ok());
        assert!(left(&o, "src-state").is_empty() && left(&o, "dst-state").is_empty());
        assert_eq!(left(&o, "in"), ["model"]);
    }
}

#[test]
fn a_failure_before_grant_thaws_the_source_and_leaves_nothing_there() {
    // The last after GRANT was said: ABORTED answers it.
    for (fail_at, fail_there) in [
        ("freeze", ""),
        ("capture", ""),
        ("hold", ""),
        ("", "rebuild"),
        ("", "stand"),
    ] {
        let o = migrate(Case {
            fail_at,
            fail_there,
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

#[test]
fn an_end_that_says_that_it_failed_is_not_asked_again_and_the_loss_is_written_down() {
    for (fail_at, fail_there, words) in [
        ("", "settle", "model: cannot settle"),
        ("read", "", "read pages of task 1: Bad address"),
        ("list", "", "look up which pages exist"),
    ] {
        let begun = Instant::now();
        let o = migrate(Case {
            fail_at,
            fail_there,
            ..FINE
        });
        assert!(
            begun.elapsed() < Duration::from_secs(5),
            "it was asked again"
        );
        let e = o.source.as_ref().unwrap_err().to_string();
        assert!(e.contains(words) && e.contains("dunlin resolve"), "{e}");
        assert!(o.destination.is_err());
        assert!(!o.world.source_runs.load(Ordering::SeqCst), "two copies");
        assert_eq!(left(&o, "src-state"), ["model.source"]);
        assert_eq!(left(&o, "dst-state"), ["model.destination"]);
        let loss = o.dir.path().join("in/model").join(super::loss::LOSS);
        let said = std::fs::read_to_string(loss).unwrap();
        assert!(said.starts_with("20") && said.contains(words), "{said}");
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
