//! One task out of its records: everything parsed, nothing touched.

use std::collections::BTreeSet;

use crate::base::{Error, NsPid, PageRange, Result};
use crate::image::pages::Pagemap;
use crate::image::records::{
    CoreEntry, FsEntry, March, MmEntry, PstreeEntry, RseqEntry, SeccompEntry, TaskCoreEntry,
    TaskKobjIdsEntry, ThreadCoreEntry, ThreadInfoX86,
};
use crate::image::{Kind, Set};
use crate::objects::mm::rebuild::Space;
use crate::objects::seccomp::rebuild::{self as seccomp, Wanted};
use crate::objects::task::rebuild::{State, state};
use crate::objects::{credentials, thread, timers};
use crate::sys::ptrace::Regs;

const MAX_THREADS: usize = 1 << 16;
const PAGE_MASK: u64 = crate::base::PAGE_SIZE - 1;

/// A thread to build.
#[derive(Debug, Clone)]
pub struct Thread {
    /// Its id.
    pub tid: NsPid,
    /// Registers that it goes on with.
    pub regs: Regs,
    /// Extended state and more.
    pub info: ThreadInfoX86,
    /// What it has for itself.
    pub own: ThreadCoreEntry,
    /// Its signal mask.
    pub mask: u64,
    /// Its filters.
    pub seccomp: Wanted,
    /// The whole extended state, where it is more than the record holds (AMX).
    pub xstate: Option<Vec<u8>>,
}

impl Thread {
    /// Its rseq registration, if it has one.
    pub fn rseq(&self) -> Option<&RseqEntry> {
        self.own
            .rseq_entry
            .as_ref()
            .filter(|r| r.rseq_abi_pointer != 0)
    }
}

/// A task to build; a zombie has neither memory nor threads.
#[derive(Debug, Clone)]
pub struct Task {
    /// Its pid.
    pub pid: NsPid,
    /// How it is.
    pub state: State,
    /// What its threads share.
    pub core: TaskCoreEntry,
    /// Which kernel objects it shares with others.
    pub ids: TaskKobjIdsEntry,
    /// The rest, of a task that lives.
    pub body: Option<Body>,
}

/// What a living task has.
#[derive(Debug, Clone)]
pub struct Body {
    /// Working directory, root, umask.
    pub fs: FsEntry,
    /// The address space.
    pub space: Space,
    /// Which pages it has; `None` if the image lists none.
    pub pages: Option<Pagemap>,
    /// Leader first.
    pub threads: Vec<Thread>,
}

impl Task {
    /// Reads all records of the task that `entry` names.
    ///
    /// # Errors
    /// What is missing, contradictory or not carried, by name.
    pub fn read(set: &Set, entry: &PstreeEntry) -> Result<Self> {
        let pid = ns_pid(entry.pid)?;
        let core: CoreEntry = core(set, pid)?;
        let file = Kind::Core.file_name(entry.pid);
        let tc = core
            .tc
            .clone()
            .ok_or_else(|| Error::image(file.clone(), "has no task part"))?;
        let state = state(pid, &tc)?;
        let ids = match set.get::<TaskKobjIdsEntry>(Kind::Ids, entry.pid)? {
            Some(ids) => ids,
            None => core
                .ids
                .clone()
                .or(matches!(state, State::Zombie(_)).then(TaskKobjIdsEntry::default))
                .ok_or_else(|| {
                    Error::image(Kind::Ids.file_name(entry.pid), "is not in the image")
                })?,
        };
        let body = match state {
            State::Zombie(_) => None,
            State::Alive | State::Stopped(_) => Some(Body::read(set, entry, pid, core, &tc)?),
        };
        Ok(Self {
            pid,
            state,
            core: tc,
            ids,
            body,
        })
    }
}

impl Body {
    fn read(
        set: &Set,
        entry: &PstreeEntry,
        pid: NsPid,
        leader: CoreEntry,
        tc: &TaskCoreEntry,
    ) -> Result<Self> {
        let mm: MmEntry = set.require(Kind::Mm, entry.pid)?;
        let space = Space::read(pid, mm)?;
        let pages = Pagemap::of(set, Kind::Pagemap, entry.pid)?;
        if let Some(p) = &pages {
            check_pages(pid, &space, p)?;
        }
        if let Some(t) = &tc.timers {
            timers::rebuild::check(pid, t)?;
        }
        if entry.threads.len() > MAX_THREADS {
            return Err(Error::image(
                format!("task {pid}"),
                format!("has {} threads", entry.threads.len()),
            ));
        }
        let filters: Option<SeccompEntry> = set.get(Kind::Seccomp, 0)?;
        let mut threads = vec![read_thread(set, pid, leader, Some(tc), filters.as_ref())?];
        for &t in &entry.threads {
            let tid = ns_pid(t)?;
            if tid != pid {
                threads.push(read_thread(
                    set,
                    tid,
                    core(set, tid)?,
                    None,
                    filters.as_ref(),
                )?);
            }
        }
        Ok(Self {
            fs: set.require(Kind::Fs, entry.pid)?,
            space,
            pages,
            threads,
        })
    }

    /// An rseq area of a thread that lies in this range.
    pub fn rseq_in(&self, range: PageRange) -> Option<u64> {
        self.threads
            .iter()
            .filter_map(|t| t.rseq().map(|r| r.rseq_abi_pointer))
            .find(|p| range.contains(*p))
    }

    /// Pages that must be there before the task goes on, whatever the mode: the
    /// stacks at and above their pointers, what the kernel or /proc reads by
    /// address (arguments, environment, rseq areas, robust lists, words to
    /// clear), and all that userfaultfd cannot guard.
    pub fn eager(&self) -> Vec<PageRange> {
        let mm = &self.space.entry;
        let mut want: Vec<(u64, u64)> = vec![
            (mm.mm_arg_start, mm.mm_arg_end),
            (mm.mm_env_start, mm.mm_env_end),
        ];
        for t in &self.threads {
            // the red zone lies below the pointer
            let sp = t.regs.rsp.saturating_sub(128);
            let stack_end = self.space.area_at(t.regs.rsp).map_or(sp, |a| {
                // a thread's stack may be part of a huge area: a few frames do
                a.range.end().min(sp.saturating_add(EAGER_STACK))
            });
            want.push((sp, stack_end));
            want.push(around(t.info.clear_tid_addr, 4));
            want.push(around(t.own.futex_rla, u64::from(t.own.futex_rla_len)));
            if let Some(r) = t.rseq() {
                want.push(around(r.rseq_abi_pointer, u64::from(r.rseq_abi_size)));
            }
        }
        want.into_iter()
            .filter(|(a, b)| *a != 0 && a < b)
            .filter_map(|(a, b)| {
                PageRange::new(a & !PAGE_MASK, b.checked_add(PAGE_MASK)? & !PAGE_MASK)
            })
            .collect()
    }
}

const EAGER_STACK: u64 = 256 * 1024;

fn around(addr: u64, len: u64) -> (u64, u64) {
    (addr, addr.saturating_add(len))
}

/// A pid of a record.
///
/// # Errors
/// 0, or more than the kernel's ids have bits for.
pub(super) fn ns_pid(raw: u32) -> Result<NsPid> {
    i32::try_from(raw)
        .ok()
        .filter(|p| *p > 0)
        .map(NsPid)
        .ok_or_else(|| Error::image("tree of tasks", format!("{raw} is no pid")))
}

fn core(set: &Set, tid: NsPid) -> Result<CoreEntry> {
    let id = tid.0.unsigned_abs();
    let core: CoreEntry = set.require(Kind::Core, id)?;
    if core.mtype() != March::X86_64 {
        return Err(Error::image(
            Kind::Core.file_name(id),
            format!("is of a {:?} machine, this one is X86_64", core.mtype()),
        ));
    }
    Ok(core)
}

fn read_thread(
    set: &Set,
    tid: NsPid,
    core: CoreEntry,
    task: Option<&TaskCoreEntry>,
    filters: Option<&SeccompEntry>,
) -> Result<Thread> {
    let file = Kind::Core.file_name(tid.0.unsigned_abs());
    let missing = |what: &'static str| Error::image(file.clone(), format!("has no {what}"));
    let info = core.thread_info.ok_or_else(|| missing("registers"))?;
    let own = core.thread_core.ok_or_else(|| missing("thread part"))?;
    let creds = own.creds.as_ref().ok_or_else(|| missing("credentials"))?;
    credentials::rebuild::check(tid, creds)?;
    let mode = own
        .seccomp_mode
        .or_else(|| task.and_then(|t| t.old_seccomp_mode));
    let newest = own
        .seccomp_filter
        .or_else(|| task.and_then(|t| t.old_seccomp_filter));
    Ok(Thread {
        tid,
        regs: thread::rebuild::regs(tid, &info.gpregs)?,
        mask: own
            .blk_sigset
            .or_else(|| task.map(|t| t.blk_sigset))
            .unwrap_or(0),
        seccomp: seccomp::wanted(tid, mode, newest, filters)?,
        xstate: set
            .raw(&format!("dunlin-xstate-{}.img", tid.0))
            .map(<[u8]>::to_vec),
        info,
        own,
    })
}

fn check_pages(pid: NsPid, space: &Space, pages: &Pagemap) -> Result<()> {
    let special: BTreeSet<PageRange> = space.vdso.into_iter().chain(space.vvar).collect();
    for run in pages.runs() {
        let mut at = run.range.start();
        while at < run.range.end() {
            let area = space
                .area_at(at)
                .map(|a| a.range)
                .or_else(|| special.iter().copied().find(|s| s.contains(at)));
            let Some(area) = area else {
                return Err(Error::image(
                    Kind::Pagemap.file_name(pid.0.unsigned_abs()),
                    format!("lists page {at:#x}, which lies in no area"),
                ));
            };
            at = area.end();
        }
    }
    Ok(())
}
