//! A container with a terminal: its master is with whoever started it, and with
//! whoever restores it afterwards.

#[path = "harness/mod.rs"]
mod harness;
use harness::*;

use std::fs::File;
use std::io::{IoSliceMut, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

/// Where runc sends the master of a terminal.
struct Console {
    path: PathBuf,
    listener: UnixListener,
}

/// A master: what comes out of it, and what is typed into it.
struct Master {
    lines: Lines,
    keys: File,
}

impl Console {
    fn new(scratch: &Scratch, name: &str) -> Self {
        let path = scratch.join(name);
        let listener = UnixListener::bind(&path).expect("listen for the console");
        Self { path, listener }
    }

    /// The master that runc has sent.
    #[allow(unsafe_code)]
    fn master(&self) -> Master {
        let (line, _) = self.listener.accept().expect("runc connects");
        let mut name = [0; 4096];
        let mut space = nix::cmsg_space!(i32);
        let mut io = [IoSliceMut::new(&mut name)];
        let message = recvmsg::<()>(
            line.as_raw_fd(),
            &mut io,
            Some(&mut space),
            MsgFlags::MSG_CMSG_CLOEXEC,
        )
        .expect("receive the master");
        let fd = message
            .cmsgs()
            .expect("control messages")
            .find_map(|c| match c {
                ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
                _ => None,
            })
            .expect("a descriptor");
        // SAFETY: the kernel has just given it to us.
        let keys = unsafe { OwnedFd::from_raw_fd(fd) };
        Master {
            lines: Lines::new(keys.try_clone().expect("dup")),
            keys: keys.into(),
        }
    }
}

impl Master {
    fn types(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).expect("type");
    }

    /// What the program says of its terminal.
    fn look(&mut self) -> String {
        self.types("look\n");
        self.lines.expect("/dev/pts/", PATIENCE)
    }

    fn is_interrupted(&mut self) {
        self.types("\x07");
        self.lines.expect("interrupted", PATIENCE);
    }
}

fn start(scratch: &Scratch, console: &Console) -> Container {
    let program = sample("terminal");
    let mut bundle = Bundle::new(scratch, "bundle", &[&program], &["/bin/terminal"]);
    let id = scratch.name().to_owned();
    bundle.edit(|config| {
        config["process"]["terminal"] = true.into();
        // what a dump by hand would have to declare
        let mounts = config["mounts"].as_array_mut().expect("mounts");
        mounts.retain(|m| m["type"] != "cgroup");
    });
    bundle.cgroups_path(&format!("/dunlin-tests-{id}"));
    let runc = Runc::new(scratch);
    let (read, _write) = nix::unistd::pipe().expect("a pipe");
    let container = Container {
        runc,
        id,
        bundle,
        lines: Lines::new(read),
    };
    let status = container
        .runc
        .command()
        .args(["run", "--detach", "--console-socket"])
        .arg(&console.path)
        .arg("--bundle")
        .arg(&container.bundle.dir)
        .arg(&container.id)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .expect("start runc");
    assert!(status.success(), "runc run: {status}");
    container
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

#[test]
fn a_terminal_comes_back_with_modes_size_session_and_foreground_under_runc() {
    needs!(root, runc, gcc);
    let scratch = Scratch::new("terminal");
    let first = Console::new(&scratch, "first.sock");
    let mut container = start(&scratch, &first);
    let mut master = first.master();
    master.lines.expect("ready", PATIENCE);
    let before = master.look();
    assert!(before.contains("33x77"), "{before}");
    assert!(before.contains("session 1 "), "{before}");
    master.is_interrupted();

    let images = scratch.join("images");
    container.dumped(&images, &[]);
    drop(master);
    let second = Console::new(&scratch, "second.sock");
    container.restored(&images, &["--console-socket", text(&second.path)]);
    let mut master = second.master();
    assert_eq!(master.look(), before);
    master.is_interrupted();
}

#[test]
fn a_terminal_is_refused_by_name_where_nobody_would_take_its_master() {
    needs!(root, runc, gcc);
    let scratch = Scratch::new("terminal-refused");
    let console = Console::new(&scratch, "console.sock");
    let container = start(&scratch, &console);
    let mut master = console.master();
    master.lines.expect("ready", PATIENCE);
    let images = scratch.dir("images");
    let pid = container.pid().to_string();
    let outcome = run(
        Command::new(dunlin())
            .args(["criu", "dump", "--empty-ns", "net", "-t", &pid, "-D"])
            .arg(&images),
        PATIENCE,
    );
    assert!(!outcome.ok(), "{outcome:?}");
    let said = outcome.stdout + &outcome.stderr;
    assert!(
        said.contains("terminal /dev/pts/0: cannot be carried"),
        "{said}"
    );
    master.is_interrupted();
}
