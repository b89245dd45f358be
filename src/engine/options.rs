//! What a caller may ask of a dump or a restore, after parsing. The faces fill
//! these in from CRIU's command line, its RPC, or our own migration.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;

use crate::base::{Error, HostPid, Result};
pub use crate::objects::cgroup::Mode as CgroupMode;

/// What dump and restore have in common.
#[derive(Debug, Default)]
pub struct Common {
    /// `--ext-unix-sk`.
    pub ext_unix_sk: bool,
    /// `--shell-job`: session and terminal may lie outside the tree.
    pub shell_job: bool,
    /// `--file-locks`.
    pub file_locks: bool,
    /// RPC orphan_pts_master: the caller of the restore takes masters of terminals.
    pub orphan_pts_master: bool,
    /// `--external`: `mnt[KEY]:VAL`, `net[INO]:KEY`, `file[..]`, `tty[..]`, `dev[..]`, as typed.
    pub external: Vec<String>,
    /// `--ext-mount-map` / RPC ext_mnt: at dump mountpoint to key, at restore key to host source.
    pub ext_mnt: Vec<(String, String)>,
    /// `--skip-mnt`.
    pub skip_mnt: Vec<PathBuf>,
    /// `--root`: where the container's root file system is mounted.
    pub root: Option<PathBuf>,
    /// `--manage-cgroups`.
    pub cgroups: CgroupMode,
    /// `--cgroup-root [CTRL:]PATH`.
    pub cg_root: Vec<(Option<String>, String)>,
    /// `--empty-ns`: CLONE_NEW* bits of namespaces whose content is not carried.
    pub empty_ns: u64,
}

/// A dump.
#[derive(Debug)]
pub struct Dump {
    /// What both directions share.
    pub common: Common,
    /// The root of the tree.
    pub pid: HostPid,
    /// `--lazy-pages`: pages stay in the tasks.
    pub lazy: bool,
    /// Which pages exist, of those that may stay in the tasks, is looked up after
    /// the freeze ([`crate::engine::dump::Late`]).
    pub list_later: bool,
}

/// A restore.
#[derive(Debug)]
pub struct Restore {
    /// What both directions share.
    pub common: Common,
    /// RPC `rst_sibling`: the root becomes our sibling (CLONE_PARENT), not our child.
    pub sibling: bool,
    /// RPC inherit_fd / `--inherit-fd`: key (`pipe:[INO]`, `extRootNetNS`, path) to descriptor.
    pub inherit: Vec<(String, OwnedFd)>,
    /// `--join-ns`: kind, file or pid, extra.
    pub join_ns: Vec<(String, String, Option<String>)>,
    /// Anonymous memory is filled by a page server after the resume.
    pub lazy: bool,
    /// `--leave-stopped`: all processes are stopped (SIGSTOP) instead of resumed.
    pub stopped: bool,
}

/// Points of a restore or dump at which the caller is told; CRIU's action
/// script names. The number is the root task's pid where there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// `pre-dump`.
    PreDump,
    /// `post-dump`.
    PostDump,
    /// `pre-restore`.
    PreRestore,
    /// `post-restore`: everything is built, nothing runs.
    PostRestore,
    /// `network-lock`.
    NetworkLock,
    /// `network-unlock`.
    NetworkUnlock,
    /// `setup-namespaces`: the root task exists in its namespaces, mounts are not made.
    SetupNamespaces,
    /// `post-setup-namespaces`.
    PostSetupNamespaces,
    /// `pre-resume`.
    PreResume,
    /// `post-resume`.
    PostResume,
    /// `query-ext-files`.
    QueryExtFiles,
    /// `orphan-pts-master`.
    OrphanPtsMaster,
}

impl Stage {
    /// CRIU's name of it, as action scripts and RPC clients know it.
    pub fn name(self) -> &'static str {
        match self {
            Self::PreDump => "pre-dump",
            Self::PostDump => "post-dump",
            Self::PreRestore => "pre-restore",
            Self::PostRestore => "post-restore",
            Self::NetworkLock => "network-lock",
            Self::NetworkUnlock => "network-unlock",
            Self::SetupNamespaces => "setup-namespaces",
            Self::PostSetupNamespaces => "post-setup-namespaces",
            Self::PreResume => "pre-resume",
            Self::PostResume => "post-resume",
            Self::QueryExtFiles => "query-ext-files",
            Self::OrphanPtsMaster => "orphan-pts-master",
        }
    }
}

/// Who is told about stages: RPC notifications, action scripts, a migration.
pub trait Observer {
    /// Called at `stage`; an error aborts the job. `root` is the root task as
    /// the host sees it, where it exists.
    ///
    /// # Errors
    /// Whatever the receiver of the notice answers.
    fn at(&mut self, stage: Stage, root: Option<HostPid>) -> Result<()>;

    /// Hands over the master of a terminal of the container
    /// ([`Stage::OrphanPtsMaster`]).
    ///
    /// # Errors
    /// Whoever does not take it: nobody could read or write the terminal then.
    fn pts_master(&mut self, number: u32, _master: BorrowedFd<'_>) -> Result<()> {
        Err(Error::caller(
            format!("terminal /dev/pts/{number}"),
            "nobody takes its master: only a client of the RPC can",
        ))
    }
}
