//! The image format held against CRIU: what CRIU writes we read without loss, and
//! what we write `crit` decodes.

#[path = "harness/mod.rs"]
mod harness;
use harness::*;

use std::path::Path;
use std::process::{Child, Command, Stdio};

use dunlin::image::pages::{PagesReader, PagesWriter};
use dunlin::image::records::*;
use dunlin::image::{Kind, Set};

/// Holds one of many things, says so by making the file `ready`, and waits.
const HOLDER: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

int main(void)
{
	int p[2], s[2];
	pipe(p);
	write(p[1], "hello", 5);
	socketpair(AF_UNIX, SOCK_STREAM, 0, s);
	write(s[0], "abc", 3);
	int e = epoll_create1(0);
	struct epoll_event ev = { EPOLLIN, { .u64 = 77 } };
	epoll_ctl(e, EPOLL_CTL_ADD, p[0], &ev);
	eventfd(5, 0);
	int t = timerfd_create(CLOCK_MONOTONIC, 0);
	struct itimerspec its = { { 5, 0 }, { 5000, 0 } };
	timerfd_settime(t, 0, &its, 0);
	timer_t timer;
	timer_create(CLOCK_MONOTONIC, 0, &timer);
	timer_settime(timer, 0, &its, 0);
	struct itimerval it = { { 3000, 0 }, { 4000, 0 } };
	setitimer(ITIMER_REAL, &it, 0);
	sigset_t m;
	sigemptyset(&m);
	sigaddset(&m, SIGUSR1);
	sigprocmask(SIG_BLOCK, &m, 0);
	signalfd(-1, &m, 0);
	raise(SIGUSR1);
	inotify_add_watch(inotify_init(), ".", IN_CREATE);
	int f = open("file", O_RDWR | O_CREAT, 0600);
	write(f, "0123456789", 10);
	int g = open("ghost", O_RDWR | O_CREAT, 0600);
	write(g, "ghostly", 7);
	unlink("ghost");
	int l = socket(AF_INET, SOCK_STREAM, 0);
	struct sockaddr_in a = { AF_INET, 0, { htonl(INADDR_LOOPBACK) } };
	bind(l, (void *)&a, sizeof a);
	listen(l, 5);
	int mf = memfd_create("mem", 0);
	ftruncate(mf, 8192);
	char *b = mmap(0, 1 << 20, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	for (int i = 0; i < 1 << 20; i++)
		b[i] = i * 7 + i / 4096;
	memset(mmap(0, 1 << 20, 3, MAP_SHARED | MAP_ANONYMOUS, -1, 0), 9, 1 << 19);
	if (fork() == 0)
		for (;;)
			pause();
	if (fork() == 0)
		_exit(3);
	int r = open("ready", O_RDWR | O_CREAT, 0600);
	write(r, "yes", 3);
	close(r);
	for (;;)
		pause();
}
"#;

/// Killed, whatever happens to the test.
struct Holder(Child);

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What CRIU makes of the holder.
fn dumped_by_criu(scratch: &Scratch) -> std::path::PathBuf {
    let program = compile("image-holder", HOLDER);
    let work = scratch.dir("work");
    let images = scratch.dir("images");
    // The child leads no process group, so setsid becomes the program.
    let holder = Holder(
        Command::new("setsid")
            .arg(program)
            .current_dir(&work)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start the holder"),
    );
    wait_file(&work.join("ready"), PATIENCE, |text| text == "yes");
    let log = images.join("dump.log");
    let outcome = run(
        Command::new(criu().expect("checked by needs"))
            .args(["dump", "-v4", "-o", "dump.log", "-t"])
            .arg(holder.0.id().to_string())
            .arg("-D")
            .arg(&images),
        PATIENCE,
    );
    let said = std::fs::read_to_string(log).unwrap_or_default();
    let tail: Vec<_> = said.lines().rev().take(5).collect();
    assert!(outcome.ok(), "{tail:?}");
    images
}

/// Writes all records again, and compares the bytes.
fn again<T: Record>(set: &Set, kind: Kind, lossy: &mut Vec<String>) {
    for id in set.ids(kind) {
        let mut copy = Set::new();
        copy.touch(kind, id);
        for entry in set.entries::<T>(kind, id).expect("decoded before") {
            copy.push_payload(kind, id, &entry.record, entry.payload);
        }
        let name = kind.file_name(id);
        if copy.raw(&name) != set.raw(&name) {
            lossy.push(name);
        }
    }
}

#[test]
fn crossed_what_criu_writes_is_read_without_loss() {
    needs!(root, gcc, crossed);
    let scratch = Scratch::new("image-crossed");
    let images = dumped_by_criu(&scratch);
    let set = Set::load(&images).expect("load");
    set.verify().expect("verify");
    let mut lossy = Vec::new();
    again::<InventoryEntry>(&set, Kind::Inventory, &mut lossy);
    again::<PstreeEntry>(&set, Kind::Pstree, &mut lossy);
    again::<CoreEntry>(&set, Kind::Core, &mut lossy);
    again::<TaskKobjIdsEntry>(&set, Kind::Ids, &mut lossy);
    again::<MmEntry>(&set, Kind::Mm, &mut lossy);
    again::<FsEntry>(&set, Kind::Fs, &mut lossy);
    again::<FdinfoEntry>(&set, Kind::Fdinfo, &mut lossy);
    again::<FileEntry>(&set, Kind::Files, &mut lossy);
    again::<PipeDataEntry>(&set, Kind::PipesData, &mut lossy);
    again::<SkPacketEntry>(&set, Kind::SkQueues, &mut lossy);
    again::<RemapFilePathEntry>(&set, Kind::RemapFpath, &mut lossy);
    again::<MemfdInodeEntry>(&set, Kind::Memfd, &mut lossy);
    again::<TimensEntry>(&set, Kind::Timens, &mut lossy);
    again::<SeccompEntry>(&set, Kind::Seccomp, &mut lossy);
    again::<FileLockEntry>(&set, Kind::Filelocks, &mut lossy);
    again::<StatsEntry>(&set, Kind::StatsDump, &mut lossy);
    assert_eq!(lossy, Vec::<String>::new());

    let pipes = set.entries::<PipeDataEntry>(Kind::PipesData, 0).unwrap();
    assert_eq!(pipes[0].payload, b"hello");
    for pid in set.ids(Kind::Pagemap) {
        pages_come_back(&set, &images, pid);
    }
    let shown = Command::new(dunlin())
        .arg("inspect")
        .arg(&images)
        .output()
        .unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(
        shown.contains("made by CRIU") && !shown.contains("NOT WHOLE"),
        "{shown}"
    );
    assert!(shown.contains("dead (exit 3)"), "{shown}");
}

/// The holder's own pattern, where CRIU saved it.
fn pages_come_back(set: &Set, images: &Path, pid: u32) {
    let reader = PagesReader::open(set, images, Kind::Pagemap, pid)
        .expect("open")
        .expect("there is one");
    let mut found = false;
    for run in reader.map().runs() {
        let len = usize::try_from(run.range.len()).unwrap();
        let mut bytes = vec![0; len];
        reader.read(run.range.start(), &mut bytes).expect("read");
        let pattern = |i: usize| (i * 7 + i / 4096).to_le_bytes()[0];
        found |= (0..len.saturating_sub((1 << 20) - 1))
            .step_by(4096)
            .any(|at| (0..1 << 20).all(|i| bytes[at + i] == pattern(i)));
    }
    assert!(found, "no run of task {pid} holds the pattern");
}

/// One record of every type, in the file that it belongs to.
fn one_of_each(dir: &Path) -> Set {
    let mut set = Set::new();
    macro_rules! put {
        ($($kind:ident $record:ident;)*) => {
            $(set.put(Kind::$kind, 1, &$record::default());)*
        };
    }
    put! {
        Inventory InventoryEntry; Ids TaskKobjIdsEntry; Mm MmEntry; Fs FsEntry;
        Creds CredsEntry; Sigacts SaEntry; Itimers ItimerEntry;
        PosixTimers PosixTimerEntry; Rlimit RlimitEntry;
        RegFiles RegFileEntry; ExtFiles ExtFileEntry; NsFiles NsFileEntry;
        Eventfd EventfdFileEntry; Eventpoll EventpollFileEntry;
        EventpollTfd EventpollTfdEntry; Signalfd SignalfdEntry; Timerfd TimerfdEntry;
        Inotify InotifyFileEntry; InotifyWd InotifyWdEntry; Fanotify FanotifyFileEntry;
        Pipes PipeEntry; Fifo FifoEntry; Unixsk UnixSkEntry; Inetsk InetSkEntry;
        Packetsk PacketSockEntry; Netlinksk NetlinkSkEntry; Tty TtyFileEntry;
        Tunfile TunfileEntry; TtyInfo TtyInfoEntry; TtyData TtyDataEntry;
        RemapFpath RemapFilePathEntry; Memfd MemfdInodeEntry; BpfmapFile BpfmapFileEntry;
        Filelocks FileLockEntry; Cgroup CgroupEntry; Seccomp SeccompEntry;
        Apparmor ApparmorEntry; Mountpoints MntEntry; Utsns UtsnsEntry; IpcnsVar IpcVarEntry;
        Userns UsernsEntry; Timens TimensEntry; Pidns PidnsEntry; Netns NetnsEntry;
        Cpuinfo CpuinfoEntry; StatsDump StatsEntry; IrmapCache IrmapCacheEntry;
        Fdinfo FdinfoEntry; TcpStream TcpStreamEntry;
    }
    let task = PstreeEntry {
        pid: 4711,
        threads: vec![4711, 4712],
        ..Default::default()
    };
    set.push(Kind::Pstree, 0, &task);
    set.push(Kind::Pstree, 0, &task);
    let core = CoreEntry {
        mtype: March::X86_64.into(),
        thread_info: Some(ThreadInfoX86::default()),
        tc: Some(TaskCoreEntry {
            timers: Some(TaskTimersEntry::default()),
            sigactions: vec![SaEntry::default(); 62],
            ..Default::default()
        }),
        thread_core: Some(ThreadCoreEntry {
            creds: Some(CredsEntry::default()),
            rseq_entry: Some(RseqEntry::default()),
            ..Default::default()
        }),
        ..Default::default()
    };
    set.put(Kind::Core, 1, &core);
    let file = FileEntry {
        r#type: FdTypes::Reg.into(),
        id: 1,
        reg: Some(RegFileEntry::default()),
        ..Default::default()
    };
    set.push(Kind::Files, 0, &file);
    let device = NetDeviceEntry {
        r#type: NdType::Loopback.into(),
        ..Default::default()
    };
    set.push(Kind::Netdev, 1, &device);
    let pipe = PipeDataEntry {
        bytes: 3,
        ..Default::default()
    };
    set.push_payload(Kind::PipesData, 0, &pipe, b"abc");
    set.push_payload(Kind::PipesData, 0, &pipe, b"def");
    let packet = SkPacketEntry {
        length: 5,
        ..Default::default()
    };
    set.push_payload(Kind::SkQueues, 0, &packet, b"hello");
    let sems = IpcSemEntry {
        nsems: 3,
        ..Default::default()
    };
    set.push_payload(Kind::IpcnsSem, 1, &sems, &[1, 0, 2, 0, 3, 0]);
    set.push_payload(Kind::IpcnsSem, 1, &sems, &[1, 0, 2, 0, 3, 0]);
    set.push_payload(Kind::GhostFile, 1, &GhostFileEntry::default(), b"content");
    let mut pages = PagesWriter::create(dir, 1).unwrap();
    pages.write(0x1000, &[1; 8192], true).unwrap();
    pages.finish(&mut set, Kind::Pagemap, 1).unwrap();
    set
}

#[test]
fn crossed_crit_decodes_what_we_write() {
    let Some(crit) = std::env::var_os("CRIT") else {
        skip!("CRIT is not set");
    };
    let scratch = Scratch::new("image-crit");
    let dir = scratch.dir("images");
    let set = one_of_each(&dir);
    set.store(&dir).unwrap();
    let decode = |name: &str| {
        let outcome = run(
            Command::new(&crit)
                .args(["decode", "-i"])
                .arg(dir.join(name)),
            PATIENCE,
        );
        assert!(outcome.ok(), "{name}: {outcome:?}");
        outcome
    };
    for (name, _) in set.files() {
        decode(&name);
    }
    let said = format!("{:?}", decode("pstree.img"));
    assert!(said.contains("4711") && said.contains("4712"), "{said}");
}
