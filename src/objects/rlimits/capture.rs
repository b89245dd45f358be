//! Resource limits from /proc/PID/limits: prlimit(2) on a task of another uid
//! needs CAP_SYS_RESOURCE, reading that file does not.

use crate::base::{Error, HostPid, Result};
use crate::image::records::{RlimitEntry, TaskRlimitsEntry};
use crate::sys::procfs;

/// The file's names, in the order of the kernel's RLIMIT_ numbers.
const NAMES: [&str; 16] = [
    "Max cpu time",
    "Max file size",
    "Max data size",
    "Max stack size",
    "Max core file size",
    "Max resident set",
    "Max processes",
    "Max open files",
    "Max locked memory",
    "Max address space",
    "Max file locks",
    "Max pending signals",
    "Max msgqueue size",
    "Max nice priority",
    "Max realtime priority",
    "Max realtime timeout",
];

/// All limits of a process.
///
/// # Errors
/// If the file lacks one.
pub fn record(pid: HostPid) -> Result<TaskRlimitsEntry> {
    let raw = procfs::file(pid, "limits")?;
    parse(&String::from_utf8_lossy(&raw)).ok_or_else(|| {
        Error::bug(
            format!("parse /proc/{pid}/limits"),
            "a limit is missing or unreadable",
        )
    })
}

fn parse(text: &str) -> Option<TaskRlimitsEntry> {
    let value = |s: &str| {
        if s == "unlimited" {
            Some(u64::MAX)
        } else {
            s.parse().ok()
        }
    };
    let rlimits = NAMES
        .iter()
        .map(|name| {
            let line = text.lines().find_map(|l| l.strip_prefix(name))?;
            let mut words = line.split_ascii_whitespace();
            Some(RlimitEntry {
                cur: value(words.next()?)?,
                max: value(words.next()?)?,
            })
        })
        .collect::<Option<Vec<_>>>()?;
    Some(TaskRlimitsEntry { rlimits })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_limits_parse_and_are_those_of_getrlimit() {
        let me = HostPid(i32::try_from(std::process::id()).unwrap());
        let all = record(me).unwrap().rlimits;
        let (soft, hard) =
            nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
        assert_eq!((all[7].cur, all[7].max), (soft, hard));
    }
}
