//! The whole restore as a list, to be printed.

use std::fmt;

use super::Plan;
use super::tree::TreeStep;
use crate::base::NsPid;

/// One step, in the order in which [`crate::engine::apply`] takes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The root is cloned, in its namespaces, and emptied.
    Root(NsPid),
    /// A step in making the tree.
    Tree(TreeStep),
    /// Directories and descriptors of a task.
    Files(NsPid),
    /// Its areas are mapped and filled: how many, and how many pages.
    Memory {
        /// Which task.
        pid: NsPid,
        /// Areas.
        areas: usize,
        /// Pages in the image.
        pages: u64,
    },
    /// Its other threads are made.
    Threads(NsPid, usize),
    /// What it is: names, signals, filters, credentials, limits, timers.
    Attributes(NsPid),
    /// Registers and masks; the call loop goes.
    Registers(NsPid),
    /// All are let go.
    Resume,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root(p) => write!(f, "clone the root, task {p}, and empty it"),
            Self::Tree(t) => t.fmt(f),
            Self::Files(p) => write!(f, "task {p} gets directories and descriptors"),
            Self::Memory { pid, areas, pages } => {
                write!(f, "task {pid} maps {areas} areas, {pages} pages are filled")
            }
            Self::Threads(p, n) => write!(f, "task {p} makes {n} threads"),
            Self::Attributes(p) => {
                write!(
                    f,
                    "task {p} gets names, signals, filters, credentials, limits, timers"
                )
            }
            Self::Registers(p) => write!(f, "task {p} gets its registers"),
            Self::Resume => f.write_str("all go on"),
        }
    }
}

impl Plan {
    /// The plan as a list.
    pub fn steps(&self) -> Vec<Step> {
        let living = || {
            self.tasks
                .values()
                .filter_map(|t| t.body.as_ref().map(|b| (t.pid, b)))
        };
        let mut steps = vec![Step::Root(self.tree.root)];
        steps.extend(self.tree.steps.iter().copied().map(Step::Tree));
        for (pid, body) in living() {
            steps.push(Step::Files(pid));
            steps.push(Step::Memory {
                pid,
                areas: body.space.areas.len(),
                pages: body
                    .pages
                    .iter()
                    .flat_map(|p| p.runs())
                    .map(|r| r.range.pages())
                    .sum(),
            });
            if body.threads.len() > 1 {
                steps.push(Step::Threads(pid, body.threads.len() - 1));
            }
        }
        steps.extend(living().map(|(pid, _)| Step::Attributes(pid)));
        steps.extend(living().map(|(pid, _)| Step::Registers(pid)));
        steps.push(Step::Resume);
        steps
    }
}
