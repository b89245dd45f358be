//! Seccomp filters. The kernel shows each thread's chain, newest first; the
//! image holds every chain once, oldest first, each filter naming the one before.

use crate::base::Result;
use crate::image::records::{SeccompEntry, SeccompFilter};
use crate::sys::ptrace::Stopped;

/// Collects the filters of a whole tree.
#[derive(Debug, Default)]
pub struct Filters {
    filters: Vec<SeccompFilter>,
}

impl Filters {
    /// Reads the chain of a thread; returns the index of its newest filter.
    ///
    /// # Errors
    /// EACCES without CAP_SYS_ADMIN.
    pub fn chain(&mut self, task: &Stopped) -> Result<Option<u32>> {
        let mut chain = Vec::new();
        while let Some(code) = task.seccomp_filter(chain.len())? {
            let flags = task.seccomp_flags(chain.len() as u64)?;
            chain.push((code, u32::try_from(flags).unwrap_or(0)));
        }
        let mut prev = None;
        for (filter, flags) in chain.into_iter().rev() {
            let entry = SeccompFilter {
                filter,
                prev,
                flags: Some(flags),
            };
            let at = self
                .filters
                .iter()
                .position(|f| *f == entry)
                .unwrap_or_else(|| {
                    self.filters.push(entry);
                    self.filters.len() - 1
                });
            prev = u32::try_from(at).ok();
        }
        Ok(prev)
    }

    /// All filters as a record.
    pub fn record(self) -> SeccompEntry {
        SeccompEntry {
            seccomp_filters: self.filters,
        }
    }
}
