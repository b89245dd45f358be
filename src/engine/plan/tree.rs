//! In which order the tasks of a tree are made, so that each has its parent,
//! its session and its group.
//!
//! A task's session is the one that its parent was in when it was forked, or
//! its own. From that follow the cases:
//! - a child in the session of its parent is forked after the parent's setsid;
//! - a child in the session that its parent left is forked before the setsid;
//! - else the child was adopted: its first parent is gone. A throw-away helper
//!   in the wanted session forks it and exits, while the wanted parent is
//!   made a subreaper for that moment. The helper is forked by the session's
//!   leader, or, where that is dead, by a stand-in that has its number.
//!
//! A group without its leader gets a stand-in as well, which exits when the
//! members have joined. The plan is run on a model of the kernel ([`World`])
//! before it is returned.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::world::World;
use crate::base::{Error, NsPid, Result};

/// What a task of the tree must be in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Its pid.
    pub pid: NsPid,
    /// Its parent; of the root, whatever lies outside.
    pub ppid: NsPid,
    /// Its process group.
    pub pgid: NsPid,
    /// Its session.
    pub sid: NsPid,
    /// It is dead and not waited for.
    pub zombie: bool,
}

/// One step in making a tree. Ids are those inside the pid namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TreeStep {
    /// `parent` forks `child`.
    Fork {
        /// Who forks.
        parent: NsPid,
        /// Who is made.
        child: NsPid,
    },
    /// It makes a session of its own.
    Setsid(NsPid),
    /// It enters a group, or makes its own.
    Setpgid {
        /// Who.
        pid: NsPid,
        /// Which group.
        pgid: NsPid,
    },
    /// For the moment it adopts orphans below it, or no longer.
    Subreaper {
        /// Who.
        pid: NsPid,
        /// From now on, or no longer.
        on: bool,
    },
    /// A helper exits.
    Leave(NsPid),
    /// `parent` waits for the dead helper `child`.
    Reap {
        /// Who waits.
        parent: NsPid,
        /// Who is dead.
        child: NsPid,
    },
    /// A task that must be a zombie exits.
    Die(NsPid),
}

impl fmt::Display for TreeStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fork { parent, child } => write!(f, "task {parent} forks {child}"),
            Self::Setsid(pid) => write!(f, "task {pid} makes a session"),
            Self::Setpgid { pid, pgid } => write!(f, "task {pid} enters group {pgid}"),
            Self::Subreaper { pid, on: true } => write!(f, "task {pid} adopts orphans"),
            Self::Subreaper { pid, on: false } => write!(f, "task {pid} adopts no more"),
            Self::Leave(pid) => write!(f, "helper {pid} exits"),
            Self::Reap { parent, child } => write!(f, "task {parent} waits for helper {child}"),
            Self::Die(pid) => write!(f, "task {pid} becomes a zombie"),
        }
    }
}

/// A planned tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    /// The root's pid.
    pub root: NsPid,
    /// What to do, in order; the root exists before.
    pub steps: Vec<TreeStep>,
    /// Helpers that need no number of their own: what they are called in `steps`
    /// is above all numbers that anybody needs, and only a name. Those that stand
    /// in for a dead leader are not among them.
    pub unnumbered: BTreeSet<NsPid>,
}

/// Plans a tree whose root starts in session `outer.0` and group `outer.1`,
/// which lie outside. `taken`: threads, whose ids no helper
/// is called by.
///
/// # Errors
/// If the records contradict each other, or the tree is one that cannot be
/// built (a session whose leader lies elsewhere).
pub fn plan(members: &[Member], outer: (NsPid, NsPid), taken: &BTreeSet<NsPid>) -> Result<Tree> {
    let mut p = Planner::new(members, outer, taken)?;
    p.births();
    p.find_orphans()?;
    p.make(p.root)?;
    p.groups()?;
    p.leave()?;
    for m in members.iter().filter(|m| m.zombie) {
        p.step(TreeStep::Die(m.pid))?;
    }
    p.verify()?;
    Ok(Tree {
        root: p.root,
        steps: p.steps,
        unnumbered: p.unnumbered,
    })
}

fn wrong(why: String) -> Error {
    Error::image("tree of tasks", why)
}

/// An orphan's session and adopter, and who of them is to be forked.
#[derive(Debug, Default)]
struct Adoptions {
    by_session: BTreeMap<NsPid, BTreeMap<NsPid, Vec<NsPid>>>,
    /// Where the stand-in of a dead leader hangs: adopter to sessions.
    stand_ins: BTreeMap<NsPid, Vec<NsPid>>,
}

struct Planner {
    root: NsPid,
    want: BTreeMap<NsPid, Member>,
    children: BTreeMap<NsPid, Vec<NsPid>>,
    /// Parents before children.
    order: Vec<NsPid>,
    /// Session in which a task must be forked, if that matters.
    birth: BTreeMap<NsPid, Option<NsPid>>,
    born_in: BTreeMap<NsPid, NsPid>,
    adoptions: Adoptions,
    /// (adopter, helper, the helper's parent), in order of making.
    leaving: Vec<(Option<NsPid>, NsPid, NsPid)>,
    unnumbered: BTreeSet<NsPid>,
    next_name: i32,
    world: World,
    steps: Vec<TreeStep>,
}

impl Planner {
    fn new(members: &[Member], outer: (NsPid, NsPid), taken: &BTreeSet<NsPid>) -> Result<Self> {
        let mut want = BTreeMap::new();
        for m in members {
            if m.pid.0 <= 0 {
                return Err(wrong(format!("pid {} is no pid", m.pid)));
            }
            if want.insert(m.pid, *m).is_some() {
                return Err(wrong(format!("task {} comes twice", m.pid)));
            }
        }
        let mut roots = members.iter().filter(|m| !want.contains_key(&m.ppid));
        let root = match (roots.next(), roots.next()) {
            (Some(r), None) => r.pid,
            (None, _) => return Err(wrong("it has no root".to_owned())),
            (Some(a), Some(b)) => {
                return Err(wrong(format!(
                    "tasks {} and {} both have a parent outside",
                    a.pid, b.pid
                )));
            }
        };
        let mut children: BTreeMap<NsPid, Vec<NsPid>> = BTreeMap::new();
        for m in members {
            children.entry(m.ppid).or_default().push(m.pid);
        }
        let mut order = vec![root];
        let mut at = 0;
        while let Some(p) = order.get(at) {
            order.extend(children.get(p).cloned().unwrap_or_default());
            at += 1;
        }
        if order.len() != want.len() {
            return Err(wrong("parents form a ring".to_owned()));
        }
        let ids = members.iter().flat_map(|m| [m.pid, m.pgid, m.sid]);
        let highest = ids.chain(taken.last().copied()).max();
        let next_name = highest.map_or(2, |p| p.0.saturating_add(1));
        Ok(Self {
            root,
            want,
            children,
            order,
            birth: BTreeMap::new(),
            born_in: BTreeMap::from([(root, outer.0)]),
            adoptions: Adoptions::default(),
            leaving: Vec::new(),
            unnumbered: BTreeSet::new(),
            next_name,
            world: World::new(root, outer.0, outer.1),
            steps: Vec::new(),
        })
    }

    fn step(&mut self, step: TreeStep) -> Result<()> {
        self.world
            .take(step)
            .map_err(|e| wrong(format!("{step}: {e}")))?;
        self.steps.push(step);
        Ok(())
    }

    fn member(&self, pid: NsPid) -> Result<Member> {
        self.want
            .get(&pid)
            .copied()
            .ok_or_else(|| wrong(format!("there is no task {pid}")))
    }

    fn kids(&self, pid: NsPid) -> Vec<NsPid> {
        self.children.get(&pid).cloned().unwrap_or_default()
    }

    fn is_above(&self, ancestor: NsPid, mut pid: NsPid) -> bool {
        while let Some(m) = self.want.get(&pid) {
            if m.ppid == ancestor {
                return true;
            }
            pid = m.ppid;
        }
        false
    }

    /// In which session each task must be born, from the leaves up.
    fn births(&mut self) {
        for &pid in self.order.clone().iter().rev() {
            let Some(m) = self.want.get(&pid).copied() else {
                continue;
            };
            let birth = if m.sid == m.pid {
                let demands: BTreeSet<NsPid> = self
                    .kids(pid)
                    .iter()
                    .filter_map(|c| self.birth.get(c).copied().flatten())
                    .filter(|s| *s != m.sid)
                    .collect();
                let parent_sid = self.want.get(&m.ppid).map(|q| q.sid);
                demands
                    .iter()
                    .copied()
                    .find(|s| Some(*s) == parent_sid)
                    .or_else(|| {
                        demands
                            .iter()
                            .copied()
                            .find(|s| self.want.contains_key(s) && !self.is_above(pid, *s))
                    })
                    .or_else(|| demands.iter().copied().find(|s| !self.want.contains_key(s)))
            } else {
                Some(m.sid)
            };
            self.birth.insert(pid, birth);
        }
    }

    fn find_orphans(&mut self) -> Result<()> {
        let outer = self.born_in.get(&self.root).copied();
        for &pid in &self.order.clone() {
            let m = self.member(pid)?;
            if pid == self.root {
                if m.sid != pid && Some(m.sid) != outer {
                    return Err(wrong(format!(
                        "the session {} of its root lies outside",
                        m.sid
                    )));
                }
                continue;
            }
            let parent = self.member(m.ppid)?;
            let birth = self.birth.get(&pid).copied().flatten();
            let session = birth.unwrap_or(parent.sid);
            self.born_in.insert(pid, session);
            let before =
                parent.sid == parent.pid && self.born_in.get(&m.ppid).copied() == Some(session);
            if session == parent.sid || before {
                continue;
            }
            self.adoptions
                .by_session
                .entry(session)
                .or_default()
                .entry(m.ppid)
                .or_default()
                .push(pid);
        }
        for (&session, adopters) in &self.adoptions.by_session {
            if let Some(leader) = self.want.get(&session) {
                if leader.sid != session {
                    return Err(wrong(format!(
                        "session {session} has a leader that is in session {}",
                        leader.sid
                    )));
                }
                if let Some(a) = adopters.keys().find(|a| !self.is_above(**a, session)) {
                    return Err(wrong(format!(
                        "task {a} has children in session {session}, whose leader is not below it"
                    )));
                }
                continue;
            }
            if session.0 <= 0 || Some(session) == outer {
                return Err(wrong(format!(
                    "tasks are in session {session}, which lies outside"
                )));
            }
            // the adopter below all the others
            let deepest = adopters
                .keys()
                .copied()
                .find(|a| adopters.keys().all(|b| a == b || self.is_above(*b, *a)))
                .ok_or_else(|| {
                    wrong(format!(
                        "session {session} has no leader, and members in unrelated places"
                    ))
                })?;
            self.adoptions
                .stand_ins
                .entry(deepest)
                .or_default()
                .push(session);
        }
        Ok(())
    }

    fn name(&mut self) -> NsPid {
        let name = NsPid(self.next_name);
        self.next_name = self.next_name.saturating_add(1);
        self.unnumbered.insert(name);
        name
    }

    fn fork(&mut self, parent: NsPid, child: NsPid) -> Result<()> {
        self.step(TreeStep::Fork { parent, child })
    }

    /// Everything below `pid`, which has just been forked. Depth is bounded by
    /// an explicit stack, not by recursion over foreign data.
    fn make(&mut self, pid: NsPid) -> Result<()> {
        enum Todo {
            Fork(NsPid, NsPid),
            Made(NsPid),
            Setsid(NsPid),
            Provide(NsPid),
        }
        let mut todo = vec![Todo::Made(pid)];
        while let Some(t) = todo.pop() {
            match t {
                Todo::Fork(parent, child) => {
                    self.fork(parent, child)?;
                    todo.push(Todo::Made(child));
                }
                Todo::Setsid(pid) => self.step(TreeStep::Setsid(pid))?,
                Todo::Made(pid) => {
                    let m = self.member(pid)?;
                    let born = self.born_in.get(&pid).copied();
                    let leads = m.sid == pid;
                    let mut before = Vec::new();
                    let mut after = Vec::new();
                    for c in self.kids(pid) {
                        let b = self.birth.get(&c).copied().flatten();
                        if b.is_none() || b == Some(m.sid) {
                            after.push(Todo::Fork(pid, c));
                        } else if leads && b == born {
                            before.push(Todo::Fork(pid, c));
                        }
                    }
                    // a stack: last pushed, first done
                    todo.push(Todo::Provide(pid));
                    todo.extend(after.into_iter().rev());
                    if leads {
                        todo.push(Todo::Setsid(pid));
                    }
                    todo.extend(before.into_iter().rev());
                }
                Todo::Provide(pid) => {
                    if self.member(pid)?.sid == pid
                        && let Some(adopters) = self.adoptions.by_session.remove(&pid)
                    {
                        for (h, kids) in self.adopt(pid, adopters)? {
                            todo.extend(kids.into_iter().map(|k| Todo::Fork(h, k)));
                        }
                    }
                    for session in self.adoptions.stand_ins.remove(&pid).unwrap_or_default() {
                        self.fork(pid, session)?;
                        self.leaving.push((None, session, pid));
                        self.step(TreeStep::Setsid(session))?;
                        let adopters = self.adoptions.by_session.remove(&session);
                        for (h, kids) in self.adopt(session, adopters.unwrap_or_default())? {
                            todo.extend(kids.into_iter().map(|k| Todo::Fork(h, k)));
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn adopt(
        &mut self,
        provider: NsPid,
        adopters: BTreeMap<NsPid, Vec<NsPid>>,
    ) -> Result<Vec<(NsPid, Vec<NsPid>)>> {
        let mut made = Vec::new();
        for (adopter, kids) in adopters {
            let helper = self.name();
            self.fork(provider, helper)?;
            self.leaving.push((Some(adopter), helper, provider));
            made.push((helper, kids));
        }
        Ok(made)
    }

    fn groups(&mut self) -> Result<()> {
        let mut groups: BTreeMap<NsPid, Vec<Member>> = BTreeMap::new();
        for m in self.want.values() {
            groups.entry(m.pgid).or_default().push(*m);
        }
        let current = |w: &World, pid: NsPid| w.procs.get(&pid).map(|p| p.pgid);
        // every group exists
        for (&g, members) in &groups {
            if members
                .iter()
                .all(|m| current(&self.world, m.pid) == Some(g))
            {
                continue;
            }
            if self.want.contains_key(&g) {
                if current(&self.world, g) != Some(g) {
                    self.step(TreeStep::Setpgid { pid: g, pgid: g })?;
                }
            } else if !self.world.procs.values().any(|p| p.pgid == g) {
                let Some(first) = members.first() else {
                    continue;
                };
                if g.0 <= 0 || self.world.in_use(g) {
                    return Err(wrong(format!(
                        "task {} is in group {g}, which lies outside",
                        first.pid
                    )));
                }
                self.fork(first.pid, g)?;
                self.leaving.push((None, g, first.pid));
                self.step(TreeStep::Setpgid { pid: g, pgid: g })?;
            }
        }
        // leaders that left their own group go last
        let mut joins: Vec<Member> = self.want.values().copied().collect();
        joins.sort_by_key(|m| groups.contains_key(&m.pid));
        for m in joins {
            if current(&self.world, m.pid) != Some(m.pgid) {
                self.step(TreeStep::Setpgid {
                    pid: m.pid,
                    pgid: m.pgid,
                })?;
            }
        }
        Ok(())
    }

    fn leave(&mut self) -> Result<()> {
        for (adopter, helper, parent) in std::mem::take(&mut self.leaving).into_iter().rev() {
            if let Some(pid) = adopter {
                self.step(TreeStep::Subreaper { pid, on: true })?;
            }
            self.step(TreeStep::Leave(helper))?;
            if let Some(pid) = adopter {
                self.step(TreeStep::Subreaper { pid, on: false })?;
            }
            self.step(TreeStep::Reap {
                parent,
                child: helper,
            })?;
        }
        Ok(())
    }

    fn verify(&self) -> Result<()> {
        let is: BTreeMap<NsPid, Member> = self
            .world
            .members()
            .into_iter()
            .map(|m| (m.pid, m))
            .collect();
        for (pid, m) in &self.want {
            let root = *pid == self.root;
            match is.get(pid) {
                Some(i)
                    if i == m
                        || (root && i.ppid == NsPid(0) && Member { ppid: m.ppid, ..*i } == *m) => {}
                Some(i) => {
                    return Err(wrong(format!(
                        "task {pid} cannot be built: it would be {i:?}, not {m:?}"
                    )));
                }
                None => return Err(wrong(format!("task {pid} cannot be built"))),
            }
        }
        match is.keys().find(|p| !self.want.contains_key(p)) {
            Some(p) => Err(Error::bug("plan a tree", format!("helper {p} stays"))),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
