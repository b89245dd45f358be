//! One program with every kind of memory that is carried: dumped, killed and
//! restored, it checks all of it itself, and its map is compared from outside.

#[path = "harness/mod.rs"]
mod harness;

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use harness::*;

/// `argv[1]` is a file of four pages of the letter `f`; with `argv[2]` it has guard
/// pages in shared memory and memory that is locked as it is touched as well, which
/// CRIU does not carry.
const PROGRAM: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { P = 4096, RW = PROT_READ | PROT_WRITE, ANON = MAP_PRIVATE | MAP_ANONYMOUS };
enum { GUARD_INSTALL = 102, GUARD_REMOVE = 103 };
static int bad;
static void must(int ok, const char *what)
{
    if (!ok) { printf("wrong: %s\n", what); fflush(stdout); bad = 1; }
}
static char *map(size_t n, int prot, int flags, int fd)
{
    char *p = mmap(0, n, prot, flags, fd, 0);
    if (p == MAP_FAILED) { perror("mmap"); _exit(2); }
    return p;
}
static int all(const char *p, size_t n, char c)
{
    for (size_t i = 0; i < n; i++) if (p[i] != c) return 0;
    return 1;
}
static int dies(volatile char *p)
{
    int st;
    pid_t pid = fork();
    if (!pid) { (void)*p; _exit(0); }
    waitpid(pid, &st, 0);
    return WIFSIGNALED(st) && WTERMSIG(st) == SIGSEGV;
}

int main(int argc, char **argv)
{
    setsid();
    int fd = open(argv[1], O_RDWR);
    char *plain = map(64 * P, RW, ANON, -1);
    memset(plain + 8 * P, 'a', 8 * P);
    char *none = map(4 * P, RW, ANON, -1);
    memset(none, 'n', 4 * P);
    mprotect(none, 4 * P, PROT_NONE);
    char *ro = map(2 * P, RW, ANON, -1);
    memset(ro, 'r', 2 * P);
    mprotect(ro, 2 * P, PROT_READ);
    char *guard = map(4 * P, RW, ANON, -1);
    memset(guard, 'g', 4 * P);
    int guarded = madvise(guard + P, P, GUARD_INSTALL) == 0;
    char *file = map(4 * P, RW, MAP_PRIVATE, fd);
    file[P] = 'c';
    char *shfile = map(4 * P, RW, MAP_SHARED, fd);
    shfile[2 * P] = 's';
    char *shared = map(8 * P, RW, MAP_SHARED | MAP_ANONYMOUS, -1);
    memset(shared + P, 'x', 2 * P);
    char *twin = mremap(shared, 0, 8 * P, MREMAP_MAYMOVE);
    char *shguard = map(4 * P, RW, MAP_SHARED | MAP_ANONYMOUS, -1);
    memset(shguard, 'G', 4 * P);
    int shguarded = argc > 2 && madvise(shguard + P, P, GUARD_INSTALL) == 0;
    char *shlocked = map(4 * P, RW, MAP_SHARED | MAP_ANONYMOUS, -1);
    memset(shlocked + P, 'L', 2 * P);
    mlock(shlocked, 4 * P);
    char *wiped = map(P, RW, ANON, -1);
    *wiped = 'w';
    madvise(wiped, P, MADV_WIPEONFORK);
    char *unforked = map(P, RW, ANON, -1);
    *unforked = 'u';
    madvise(unforked, P, MADV_DONTFORK);
    madvise(map(4 << 20, RW, ANON, -1), 4 << 20, MADV_NOHUGEPAGE);
    madvise(map(P, RW, ANON, -1), P, MADV_DONTDUMP);
    char *locked = map(P, RW, ANON, -1);
    *locked = 'l';
    mlock(locked, P);
    /* locked all the same */
    mlock(map(2 * P, PROT_NONE, ANON, -1), 2 * P);
    char *onfault = map(64 * P, RW, ANON, -1);
    onfault[7 * P] = 'o';
    if (argc > 2) mlock2(onfault, 64 * P, MLOCK_ONFAULT);
    map(1ul << 36, PROT_NONE, ANON | MAP_NORESERVE, -1);
    char *down = map(8 * P, RW, ANON | MAP_GROWSDOWN, -1);
    memset(down, 'd', 8 * P);
    unsigned char *code = (void *)map(P, RW | PROT_EXEC, ANON, -1);
    memcpy(code, "\xb8\x2a\0\0\0\xc3", 6);
    char *heap = sbrk(3 * P);
    memset(heap, 'h', 3 * P);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, 0);
    struct timespec t0, t;
    clock_gettime(CLOCK_MONOTONIC, &t0);
    printf("ready\n");
    fflush(stdout);
    siginfo_t info;
    while (sigwaitinfo(&set, &info) < 0)
        ;
    must(all(plain, 8 * P, 0) && all(plain + 8 * P, 8 * P, 'a') && all(plain + 16 * P, 48 * P, 0),
         "plain memory");
    must(dies(none), "a read of PROT_NONE must fail");
    mprotect(none, 4 * P, PROT_READ);
    must(all(none, 4 * P, 'n'), "content below PROT_NONE");
    must(all(ro, 2 * P, 'r'), "read-only memory");
    must(!guarded || dies(guard + P), "a guard page must kill");
    must(all(guard, P, 'g') && all(guard + 2 * P, 2 * P, 'g'), "pages beside a guard");
    must(file[0] == 'f' && file[P] == 'c' && all(file + P + 1, P - 1, 'f'), "private file memory");
    must(shfile[2 * P] == 's' && shfile[0] == 'f', "shared file memory");
    char c = 0;
    shfile[3 * P] = 'S';
    must(pread(fd, &c, 1, 3 * P) == 1 && c == 'S', "shared file memory reaches the file");
    must(all(shared, P, 0) && all(shared + P, 2 * P, 'x'), "shared memory");
    must(!shguarded || dies(shguard + P), "a guard page in shared memory must kill");
    must(all(shguard, P, 'G') && all(shguard + 2 * P, 2 * P, 'G'), "shared pages beside a guard");
    if (shguarded) madvise(shguard + P, P, GUARD_REMOVE);
    must(all(shguard + P, P, 'G'), "what a guard page hid");
    must(all(shlocked, P, 0) && all(shlocked + P, 2 * P, 'L'), "locked shared memory");
    shared[5 * P] = 'y';
    must(twin[5 * P] == 'y' && twin[P] == 'x', "two mappings of one shared memory");
    must(*wiped == 'w' && *unforked == 'u' && *locked == 'l', "advised and locked memory");
    unsigned char there[64] = {0};
    int locked_pages = 0;
    mincore(onfault, 64 * P, there);
    for (int i = 0; i < 64; i++) locked_pages += there[i] & 1;
    must(onfault[7 * P] == 'o' && locked_pages == 1, "memory that is locked as it is touched");
    int st;
    pid_t pid = fork();
    if (!pid) _exit(*wiped != 0 || shared[5 * P] != 'y');
    waitpid(pid, &st, 0);
    must(st == 0, "memory that is wiped on fork");
    must(dies(unforked), "memory that is not forked");
    must(all(down, 8 * P, 'd'), "memory that grows down");
    must(((int (*)(void))code)() == 42, "code");
    must(sbrk(0) == heap + 3 * P && all(heap, 3 * P, 'h'), "heap");
    must(sbrk(P) == heap + 3 * P, "the heap grows on");
    clock_gettime(CLOCK_MONOTONIC, &t);
    must(t.tv_sec >= t0.tv_sec && t.tv_sec < t0.tv_sec + 600, "the clock");
    printf("%s\n", bad ? "WRONG" : "right");
    fflush(stdout);
    pause();
}
"#;

/// Areas with what they map, and those of their flags that a program can have set.
fn areas(pid: i32) -> BTreeMap<String, Vec<String>> {
    const KEPT: [&str; 15] = [
        "rd", "wr", "ex", "sh", "gd", "lo", "lf", "dc", "dd", "wf", "hg", "nh", "nr", "ac", "rr",
    ];
    let text = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let mut found = BTreeMap::new();
    let mut area = String::new();
    for line in text.lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            let mut flags: Vec<String> = flags.split_whitespace().map(str::to_owned).collect();
            flags.retain(|f| KEPT.contains(&f.as_str()));
            // The number of a shared memory's inode is another one.
            let known = !area.contains("/dev/zero (deleted)");
            let mut words: Vec<&str> = area.split_whitespace().collect();
            if !known && words.len() > 4 {
                words.remove(4);
            }
            found.insert(words.join(" "), flags);
        } else if line.split(' ').next().is_some_and(|w| w.contains('-')) {
            area = line.to_owned();
        }
    }
    found
}

/// Who made the image, and how it comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    Ours,
    OursLazily,
    MadeByCriu,
}

fn comes_back(name: &str, how: How) {
    let scratch = Scratch::new(name);
    let file = scratch.join("file");
    fs::write(&file, [b'f'; 4 * 4096]).unwrap();
    let mut command = Command::new(compile("memory-kinds", PROGRAM));
    command.arg(&file);
    if how != How::MadeByCriu {
        command.arg("more");
    }
    let bare = Bare::start(&scratch, &mut command);
    let mut before = areas(bare.pid());
    if how == How::MadeByCriu {
        bare.dump_by_criu();
    } else {
        bare.dump();
    }
    let server = (how == How::OursLazily).then(|| bare.lazy_pages());
    bare.restore(if server.is_some() {
        &["--lazy-pages"]
    } else {
        &[]
    });
    if let Some(server) = server {
        server.wait_gone(PATIENCE);
    }
    let mut now = areas(bare.pid());
    // CRIU writes into the text of what it dumps: such a page was changed, and
    // an area that was written to is accounted. And the kernel does not account what
    // is protected before it has a page, as when all pages follow.
    if how != How::Ours {
        for area in [&mut before, &mut now]
            .into_iter()
            .flat_map(|a| a.iter_mut())
        {
            area.1.retain(|flag| flag != "ac");
        }
    }
    assert_eq!(before, now);
    bare.ask();
    assert_eq!(bare.says("right"), "ready\nright\n");
}

#[test]
fn every_kind_of_memory_comes_back_as_it_was() {
    needs!(root, gcc);
    comes_back("memory-kinds", How::Ours);
}

#[test]
fn every_kind_of_memory_is_as_it_was_when_it_has_followed() {
    needs!(root, gcc);
    comes_back("memory-kinds-lazy", How::OursLazily);
}

#[test]
fn crossed_every_kind_of_memory_comes_back_out_of_an_image_that_criu_made() {
    needs!(root, gcc, crossed);
    comes_back("memory-kinds-crossed", How::MadeByCriu);
}
