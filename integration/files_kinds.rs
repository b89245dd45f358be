//! Each kind of open file in a real program, which looks at it itself after it
//! was moved: bare by `dump -t` and `restore`, and in a container by runc.

#[path = "harness/mod.rs"]
mod harness;

use std::path::{Path, PathBuf};
use std::process::Command;

use harness::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// `files KIND VERDICT`; see its header.
fn probe() -> PathBuf {
    compile("files", include_str!("files_probe.c"))
}

fn verdict(file: &Path, expected: &str) {
    let said = wait_file(file, PATIENCE, |text| !text.is_empty() && text != "asked\n");
    assert_eq!(said.trim_end(), expected);
}

/// Asks the program at `pid` to look.
fn ask(pid: i32, file: &Path) {
    std::fs::write(file, "asked\n").unwrap();
    kill(Pid::from_raw(pid), Signal::SIGUSR1).unwrap();
}

fn bare(kind: &str, more: &[&str], dumper: &Path, restorer: &Path) {
    // Orphans become ours, to be waited for.
    nix::sys::prctl::set_child_subreaper(true).unwrap();
    let scratch = Scratch::new(&format!("files-{kind}"));
    let file = scratch.dir("data").join("verdict");
    let images = scratch.dir("images");
    let mut program = Program::start(Command::new(probe()).arg(kind).arg(&file));
    verdict(&file, "ready");
    let pid = program.pid();
    let children = descendants(pid).into_iter().filter(|child| *child != pid);
    let children: Vec<i32> = children.collect();
    let dump = run(
        Command::new(dumper)
            .args([
                "dump",
                "-t",
                &pid.to_string(),
                "-o",
                "dump.log",
                "-v4",
                "-D",
            ])
            .arg(&images)
            .args(more),
        PATIENCE,
    );
    let log = |name| std::fs::read_to_string(images.join(name)).unwrap_or_default();
    assert!(dump.ok(), "{dump:?}\n{}", log("dump.log"));
    program.wait(PATIENCE);
    // Their numbers are free only when nobody has still to wait for them.
    for child in children {
        nix::sys::wait::waitpid(Pid::from_raw(child), None).unwrap();
    }
    let restore = run(
        Command::new(restorer)
            .args(["restore", "-d", "-o", "restore.log", "-v4", "-D"])
            .arg(&images)
            .args(more),
        PATIENCE,
    );
    assert!(restore.ok(), "{restore:?}\n{}", log("restore.log"));
    ask(pid, &file);
    verdict(&file, "ok");
}

fn in_a_container(kind: &str, more: &[&str]) {
    let scratch = Scratch::new(&format!("files-{kind}"));
    let runc = Runc::new(&scratch);
    let args = ["/bin/files", kind, "/data/verdict"];
    let bundle = Bundle::new(&scratch, "bundle", &[&probe()], &args);
    let file = bundle.rootfs().join("data/verdict");
    let mut container = Container::run(&runc, bundle, scratch.name());
    verdict(&file, "ready");
    let images = scratch.join("images");
    container.dumped(&images, more);
    container.restored(&images, more);
    let init = container.init();
    ask(init.pid(), &file);
    verdict(&file, "ok");
    init.wait_gone(PATIENCE);
}

/// The binary under test, by the name under which it has CRIU's commands.
fn ours() -> PathBuf {
    shared_criu_dir().join("criu")
}

macro_rules! kinds {
    ($($kind:ident $(($option:literal))?),+ $(,)?) => {
        mod alone {
            $(#[test]
            fn $kind() {
                crate::needs!(root, gcc);
                super::bare(stringify!($kind), &[$($option)?], &super::ours(), &super::ours());
            })+
        }

        mod under_runc {
            $(#[test]
            fn $kind() {
                crate::needs!(root, runc, gcc);
                super::in_a_container(stringify!($kind), &[$($option)?]);
            })+
        }

        /// The program and its list of kinds, without any move.
        #[test]
        fn the_probe_is_content_when_nothing_happened() {
            crate::needs!(gcc);
            for kind in [$(stringify!($kind)),+] {
                let scratch = Scratch::new(&format!("files-{kind}"));
                let file = scratch.dir("data").join("verdict");
                let program = Program::start(Command::new(probe()).arg(kind).arg(&file));
                verdict(&file, "ready");
                ask(program.pid(), &file);
                verdict(&file, "ok");
            }
        }
    };
}

kinds!(
    regular,
    ghost,
    pipe,
    fifo,
    eventfd,
    counter,
    epoll,
    timerfd,
    signalfd,
    memfd,
    pairs,
    peers,
    unix,
    internet,
    locks("--file-locks"),
    owner,
    shared,
    semaphore,
);

/// As above, with CRIU on one side; not the kinds that CRIU itself does not
/// bring back whole: the count of an eventfd above 32 bits, EFD_SEMAPHORE, and
/// the names of Unix connections.
macro_rules! crossed {
    ($($kind:ident $(($option:literal))?),+ $(,)?) => {
        mod crossed_dunlin_criu {
            $(#[test]
            fn $kind() {
                crate::needs!(root, gcc, crossed);
                let criu = super::criu().unwrap();
                super::bare(stringify!($kind), &[$($option)?], &super::ours(), &criu);
            })+
        }

        mod crossed_criu_dunlin {
            $(#[test]
            fn $kind() {
                crate::needs!(root, gcc, crossed);
                let criu = super::criu().unwrap();
                super::bare(stringify!($kind), &[$($option)?], &criu, &super::ours());
            })+
        }
    };
}

crossed!(
    regular,
    ghost,
    pipe,
    fifo,
    counter,
    epoll,
    timerfd,
    signalfd,
    memfd,
    pairs,
    internet,
    locks("--file-locks"),
    owner,
    shared,
);

/// A container whose output runc was given as a file of the host: it goes on
/// into the file that the restore was given.
#[test]
fn output_into_a_file_of_the_host_goes_on_under_runc() {
    needs!(root, runc, gcc);
    let scratch = Scratch::new("files-hostlog");
    let runc = Runc::new(&scratch);
    let args = ["/bin/files", "output", "/data/verdict"];
    let mut bundle = Bundle::new(&scratch, "bundle", &[&probe()], &args);
    let id = scratch.name().to_owned();
    bundle.cgroups_path(&format!("/dunlin-tests-{id}"));
    let file = bundle.rootfs().join("data/verdict");
    let log = scratch.join("container.log");
    let output = || {
        std::fs::File::options()
            .create(true)
            .append(true)
            .open(&log)
            .unwrap()
    };
    let start = |command: &mut Command| {
        let status = command
            .stdin(std::process::Stdio::null())
            .stdout(output())
            .stderr(output())
            .status()
            .unwrap();
        assert!(
            status.success(),
            "{}",
            std::fs::read_to_string(&log).unwrap()
        );
    };
    start(
        runc.command()
            .args(["run", "--detach", "--bundle"])
            .arg(&bundle.dir)
            .arg(&id),
    );
    let (read, _write) = nix::unistd::pipe().unwrap();
    let container = Container {
        runc,
        id,
        bundle,
        lines: Lines::new(read),
    };
    verdict(&file, "ready");
    let images = scratch.join("images");
    container.dumped(&images, &[]);
    must(
        container
            .runc
            .command()
            .args(["delete", "--force", &container.id]),
    );
    start(
        container
            .runc
            .command()
            .args(["restore", "--detach", "--bundle"])
            .arg(&container.bundle.dir)
            .arg("--image-path")
            .arg(&images)
            .arg("--work-path")
            .arg(scratch.dir("work"))
            .arg(&container.id),
    );
    let init = container.init();
    ask(init.pid(), &file);
    verdict(&file, "ok");
    init.wait_gone(PATIENCE);
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "before\nafter\n");
}

#[test]
fn a_descriptor_that_cannot_be_carried_is_named_and_the_program_goes_on() {
    needs!(root, gcc);
    let text = r#"
        #include <signal.h>
        #include <stdio.h>
        #include <sys/inotify.h>
        #include <sys/stat.h>
        #include <sys/syscall.h>
        #include <unistd.h>
        int main(int argc, char **argv) {
            sigset_t ask;
            int s;
            sigemptyset(&ask);
            sigaddset(&ask, SIGUSR1);
            sigprocmask(SIG_BLOCK, &ask, NULL);
            if (inotify_init() != 3)
                return 2;
            puts("ready");
            fflush(stdout);
            sigwait(&ask, &s);
            puts("alive");
            return 0;
        }
    "#;
    let scratch = Scratch::new("files-refused");
    let images = scratch.dir("images");
    let mut program = Program::start(&mut Command::new(compile("files_inotify", text)));
    program.lines.expect("ready", PATIENCE);
    let pid = program.pid();
    let dump = run(
        Command::new(ours())
            .args(["dump", "-t", &pid.to_string(), "-D"])
            .arg(&images),
        PATIENCE,
    );
    assert!(!dump.ok());
    let said = dump.stderr + &dump.stdout;
    let place = format!("task {pid} fd 3: ");
    assert!(
        said.contains(&place) && said.contains("inotify descriptor: cannot be carried"),
        "{said}"
    );
    assert!(
        !images.join("inventory.img").exists(),
        "a refused dump left an image"
    );
    program.signal(Signal::SIGUSR1);
    program.lines.expect("alive", PATIENCE);
}
