//! Guard pages in a process that runs: only the process itself can make them.

use std::time::Duration;

use super::freeze::borrow;
use crate::base::{Error, HostPid, PageRange, Result};
use crate::sys::{procfs, steer};

/// madvise(2) advice that makes guard pages.
const MADV_GUARD_INSTALL: u64 = 102;
/// How long a thread may take to stop.
const PATIENCE: Duration = Duration::from_millis(100);

/// Makes `range` guard pages in the running process `pid`; what is in the pages is
/// lost. `false` when no thread of it stops: all wait in the kernel for somebody.
///
/// # Errors
/// ESRCH if the process is gone; the call's errno.
pub fn make(pid: HostPid, range: PageRange) -> Result<bool> {
    let maps = procfs::maps(pid)?;
    let vdso = maps.iter().find(|m| m.name == "[vdso]");
    let vdso = vdso.ok_or_else(|| Error::refused(format!("task {pid}"), "it has no vdso"))?;
    let insn = steer::find_syscall(pid, vdso.range)?;
    let args = [range.start(), range.len(), MADV_GUARD_INSTALL];
    let done = borrow(pid, PATIENCE, |task| {
        steer::once(task, insn, libc::SYS_madvise, &args)
    })?;
    match done.map(i32::try_from) {
        None => Ok(false),
        Some(Ok(0)) => Ok(true),
        Some(errno) => Err(Error::errno(
            format!("madvise {range} of task {pid} as guard pages"),
            errno.map_or(libc::EINVAL, |e| -e),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::SpaceId;
    use crate::memory::held::Space;
    use crate::sys::testing::Child;

    #[test]
    fn a_process_that_runs_gets_guard_pages_and_notices_nothing() {
        let child = Child::fork();
        let at = child.mmap(8 * 4096);
        child.fill(at, 8 * 4096, 7);
        let range = PageRange::with_pages(at + 4096, 2).unwrap();
        assert!(make(child.pid(), range).unwrap());
        let area = PageRange::with_pages(at, 8).unwrap();
        let guards = Space::open(SpaceId(1), child.pid()).unwrap().guards(area);
        assert_eq!(guards.unwrap(), [range]);
        assert_eq!(child.sum(at + 3 * 4096, 5 * 4096), 7 * 5 * 4096);
    }

    #[test]
    fn memory_that_is_not_there_is_no_guard_page() {
        let child = Child::fork();
        let at = child.mmap(4096);
        child.call(libc::SYS_munmap, [at, 4096, 0, 0, 0]);
        let e = make(child.pid(), PageRange::with_pages(at, 1).unwrap()).unwrap_err();
        assert_eq!(e.raw_os_error(), Some(libc::ENOMEM));
    }
}
