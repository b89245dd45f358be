//! Which processes a tree has. Until all are stopped some of them end, and their
//! children become those of an ancestor that may have been asked before.

use std::collections::HashSet;

use super::catch::{Interrupted, stop_process};
use super::{Body, Process, Tree};
use crate::base::{Error, HostPid, Result, limits};
use crate::objects::mm::capture::Before;
use crate::sys::pidfd;
use crate::sys::procfs::{self, Stat};

impl Tree {
    /// Stops everything under `root`, and notes it, parents before children.
    pub(super) fn collect(
        &mut self,
        root: HostPid,
        before: &mut Vec<(HostPid, Before)>,
        caught: &mut Interrupted,
    ) -> Result<()> {
        self.add(root, None, before, caught)?;
        let mut known = HashSet::from([root]);
        while self.pass(&mut known, before, caught)? {}
        Ok(())
    }

    /// Adds the children of all that are stopped. True if one of them was dead: whose
    /// parent it was is then to be asked again.
    fn pass(
        &mut self,
        known: &mut HashSet<HostPid>,
        before: &mut Vec<(HostPid, Before)>,
        caught: &mut Interrupted,
    ) -> Result<bool> {
        let mut one_was_dead = false;
        let mut at = 0;
        while let Some(p) = self.processes.get(at) {
            if matches!(p.body, Body::Alive(_)) {
                for child in procfs::children(p.pid)? {
                    if known.insert(child) {
                        one_was_dead |= !self.add(child, Some(at), before, caught)?;
                    }
                }
            }
            at += 1;
        }
        Ok(one_was_dead)
    }

    /// Stops a process, or notes that it is dead. False if it was, or has gone.
    fn add(
        &mut self,
        pid: HostPid,
        parent: Option<usize>,
        before: &mut Vec<(HostPid, Before)>,
        caught: &mut Interrupted,
    ) -> Result<bool> {
        if self.processes.len() >= limits::MAX_TASKS {
            return Err(Error::refused(
                format!("task {pid}"),
                "too many tasks in the tree",
            ));
        }
        let before = before
            .iter()
            .position(|(p, _)| *p == pid)
            .map(|i| before.swap_remove(i).1)
            .unwrap_or_default();
        let (stat, body) = match stop(pid, before, caught) {
            Ok(found) => found,
            Err(e) => match dead(pid)? {
                // The root of a tree is not to end while it is dumped.
                _ if parent.is_none() => return Err(e),
                Death::None => return Err(e),
                Death::Gone => return Ok(false),
                Death::Zombie(stat, body) => (*stat, body),
            },
        };
        let alive = matches!(body, Body::Alive(_));
        self.processes.push(Process {
            pid,
            parent,
            stat,
            body,
        });
        Ok(alive)
    }
}

/// A live process, stopped.
fn stop(pid: HostPid, before: Before, caught: &mut Interrupted) -> Result<(Stat, Body)> {
    let fd = pidfd::open(pid)?;
    let stat = procfs::stat(pid)?;
    if has_ended(&stat) {
        return Err(Error::refused(format!("task {pid}"), "it is dead"));
    }
    let caught = caught.remove(&pid).unwrap_or_default();
    let alive = stop_process(pid, fd, before, caught)?;
    Ok((stat, Body::Alive(alive)))
}

/// Whether a process has ended, and what is left of it.
enum Death {
    /// It lives.
    None,
    /// Nothing: its parent does not want to know.
    Gone,
    /// Its parent has still to wait for it.
    Zombie(Box<Stat>, Body),
}

fn dead(pid: HostPid) -> Result<Death> {
    match zombie(pid) {
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => Ok(Death::Gone),
        other => other,
    }
}

fn zombie(pid: HostPid) -> Result<Death> {
    let stat = procfs::stat(pid)?;
    if !has_ended(&stat) {
        return Ok(Death::None);
    }
    if procfs::threads(pid)?.len() > 1 {
        return Err(Error::refused(
            format!("task {pid}"),
            "its main thread has exited while others go on",
        ));
    }
    let status = procfs::status(pid)?;
    Ok(Death::Zombie(
        Box::new(stat),
        Body::Zombie(Box::new(status)),
    ))
}

fn has_ended(stat: &Stat) -> bool {
    matches!(stat.state, b'Z' | b'X')
}
