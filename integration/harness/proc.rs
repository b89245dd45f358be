//! What `/proc` tells about a process, made comparable.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt as _;

/// The state of one process as `/proc` shows it, without what must differ
/// after a restore (inode numbers of anonymous objects, counters, host pids).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Lines of `maps`: range, permissions, offset and path.
    pub maps: Vec<String>,
    /// Descriptor to what it is; equal anonymous objects get equal numbers.
    pub fds: BTreeMap<i32, String>,
    /// Fields of `status` that a restore must keep.
    pub status: BTreeMap<String, String>,
    /// The command line, as it stands in memory.
    pub cmdline: Vec<u8>,
    /// Names of the threads, by thread id in the innermost pid namespace.
    pub threads: BTreeMap<String, String>,
    /// Links: exe, cwd, root.
    pub links: BTreeMap<&'static str, String>,
}

const KEPT: &[&str] = &[
    "Name",
    "Umask",
    "Uid",
    "Gid",
    "Groups",
    "Threads",
    "ShdPnd",
    "SigPnd",
    "SigBlk",
    "SigIgn",
    "SigCgt",
    "CapInh",
    "CapPrm",
    "CapEff",
    "CapBnd",
    "CapAmb",
    "NoNewPrivs",
    "Seccomp",
    "Seccomp_filters",
    "THP_enabled",
];

/// Reads everything about `pid`.
///
/// # Panics
/// When the process is gone.
pub fn snapshot(pid: i32) -> Snapshot {
    let read = |name: &str| {
        fs::read_to_string(format!("/proc/{pid}/{name}"))
            .unwrap_or_else(|e| panic!("read /proc/{pid}/{name}: {e}"))
    };
    let status = read("status")
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(key, _)| KEPT.contains(key))
        .map(|(key, value)| (key.to_owned(), value.trim().to_owned()))
        .collect();
    let mut threads = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task"))
        .expect("list threads")
        .flatten()
    {
        let text = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        let field = |name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
                .map(|value| value.split_whitespace().last().unwrap_or("").to_owned())
                .unwrap_or_default()
        };
        threads.insert(field("NSpid"), field("Name"));
    }
    let link = |name: &'static str| {
        let target = fs::read_link(format!("/proc/{pid}/{name}"));
        (
            name,
            target.map(|t| t.display().to_string()).unwrap_or_default(),
        )
    };
    Snapshot {
        maps: maps(pid),
        fds: fds(pid),
        status,
        cmdline: fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default(),
        threads,
        links: [link("exe"), link("cwd"), link("root")].into(),
    }
}

/// The areas of `pid`: range, permissions, offset, path; without device and
/// inode, which another host gives anew.
pub fn maps(pid: i32) -> Vec<String> {
    fs::read_to_string(format!("/proc/{pid}/maps"))
        .unwrap_or_else(|e| panic!("read /proc/{pid}/maps: {e}"))
        .lines()
        .map(|line| {
            let mut words = line.split_whitespace();
            let (range, perms, offset) = (words.next(), words.next(), words.next());
            let path = words.skip(2).collect::<Vec<_>>().join(" ");
            format!(
                "{} {} {} {path}",
                range.unwrap_or(""),
                perms.unwrap_or(""),
                offset.unwrap_or("")
            )
        })
        .collect()
}

/// The descriptors of `pid`; inode numbers of anonymous objects are replaced by
/// numbers in the order of appearance, so that sharing still shows.
pub fn fds(pid: i32) -> BTreeMap<i32, String> {
    let mut links = BTreeMap::new();
    let dir = format!("/proc/{pid}/fd");
    for entry in fs::read_dir(&dir)
        .unwrap_or_else(|e| panic!("list {dir}: {e}"))
        .flatten()
    {
        let Some(fd) = entry
            .file_name()
            .to_str()
            .and_then(|n| n.parse::<i32>().ok())
        else {
            continue;
        };
        if let Ok(target) = fs::read_link(entry.path()) {
            links.insert(fd, target.display().to_string());
        }
    }
    let mut known: Vec<String> = Vec::new();
    links
        .into_iter()
        .map(|(fd, target)| match target.split_once(":[") {
            Some((kind, _)) => {
                let number = known.iter().position(|k| *k == target).unwrap_or_else(|| {
                    known.push(target.clone());
                    known.len() - 1
                });
                (fd, format!("{kind} {number}"))
            }
            None => (fd, target),
        })
        .collect()
}

/// One field of `/proc/PID/status`.
pub fn status_field(pid: i32, field: &str) -> Option<String> {
    fs::read_to_string(format!("/proc/{pid}/status"))
        .ok()?
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
        .map(|value| value.trim().to_owned())
}

/// `len` bytes of `pid`'s memory at `address`, read from outside.
///
/// # Errors
/// Those of `/proc/PID/mem`: EIO over pages that have not arrived yet.
pub fn read_memory(pid: i32, address: u64, len: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    fs::File::open(format!("/proc/{pid}/mem"))?.read_exact_at(&mut bytes, address)?;
    Ok(bytes)
}

/// `pid` and everything below it.
pub fn descendants(pid: i32) -> Vec<i32> {
    let mut all = vec![pid];
    let mut next = 0;
    while next < all.len() {
        let tasks = fs::read_dir(format!("/proc/{}/task", all[next]));
        for task in tasks.into_iter().flatten().flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            all.extend(
                children
                    .split_whitespace()
                    .filter_map(|c| c.parse::<i32>().ok()),
            );
        }
        next += 1;
    }
    all
}
