//! Real services in a runc container: redis idle and full of data, nginx with workers,
//! node and java while they work (`services/` has their programs).

#[path = "harness/mod.rs"]
mod harness;
use harness::*;

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use serde_json::{Map, Value, json};

/// Debian's redis-server is this program under another name.
const REDIS: &str = "/usr/bin/redis-check-rdb";

/// Copies a program of the host into `root` as `/bin/NAME`, and its libraries to
/// where it looks for them.
fn install(root: &Path, program: &Path, name: &str) {
    fs::copy(program, root.join("bin").join(name)).expect("copy the program");
    let listed = must(Command::new("ldd").arg(program)).stdout;
    for word in listed.split_whitespace().filter(|w| w.starts_with('/')) {
        let to = root.join(word.trim_start_matches('/'));
        fs::create_dir_all(to.parent().expect("a directory")).expect("make it");
        fs::copy(word, to).expect("copy a library");
    }
}

struct Redis {
    container: Container,
    socket: PathBuf,
}

impl Redis {
    fn start(scratch: &Scratch) -> Self {
        let args = [
            "/bin/redis-server",
            "--unixsocket",
            "/data/redis.sock",
            "--dir",
            "/data",
            "--save",
            "",
            "--enable-debug-command",
            "yes",
        ];
        let bundle = Bundle::new(scratch, "bundle", &[], &args);
        install(&bundle.rootfs(), Path::new(REDIS), "redis-server");
        let socket = bundle.rootfs().join("data/redis.sock");
        let container = Container::run(&Runc::new(scratch), bundle, scratch.name());
        let redis = Self { container, socket };
        redis.until("PONG", &["ping"]);
        redis
    }

    fn asked(&self, words: &[&str]) -> String {
        let mut command = Command::new("redis-cli");
        command.arg("-s").arg(&self.socket).args(words);
        run(&mut command, PATIENCE).stdout.trim().to_owned()
    }

    /// Asks until the answer has `text` in it.
    fn until(&self, text: &str, words: &[&str]) {
        let end = Instant::now() + PATIENCE;
        while !self.asked(words).contains(text) {
            assert!(Instant::now() < end, "no {text} to {words:?}");
        }
    }

    /// No client is left: a connection from outside is not carried.
    fn is_idle(&self) {
        self.until("connected_clients:1\r", &["info", "clients"]);
        let fds = format!("/proc/{}/fd", self.container.pid());
        let end = Instant::now() + PATIENCE;
        // two listeners of TCP, one Unix
        while sockets(&fds) > 3 {
            assert!(Instant::now() < end, "a client stays connected");
            std::thread::yield_now();
        }
    }

    /// All data is there, and a child that it forks sees it too.
    fn holds(&self, digest: &str) {
        assert_eq!(self.asked(&["debug", "digest"]), digest);
        assert_eq!(self.asked(&["set", "after", "restore"]), "OK");
        assert_eq!(self.asked(&["get", "after"]), "restore");
        assert_eq!(self.asked(&["del", "after"]), "1");
        self.asked(&["bgsave"]);
        self.until("rdb_bgsave_in_progress:0", &["info", "persistence"]);
        let saved = self.asked(&["info", "persistence"]);
        assert!(saved.contains("rdb_last_bgsave_status:ok"), "{saved}");
    }
}

fn sockets(fds: &str) -> usize {
    fs::read_dir(fds)
        .expect("list descriptors")
        .filter_map(|e| fs::read_link(e.ok()?.path()).ok())
        .filter(|link| link.to_string_lossy().starts_with("socket:"))
        .count()
}

fn lazy_pages(scratch: &Scratch, images: &Path) {
    let work = images.with_file_name("images.work");
    let mut command = Command::new(criu_dir(scratch).join("criu"));
    command
        .args(["lazy-pages", "-d", "-v4", "-o", "lazy-pages.log", "-D"])
        .arg(images)
        .arg("-W")
        .arg(work);
    must(&mut command);
}

#[test]
fn redis_has_its_data_after_eager_and_lazy_restores() {
    needs!(root, runc, redis);
    let scratch = Scratch::new("redis");
    let mut redis = Redis::start(&scratch);
    redis.asked(&["debug", "populate", "50000", "key", "100"]);
    let digest = redis.asked(&["debug", "digest"]);
    assert_eq!(digest.len(), 40, "{digest}");
    for (name, more) in [("eager", &[][..]), ("lazy", &["--lazy-pages"])] {
        redis.is_idle();
        let images = scratch.dir(name).join("images");
        redis.container.dumped(&images, &[]);
        if !more.is_empty() {
            lazy_pages(&scratch, &images);
        }
        redis.container.restored(&images, more);
        redis.holds(&digest);
    }
}

/// A program that answers HTTP requests on a Unix socket in its `/data`.
struct Server {
    container: Container,
    socket: PathBuf,
}

impl Server {
    fn start(scratch: &Scratch, bundle: Bundle) -> Self {
        let socket = bundle.rootfs().join("data/socket");
        let container = Container::run(&Runc::new(scratch), bundle, scratch.name());
        let server = Self { container, socket };
        let end = Instant::now() + PATIENCE;
        while server.connect("/").is_none() {
            assert!(Instant::now() < end, "it does not listen");
            std::thread::yield_now();
        }
        server
    }

    /// The answer to a request over a connection of its own.
    fn connect(&self, path: &str) -> Option<String> {
        let mut stream = UnixStream::connect(&self.socket).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        // In one piece: who has read a part of it may answer and go.
        let request = format!("GET {path} HTTP/1.0\r\n\r\n");
        stream.write_all(request.as_bytes()).ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        Some(text.split_once("\r\n\r\n")?.1.to_owned())
    }

    fn asked(&self, path: &str) -> String {
        self.connect(path).expect("no answer")
    }

    /// Two answers: nothing was found wrong, and every counter has moved.
    fn goes_on(&self) {
        let told = || -> Map<String, Value> {
            let mut told = serde_json::from_str(&self.asked("/")).expect("parse the answer");
            let map: &mut Map<String, Value> = &mut told;
            let wrong = map.remove("wrong").expect("it says what is wrong");
            assert_eq!(wrong, json!([]));
            told
        };
        let before = told();
        let end = Instant::now() + PATIENCE;
        let moved = |now: &Map<String, Value>| {
            let more = |(name, was): (&String, &Value)| now[name].as_u64() > was.as_u64();
            before.iter().all(more)
        };
        loop {
            let now = told();
            if moved(&now) {
                return;
            }
            assert!(Instant::now() < end, "stands still: {before:?}, {now:?}");
        }
    }

    /// Through an eager and a lazy restore; `right` is asked before and after.
    fn comes_back(mut self, scratch: &Scratch, right: impl Fn(&Self)) {
        right(&self);
        for (name, more) in [("eager", &[][..]), ("lazy", &["--lazy-pages"])] {
            let images = scratch.dir(name).join("images");
            self.container.dumped(&images, &[]);
            if !more.is_empty() {
                lazy_pages(scratch, &images);
            }
            self.container.restored(&images, more);
            right(&self);
        }
    }
}

/// The children of a process.
fn workers(server: &Server) -> Vec<i32> {
    let all = server.container.pids();
    all.into_iter().skip(1).collect()
}

#[test]
fn nginx_serves_and_replaces_its_workers_after_eager_and_lazy_restores() {
    needs!(root, runc, nginx);
    let scratch = Scratch::new("nginx");
    let args = ["/bin/nginx", "-c", "/etc/nginx.conf"];
    let bundle = Bundle::new(&scratch, "bundle", &[], &args);
    let root = bundle.rootfs();
    install(&root, Path::new("/usr/sbin/nginx"), "nginx");
    fs::create_dir_all(root.join("var/log/nginx")).unwrap();
    fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\n").unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\n").unwrap();
    fs::write(
        root.join("etc/nginx.conf"),
        include_str!("services/nginx.conf"),
    )
    .unwrap();
    let page = "a line\n".repeat(20_000);
    fs::write(root.join("data/page"), &page).unwrap();
    Server::start(&scratch, bundle).comes_back(&scratch, |server| {
        assert_eq!(server.asked("/page"), page);
        let before = workers(server);
        assert_eq!(before.len(), 2);
        // shared memory, Unix socket pairs, signals and fork at once
        server.container.signal("HUP");
        let end = Instant::now() + PATIENCE;
        while workers(server).len() != 2 || workers(server).iter().any(|w| before.contains(w)) {
            assert!(Instant::now() < end, "its workers are not replaced");
            std::thread::yield_now();
        }
        assert_eq!(server.asked("/page"), page);
    });
}

#[test]
fn node_goes_on_with_threads_timers_and_garbage_after_eager_and_lazy_restores() {
    needs!(root, runc, node);
    let scratch = Scratch::new("node");
    let bundle = Bundle::new(&scratch, "bundle", &[], &["/bin/node", "/app.js"]);
    let node = fs::canonicalize(tool("node").unwrap()).unwrap();
    install(&bundle.rootfs(), &node, "node");
    fs::write(
        bundle.rootfs().join("app.js"),
        include_str!("services/app.js"),
    )
    .unwrap();
    Server::start(&scratch, bundle).comes_back(&scratch, Server::goes_on);
}

#[test]
fn java_goes_on_with_threads_timers_and_garbage_after_eager_and_lazy_restores() {
    needs!(root, runc, java);
    let scratch = Scratch::new("java");
    let args = ["/jre/bin/java", "-Xmx128m", "-cp", "/", "App"];
    let bundle = Bundle::new(&scratch, "bundle", &[], &args);
    let root = bundle.rootfs();
    let java = fs::canonicalize(tool("java").unwrap()).unwrap();
    let home = java.ancestors().nth(2).expect("a home of java");
    // what java wants beside its program: its modules and libraries
    fs::create_dir_all(root.join("jre/bin")).unwrap();
    must(Command::new("cp").arg(&java).arg(root.join("jre/bin")));
    for part in ["lib", "conf"] {
        let mut copy = Command::new("cp");
        copy.arg("-rL").arg(home.join(part)).arg(root.join("jre"));
        // links to parts that are not installed lead nowhere, so that it may fail
        run(&mut copy, PATIENCE);
    }
    install(&root, &java, "java");
    for library in ["libjava.so", "libnio.so", "libnet.so", "server/libjvm.so"] {
        install(&root, &home.join("lib").join(library), "library");
    }
    let source = top().join("integration/services/App.java");
    must(Command::new("javac").arg("-d").arg(&root).arg(source));
    Server::start(&scratch, bundle).comes_back(&scratch, Server::goes_on);
}
