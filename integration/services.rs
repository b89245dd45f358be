//! Real services, idle and full of data, in a runc container.

#[path = "harness/mod.rs"]
mod harness;
use harness::*;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

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
