use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::super::world::World;
use super::{Member, TreeStep, plan};
use crate::base::NsPid;

const OUTER: (NsPid, NsPid) = (NsPid(0), NsPid(0));

fn m(pid: i32, ppid: i32, pgid: i32, sid: i32) -> Member {
    Member {
        pid: NsPid(pid),
        ppid: NsPid(ppid),
        pgid: NsPid(pgid),
        sid: NsPid(sid),
        zombie: false,
    }
}

fn steps(members: &[Member]) -> Vec<String> {
    plan(members, OUTER, &BTreeSet::new())
        .unwrap()
        .steps
        .iter()
        .map(TreeStep::to_string)
        .collect()
}

#[test]
fn a_child_in_the_session_that_its_parent_left_is_forked_before() {
    assert_eq!(
        steps(&[m(1, 0, 1, 1), m(2, 1, 2, 2), m(3, 2, 1, 1)]),
        [
            "task 1 makes a session",
            "task 1 forks 2",
            "task 2 forks 3",
            "task 2 makes a session",
        ]
    );
}

#[test]
fn a_dead_session_leader_gets_a_stand_in() {
    assert_eq!(
        steps(&[m(1, 0, 1, 1), m(9, 1, 7, 7)]),
        [
            "task 1 makes a session",
            "task 1 forks 7",
            "task 7 makes a session",
            "task 7 forks 10",
            "task 10 forks 9",
            "task 1 adopts orphans",
            "helper 10 exits",
            "task 1 adopts no more",
            "task 7 waits for helper 10",
            "helper 7 exits",
            "task 1 waits for helper 7",
        ]
    );
}

#[test]
fn contradictory_trees_are_refused() {
    let refused = |t: &[Member], word: &str| {
        let e = plan(t, OUTER, &BTreeSet::new()).unwrap_err().to_string();
        assert!(e.contains(word), "{e}");
    };
    refused(&[m(1, 0, 1, 1), m(1, 0, 1, 1)], "twice");
    refused(&[m(1, 0, 1, 1), m(2, 0, 2, 2)], "outside");
    refused(&[m(1, 0, 1, 1), m(2, 3, 2, 2), m(3, 2, 3, 3)], "ring");
    refused(&[], "no root");
    refused(&[m(1, 0, 1, 5)], "outside");
    refused(&[m(1, 0, 1, 1), m(2, 1, 1, 0)], "no group");
    refused(&[m(-4, 0, 1, 1)], "no pid");
}

/// What a tree of programs may do; numbers choose among the living.
#[derive(Debug, Clone)]
enum Act {
    Fork(usize),
    Setsid(usize),
    Setpgid(usize, usize),
    Subreaper(usize),
    Exit(usize, bool),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        5 => any::<usize>().prop_map(Act::Fork),
        2 => any::<usize>().prop_map(Act::Setsid),
        2 => any::<(usize, usize)>().prop_map(|(a, b)| Act::Setpgid(a, b)),
        1 => any::<usize>().prop_map(Act::Subreaper),
        3 => any::<(usize, bool)>().prop_map(|(a, b)| Act::Exit(a, b)),
    ];
    proptest::collection::vec(act, 0..60)
}

/// Lets the programs run; an act that the kernel refuses does not happen.
fn live(acts: &[Act]) -> World {
    let mut w = World::new(NsPid(1), OUTER.0, OUTER.1);
    w.setsid(NsPid(1)).unwrap();
    let mut next = 2;
    for act in acts {
        let living: Vec<NsPid> = w
            .procs
            .iter()
            .filter(|(_, p)| !p.zombie)
            .map(|(pid, _)| *pid)
            .collect();
        let pick = |i: usize| living[i % living.len()];
        match act {
            Act::Fork(i) => {
                w.fork(pick(*i), NsPid(next)).unwrap();
                next += 1;
            }
            Act::Setsid(i) => drop(w.setsid(pick(*i))),
            Act::Setpgid(i, j) => {
                let to = w.procs[&pick(*j)].pgid;
                let to = if j % 3 == 0 { pick(*i) } else { to };
                drop(w.setpgid(pick(*i), to));
            }
            Act::Subreaper(i) => drop(w.subreaper(pick(*i), true)),
            Act::Exit(i, reap) => {
                let pid = pick(*i);
                if w.exit(pid).is_ok() && *reap {
                    let parent = w.procs[&pid].ppid;
                    drop(w.reap(parent, pid));
                }
            }
        }
    }
    w
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// plan() simulates its own steps and compares; a plan that it returns is
    /// right by construction, so the property is that there is one.
    #[test]
    fn every_tree_that_programs_can_make_has_a_plan_or_is_refused_by_name(acts in acts()) {
        let want = live(&acts).members();
        match plan(&want, OUTER, &BTreeSet::new()) {
            Ok(tree) => {
                let mut w = World::new(NsPid(1), OUTER.0, OUTER.1);
                for s in &tree.steps {
                    prop_assert_eq!(w.take(*s), Ok(()));
                }
                prop_assert_eq!(w.members(), want);
            }
            Err(e) => {
                let e = e.to_string();
                prop_assert!(
                    e.contains("unrelated places") || e.contains("not below it"),
                    "{}", e
                );
            }
        }
    }

    /// Whatever numbers the kernel gives to helpers that need none: it is the same
    /// tree in the end.
    #[test]
    fn helpers_that_need_no_number_may_have_any(acts in acts(), first in 1000..30000, down: bool) {
        let want = live(&acts).members();
        let Ok(tree) = plan(&want, OUTER, &BTreeSet::new()) else {
            return Ok(());
        };
        let needed: BTreeSet<NsPid> = want.iter().flat_map(|m| [m.pid, m.pgid, m.sid]).collect();
        prop_assert!(tree.unnumbered.is_disjoint(&needed));
        let numbers: BTreeMap<NsPid, NsPid> = tree
            .unnumbered
            .iter()
            .zip(0..)
            .map(|(name, n)| (*name, NsPid(if down { first - n } else { first + n })))
            .collect();
        let real = |pid: NsPid| numbers.get(&pid).copied().unwrap_or(pid);
        let mut w = World::new(NsPid(1), OUTER.0, OUTER.1);
        for step in &tree.steps {
            let step = match *step {
                TreeStep::Fork { parent, child } => {
                    let known = needed.contains(&child) || tree.unnumbered.contains(&child);
                    prop_assert!(known, "{} is nobody", child);
                    TreeStep::Fork { parent: real(parent), child: real(child) }
                }
                TreeStep::Leave(pid) => TreeStep::Leave(real(pid)),
                TreeStep::Reap { parent, child } => {
                    TreeStep::Reap { parent: real(parent), child: real(child) }
                }
                // these give a number to a session or a group, or are for tasks that stay
                TreeStep::Setsid(pid) | TreeStep::Setpgid { pid, .. } => {
                    prop_assert!(!tree.unnumbered.contains(&pid));
                    *step
                }
                TreeStep::Subreaper { .. } | TreeStep::Die(_) => *step,
            };
            prop_assert_eq!(w.take(step), Ok(()));
        }
        prop_assert_eq!(w.members(), want);
    }

    #[test]
    fn garbage_never_panics(raw in proptest::collection::vec(any::<(i8, i8, i8, i8, bool)>(), 0..12)) {
        let members: Vec<Member> = raw
            .iter()
            .map(|r| Member { zombie: r.4, ..m(r.0.into(), r.1.into(), r.2.into(), r.3.into()) })
            .collect();
        drop(plan(&members, OUTER, &BTreeSet::new()));
    }
}

#[test]
fn nearly_all_trees_have_a_plan() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let all = 2000;
    let refused = (0..all)
        .filter(|_| {
            let acts = acts().new_tree(&mut runner).unwrap().current();
            plan(&live(&acts).members(), OUTER, &BTreeSet::new()).is_err()
        })
        .count();
    assert!(refused * 50 < all, "{refused} of {all} trees refused");
}
