//! Trying things out: most of it on a child of our own that is stopped,
//! steered and ended as a container's task would be.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use caps::{CapSet, Capability};
use serde::Serialize;

use crate::base::{Blame, Error, HostPid, NsPid, Result, VAddr};
use crate::sys::ptrace::{self, Stopped, Waited};
use crate::sys::uffd::{Uffd, feature as uffd_feature};
use crate::sys::{cgroup, clone, kcmp, ns, pagemap, pidfd, procfs, sock_diag, steer, vm};

/// One thing that was tried.
#[derive(Debug, Serialize)]
pub(crate) struct Feature {
    /// A short name, as `criu check --feature` takes it.
    pub(crate) name: &'static str,
    /// What it is for.
    pub(crate) purpose: &'static str,
    /// Whether nothing works without it.
    pub(crate) required: bool,
    /// Whether it is there.
    pub(crate) available: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
}

/// The list in the making.
struct List(Vec<Feature>);

impl List {
    fn needs(&mut self, name: &'static str, purpose: &'static str, tried: Result<()>) {
        self.add(name, purpose, true, tried);
    }

    fn likes(&mut self, name: &'static str, purpose: &'static str, tried: Result<()>) {
        self.add(name, purpose, false, tried);
    }

    fn add(
        &mut self,
        name: &'static str,
        purpose: &'static str,
        required: bool,
        tried: Result<()>,
    ) {
        self.0.push(Feature {
            name,
            purpose,
            required,
            available: tried.is_ok(),
            reason: tried.err().map(|e| e.to_string()),
        });
    }
}

/// Tries everything. This process must have one thread.
pub(crate) fn features() -> Vec<Feature> {
    let mut list = List(Vec::new());
    privileges_of(&mut list);
    task_features(&mut list);
    list.likes(
        "mem_dirty_track",
        "incremental dumps",
        Err(Error::new(Blame::Us, "pre-dump", "is not supported yet")),
    );
    surroundings(&mut list);
    list.0
}

fn privileges_of(list: &mut List) {
    list.needs(
        "cap_sys_admin",
        "namespaces, mounts",
        capability(Capability::CAP_SYS_ADMIN),
    );
    list.needs(
        "cap_sys_ptrace",
        "stopping and reading tasks",
        capability(Capability::CAP_SYS_PTRACE),
    );
    list.likes(
        "cap_net_admin",
        "sockets and devices of network namespaces",
        capability(Capability::CAP_NET_ADMIN),
    );
    list.likes(
        "cap_sys_resource",
        "limits above the hard ones, large pipes",
        capability(Capability::CAP_SYS_RESOURCE),
    );
}

/// What is done to tasks, tried on one of our own.
fn task_features(list: &mut List) {
    let request = clone::Request {
        flags: ns::Kind::Pid.flag(),
        set_tid: vec![NsPid(1)],
    };
    let child =
        clone::spawn(&request, |_| Ok(Vec::new())).and_then(|child| child.result().map(|_| child));
    let child = match child {
        Ok(child) => {
            list.needs("clone3_set_tid", "new tasks with their old pids", Ok(()));
            child
        }
        Err(e) => return list.needs("clone3_set_tid", "new tasks with their old pids", Err(e)),
    };
    list.needs(
        "pidfd_store",
        "files of stopped tasks (pidfd_getfd)",
        pidfd::getfd(child.pidfd.as_fd(), child.line.raw())
            .or_else(|_| pidfd::getfd(child.pidfd.as_fd(), 0))
            .map(drop),
    );
    list.needs(
        "kcmp",
        "which tasks share what",
        kcmp::shared(child.pid, child.pid, kcmp::Shared::Vm).map(drop),
    );
    match stop(child.pid) {
        Ok(mut task) => {
            list.needs("ptrace_seize", "stopping tasks", Ok(()));
            stopped_features(list, &mut task, &child);
        }
        Err(e) => list.needs("ptrace_seize", "stopping tasks", Err(e)),
    }
    if pidfd::send_signal(child.pidfd.as_fd(), libc::SIGKILL).is_ok() {
        // Reap it; it is dead or dying.
        let _ = nix::sys::wait::waitpid(
            nix::unistd::Pid::from_raw(child.pid.0),
            Some(nix::sys::wait::WaitPidFlag::__WALL),
        );
    }
}

fn stop(pid: HostPid) -> Result<Stopped> {
    let options = ptrace::Options {
        kill_on_tracer_death: true,
        follow: false,
        suspend_seccomp: true,
    };
    let seized = ptrace::seize(pid, options)?;
    seized.interrupt()?;
    match seized.wait()? {
        Waited::Stopped(task, _) => Ok(task),
        Waited::Gone(status) => Err(Error::new(
            Blame::Kernel,
            format!("task {pid}"),
            format!("ended with status {status:#x} instead of stopping"),
        )),
    }
}

fn stopped_features(list: &mut List, task: &mut Stopped, child: &clone::Child) {
    list.likes(
        "get_rseq_conf",
        "restartable sequences",
        task.rseq().map(drop),
    );
    let vdso = procfs::maps(child.pid).and_then(|maps| procfs::vdso(child.pid, &maps));
    let insn = vdso.and_then(|vdso| {
        let mut head = [0; 4];
        let read = vm::read(child.pid, VAddr(vdso.start()), &mut head);
        list.needs("process_vm_readv", "reading memory in place", read);
        steer::find_syscall(child.pid, vdso)
    });
    let steered = insn.and_then(|insn| {
        let pid = steer::once(task, insn, libc::SYS_getpid, &[])?;
        if pid == 1 {
            Ok(insn)
        } else {
            let why = format!("got {pid} for getpid, not 1");
            Err(Error::new(Blame::Kernel, "a steered task", why))
        }
    });
    let uffd = steered
        .as_ref()
        .ok()
        .map(|insn| uffd_features(task, *insn, child));
    list.needs(
        "steer",
        "system calls made by stopped tasks",
        steered.map(drop),
    );
    if let Some(uffd) = uffd {
        lazy_features(list, uffd);
    }
}

fn uffd_features(task: &mut Stopped, insn: u64, child: &clone::Child) -> Result<u64> {
    let flags = u64::from((libc::O_CLOEXEC | libc::O_NONBLOCK).unsigned_abs());
    let fd = steer::once(task, insn, libc::SYS_userfaultfd, &[flags])?;
    let fd = i32::try_from(fd).unwrap_or(-1);
    if fd < 0 {
        return Err(Error::errno("userfaultfd", -fd));
    }
    Uffd::all_features(pidfd::getfd(child.pidfd.as_fd(), fd)?)
}

fn lazy_features(list: &mut List, found: Result<u64>) {
    let bits = found.as_ref().copied().unwrap_or(0);
    list.likes("uffd", "memory that follows lazily", found.map(drop));
    for (name, purpose, wanted) in [
        (
            "uffd-noncoop",
            "lazy memory of programs that fork, unmap, move memory",
            uffd_feature::LAZY,
        ),
        (
            "uffd_minor_shmem",
            "telling memory that is still to be filled (UFFDIO_CONTINUE)",
            uffd_feature::MINOR_SHMEM,
        ),
        (
            "uffd_wp_async",
            "tracking of changed pages",
            uffd_feature::WP_ASYNC | uffd_feature::WP_UNPOPULATED,
        ),
        (
            "uffd_poison",
            "a lost page kills, it is never zero",
            uffd_feature::POISON,
        ),
        (
            "uffd_move",
            "staged memory moved into place",
            uffd_feature::MOVE,
        ),
    ] {
        list.likes(name, purpose, bits_are_there(bits, wanted));
    }
}

fn bits_are_there(bits: u64, wanted: u64) -> Result<()> {
    if bits & wanted == wanted {
        return Ok(());
    }
    let why = format!("lacks features {:#x}", wanted & !bits);
    Err(Error::new(Blame::Kernel, "userfaultfd", why))
}

/// What is around tasks.
fn surroundings(list: &mut List) {
    list.likes(
        "pagemap_scan",
        "which pages exist, fast",
        match pagemap::scan_categories() {
            0 => Err(Error::errno("PAGEMAP_SCAN", libc::ENOTTY)),
            _ => Ok(()),
        },
    );
    list.needs(
        "map_files",
        "files behind mappings",
        readable("/proc/self/map_files"),
    );
    list.needs(
        "pagemap",
        "which pages exist",
        readable("/proc/self/pagemap"),
    );
    list.needs(
        "mountinfo",
        "mounts of containers",
        readable("/proc/self/mountinfo"),
    );
    list.likes(
        "timens",
        "clocks that go on where they were",
        readable("/proc/self/timens_offsets"),
    );
    list.likes(
        "userns",
        "containers with user namespaces",
        readable("/proc/self/ns/user"),
    );
    list.likes(
        "cgroupns",
        "control group namespaces",
        readable("/proc/self/ns/cgroup"),
    );
    list.needs(
        "sk_unix_diag",
        "Unix sockets",
        sock_diag::unix_sockets(None).map(drop),
    );
    list.likes(
        "freezer",
        "holding a container while it moves",
        cgroup::own_membership().and_then(|all| {
            let has = |m: &cgroup::Member| m.name.is_empty() || m.name.contains("freezer");
            if all.iter().any(has) {
                Ok(())
            } else {
                Err(Error::new(
                    Blame::Kernel,
                    "control groups",
                    "neither version 2 nor the version 1 freezer is mounted",
                ))
            }
        }),
    );
}

/// Whether this process has `capability`.
///
/// # Errors
/// It has not: EPERM.
pub(crate) fn capability(capability: Capability) -> Result<()> {
    match caps::has_cap(None, CapSet::Effective, capability) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Error::errno(capability.to_string(), libc::EPERM)),
        Err(e) => Err(Error::other(Blame::Kernel, capability.to_string(), e)),
    }
}

fn readable(path: &str) -> Result<()> {
    let opened = if Path::new(path).is_dir() {
        std::fs::read_dir(path).map(drop)
    } else {
        File::open(path).map(drop)
    };
    opened.map_err(|e| Error::os(path, e))
}
