//! A program that is captured and killed, and comes back empty: its memory
//! follows while it runs, forks and moves it.

#[path = "harness/mod.rs"]
mod harness;

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use dunlin::base::{HostPid, Result};
use dunlin::engine::dump::freeze;
use dunlin::engine::options::{Common, Dump, Observer, Stage};
use dunlin::engine::restore::ImagePages;
use dunlin::image::Set;
use dunlin::memory::handler::Outcome as Served;
use dunlin::memory::handoff::Server;
use dunlin::memory::serve::serve_one;
use harness::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// On each SIGUSR1 it touches its last page, forks a child that checks all of its
/// memory while it is missing, moves the memory, and checks it itself.
const PROGRAM: &str = r#"
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SHARED = 1 << 17, HOLE = 1 << 19 };
static uint64_t want(uint64_t i) { return i * 0x9e3779b97f4a7c15ull + 7; }

static int check(const uint64_t *m, uint64_t n, const char *name)
{
    for (uint64_t i = 0; i < n; i++)
        if (m[i] != want(i)) {
            printf("wrong: %s %lu is %lx\n", name, (unsigned long)i, (unsigned long)m[i]);
            fflush(stdout);
            return 1;
        }
    return 0;
}

int main(int argc, char **argv)
{
    uint64_t bytes = (uint64_t)atoi(argv[1]) << 20, words = bytes / 8;
    int anon = MAP_ANONYMOUS, rw = PROT_READ | PROT_WRITE;
    setsid();
    uint64_t *map = mmap(0, bytes, rw, MAP_PRIVATE | anon, -1, 0);
    uint64_t *shared = mmap(0, SHARED * 8, rw, MAP_SHARED | anon, -1, 0);
    uint64_t *hole = mmap(0, HOLE * 8, rw, MAP_PRIVATE | anon, -1, 0);
    for (uint64_t i = 0; i < words; i++) map[i] = want(i);
    for (uint64_t i = 0; i < SHARED; i++) shared[i] = want(i);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, 0);
    printf("ready\n");
    fflush(stdout);
    for (int turn = 1;; turn++) {
        siginfo_t info;
        while (sigwaitinfo(&set, &info) < 0)
            ;
        int bad = map[words - 1] != want(words - 1);
        pid_t pid = fork();
        if (pid == 0)
            _exit(check(map, words, "child") | check(shared, SHARED, "child's shared"));
        uint64_t *to = mmap(0, bytes, PROT_NONE, MAP_PRIVATE | anon | MAP_NORESERVE, -1, 0);
        map = mremap(map, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, to);
        bad |= check(map, words, "parent") | check(shared, SHARED, "shared");
        for (int i = 0; i < HOLE; i++) bad |= hole[i] != 0;
        int status;
        waitpid(pid, &status, 0);
        printf("turn %d %s\n", turn, bad || status ? "WRONG" : "right");
        fflush(stdout);
    }
}
"#;

struct Nobody;

impl Observer for Nobody {
    fn at(&mut self, _: Stage, _: Option<HostPid>) -> Result<()> {
        Ok(())
    }
}

/// Captures the tree of `pid` into `dir`, and kills it.
fn dump(pid: i32, dir: &Path) -> Result<()> {
    let options = Dump {
        common: Common::default(),
        pid: HostPid(pid),
        freeze_cgroup: None,
        lazy: false,
    };
    let mut frozen = freeze(&options)?;
    let mut captured = frozen.capture(&options, &mut Nobody)?;
    captured.pages.write(dir, &mut captured.set, false)?;
    captured.set.store(dir)?;
    frozen.kill()
}

fn serve(images: &Path, server: &Server) -> Result<Served> {
    let set = Set::load(images)?;
    let pages = Arc::new(ImagePages::open(&set, images)?);
    let served = serve_one(server, pages, None, Some(PATIENCE), PATIENCE)?;
    Ok(served.expect("the restorer came"))
}

/// Kills by pid when dropped.
struct Killed(i32);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.0), Signal::SIGKILL);
    }
}

#[test]
fn memory_follows_a_restored_program_that_forks_and_moves_it() {
    needs!(root, gcc);
    follows("memory-lazy", |pid, images, _| dump(pid, images).unwrap());
}

#[test]
fn crossed_memory_follows_out_of_an_image_that_criu_made() {
    needs!(root, gcc, crossed);
    follows("memory-lazy-crossed", |pid, images, work| {
        must(
            Command::new(criu().unwrap())
                .args([
                    "dump",
                    "-v4",
                    "-o",
                    "dump.log",
                    "-t",
                    &pid.to_string(),
                    "-D",
                ])
                .arg(images)
                .arg("-W")
                .arg(work),
        );
    });
}

#[test]
fn the_lazy_pages_command_serves_a_restore_and_ends() {
    needs!(root, gcc);
    let scratch = Scratch::new("memory-command");
    let killed = dumped(&scratch, |pid, images, _| dump(pid, images).unwrap());
    let criu = criu_dir(&scratch).join("criu");
    let work = scratch.join("work");
    let command = |name: &str| {
        let mut c = Command::new(&criu);
        c.args([name, "-v4", "-D"]).arg(scratch.join("images"));
        c.arg("-W").arg(&work);
        c
    };
    let pidfile = work.join("pid");
    must(
        command("lazy-pages")
            .args(["-d", "-o", "lazy.log", "--pidfile"])
            .arg(&pidfile),
    );
    wait_file(&pidfile, PATIENCE, |text| !text.is_empty());
    let server = Proc::of(fs::read_to_string(&pidfile).unwrap().parse().unwrap()).unwrap();
    must(command("restore").args(["--lazy-pages", "-d", "-o", "restore.log"]));
    kill(Pid::from_raw(killed.0), Signal::SIGUSR1).unwrap();
    wait_file(&scratch.join("out"), PATIENCE, |text| {
        text.contains("turn 1 right")
    });
    server.wait_gone(PATIENCE);
    let said = fs::read_to_string(work.join("lazy.log")).unwrap();
    assert!(said.contains("pages came"), "{said}");
    assert!(!work.join("lazy-pages.socket").exists());
    assert_eq!(
        fs::read_to_string(work.join("lazy-pages.status")).unwrap(),
        ""
    );
}

/// Starts the program, and dumps it into `images`; its output is in `out`.
fn dumped(scratch: &Scratch, dump: impl Fn(i32, &Path, &Path)) -> Killed {
    let (images, work, out) = (
        scratch.join("images"),
        scratch.join("work"),
        scratch.join("out"),
    );
    for dir in [&images, &work] {
        fs::create_dir_all(dir).unwrap();
    }
    let program = compile("memory-lazy", PROGRAM);
    let mut child = Command::new(program)
        .arg("48")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(File::create(&out).unwrap())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let pid = i32::try_from(child.id()).unwrap();
    let killed = Killed(pid);
    wait_file(&out, PATIENCE, |text| text.contains("ready"));
    dump(pid, &images, &work);
    // Whoever traced it may have reaped it already: both are us.
    let _ = child.wait();
    killed
}

fn follows(name: &str, dump: impl Fn(i32, &Path, &Path)) {
    let scratch = Scratch::new(name);
    let killed = dumped(&scratch, dump);
    let (pid, images) = (killed.0, scratch.join("images"));
    let (work, out) = (scratch.join("work"), scratch.join("out"));
    let server = Server::bind(&work).unwrap();
    let served = std::thread::scope(|s| {
        let serving = s.spawn(|| serve(&images, &server));
        must(
            Command::new(criu_dir(&scratch).join("criu"))
                .args([
                    "restore",
                    "--lazy-pages",
                    "-d",
                    "-v4",
                    "-o",
                    "restore.log",
                    "-D",
                ])
                .arg(&images)
                .arg("-W")
                .arg(&work),
        );
        kill(Pid::from_raw(pid), Signal::SIGUSR1).unwrap();
        wait_file(&out, PATIENCE, |text| text.contains("turn 1"));
        serving.join().unwrap()
    })
    .unwrap();
    kill(Pid::from_raw(pid), Signal::SIGUSR1).unwrap();
    wait_file(&out, PATIENCE, |text| text.contains("turn 2"));
    let text = fs::read_to_string(&out).unwrap();
    assert_eq!(text, "ready\nturn 1 right\nturn 2 right\n");
    println!("{served:?}");
    assert!(served.count.needed >= 48 << 8, "{served:?}");
    let c = served.count;
    assert_eq!(c.needed, c.present + c.gone);
    assert!(served.lost.is_none());
    drop(killed);
}
