//! Debian's runc, unmodified, with the built binary as its `criu`.

#[path = "harness/mod.rs"]
mod harness;
use harness::*;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A container that runs a sample program, ready.
fn start(scratch: &Scratch, program: &str, args: &[&str]) -> Container {
    let runc = Runc::new(scratch);
    let probe = sample(program);
    let path = format!("/bin/{program}");
    let mut line = vec![path.as_str()];
    line.extend_from_slice(args);
    let bundle = Bundle::new(scratch, "bundle", &[&probe], &line);
    let mut container = Container::run(&runc, bundle, scratch.name());
    container.lines.expect("ready", PATIENCE);
    container
}

/// Asks the program whether all is right with it; what it counted.
fn asked(container: &mut Container, answer: &str) -> u64 {
    container.signal("USR1");
    let line = container.lines.expect(answer, PATIENCE);
    line.split(' ').nth(1).unwrap().parse().unwrap()
}

#[test]
fn checkpoint_and_restore_carry_a_container() {
    needs!(root, runc, gcc);
    for (program, args, answer) in [
        ("spin", &["16"][..], "count "),
        ("threads", &["4"], "turn "),
        ("tree", &[], "turn "),
    ] {
        let scratch = Scratch::new("face-runc-eager");
        let mut container = start(&scratch, program, args);
        let mut last = asked(&mut container, answer);
        for round in 0..2 {
            let images = scratch.join(format!("images-{round}"));
            container.dumped(&images, &[]);
            assert!(images.join("inventory.img").exists());
            assert!(images.join("descriptors.json").exists());
            let work = scratch.join(format!("images-{round}.work"));
            assert!(work.join("stats-dump").exists());
            assert!(work.join("dump.log").exists());
            container.restored(&images, &[]);
            assert!(work.join("stats-restore").exists());
            let now = asked(&mut container, answer);
            assert!(now > last, "{program}: {now} after {last}");
            last = now;
        }
        let exec = container.exec(&["/bin/true"]);
        assert!(exec.ok(), "{exec:?}");
    }
}

#[test]
fn a_container_that_is_left_running_goes_on_as_it_was() {
    needs!(root, runc, gcc);
    let scratch = Scratch::new("face-runc-leave");
    let mut container = start(&scratch, "spin", &["16"]);
    let before = asked(&mut container, "count ");
    let pid = container.pid();
    let images = scratch.join("images");
    container.dumped(&images, &["--leave-running"]);
    assert_eq!(container.pid(), pid);
    let later = asked(&mut container, "count ");
    assert!(later > before);
    // The images are whole, too.
    container.restored(&images, &[]);
    assert!(asked(&mut container, "count ") > before);
}

#[test]
fn a_checkpoint_that_is_refused_changes_nothing() {
    needs!(root, runc, gcc);
    let scratch = Scratch::new("face-runc-refused");
    let mut container = start(&scratch, "spin", &["1"]);
    let before = asked(&mut container, "count ");
    // A session beside the tree cannot be carried.
    let mut exec = container.runc.command();
    exec.args(["exec", "--detach", &container.id, "/bin/sleep", "1000"]);
    exec.stdout(Stdio::null()).stderr(Stdio::null());
    assert!(exec.status().unwrap().success());
    let images = scratch.join("images");
    let outcome = container.checkpoint(&images, &[]);
    assert!(!outcome.ok(), "{outcome:?}");
    assert!(!images.join("inventory.img").exists());
    let log = fs::read_to_string(scratch.join("images.work/dump.log")).unwrap();
    assert!(log.contains("Error ("), "{log}");
    assert_eq!(container.status(), "running");
    assert!(asked(&mut container, "count ") > before);
}

#[test]
fn a_restore_that_fails_leaves_nothing() {
    needs!(root, runc, gcc);
    let scratch = Scratch::new("face-runc-fails");
    let mut container = start(&scratch, "spin", &["1"]);
    let images = scratch.join("images");
    container.dumped(&images, &[]);
    for name in ["core-1.img", "pagemap-1.img", "inventory.img"] {
        let path = images.join(name);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() - 3]).unwrap();
        assert!(!container.restore(&images, &[]), "{name} was cut");
        let log = fs::read_to_string(scratch.join("images.work/restore.log")).unwrap();
        assert!(log.contains("Error (") && log.contains(name), "{log}");
        assert_ne!(container.status(), "running");
        fs::write(&path, whole).unwrap();
    }
    container.restored(&images, &[]);
    asked(&mut container, "count ");
}

/// `criu lazy-pages`, killed when dropped.
struct LazyPages(Child);

impl LazyPages {
    fn start(scratch: &Scratch, images: &Path, more: &[&str]) -> Self {
        let work = images.with_extension("work");
        fs::create_dir_all(&work).unwrap();
        let log = work.join("lazy-pages.log");
        let child = Command::new(criu_dir(scratch).join("criu"))
            .arg("lazy-pages")
            .arg("-D")
            .arg(images)
            .arg("-W")
            .arg(&work)
            .args(["-v4", "-o", "lazy-pages.log"])
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        wait_file(&log, PATIENCE, |text| text.contains("listening"));
        Self(child)
    }

    fn succeeded(mut self) {
        let status = self.0.wait().unwrap();
        assert!(status.success(), "lazy-pages: {status}");
    }
}

impl Drop for LazyPages {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn follows_from_local_images(program: &str, answer: &str) {
    let scratch = Scratch::new("face-runc-lazy");
    let mut container = start(&scratch, program, &["32"]);
    let before = asked(&mut container, answer);
    let images = scratch.join("images");
    container.dumped(&images, &[]);
    let daemon = LazyPages::start(&scratch, &images, &[]);
    container.restored(&images, &["--lazy-pages"]);
    assert!(asked(&mut container, answer) > before);
    daemon.succeeded();
}

#[test]
fn memory_follows_lazily_from_local_images() {
    needs!(root, runc, gcc);
    follows_from_local_images("spin", "count ");
}

#[test]
fn shared_memory_follows_lazily_from_local_images() {
    needs!(root, runc, gcc);
    follows_from_local_images("shared", "turn ");
}

/// A checkpoint that serves its pages: it, the port, the images.
fn serving(container: &Container, scratch: &Scratch) -> (Child, String, PathBuf) {
    serving_for(container, scratch, "3600")
}

/// The same, for a client that may stay away for so many seconds.
fn serving_for(container: &Container, scratch: &Scratch, wait: &str) -> (Child, String, PathBuf) {
    let images = scratch.join("images");
    let work = scratch.dir("images.work");
    let port = {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        free.local_addr().unwrap().port().to_string()
    };
    // The checkpoint says on its standard output when it serves.
    let mut command = container.runc.command();
    command
        .args(["checkpoint", "--lazy-pages", "--status-fd", "1"])
        .args(["--page-server", &format!("127.0.0.1:{port}")])
        .arg("--image-path")
        .arg(&images)
        .arg("--work-path")
        .arg(&work)
        .arg(&container.id)
        .env("DUNLIN_CLIENT_WAIT", wait)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut checkpoint = command.spawn().unwrap();
    let mut byte = [1];
    checkpoint
        .stdout
        .take()
        .unwrap()
        .read_exact(&mut byte)
        .unwrap();
    assert_eq!(byte, [0]);
    (checkpoint, port, images)
}

#[test]
fn memory_follows_lazily_from_a_checkpoint_that_serves_it() {
    needs!(root, runc, gcc);
    follows_from_a_page_server("spin", "count ");
}

#[test]
fn shared_memory_follows_lazily_from_a_checkpoint_that_serves_it() {
    needs!(root, runc, gcc);
    follows_from_a_page_server("shared", "turn ");
}

fn follows_from_a_page_server(program: &str, answer: &str) {
    let scratch = Scratch::new("face-runc-pages");
    let mut container = start(&scratch, program, &["32"]);
    let before = asked(&mut container, answer);
    let source = container.init();
    let (mut checkpoint, port, images) = serving(&container, &scratch);
    let files = fs::read_dir(&images).unwrap().map(|e| e.unwrap());
    let pages = files.filter(|e| e.file_name().to_str().unwrap().starts_with("pages-"));
    let pages: u64 = pages.map(|e| e.metadata().unwrap().len()).sum();
    assert!(pages < 8 << 20, "{pages} bytes were written");
    let server = ["--page-server", "--address", "127.0.0.1", "--port", &port];
    let daemon = LazyPages::start(&scratch, &images, &server);
    // Another runc, as on another host.
    let mut there = container.runc.clone();
    there.root = scratch.dir("runc-there");
    let here = std::mem::replace(&mut container.runc, there);
    container
        .bundle
        .cgroups_path(&format!("/dunlin-tests-{}-there", container.id));
    container.restored(&images, &["--lazy-pages"]);
    assert!(asked(&mut container, answer) > before);
    daemon.succeeded();
    assert!(checkpoint.wait().unwrap().success());
    source.wait_gone(PATIENCE);
    drop(here);
}

/// What `dunlin resolve` says.
fn resolve(args: &[&str]) -> Outcome {
    run(Command::new(dunlin()).arg("resolve").args(args), PATIENCE)
}

/// The journal that is kept of a container's first task.
fn journal_of(root: i32) -> Option<String> {
    let listed = resolve(&["--list"]).stdout;
    let start = format!("pages-{root}-");
    let line = listed.lines().find(|l| l.starts_with(&start))?;
    Some(line.to_owned())
}

#[test]
fn a_page_server_that_is_killed_leaves_a_tree_that_resolve_lets_go_or_ends() {
    needs!(root, runc, gcc);
    for decision in ["--thaw", "--discard"] {
        let scratch = Scratch::new("face-runc-held");
        let mut container = start(&scratch, "spin", &["4"]);
        let before = asked(&mut container, "count ");
        let init = container.init();
        let (mut checkpoint, port, images) = serving(&container, &scratch);
        assert!(journal_of(init.pid()).unwrap().contains("under way"));
        // A client stands: its copy may run from now on.
        let server = ["--page-server", "--address", "127.0.0.1", "--port", &port];
        let client = LazyPages::start(&scratch, &images, &server);
        let line = loop {
            let line = journal_of(init.pid()).unwrap();
            if line.contains("Granted") {
                break line;
            }
        };
        let id = line.split_whitespace().next().unwrap();
        let early = resolve(&[id, decision]);
        assert!(
            !early.ok() && early.stderr.contains("still running"),
            "{early:?}"
        );
        // runc's criu; runc ends by itself then.
        let criu = descendants(i32::try_from(checkpoint.id()).unwrap())[1..].to_vec();
        for pid in criu {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        assert!(!checkpoint.wait().unwrap().success());
        drop(client);
        let asked_first = resolve(&[id]);
        assert!(
            !asked_first.ok() && asked_first.stderr.contains("--thaw"),
            "{asked_first:?}"
        );
        assert!(init.is_alive());
        let settled = resolve(&[id, decision]);
        assert!(settled.ok(), "{settled:?}");
        assert_eq!(journal_of(init.pid()), None);
        if decision == "--thaw" {
            assert!(asked(&mut container, "count ") > before);
        } else {
            init.wait_gone(PATIENCE);
        }
    }
}

#[test]
fn a_client_whose_restore_fails_gives_the_tree_back() {
    needs!(root, runc, gcc);
    let scratch = Scratch::new("face-runc-back");
    let mut container = start(&scratch, "spin", &["4"]);
    let before = asked(&mut container, "count ");
    let init = container.init();
    let (mut checkpoint, port, images) = serving(&container, &scratch);
    let server = ["--page-server", "--address", "127.0.0.1", "--port", &port];
    let _client = LazyPages::start(&scratch, &images, &server);
    // A restorer that comes, and dies before anything stands.
    let socket = scratch.join("images.work").join("lazy-pages.socket");
    drop(dunlin::sys::seqpacket::connect_to(&socket).unwrap());
    assert!(!checkpoint.wait().unwrap().success());
    assert!(asked(&mut container, "count ") > before);
    assert_eq!(journal_of(init.pid()), None);
}

#[test]
fn a_page_server_to_which_no_client_comes_in_time_lets_the_tree_go_on() {
    needs!(root, runc, gcc);
    let scratch = Scratch::new("face-runc-nobody");
    let mut container = start(&scratch, "spin", &["4"]);
    let before = asked(&mut container, "count ");
    let init = container.init();
    let (mut checkpoint, _, _) = serving_for(&container, &scratch, "1");
    assert!(!checkpoint.wait().unwrap().success());
    assert!(asked(&mut container, "count ") > before);
    assert_eq!(journal_of(init.pid()), None);
}

#[test]
fn a_client_that_is_lost_for_longer_than_it_may_leaves_a_tree_that_resolve_settles() {
    needs!(root, runc, gcc);
    let scratch = Scratch::new("face-runc-away");
    let mut container = start(&scratch, "spin", &["4"]);
    let before = asked(&mut container, "count ");
    let init = container.init();
    let (mut checkpoint, port, images) = serving_for(&container, &scratch, "2");
    let server = ["--page-server", "--address", "127.0.0.1", "--port", &port];
    let client = LazyPages::start(&scratch, &images, &server);
    while !journal_of(init.pid()).unwrap().contains("Granted") {
        assert!(checkpoint.try_wait().unwrap().is_none());
    }
    // Killed: it says nothing of whether its copy ran.
    drop(client);
    assert!(!checkpoint.wait().unwrap().success());
    let line = journal_of(init.pid()).unwrap();
    assert!(
        line.contains("Granted") && line.contains("--thaw"),
        "{line}"
    );
    let log = fs::read_to_string(scratch.join("images.work/dump.log")).unwrap();
    assert!(
        log.contains("the tree is held here, see dunlin resolve pages-"),
        "{log}"
    );
    assert!(init.is_alive());
    let id = line.split_whitespace().next().unwrap();
    let settled = resolve(&[id, "--thaw"]);
    assert!(settled.ok(), "{settled:?}");
    assert!(asked(&mut container, "count ") > before);
    assert_eq!(journal_of(init.pid()), None);
}
