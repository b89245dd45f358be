//! runc, unmodified, with dunlin as its `criu`: the sample programs are in the
//! middle of something, and must not notice.

#[path = "harness/mod.rs"]
mod harness;

use std::path::{Path, PathBuf};

use harness::*;

/// A container of the sample program, ready, with its first round done.
struct Sample {
    container: Container,
    scratch: Scratch,
    data: PathBuf,
}

fn start(name: &str, criu: Option<&Path>) -> Sample {
    let scratch = Scratch::new(name);
    let runc = match criu {
        Some(criu) => Runc::with_criu(&scratch, criu),
        None => Runc::new(&scratch),
    };
    let program = patterns_program();
    let args = ["/bin/patterns", "--mib", "24", "--port", "7070"];
    let bundle = Bundle::new(&scratch, "bundle", &[&program], &args);
    let data = bundle.rootfs().join("data");
    let mut container = Container::run(&runc, bundle, scratch.name());
    container.lines.expect("ready", PATIENCE);
    let sample = Sample {
        container,
        scratch,
        data,
    };
    sample.go_on("before anything");
    sample
}

impl Sample {
    fn counter(&self, name: &str) -> u64 {
        counter(&self.status(), name).unwrap_or(0)
    }

    fn status(&self) -> String {
        std::fs::read_to_string(self.data.join("status")).unwrap_or_default()
    }

    /// It must do two more rounds, look at its things, hear its child, and survive
    /// forks, mremaps and madvises.
    fn go_on(&self, when: &str) {
        let (rounds, acts) = (self.counter("rounds"), self.counter("acts"));
        self.container.signal("USR1");
        let status = wait_file(&self.data.join("status"), PATIENCE, |line| {
            line.starts_with("wrong")
                || (counter(line, "rounds") >= Some(rounds + 2)
                    && counter(line, "acts") > Some(acts))
        });
        assert!(status.starts_with("ok "), "{when}: {status}");
    }

    fn starts(&self) -> usize {
        let log = std::fs::read_to_string(self.data.join("log")).unwrap();
        log.lines().filter(|line| line.ends_with(" ready")).count()
    }
}

fn counter(line: &str, name: &str) -> Option<u64> {
    line.split_whitespace()
        .find_map(|word| word.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
}

#[test]
fn a_container_goes_on_where_it_was_checkpointed() {
    needs!(root, runc);
    let mut sample = start("runc-eager", None);
    let images = sample.scratch.join("images");
    sample.container.dumped(&images, &[]);
    let stopped_at = sample.counter("checked");
    assert!(stopped_at > 0);
    sample.container.restored(&images, &[]);
    sample.go_on("after the restore");
    assert!(sample.counter("checked") > stopped_at);
    assert_eq!(sample.starts(), 1, "it was started anew");
}

#[test]
fn a_restored_container_can_be_checkpointed_again() {
    needs!(root, runc);
    let mut sample = start("runc-twice", None);
    for turn in 0..2 {
        let images = sample.scratch.join(format!("images{turn}"));
        sample.container.dumped(&images, &[]);
        sample.container.restored(&images, &[]);
        sample.go_on(&format!("after restore {turn}"));
    }
    assert_eq!(sample.starts(), 1, "it was started anew");
}

#[test]
fn leave_running_leaves_it_running() {
    needs!(root, runc);
    let sample = start("runc-leave", None);
    let images = sample.scratch.join("images");
    sample.container.dumped(&images, &["--leave-running"]);
    assert_eq!(sample.container.status(), "running");
    sample.go_on("after --leave-running");
    let init = sample.container.init();
    sample.container.signal("KILL");
    init.wait_gone(PATIENCE);
    // Files have gone on since, as runc's user knows: only the program is old.
    for name in ["file", "log", "ticks"] {
        assert!(sample.data.join(name).exists());
    }
}

#[test]
fn exec_kill_and_delete_work_after_a_restore() {
    needs!(root, runc);
    let mut sample = start("runc-after", None);
    let images = sample.scratch.join("images");
    sample.container.dumped(&images, &[]);
    sample.container.restored(&images, &[]);
    let comm = sample.container.exec(&["cat", "/proc/1/comm"]);
    assert_eq!(comm.stdout.trim(), "patterns", "{comm:?}");
    let init = sample.container.init();
    sample.container.signal("TERM");
    init.wait_gone(PATIENCE);
    must(
        sample
            .container
            .runc
            .command()
            .args(["delete", &sample.container.id]),
    );
    assert_eq!(sample.container.status(), "unknown");
}

#[test]
fn memory_follows_lazily_from_local_images() {
    needs!(root, runc);
    let mut sample = start("runc-lazy", None);
    let images = sample.scratch.join("images");
    sample.container.dumped(&images, &[]);
    let work = sample.scratch.dir("lazy.work");
    let mut command = std::process::Command::new(criu_dir(&sample.scratch).join("criu"));
    command
        .arg("lazy-pages")
        .arg("-D")
        .arg(&images)
        .arg("-W")
        .arg(&work);
    let mut server = Program::start(&mut command);
    let socket = work.join("lazy-pages.socket");
    wait_dir(&work, PATIENCE, || {
        std::fs::symlink_metadata(&socket).is_ok()
    });
    // runc gives the restore its work directory; the socket must be found there.
    let link = sample.scratch.dir("images.work").join("lazy-pages.socket");
    std::os::unix::fs::symlink(&socket, link).unwrap();
    sample.container.restored(&images, &["--lazy-pages"]);
    sample.go_on("while its memory follows");
    let status = server.wait(PATIENCE);
    assert!(
        status.success(),
        "{status}; {}",
        server.lines.seen().join("\n")
    );
    sample.go_on("after all of its memory has come");
    assert_eq!(sample.starts(), 1, "it was started anew");
}

#[test]
fn a_stopped_container_is_refused_and_stays_as_it_is() {
    needs!(root, runc);
    let sample = start("runc-stopped", None);
    let init = sample.container.init();
    sample.container.signal("KILL");
    init.wait_gone(PATIENCE);
    let images = sample.scratch.join("images");
    let outcome = sample.container.checkpoint(&images, &[]);
    assert!(!outcome.ok(), "{outcome:?}");
    assert!(!images.join("inventory.img").exists());
}

#[test]
fn a_truncated_image_is_refused_and_nothing_runs() {
    needs!(root, runc);
    let mut sample = start("runc-truncated", None);
    let images = sample.scratch.join("images");
    sample.container.dumped(&images, &[]);
    let core = images.join("core-1.img");
    let bytes = std::fs::read(&core).unwrap();
    std::fs::write(&core, &bytes[..bytes.len() / 2]).unwrap();
    assert!(!sample.container.restore(&images, &[]));
    assert_ne!(sample.container.status(), "running");
    let logs = sample.container.logs_of(&images);
    assert!(logs.contains("core-1.img"), "{logs}");
    // And with the image whole again, it runs.
    std::fs::write(&core, &bytes).unwrap();
    sample.container.restored(&images, &[]);
    sample.go_on("after the second try");
}
