//! Files that a container may change without a trace in their times: writing to a
//! page of a shared mapping that is dirty already changes none of them.

use std::collections::BTreeSet;

use crate::base::HostPid;
use crate::sys::{procfs, procmap};

/// Inode numbers of the files that the task `init`, and all below it, have mapped
/// shared and may have written to. A file that was opened for reading only is not
/// among them: a program's archive of code, often most of a bundle, is mapped so.
pub(super) fn written(init: HostPid) -> BTreeSet<u64> {
    let mut inodes = BTreeSet::new();
    for pid in procfs::tree(init) {
        // A task that has just ended maps nothing.
        let maps = procfs::maps(pid).unwrap_or_default();
        for map in maps.iter().filter(|m| m.shared && m.ino != 0) {
            if !inodes.contains(&map.ino) && may_have_written(pid, map) {
                inodes.insert(map.ino);
            }
        }
    }
    inodes
}

fn may_have_written(pid: HostPid, map: &procfs::Map) -> bool {
    if map.prot & libc::PROT_WRITE != 0 {
        return true;
    }
    // Gone meanwhile, or not told: it may have written before.
    procmap::opened_for_writing(pid, map.range).unwrap_or(true)
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;

    use super::*;
    use crate::base::VAddr;
    use crate::sys::testing::Child;
    use crate::sys::vm;

    const READ: i32 = libc::PROT_READ;
    const WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;

    fn word(argument: i32) -> u64 {
        i64::from(argument).cast_unsigned()
    }

    /// Lets the child map a page of a file, opened with `flags`.
    fn map(child: &Child, path: &Path, flags: i32, prot: i32) -> u64 {
        let text = child.mmap(4096);
        let name = [path.as_os_str().as_bytes(), b"\0"].concat();
        vm::write(child.pid(), VAddr(text), &name).unwrap();
        let args = [word(libc::AT_FDCWD), text, word(flags), 0, 0];
        let fd = child.call(libc::SYS_openat, args);
        assert!(fd >= 0, "open: {fd}");
        let args = [
            0,
            4096,
            word(prot),
            word(libc::MAP_SHARED),
            fd.cast_unsigned(),
        ];
        let at = child.call(libc::SYS_mmap, args);
        assert!(at > 0, "mmap: {at}");
        at.cast_unsigned()
    }

    #[test]
    fn a_file_is_listed_if_what_has_it_mapped_could_ever_write_to_it() {
        let made = [(); 3].map(|()| tempfile::NamedTempFile::new().unwrap());
        for file in &made {
            file.as_file().set_len(4096).unwrap();
        }
        let child = Child::fork();
        map(&child, made[0].path(), libc::O_RDONLY, READ);
        map(&child, made[1].path(), libc::O_RDWR, WRITE);
        // written to, and then protected
        let at = map(&child, made[2].path(), libc::O_RDWR, WRITE);
        child.fill(at, 4096, 7);
        child.mprotect(at, 4096, READ);
        let listed = written(child.pid());
        let found = made.map(|file| listed.contains(&file.as_file().metadata().unwrap().ino()));
        assert_eq!(found, [false, true, true]);
    }
}
