//! A program that is captured and killed, and comes back empty: its memory
//! follows while it runs, forks, moves it and throws it away.

#[path = "harness/mod.rs"]
mod harness;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex};

use dunlin::base::Result;
use dunlin::engine::restore::ImagePages;
use dunlin::image::Set;
use dunlin::memory::handler::{Outcome as Served, WINDOW};
use dunlin::memory::handoff::Server;
use dunlin::memory::serve::serve_one;
use dunlin::memory::{Object, PageReader};
use harness::*;

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

/// Pages of an image. What nobody has asked for is not given before it is opened.
struct Gated {
    pages: ImagePages,
    open: Mutex<bool>,
    opened: Condvar,
}

impl Gated {
    fn new(images: &Path, open: bool) -> Arc<Self> {
        let set = Set::load(images).unwrap();
        Arc::new(Self {
            pages: ImagePages::open(&set, images).unwrap(),
            open: Mutex::new(open),
            opened: Condvar::new(),
        })
    }

    fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.opened.notify_all();
    }
}

impl PageReader for Gated {
    fn read(&self, object: Object, at: u64, buf: &mut [u8]) -> Result<()> {
        if buf.len() as u64 > WINDOW {
            let closed = self.open.lock().unwrap();
            drop(self.opened.wait_while(closed, |open| !*open).unwrap());
        }
        self.pages.read(object, at, buf)
    }
}

fn serve(server: &Server, pages: Arc<Gated>) -> Result<Served> {
    let served = serve_one(
        server,
        pages,
        None,
        Some(PATIENCE),
        PATIENCE,
        dunlin::engine::running::help,
    )?;
    Ok(served.expect("the restorer came"))
}

fn memory(scratch: &Scratch) -> Bare {
    let program = compile("memory-lazy", PROGRAM);
    Bare::start(scratch, Command::new(program).arg("48"))
}

fn follows(bare: &Bare) {
    let server = Server::bind(&bare.work).unwrap();
    let pages = Gated::new(&bare.images, true);
    let served = std::thread::scope(|s| {
        let serving = s.spawn(|| serve(&server, pages));
        bare.restore(&["--lazy-pages"]);
        bare.ask();
        bare.says("turn 1");
        serving.join().unwrap()
    })
    .unwrap();
    bare.ask();
    let text = bare.says("turn 2");
    assert_eq!(text, "ready\nturn 1 right\nturn 2 right\n");
    println!("{served:?}");
    assert!(served.count.needed >= 48 << 8, "{served:?}");
    let c = served.count;
    assert_eq!(c.needed, c.present + c.gone);
    assert!(served.lost.is_none());
}

#[test]
fn memory_follows_a_restored_program_that_forks_and_moves_it() {
    needs!(root, gcc);
    let scratch = Scratch::new("memory-lazy");
    let bare = memory(&scratch);
    bare.dump();
    follows(&bare);
}

#[test]
fn crossed_memory_follows_out_of_an_image_that_criu_made() {
    needs!(root, gcc, crossed);
    let scratch = Scratch::new("memory-lazy-crossed");
    let bare = memory(&scratch);
    bare.dump_by_criu();
    follows(&bare);
}

/// Restores it with our `lazy-pages` command beside.
fn served_by_command(bare: &Bare) {
    let server = bare.lazy_pages();
    bare.restore(&["--lazy-pages"]);
    bare.ask();
    bare.says("turn 1");
    server.wait_gone(PATIENCE);
    let said = fs::read_to_string(bare.work.join("lazy-pages.log")).unwrap();
    assert!(said.contains("pages came"), "{said}");
    assert!(!bare.work.join("lazy-pages.socket").exists());
    let status = fs::read_to_string(bare.work.join("lazy-pages.status"));
    assert_eq!(status.unwrap(), "");
    bare.ask();
    bare.says("turn 2");
}

#[test]
fn the_lazy_pages_command_serves_a_restore_and_ends() {
    needs!(root, gcc);
    let scratch = Scratch::new("memory-command");
    let bare = memory(&scratch);
    bare.dump();
    served_by_command(&bare);
}

#[test]
fn a_restore_whose_server_goes_away_leaves_nothing_in_the_way_of_the_next() {
    needs!(root, gcc);
    let scratch = Scratch::new("memory-no-server");
    let bare = memory(&scratch);
    bare.dump();
    let pidfile = scratch.join("pid").display().to_string();
    let server = Server::bind(&bare.work).unwrap();
    std::thread::scope(|s| {
        s.spawn(|| {
            let session = server.accept(Some(PATIENCE), PATIENCE).unwrap();
            // It has got all, and says nothing more.
            drop(session.expect("the restorer came").receive().unwrap());
        });
        let mut restore = bare.command("restore");
        restore.args(["-d", "--lazy-pages", "--pidfile", &pidfile]);
        assert!(!run(&mut restore, PATIENCE).ok());
    });
    drop(server);
    assert!(!Path::new(&pidfile).exists());
    bare.restore(&["--pidfile", &pidfile]);
    assert_eq!(
        fs::read_to_string(&pidfile).unwrap(),
        bare.pid().to_string()
    );
    bare.ask();
    bare.says("turn 1");
}

/// Two processes share it; see `bundles/probes/shared.c`.
fn sharing(scratch: &Scratch, args: &[&str]) -> Bare {
    Bare::start(scratch, Command::new(sample("shared")).args(args))
}

#[test]
fn shared_memory_follows_two_who_throw_away_move_unmap_and_grow_it() {
    needs!(root, gcc);
    let scratch = Scratch::new("memory-shared");
    let bare = sharing(&scratch, &["16"]);
    bare.dump();
    let server = Server::bind(&bare.work).unwrap();
    let pages = Gated::new(&bare.images, false);
    let served = std::thread::scope(|s| {
        let serving = s.spawn(|| serve(&server, Arc::clone(&pages)));
        bare.restore(&["--lazy-pages"]);
        // All of it while nothing comes but what is asked for.
        bare.ask();
        bare.says("turn 1");
        pages.open();
        serving.join().unwrap()
    })
    .unwrap();
    bare.ask();
    bare.says("turn 2");
    println!("{served:?}");
    let c = served.count;
    assert!(c.needed > 4096 + 512 && c.gone >= 64, "{c:?}");
    assert!(served.lost.is_none());
}

#[test]
fn shared_memory_is_served_by_the_lazy_pages_command_too() {
    needs!(root, gcc);
    let scratch = Scratch::new("memory-shared-command");
    let bare = sharing(&scratch, &["64"]);
    bare.dump();
    served_by_command(&bare);
}

#[test]
fn shared_memory_that_nobody_maps_comes_back_with_an_eager_restore() {
    needs!(root, gcc);
    let scratch = Scratch::new("memory-shared-eager");
    let bare = sharing(&scratch, &["8"]);
    for turn in ["turn 1", "turn 2"] {
        bare.dump();
        bare.restore(&[]);
        bare.ask();
        bare.says(turn);
    }
}

#[test]
fn crossed_criu_restores_shared_memory_that_we_marked_as_lazy() {
    needs!(root, gcc, crossed);
    let scratch = Scratch::new("memory-shared-crossed");
    let bare = sharing(&scratch, &["8", "plain"]);
    bare.dump();
    bare.restore_by_criu();
    bare.ask();
    bare.says("turn 1");
}
