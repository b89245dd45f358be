//! Which descriptors are the same open file description.
//!
//! Candidates are told apart by what stat(2) and fdinfo say; those that look
//! alike (all eventfds share one inode) are kept in the order that kcmp(2)
//! gives, so that finding one takes a logarithm of comparisons.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::os::fd::RawFd;

use crate::base::{HostPid, Result};
use crate::sys::kcmp;

/// A descriptor in a task, or (with our own pid) one of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spot {
    /// The task.
    pub pid: HostPid,
    /// Its descriptor.
    pub fd: RawFd,
}

/// What two descriptors of one description have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Look {
    /// st_dev.
    pub dev: u64,
    /// st_ino.
    pub ino: u64,
    /// Position.
    pub pos: u64,
    /// Status flags.
    pub flags: u32,
}

/// Ids of open file descriptions, from 1.
#[derive(Debug, Default)]
pub(super) struct Identities {
    alike: BTreeMap<Look, Vec<(Spot, u32)>>,
    last: u32,
}

impl Identities {
    /// An id that belongs to no descriptor of a table.
    pub(super) fn fresh(&mut self) -> u32 {
        self.last += 1;
        self.last
    }

    /// The id of the description behind `spot`, and whether it was not known.
    ///
    /// # Errors
    /// Those of kcmp(2).
    pub(super) fn id(&mut self, look: Look, spot: Spot) -> Result<(u32, bool)> {
        let compare =
            |a: Spot, b: Spot| -> Result<Ordering> { kcmp::file((a.pid, a.fd), (b.pid, b.fd)) };
        self.id_by(look, spot, compare)
    }

    fn id_by(
        &mut self,
        look: Look,
        spot: Spot,
        mut compare: impl FnMut(Spot, Spot) -> Result<Ordering>,
    ) -> Result<(u32, bool)> {
        let list = self.alike.entry(look).or_default();
        let (mut low, mut high) = (0, list.len());
        while low < high {
            let middle = low + (high - low) / 2;
            match compare(list[middle].0, spot)? {
                Ordering::Equal => return Ok((list[middle].1, false)),
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
            }
        }
        self.last += 1;
        list.insert(low, (spot, self.last));
        Ok((self.last, true))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn equal_files_get_one_id_and_different_ones_two(files in prop::collection::vec(0i32..40, 1..200)) {
            let mut ids = Identities::default();
            let look = Look { dev: 1, ino: 2, pos: 0, flags: 0 };
            let mut seen = BTreeMap::new();
            for file in files {
                // The order of the kernel is arbitrary but fixed.
                let rank = |s: Spot| (s.fd.wrapping_mul(7919)) % 101;
                let spot = Spot { pid: HostPid(1), fd: file };
                let (id, new) = ids
                    .id_by(look, spot, |a, b| Ok(rank(a).cmp(&rank(b))))
                    .unwrap();
                match seen.insert(file, id) {
                    None => prop_assert!(new),
                    Some(before) => prop_assert_eq!((before, new), (id, false)),
                }
            }
            let distinct: std::collections::BTreeSet<_> = seen.values().collect();
            prop_assert_eq!(distinct.len(), seen.len());
        }
    }

    #[test]
    fn a_duplicate_is_found_among_many_alike() {
        use std::os::fd::AsRawFd;
        let me = HostPid(i32::try_from(std::process::id()).unwrap());
        let look = Look {
            dev: 0,
            ino: 0,
            pos: 0,
            flags: 0,
        };
        let files: Vec<_> = (0..50)
            .map(|_| crate::sys::fdops::eventfd(0).unwrap())
            .collect();
        let mut ids = Identities::default();
        let mut id = |fd: RawFd| ids.id(look, Spot { pid: me, fd }).unwrap();
        let first: Vec<_> = files.iter().map(|f| id(f.as_raw_fd())).collect();
        assert!(first.iter().all(|(_, new)| *new));
        for (file, (known, _)) in files.iter().zip(first) {
            let twin = file.try_clone().unwrap();
            assert_eq!(id(twin.as_raw_fd()), (known, false));
        }
    }
}
