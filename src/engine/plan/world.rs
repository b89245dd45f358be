//! A model of the kernel's rules for processes, groups and sessions: fork(2),
//! setsid(2), setpgid(2), exit and reparenting.
//!
//! Every tree plan is run on it before anything is made, so that a plan that
//! the kernel would refuse, or that would end in another tree than the wanted
//! one, is an error of the plan and not a half-built container.

use std::collections::BTreeMap;

use super::tree::{Member, TreeStep};
use crate::base::NsPid;

/// One process of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Proc {
    pub(super) ppid: NsPid,
    pub(super) pgid: NsPid,
    pub(super) sid: NsPid,
    pub(super) subreaper: bool,
    pub(super) zombie: bool,
}

/// All processes. The first one made is the reaper of last resort.
#[derive(Debug, Clone, Default)]
pub(super) struct World {
    pub(super) procs: BTreeMap<NsPid, Proc>,
    root: Option<NsPid>,
}

impl World {
    /// A world with one process, in a session and a group that may lie outside.
    pub(super) fn new(root: NsPid, sid: NsPid, pgid: NsPid) -> Self {
        let proc = Proc {
            ppid: NsPid(0),
            pgid,
            sid,
            subreaper: false,
            zombie: false,
        };
        Self {
            procs: BTreeMap::from([(root, proc)]),
            root: Some(root),
        }
    }

    fn alive(&mut self, pid: NsPid) -> Result<&mut Proc, String> {
        match self.procs.get_mut(&pid) {
            Some(p) if !p.zombie => Ok(p),
            Some(_) => Err(format!("task {pid} is dead")),
            None => Err(format!("there is no task {pid}")),
        }
    }

    /// Whether the number is in use: as a pid, or as a group or session that
    /// still has members.
    pub(super) fn in_use(&self, id: NsPid) -> bool {
        self.procs.contains_key(&id) || self.procs.values().any(|p| p.pgid == id || p.sid == id)
    }

    pub(super) fn fork(&mut self, parent: NsPid, child: NsPid) -> Result<(), String> {
        if child.0 <= 0 || self.in_use(child) {
            return Err(format!("id {child} is taken"));
        }
        let p = *self.alive(parent)?;
        self.procs.insert(
            child,
            Proc {
                ppid: parent,
                subreaper: false,
                ..p
            },
        );
        Ok(())
    }

    pub(super) fn setsid(&mut self, pid: NsPid) -> Result<(), String> {
        if self.procs.values().any(|p| p.pgid == pid) {
            return Err(format!("task {pid} cannot setsid: group {pid} exists"));
        }
        let p = self.alive(pid)?;
        p.sid = pid;
        p.pgid = pid;
        Ok(())
    }

    pub(super) fn setpgid(&mut self, pid: NsPid, pgid: NsPid) -> Result<(), String> {
        let me = *self.alive(pid)?;
        if me.sid == pid {
            return Err(format!("session leader {pid} cannot change its group"));
        }
        if pgid != pid
            && !self
                .procs
                .values()
                .any(|p| p.pgid == pgid && p.sid == me.sid)
        {
            return Err(format!("task {pid}: no group {pgid} in its session"));
        }
        self.alive(pid)?.pgid = pgid;
        Ok(())
    }

    pub(super) fn subreaper(&mut self, pid: NsPid, on: bool) -> Result<(), String> {
        self.alive(pid)?.subreaper = on;
        Ok(())
    }

    pub(super) fn exit(&mut self, pid: NsPid) -> Result<(), String> {
        if self.root == Some(pid) {
            return Err("the root exits".to_owned());
        }
        let me = self.alive(pid)?;
        me.zombie = true;
        let mut reaper = me.ppid;
        while let Some(p) = self.procs.get(&reaper) {
            if (p.subreaper && !p.zombie) || self.root == Some(reaper) {
                break;
            }
            reaper = p.ppid;
        }
        for p in self.procs.values_mut() {
            if p.ppid == pid {
                p.ppid = reaper;
            }
        }
        Ok(())
    }

    pub(super) fn reap(&mut self, parent: NsPid, child: NsPid) -> Result<(), String> {
        self.alive(parent)?;
        match self.procs.get(&child) {
            Some(c) if c.zombie && c.ppid == parent => {
                self.procs.remove(&child);
                Ok(())
            }
            _ => Err(format!("task {parent} has no dead child {child}")),
        }
    }

    /// Takes one step of a plan.
    pub(super) fn take(&mut self, step: TreeStep) -> Result<(), String> {
        match step {
            TreeStep::Fork { parent, child } => self.fork(parent, child),
            TreeStep::Setsid(pid) => self.setsid(pid),
            TreeStep::Setpgid { pid, pgid } => self.setpgid(pid, pgid),
            TreeStep::Subreaper { pid, on } => self.subreaper(pid, on),
            TreeStep::Leave(pid) | TreeStep::Die(pid) => self.exit(pid),
            TreeStep::Reap { parent, child } => self.reap(parent, child),
        }
    }

    /// The processes as an image would hold them.
    pub(super) fn members(&self) -> Vec<Member> {
        self.procs
            .iter()
            .map(|(pid, p)| Member {
                pid: *pid,
                ppid: p.ppid,
                pgid: p.pgid,
                sid: p.sid,
                zombie: p.zombie,
            })
            .collect()
    }
}
