//! Address spaces: the vDSO moved, areas mapped and filled.
//!
//! Private anonymous memory is filled through a userfaultfd that the task makes
//! and we fetch: it is the fastest way, and the same descriptor is what a lazy
//! restore hands on. Private mappings of files get their changed pages by
//! process_vm_writev(2). For shared memory see [`super::shared`].

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;

use super::holder::Files;
use super::{Build, shared};
use crate::base::{Error, HostPid, NsPid, PAGE_SIZE, PageRange, Result, ResultExt, VAddr};
use crate::engine::plan::task::Body;
use crate::image::pages::{Held, Pagemap, Run};
use crate::memory::{Area as Guarded, LazySpace, Object, PageReader, RangeSet, SpaceId};
use crate::objects::mm::rebuild::{self as mm, Area, Kind};
use crate::objects::vdso::rebuild::compatible;
use crate::sys::steer::{Arg, Batch, MAPPING_LEN, find_syscall};
use crate::sys::uffd::{Stop, Uffd, feature, mode};
use crate::sys::{pidfd, vm};

/// Bytes moved at once.
const PIECE: u64 = 1 << 20;
/// Most areas in one batch.
const AREAS: usize = 256;

pub(super) fn space_id(pid: NsPid) -> SpaceId {
    SpaceId(pid.0.unsigned_abs())
}

pub(super) fn has_pages(pages: Option<&Pagemap>, area: &Area) -> bool {
    pages.is_some_and(|p| p.within(area.range).any(|r| r.held() != Held::Zero))
}

impl Build<'_> {
    /// Builds the address space of a task.
    ///
    /// # Errors
    /// Which area or call, and why.
    pub(super) fn space(&mut self, pid: NsPid, files: &mut Files<'_>) -> Result<()> {
        let plan = self.plan;
        let body = plan
            .task(pid)?
            .body
            .as_ref()
            .ok_or_else(|| Error::bug(format!("task {pid}"), "has no memory"))?;
        self.move_vdso(pid, body)?;
        self.map(pid, body, files)?;
        self.fill(pid, body)?;
        self.complete(pid, body, files)
    }

    fn move_vdso(&mut self, pid: NsPid, body: &Body) -> Result<()> {
        let parking = self.hole.start() + MAPPING_LEN;
        let room = self.hole.len() - MAPPING_LEN;
        let pages = self.pages;
        let live = self.live(pid)?;
        let whole = live.vdso.whole();
        if whole.len() > room {
            return Err(Error::refused(
                "vdso of this kernel",
                format!("{whole} is too long"),
            ));
        }
        let mut b = Batch::new();
        let Some(want) = body.space.vdso else {
            // a program that has unmapped it: ours goes out of the way until the end
            live.vdso = live.vdso.parked(&mut b, parking);
            let insn = live.vdso.code.start()
                + (live.leader.syscall_insn() - (whole.end() - live.vdso.code.len()));
            live.leader.run(&b)?;
            live.leader.set_syscall_insn(insn);
            return Ok(());
        };
        let start = body.space.vvar.map_or(want.start(), |v| v.start());
        let fits = body.space.vvar.map_or(0, |v| v.len()) == whole.len() - live.vdso.code.len()
            && want.len() == live.vdso.code.len()
            && body.space.vvar.is_none_or(|v| v.end() == want.start());
        if !fits {
            return Err(Error::refused(
                format!("vdso {want} of task {pid}"),
                format!("this kernel's has another layout, {whole} (another kernel)"),
            ));
        }
        if let Some(p) = &body.pages
            && want.len() <= PIECE
            && p.find(want.start())
                .is_some_and(|r| r.held() == Held::Here && r.range.end() >= want.end())
        {
            let len = usize::try_from(want.len()).unwrap_or(0);
            let mut image = vec![0u8; len];
            pages.read(Object::Private(space_id(pid)), want.start(), &mut image)?;
            let kernel = vm::read_vec(live.host, VAddr(live.vdso.code.start()), len)?;
            compatible(&image, &kernel)?;
        }
        live.vdso = live.vdso.relocate(&mut b, parking, start);
        live.leader.run(&b).context(|| "move the vdso".to_owned())?;
        let insn = find_syscall(live.host, live.vdso.code)?;
        live.leader.set_syscall_insn(insn);
        Ok(())
    }

    fn map(&mut self, pid: NsPid, body: &Body, files: &mut Files<'_>) -> Result<()> {
        let service = self.service;
        for areas in body.space.areas.chunks(AREAS) {
            let mut b = Batch::new();
            for a in areas.iter().filter(|a| !self.has_area(pid, a)) {
                let ours = match a.kind {
                    Kind::PrivateAnon => None,
                    Kind::PrivateFile(id) | Kind::SharedFile(id) if a.writes_file => {
                        Some(files.writable_fd(id)?)
                    }
                    Kind::PrivateFile(id) | Kind::SharedFile(id) => Some(files.fd(id)?),
                    Kind::SharedAnon(number) => self.shared.get(&number).map(|f| f.as_raw_fd()),
                };
                let fd = ours.map(|fd| {
                    Arg::Ret(b.call(
                        "pidfd_getfd",
                        libc::SYS_pidfd_getfd,
                        &[service.into(), fd.into(), 0.into()],
                    ))
                });
                mm::map(&mut b, a, fd, has_pages(body.pages.as_ref(), a));
                if let Some(fd) = fd {
                    b.call("close", libc::SYS_close, &[fd]);
                }
            }
            self.live(pid)?.leader.run(&b)?;
        }
        Ok(())
    }

    fn fill(&mut self, pid: NsPid, body: &Body) -> Result<()> {
        let object = Object::Private(space_id(pid));
        let eager: RangeSet = body.eager().into_iter().collect();
        let host = self.live(pid)?.host;
        let mut guard: Option<Uffd> = None;
        let mut registered = Vec::new();
        let mut missing = Vec::new();
        for area in &body.space.areas {
            match area.kind {
                // the file has the pages
                Kind::SharedFile(_) => {}
                Kind::SharedAnon(number) => {
                    if let Some(id) = self.follows(number) {
                        let uffd = self.guard(&mut guard, pid)?;
                        uffd.register(area.range, mode::MISSING)?;
                        registered.extend(shared::guarded(area, id, &body.space.guards));
                    }
                }
                Kind::PrivateFile(_) => {
                    let pages = body.pages.iter().flat_map(|p| p.within(area.range));
                    for run in pages.filter(|r| r.held() != Held::Zero) {
                        fill_task(self.pages, host, object, &run)?;
                    }
                }
                Kind::PrivateAnon => {
                    if self.fill_early(pid, body, area)? {
                        continue;
                    }
                    let Some(pages) = &body.pages else { continue };
                    if !has_pages(Some(pages), area) && !self.lazy {
                        continue;
                    }
                    let uffd = self.guard(&mut guard, pid)?;
                    uffd.register(area.range, mode::MISSING)?;
                    if !self.lazy {
                        for run in pages.within(area.range).filter(|r| r.held() != Held::Zero) {
                            fill_uffd(self.pages, uffd, object, run.range)?;
                        }
                        continue;
                    }
                    registered.push(Guarded {
                        range: area.range,
                        object,
                        at: area.range.start(),
                        wipe_on_fork: area.advice & (1 << libc::MADV_WIPEONFORK) != 0,
                    });
                    let later = self.fill_eager(pid, body, area.range, uffd, &eager)?;
                    missing.extend(later);
                }
            }
        }
        if self.lazy
            && let Some(uffd) = guard
        {
            self.anchor(pid, &uffd)?;
            let locked = body.space.areas.iter().filter(|a| a.is_locked_later());
            let locked = locked.map(|a| a.range);
            self.left.spaces.push(LazySpace {
                id: space_id(pid),
                pid: host,
                pidfd: pidfd::open(host)?,
                uffd,
                areas: registered,
                needed: missing,
                locked: locked.collect(),
            });
        }
        Ok(())
    }

    /// Fills what of a lazy area may not follow; returns what may.
    fn fill_eager(
        &self,
        pid: NsPid,
        body: &Body,
        area: PageRange,
        uffd: &Uffd,
        eager: &RangeSet,
    ) -> Result<Vec<PageRange>> {
        let object = Object::Private(space_id(pid));
        let mut missing = Vec::new();
        let runs = body.pages.iter().flat_map(|p| p.within(area));
        for run in runs.filter(|r| r.held() != Held::Zero) {
            if !run.lazy() {
                fill_uffd(self.pages, uffd, object, run.range)?;
                continue;
            }
            if run.held() == Held::Elsewhere {
                // whoever made the image left them behind, needed or not
                if let Some(r) = body.rseq_in(run.range) {
                    return Err(Error::image(
                        format!("pages {} of task {pid}", run.range),
                        format!("were left behind, and the kernel writes to {r:#x} (rseq)"),
                    ));
                }
                missing.push(run.range);
                continue;
            }
            let mut rest: RangeSet = [run.range].into_iter().collect();
            for now in eager.within(run.range) {
                fill_uffd(self.pages, uffd, object, now)?;
                rest.remove(now);
            }
            missing.extend(rest.iter());
        }
        Ok(missing)
    }

    /// The task's userfaultfd, made when it is first needed.
    pub(super) fn guard<'g>(
        &mut self,
        guard: &'g mut Option<Uffd>,
        pid: NsPid,
    ) -> Result<&'g Uffd> {
        let uffd = match guard.take() {
            Some(uffd) => uffd,
            None => self.userfaultfd(pid)?,
        };
        Ok(guard.insert(uffd))
    }

    /// A userfaultfd of the task, fetched from it.
    fn userfaultfd(&mut self, pid: NsPid) -> Result<Uffd> {
        let lazy = self.lazy;
        let live = self.live(pid)?;
        let mut b = Batch::new();
        let fd = b.call(
            "userfaultfd",
            libc::SYS_userfaultfd,
            &[(libc::O_CLOEXEC | libc::O_NONBLOCK).into()],
        );
        let number = live.leader.run(&b)?.ret(fd);
        let number = i32::try_from(number)
            .map_err(|_| Error::bug("userfaultfd", format!("returned {number}")))?;
        let task = pidfd::open(live.host)?;
        let ours = pidfd::getfd(task.as_fd(), number)?;
        let mut b = Batch::new();
        b.call("close", libc::SYS_close, &[number.into()]);
        live.leader.run(&b)?;
        Uffd::handshake(ours, if lazy { feature::LAZY } else { 0 })
    }

    /// What comes after the fill: protection, advice, locks, guard pages, the
    /// kernel's idea of where things are.
    fn complete(&mut self, pid: NsPid, body: &Body, files: &mut Files<'_>) -> Result<()> {
        let service = self.service;
        let exe = files.fd(body.space.entry.exe_file_id)?;
        let last = self.left.spaces.last();
        let follows = last.is_some_and(|s| s.id == space_id(pid));
        let live = self.live(pid)?;
        for areas in body.space.areas.chunks(AREAS) {
            let mut b = Batch::new();
            for a in areas {
                mm::finish(&mut b, a, has_pages(body.pages.as_ref(), a), follows);
            }
            if !b.is_empty() {
                live.leader.run(&b)?;
            }
        }
        for guards in body.space.guards.chunks(AREAS) {
            let mut b = Batch::new();
            mm::guards(&mut b, guards);
            live.leader.run(&b)?;
        }
        let mut b = Batch::new();
        let fd = Arg::Ret(b.call(
            "pidfd_getfd",
            libc::SYS_pidfd_getfd,
            &[service.into(), exe.into(), 0.into()],
        ));
        mm::describe(&mut b, &body.space.entry, fd);
        b.call("close", libc::SYS_close, &[fd]);
        live.leader.run(&b).map(drop)
    }
}

pub(super) fn pieces(range: PageRange) -> impl Iterator<Item = PageRange> {
    (0..range.len().div_ceil(PIECE)).filter_map(move |i| {
        let start = range.start() + i * PIECE;
        PageRange::new(start, range.end().min(start + PIECE))
    })
}

pub(super) fn read_piece(
    reader: &dyn PageReader,
    object: Object,
    piece: PageRange,
) -> Result<Vec<u8>> {
    let mut buf = vec![0u8; usize::try_from(piece.len()).unwrap_or(0)];
    reader.read(object, piece.start(), &mut buf)?;
    Ok(buf)
}

pub(super) fn fill_file(
    reader: &dyn PageReader,
    file: &File,
    object: Object,
    run: &Run,
) -> Result<()> {
    if run.held() == Held::Zero {
        return Ok(());
    }
    for piece in pieces(run.range) {
        let buf = read_piece(reader, object, piece)?;
        file.write_all_at(&buf, piece.start())
            .context(|| format!("write {piece}"))?;
    }
    Ok(())
}

fn fill_task(reader: &dyn PageReader, host: HostPid, object: Object, run: &Run) -> Result<()> {
    for piece in pieces(run.range) {
        let buf = read_piece(reader, object, piece)?;
        vm::write(host, VAddr(piece.start()), &buf)?;
    }
    Ok(())
}

pub(super) fn fill_uffd(
    reader: &dyn PageReader,
    uffd: &Uffd,
    object: Object,
    range: PageRange,
) -> Result<()> {
    for piece in pieces(range) {
        let buf = read_piece(reader, object, piece)?;
        let mut done = 0u64;
        while done < piece.len() {
            let from = usize::try_from(done).unwrap_or(usize::MAX);
            let rest = buf.get(from..).unwrap_or(&[]);
            let filled = uffd.copy(VAddr(piece.start() + done), rest)?;
            done += filled.bytes;
            match filled.stop {
                None => {}
                // nobody runs in there: no event can be queued
                Some(Stop::Again) => {}
                Some(Stop::Exists) => done += PAGE_SIZE,
                Some(stop @ (Stop::NoArea | Stop::Gone)) => {
                    return Err(Error::bug(
                        format!("fill {piece} of {object}"),
                        format!("stopped after {done} bytes: {stop:?}"),
                    ));
                }
            }
        }
    }
    Ok(())
}
