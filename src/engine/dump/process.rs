//! One process: its threads, its memory map, its descriptors.

use std::cmp::Ordering;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::super::freeze::{Alive, Process, Thread, Tree};
use super::pages::{Collector, shared_id};
use super::scan::Scan;
use super::styles;
use crate::base::{Error, HostPid, PAGE_SIZE, PageRange, Result};
use crate::image::records::{
    CoreEntry, FsEntry, March, MmEntry, SaEntry, SeccompMode, SignalQueueEntry, TaskKobjIdsEntry,
    TaskTimersEntry, ThreadCoreEntry, ThreadSasEntry,
};
use crate::image::vma;
use crate::image::{Kind, Set};
use crate::memory::RangeSet;
use crate::objects::mm::capture::{self as mm, Area, Kind as AreaKind};
use crate::objects::seccomp::capture::Filters;
use crate::objects::{
    cgroup, credentials, files, namespaces, rlimits, signals, task, thread, timers,
};
use crate::sys::procfs::{self, Stat};
use crate::sys::steer::{Batch, Steered};
use crate::sys::{kcmp, ptrace};

/// What the capture of all processes shares.
pub(super) struct Context<'a> {
    pub(super) set: &'a mut Set,
    pub(super) namespaces: &'a namespaces::Capture,
    pub(super) files: &'a mut files::Capture,
    pub(super) filters: &'a mut Filters,
    pub(super) pages: &'a mut Collector,
    pub(super) cgroups: &'a cgroup::Cgroups,
    pub(super) sharing: &'a mut Sharing,
}

/// Who shares what with whom.
#[derive(Debug, Default)]
pub(super) struct Sharing {
    /// A process with its `files_id`, in the kernel's order of tables.
    tables: Vec<(HostPid, u32)>,
    /// Processes in the kernel's order, for each kind that may not be shared.
    alone: [Vec<HostPid>; 3],
}

impl Sharing {
    fn check_alone(&mut self, pid: HostPid) -> Result<()> {
        let kinds = [
            (kcmp::Shared::Vm, "its memory (CLONE_VM)"),
            (
                kcmp::Shared::Fs,
                "its working directory and root (CLONE_FS)",
            ),
            (kcmp::Shared::Sighand, "its signal actions (CLONE_SIGHAND)"),
        ];
        for ((what, name), seen) in kinds.into_iter().zip(&mut self.alone) {
            match search(seen, |other| kcmp::shared(pid, *other, what))? {
                Ok(at) => {
                    let other = seen.get(at).map_or(0, |p| p.0);
                    return Err(Error::refused(
                        format!("task {pid}"),
                        format!("it shares {name} with task {other}, another process: not carried"),
                    ));
                }
                Err(at) => seen.insert(at, pid),
            }
        }
        Ok(())
    }

    fn files(&mut self, pid: HostPid, capture: impl FnOnce() -> Result<u32>) -> Result<u32> {
        match search(&self.tables, |(other, _)| {
            kcmp::shared(pid, *other, kcmp::Shared::Files)
        })? {
            Ok(at) => Ok(self.tables.get(at).map_or(0, |t| t.1)),
            Err(at) => {
                let id = capture()?;
                self.tables.insert(at, (pid, id));
                Ok(id)
            }
        }
    }
}

/// Binary search with a comparison that may fail: the kernel's order.
fn search<T>(
    sorted: &[T],
    compare: impl Fn(&T) -> Result<Ordering>,
) -> Result<std::result::Result<usize, usize>> {
    let (mut low, mut high) = (0, sorted.len());
    while low < high {
        let mid = low.midpoint(high);
        let Some(item) = sorted.get(mid) else { break };
        match compare(item)? {
            Ordering::Equal => return Ok(Ok(mid)),
            Ordering::Less => high = mid,
            Ordering::Greater => low = mid + 1,
        }
    }
    Ok(Err(low))
}

/// What only the process itself could tell.
struct Told {
    answers: task::capture::Answers,
    actions: Vec<SaEntry>,
    timers: TaskTimersEntry,
    threads: Vec<ThreadTold>,
}

struct ThreadTold {
    sas: ThreadSasEntry,
    clear_tid: u64,
    pdeath: Option<u32>,
}

/// The memory map of a live process, to begin with.
pub(super) struct Mapped {
    pub(super) pid: HostPid,
    pub(super) virt: u32,
    pub(super) areas: Vec<Area>,
}

impl Mapped {
    /// The process number `index`; `None` for a zombie.
    pub(super) fn read(tree: &mut Tree, index: usize) -> Result<Option<Self>> {
        let process = tree.processes().get(index);
        let process = process.ok_or_else(|| Error::bug("read areas", "no such process"))?;
        let (pid, virt) = (process.pid, number(process.virt()));
        let Some(alive) = process.alive() else {
            return Ok(None);
        };
        let before = Arc::clone(&alive.before);
        let areas = mm::areas(pid, &before, |new, all| {
            styles::find(tree, index, new, all, &before)
        })?;
        Ok(Some(Self { pid, virt, areas }))
    }
}

/// What is left to be done for a process when its page table has been read.
pub(super) struct Rest {
    stat: Stat,
    told: Told,
    eager: RangeSet,
}

/// Captures a process that is dead.
pub(super) fn zombie(process: &Process, set: &mut Set) {
    let core = CoreEntry {
        mtype: March::X86_64.into(),
        tc: Some(task::capture::zombie(&process.stat)),
        ..Default::default()
    };
    set.put(Kind::Core, number(process.virt()), &core);
}

/// Captures all of a live process but its memory.
pub(super) fn capture(
    tree: &mut Tree,
    index: usize,
    mapped: &Mapped,
    cx: &mut Context<'_>,
) -> Result<Rest> {
    let gone = || Error::bug("capture", "no such process");
    let (pid, areas) = (mapped.pid, &mapped.areas);
    let process = tree.processes().get(index).ok_or_else(gone)?;
    let stat = process.stat.clone();
    cx.sharing.check_alone(pid)?;
    let taken: Vec<PageRange> = areas.iter().map(|a| a.range).collect();
    let vdso = areas
        .iter()
        .find(|a| a.kind == AreaKind::Vdso)
        .ok_or_else(|| Error::refused(format!("task {pid}"), "it has no vdso"))?
        .range;
    let alive = process.alive().ok_or_else(gone)?;
    let ignored_trap = alive.threads.first().is_some_and(Thread::ignores_trap);
    let told = tree.steer(index, &taken, vdso, |leader, others| {
        ask(pid, leader, others, ignored_trap)
    })?;
    tree.decide(index, &told.actions)?;
    let process = tree.processes().get(index).ok_or_else(gone)?;
    let alive = process.alive().ok_or_else(gone)?;
    let eager = cores(pid, mapped.virt, &stat, alive, &told, areas, cx)?;
    descriptors(pid, mapped.virt, alive, cx)?;
    Ok(Rest { stat, told, eager })
}

fn ask(
    pid: HostPid,
    leader: &mut Steered,
    others: &mut [Thread],
    ignored_trap: bool,
) -> Result<Told> {
    let mut b = Batch::new();
    let questions = task::capture::ask(&mut b);
    let actions = signals::capture::ask_actions(&mut b);
    let clocks = timers::capture::ask(&mut b, pid)?;
    let mine = ThreadAsked::new(&mut b);
    let r = leader.run(&b)?;
    let mut threads = vec![mine.told(&r)];
    for t in others {
        let mut b = Batch::new();
        let asked = ThreadAsked::new(&mut b);
        let r = t.steer(leader, &b)?;
        threads.push(asked.told(&r));
    }
    Ok(Told {
        answers: questions.answers(&r),
        actions: actions.records(&r, ignored_trap),
        timers: clocks.record(&r),
        threads,
    })
}

struct ThreadAsked {
    sas: crate::sys::steer::Buf,
    questions: task::capture::ThreadQuestions,
}

impl ThreadAsked {
    fn new(b: &mut Batch) -> Self {
        Self {
            sas: signals::capture::ask_altstack(b),
            questions: task::capture::ask_thread(b),
        }
    }

    fn told(&self, r: &crate::sys::steer::Results) -> ThreadTold {
        ThreadTold {
            sas: signals::capture::altstack(r, self.sas),
            clear_tid: self.questions.clear_tid(r),
            pdeath: self.questions.pdeath(r),
        }
    }
}

/// Core records of all threads. Returns the pages that threads and kernel touch
/// as soon as they go on: those are never left behind.
fn cores(
    pid: HostPid,
    virt: u32,
    stat: &Stat,
    alive: &Alive,
    told: &Told,
    areas: &[Area],
    cx: &mut Context<'_>,
) -> Result<RangeSet> {
    let mut eager = RangeSet::new();
    touch(&mut eager, stat.arg_start, stat.env_end.max(stat.arg_end));
    let lsm = credentials::capture::lsm_profile(pid)?;
    for (t, asked) in alive.threads.iter().zip(&told.threads) {
        let stopped = t.stopped()?;
        let (info, rest) =
            thread::capture::thread_info(stopped, &t.settled.recorded(), asked.clear_tid)?;
        let (futex_rla, futex_rla_len) = ptrace::robust_list(t.tid)?;
        let sp = t.settled.regs.rsp;
        if let Some(stack) = areas.iter().find(|a| a.range.contains(sp)) {
            // at most this much: a coroutine's "stack" may be a huge heap
            touch(
                &mut eager,
                sp,
                stack.range.end().min(sp.saturating_add(64 * PAGE_SIZE)),
            );
        }
        touch(
            &mut eager,
            futex_rla,
            futex_rla.saturating_add(futex_rla_len),
        );
        if let Some(rseq) = &t.settled.rseq {
            touch(
                &mut eager,
                rseq.rseq_abi_pointer,
                rseq.rseq_abi_pointer
                    .saturating_add(u64::from(rseq.rseq_abi_size)),
            );
        }
        let mut core = ThreadCoreEntry {
            futex_rla,
            futex_rla_len: u32::try_from(futex_rla_len).unwrap_or(0),
            blk_sigset: Some(t.mask),
            sas: Some(asked.sas.clone()),
            pdeath_sig: asked.pdeath,
            signals_p: Some(signals::capture::queue(stopped, false)?),
            creds: Some(credentials::capture::record(
                &t.status,
                told.answers.securebits,
                lsm.clone(),
            )),
            seccomp_mode: Some(seccomp_mode(t.status.seccomp)),
            comm: Some(procfs::thread_comm(pid, t.tid)?),
            rseq_entry: t.settled.rseq.clone(),
            cg_set: cx.cgroups.set_of(t.tid),
            ..Default::default()
        };
        if t.status.seccomp == SeccompMode::Filter as u32 {
            core.seccomp_filter = cx.filters.chain(stopped)?;
        }
        task::capture::sched(t.tid, &mut core)?;
        let tc = if t.tid == pid {
            Some(task_core(
                pid,
                stat,
                alive,
                told,
                signals::capture::queue(stopped, true)?,
            )?)
        } else {
            None
        };
        let id = number(t.virt());
        if let Some(xstate) = rest {
            cx.set.put_raw(format!("dunlin-xstate-{id}.img"), xstate)?;
        }
        let core = CoreEntry {
            mtype: March::X86_64.into(),
            thread_info: Some(info),
            tc,
            ids: None,
            thread_core: Some(core),
        };
        cx.set.put(Kind::Core, id, &core);
    }
    tracing::debug!(
        pid = pid.0,
        virt,
        threads = alive.threads.len(),
        "captured threads"
    );
    Ok(eager)
}

fn seccomp_mode(mode: u32) -> i32 {
    match mode {
        1 => SeccompMode::Strict.into(),
        2 => SeccompMode::Filter.into(),
        _ => SeccompMode::Disabled.into(),
    }
}

fn task_core(
    pid: HostPid,
    stat: &Stat,
    alive: &Alive,
    told: &Told,
    pending: SignalQueueEntry,
) -> Result<crate::image::records::TaskCoreEntry> {
    let mut tc = task::capture::core(pid, stat)?;
    tc.blk_sigset = alive.threads.first().map_or(0, |t| t.mask);
    tc.timers = Some(told.timers.clone());
    tc.rlimits = Some(rlimits::capture::record(pid)?);
    tc.signals_s = Some(pending);
    tc.sigactions = told.actions.clone();
    tc.child_subreaper = Some(told.answers.subreaper);
    tc.membarrier_registration_mask = Some(told.answers.membarrier).filter(|m| *m != 0);
    if let Some(signal) = alive.stop_signal {
        tc.task_state = task::capture::state::STOPPED;
        tc.stop_signo = Some(signal.unsigned_abs());
    }
    Ok(tc)
}

fn descriptors(pid: HostPid, virt: u32, alive: &Alive, cx: &mut Context<'_>) -> Result<()> {
    let files = &mut *cx.files;
    let files_id = cx
        .sharing
        .files(pid, || files.table(pid, alive.pidfd.as_fd()))?;
    // numbers of objects that nobody shares: any that differ will do
    let own = virt.saturating_add(1);
    let mut ids = TaskKobjIdsEntry {
        vm_id: own,
        files_id,
        fs_id: own,
        sighand_id: own,
        ..Default::default()
    };
    cx.namespaces.fill_ids(pid, &mut ids)?;
    cx.set.put(Kind::Ids, virt, &ids);
    let (cwd_id, root_id) = cx.files.cwd_root(pid)?;
    let umask = alive.threads.first().map(|t| t.status.umask);
    cx.set.put(
        Kind::Fs,
        virt,
        &FsEntry {
            cwd_id,
            root_id,
            umask,
        },
    );
    Ok(())
}

/// Captures the memory of a live process, and notes its pages.
pub(super) fn memory(mapped: &Mapped, rest: &Rest, scan: Scan, cx: &mut Context<'_>) -> Result<()> {
    let Mapped { pid, virt, areas } = mapped;
    let (pid, told) = (*pid, &rest.told);
    let mut vmas = Vec::with_capacity(areas.len() + scan.guards.len());
    // neighbours often map the same file: ask once
    let mut last: Option<((u32, u32), u64, bool, files::Mapped)> = None;
    for area in areas {
        let mut entry = area.entry.clone();
        if area.has_file() {
            let key = (
                area.map.dev,
                area.map.ino,
                area.entry.fdflags == Some(libc::O_RDWR.cast_unsigned()),
            );
            let mapped = match last {
                Some((dev, ino, rw, mapped)) if (dev, ino, rw) == key => mapped,
                _ => {
                    let mapped = cx.files.reg_for_mapping(&open_mapped(pid, area)?)?;
                    last = Some((key.0, key.1, key.2, mapped));
                    mapped
                }
            };
            entry.shmid = u64::from(mapped.id);
            if mapped.memfd {
                entry.status |= vma::MEMFD;
            }
        }
        if let AreaKind::SharedAnon(ino) = area.kind {
            entry.shmid = u64::from(shared_id(ino)?);
        }
        vmas.push(entry);
    }
    vmas.extend(scan.guards.iter().map(|range| mm::guard_entry(*range)));
    let exe = cx.files.exe(pid)?;
    let record = mm::record(pid, &rest.stat, told.answers.brk, vmas, exe)?;
    cx.set.put(
        Kind::Mm,
        *virt,
        &MmEntry {
            dumpable: Some(told.answers.dumpable),
            thp_disabled: Some(told.answers.thp_disabled),
            ..record
        },
    );
    cx.pages.space(scan, areas, &rest.eager)
}

fn open_mapped(pid: HostPid, area: &Area) -> Result<OwnedFd> {
    let path = format!(
        "/proc/{pid}/map_files/{:x}-{:x}",
        area.range.start(),
        area.range.end()
    );
    let write = area.entry.fdflags == Some(libc::O_RDWR.cast_unsigned());
    File::options()
        .read(true)
        .write(write)
        .open(&path)
        .map(OwnedFd::from)
        .map_err(|e| Error::os(format!("open {path} ({})", area.map.name), e))
}

fn touch(set: &mut RangeSet, start: u64, end: u64) {
    let (start, end) = (
        start & !(PAGE_SIZE - 1),
        end.checked_next_multiple_of(PAGE_SIZE).unwrap_or(start),
    );
    if start != 0
        && let Some(range) = PageRange::new(start, end)
    {
        set.insert(range);
    }
}

fn number(id: i32) -> u32 {
    u32::try_from(id).unwrap_or(0)
}
