//! What /proc tells of a task, parsed: proc(5). All of it is read as bytes and
//! checked; a line that does not parse is an error that quotes it.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use crate::base::{Error, HostPid, PAGE_SIZE, PageRange, Result};

/// `/proc/PID/stat`, the fields that we use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stat {
    /// Process id.
    pub pid: i32,
    /// Name, up to 15 bytes.
    pub comm: Vec<u8>,
    /// `R`, `S`, `D`, `T`, `t`, `Z`, ...
    pub state: u8,
    /// Parent.
    pub ppid: i32,
    /// Process group.
    pub pgrp: i32,
    /// Session.
    pub sid: i32,
    /// Controlling terminal, 0 for none.
    pub tty_nr: i32,
    /// Foreground group of the terminal.
    pub tpgid: i32,
    /// `PF_*` flags of the kernel.
    pub flags: u64,
    /// Static priority.
    pub nice: i64,
    /// Threads in the group.
    pub threads: u64,
    /// Start time, clock ticks since boot: with the pid, an identity.
    pub start_time: u64,
    /// Memory that is present, bytes, about right.
    pub resident: u64,
    /// Code start and end.
    pub start_code: u64,
    /// Code end.
    pub end_code: u64,
    /// Bottom of the stack.
    pub start_stack: u64,
    /// Data start and end.
    pub start_data: u64,
    /// Data end.
    pub end_data: u64,
    /// Heap start.
    pub start_brk: u64,
    /// Arguments start.
    pub arg_start: u64,
    /// Arguments end.
    pub arg_end: u64,
    /// Environment start.
    pub env_start: u64,
    /// Environment end.
    pub env_end: u64,
    /// Wait status of a zombie.
    pub exit_code: i32,
}

/// `/proc/PID/status`, the fields that we use. Masks have bit n-1 for signal n.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// File mode creation mask.
    pub umask: u32,
    /// Process ids from the outermost namespace that we see to the innermost.
    pub ns_tgid: Vec<i32>,
    /// Thread ids likewise.
    pub ns_pid: Vec<i32>,
    /// Process group ids likewise.
    pub ns_pgid: Vec<i32>,
    /// Session ids likewise.
    pub ns_sid: Vec<i32>,
    /// Who traces it, 0 for nobody.
    pub tracer: i32,
    /// Real, effective, saved, file system uid.
    pub uids: [u32; 4],
    /// Real, effective, saved, file system gid.
    pub gids: [u32; 4],
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Inheritable capabilities.
    pub cap_inh: u64,
    /// Permitted capabilities.
    pub cap_prm: u64,
    /// Effective capabilities.
    pub cap_eff: u64,
    /// Bounding set.
    pub cap_bnd: u64,
    /// Ambient capabilities.
    pub cap_amb: u64,
    /// no_new_privs.
    pub no_new_privs: bool,
    /// 0 off, 1 strict, 2 filter.
    pub seccomp: u32,
    /// Filters installed.
    pub seccomp_filters: u32,
    /// Blocked signals: those of the moment, not those that a call with a mask
    /// of its own (sigsuspend(2), ppoll(2)) will put back.
    pub sig_blk: u64,
    /// Ignored signals.
    pub sig_ign: u64,
    /// Caught signals.
    pub sig_cgt: u64,
    /// Pending for the process.
    pub shd_pnd: u64,
    /// Pending for the thread.
    pub sig_pnd: u64,
    /// Locked memory, KiB.
    pub locked_kib: u64,
}

/// One line of `/proc/PID/maps`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Map {
    /// Where.
    pub range: PageRange,
    /// PROT_READ | PROT_WRITE | PROT_EXEC.
    pub prot: i32,
    /// MAP_SHARED rather than MAP_PRIVATE.
    pub shared: bool,
    /// Offset into the file, bytes.
    pub offset: u64,
    /// Device of the file: major, minor.
    pub dev: (u32, u32),
    /// Inode, 0 for none.
    pub ino: u64,
    /// Path, `[heap]`, `[vdso]`, ..., or empty. Escapes undone.
    pub name: String,
    /// The two-letter words of smaps' VmFlags; empty when read from maps.
    pub flags: Vec<[u8; 2]>,
}

impl Map {
    /// Whether VmFlags holds this word (only after [`smaps`]).
    pub fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|f| f == flag.as_bytes())
    }
}

/// The code of the vDSO among the areas of a task.
///
/// # Errors
/// It has none.
pub fn vdso(pid: HostPid, maps: &[Map]) -> Result<PageRange> {
    let found = maps.iter().find(|m| m.name == "[vdso]");
    found
        .map(|m| m.range)
        .ok_or_else(|| Error::refused(format!("task {pid}"), "it has no vdso"))
}

fn read(pid: HostPid, what: &str) -> Result<Vec<u8>> {
    let path = format!("/proc/{pid}/{what}");
    fs::read(&path).map_err(|e| Error::os(format!("read {path}"), e))
}

fn bad(pid: HostPid, what: &str, line: &[u8]) -> Error {
    Error::bug(
        format!("parse /proc/{pid}/{what}"),
        format!("unexpected {:?}", String::from_utf8_lossy(line)),
    )
}

/// Reads `/proc/PID/stat`.
///
/// # Errors
/// ENOENT or ESRCH when there is no such task.
pub fn stat(pid: HostPid) -> Result<Stat> {
    let raw = read(pid, "stat")?;
    parse_stat(&raw).ok_or_else(|| bad(pid, "stat", &raw))
}

fn parse_stat(raw: &[u8]) -> Option<Stat> {
    let open = raw.iter().position(|b| *b == b'(')?;
    let close = raw.iter().rposition(|b| *b == b')')?;
    let pid = std::str::from_utf8(raw.get(..open)?)
        .ok()?
        .trim()
        .parse()
        .ok()?;
    let rest = std::str::from_utf8(raw.get(close + 1..)?).ok()?;
    let f: Vec<&str> = rest.split_ascii_whitespace().collect();
    // field numbers of proc(5) start at 1; f[0] is field 3
    let n = |field: usize| -> Option<u64> { f.get(field - 3)?.parse().ok() };
    let i = |field: usize| -> Option<i32> { f.get(field - 3)?.parse().ok() };
    Some(Stat {
        pid,
        comm: raw.get(open + 1..close)?.to_vec(),
        state: *f.first()?.as_bytes().first()?,
        ppid: i(4)?,
        pgrp: i(5)?,
        sid: i(6)?,
        tty_nr: i(7)?,
        tpgid: i(8)?,
        flags: n(9)?,
        nice: f.get(19 - 3)?.parse().ok()?,
        threads: n(20)?,
        start_time: n(22)?,
        resident: n(24)?.saturating_mul(PAGE_SIZE),
        start_code: n(26)?,
        end_code: n(27)?,
        start_stack: n(28)?,
        start_data: n(45)?,
        end_data: n(46)?,
        start_brk: n(47)?,
        arg_start: n(48)?,
        arg_end: n(49)?,
        env_start: n(50)?,
        env_end: n(51)?,
        exit_code: i(52)?,
    })
}

/// Reads `/proc/PID/status`.
///
/// # Errors
/// ENOENT or ESRCH when there is no such task.
pub fn status(pid: HostPid) -> Result<Status> {
    thread_status(pid, pid)
}

/// Reads `/proc/PID/task/TID/status`.
///
/// # Errors
/// ENOENT or ESRCH when there is no such thread.
pub fn thread_status(pid: HostPid, tid: HostPid) -> Result<Status> {
    let what = format!("task/{tid}/status");
    let raw = read(pid, &what)?;
    parse_status(&String::from_utf8_lossy(&raw)).ok_or_else(|| bad(pid, &what, &raw))
}

fn parse_status(text: &str) -> Option<Status> {
    let mut s = Status::default();
    let hex = |v: &str| u64::from_str_radix(v, 16).ok();
    let four = |v: &str| -> Option<[u32; 4]> {
        let v: Vec<u32> = v
            .split_ascii_whitespace()
            .filter_map(|x| x.parse().ok())
            .collect();
        v.try_into().ok()
    };
    let ids = |v: &str| {
        v.split_ascii_whitespace()
            .filter_map(|x| x.parse().ok())
            .collect::<Vec<i32>>()
    };
    for line in text.lines() {
        let Some((key, v)) = line.split_once(':') else {
            continue;
        };
        let v = v.trim();
        match key {
            "Umask" => s.umask = u32::from_str_radix(v, 8).ok()?,
            "NStgid" => s.ns_tgid = ids(v),
            "NSpid" => s.ns_pid = ids(v),
            "NSpgid" => s.ns_pgid = ids(v),
            "NSsid" => s.ns_sid = ids(v),
            "TracerPid" => s.tracer = v.parse().ok()?,
            "Uid" => s.uids = four(v)?,
            "Gid" => s.gids = four(v)?,
            "Groups" => {
                s.groups = v
                    .split_ascii_whitespace()
                    .filter_map(|x| x.parse().ok())
                    .collect()
            }
            "CapInh" => s.cap_inh = hex(v)?,
            "CapPrm" => s.cap_prm = hex(v)?,
            "CapEff" => s.cap_eff = hex(v)?,
            "CapBnd" => s.cap_bnd = hex(v)?,
            "CapAmb" => s.cap_amb = hex(v)?,
            "NoNewPrivs" => s.no_new_privs = v == "1",
            "Seccomp" => s.seccomp = v.parse().ok()?,
            "Seccomp_filters" => s.seccomp_filters = v.parse().ok()?,
            "SigBlk" => s.sig_blk = hex(v)?,
            "SigIgn" => s.sig_ign = hex(v)?,
            "SigCgt" => s.sig_cgt = hex(v)?,
            "ShdPnd" => s.shd_pnd = hex(v)?,
            "SigPnd" => s.sig_pnd = hex(v)?,
            "VmLck" => s.locked_kib = v.strip_suffix(" kB")?.parse().ok()?,
            _ => {}
        }
    }
    Some(s)
}

/// Thread ids of a process, as we see them, in the kernel's order (oldest first).
///
/// # Errors
/// ENOENT when the process is gone.
pub fn threads(pid: HostPid) -> Result<Vec<HostPid>> {
    let path = format!("/proc/{pid}/task");
    let mut tids = Vec::new();
    for entry in fs::read_dir(&path).map_err(|e| Error::os(format!("read {path}"), e))? {
        let entry = entry.map_err(|e| Error::os(format!("read {path}"), e))?;
        if let Some(tid) = entry.file_name().to_str().and_then(|s| s.parse().ok()) {
            tids.push(HostPid(tid));
        }
    }
    Ok(tids)
}

/// Children of a process: those of every thread of it.
///
/// # Errors
/// ENOENT when the process is gone.
pub fn children(pid: HostPid) -> Result<Vec<HostPid>> {
    let mut all = Vec::new();
    for tid in threads(pid)? {
        let raw = match read(pid, &format!("task/{tid}/children")) {
            Ok(raw) => raw,
            // a thread that ended between listing and reading
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => continue,
            Err(e) => return Err(e),
        };
        all.extend(
            String::from_utf8_lossy(&raw)
                .split_ascii_whitespace()
                .filter_map(|s| s.parse().ok())
                .map(HostPid),
        );
    }
    Ok(all)
}

/// All processes that /proc shows.
pub fn processes() -> BTreeSet<HostPid> {
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = all.filter_map(|e| e.file_name().to_str()?.parse().ok());
    numbers.map(HostPid).collect()
}

/// The pid that was given away last in our pid namespace: proc_loadavg(5).
pub fn last_pid() -> Option<i32> {
    let text = fs::read_to_string("/proc/loadavg").ok()?;
    text.split_ascii_whitespace().nth(4)?.parse().ok()
}

/// A process and all below it, parents first. The children of each are read when the
/// next one is asked for; those of one that has gone are not found.
pub fn tree(root: HostPid) -> impl Iterator<Item = HostPid> {
    let mut left = vec![root];
    let mut last = None;
    std::iter::from_fn(move || {
        left.extend(last.and_then(|pid| children(pid).ok()).unwrap_or_default());
        last = left.pop();
        last
    })
}

/// `/proc/PID/comm` without the newline.
///
/// # Errors
/// ENOENT or ESRCH when there is no such task.
pub fn comm(pid: HostPid) -> Result<String> {
    let raw = read(pid, "comm")?;
    Ok(String::from_utf8_lossy(raw.strip_suffix(b"\n").unwrap_or(&raw)).into_owned())
}

/// The name of one thread, without the newline.
///
/// # Errors
/// ENOENT or ESRCH when there is no such thread.
pub fn thread_comm(pid: HostPid, tid: HostPid) -> Result<String> {
    let raw = read(pid, &format!("task/{tid}/comm"))?;
    Ok(String::from_utf8_lossy(raw.strip_suffix(b"\n").unwrap_or(&raw)).into_owned())
}

/// Reads a symbolic link of `/proc/PID`, such as `exe` or `ns/mnt`.
///
/// # Errors
/// ENOENT when the task is gone (or, for `exe`, has no memory).
pub fn link(pid: HostPid, what: &str) -> Result<PathBuf> {
    let path = format!("/proc/{pid}/{what}");
    fs::read_link(&path).map_err(|e| Error::os(format!("readlink {path}"), e))
}

/// Reads a small file of `/proc/PID` as bytes.
///
/// # Errors
/// Whatever open(2) and read(2) say.
pub fn file(pid: HostPid, what: &str) -> Result<Vec<u8>> {
    read(pid, what)
}

/// Reads `/proc/PID/maps`.
///
/// # Errors
/// ENOENT or ESRCH when there is no such task.
pub fn maps(pid: HostPid) -> Result<Vec<Map>> {
    let raw = read(pid, "maps")?;
    raw.split(|b| *b == b'\n')
        .filter(|l| !l.is_empty())
        .map(|l| parse_map(l).ok_or_else(|| bad(pid, "maps", l)))
        .collect()
}

/// Reads `/proc/PID/smaps`: as [`maps`], with flags. Walks the page tables, so
/// it costs milliseconds per populated GiB: not inside a freeze.
///
/// # Errors
/// ENOENT or ESRCH when there is no such task.
pub fn smaps(pid: HostPid) -> Result<Vec<Map>> {
    let raw = read(pid, "smaps")?;
    let mut maps: Vec<Map> = Vec::new();
    for line in raw.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
        if let Some(flags) = line.strip_prefix(b"VmFlags:") {
            if let Some(last) = maps.last_mut() {
                last.flags = flags
                    .split(|b| *b == b' ')
                    .filter_map(|w| <[u8; 2]>::try_from(w).ok())
                    .collect();
            }
        } else if !line.first().is_some_and(u8::is_ascii_uppercase) {
            maps.push(parse_map(line).ok_or_else(|| bad(pid, "smaps", line))?);
        }
    }
    Ok(maps)
}

fn parse_map(line: &[u8]) -> Option<Map> {
    let text = String::from_utf8_lossy(line);
    let mut rest = text.as_ref();
    let mut word = || {
        let r = rest.trim_start_matches(' ');
        let (w, tail) = r.split_once(' ').unwrap_or((r, ""));
        rest = tail;
        w.to_owned()
    };
    let (range, perms, offset, dev, ino) = (word(), word(), word(), word(), word());
    let (start, end) = range.split_once('-')?;
    let hex = |s: &str| u64::from_str_radix(s, 16).ok();
    let (start, end) = (hex(start)?, hex(end)?);
    let p = perms.as_bytes();
    let mut prot = 0;
    for (at, letter, bit) in [
        (0, b'r', libc::PROT_READ),
        (1, b'w', libc::PROT_WRITE),
        (2, b'x', libc::PROT_EXEC),
    ] {
        if *p.get(at)? == letter {
            prot |= bit;
        }
    }
    let (major, minor) = dev.split_once(':')?;
    Some(Map {
        range: PageRange::new(start, end)?,
        prot,
        shared: *p.get(3)? == b's',
        offset: hex(&offset)?,
        dev: (
            u32::from_str_radix(major, 16).ok()?,
            u32::from_str_radix(minor, 16).ok()?,
        ),
        ino: ino.parse().ok()?,
        name: unescape(rest.trim_start_matches(' ')),
        flags: Vec::new(),
    })
}

/// Undoes the kernel's octal escapes (`\040`) in paths.
pub fn unescape(s: &str) -> String {
    if !s.contains('\\') {
        return s.to_owned();
    }
    let b = s.as_bytes();
    let mut out = Vec::with_capacity(b.len());
    let mut i = 0;
    while let Some(&c) = b.get(i) {
        let octal = (c == b'\\')
            .then(|| b.get(i + 1..i + 4))
            .flatten()
            .and_then(|d| std::str::from_utf8(d).ok())
            .and_then(|d| u8::from_str_radix(d, 8).ok());
        if let Some(v) = octal {
            out.push(v);
            i += 4;
        } else {
            out.push(c);
            i += 1;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// A free run of at least `len` bytes between the areas `taken` (any order),
/// away from the first 64 KiB and the top of user space.
pub fn find_hole(taken: &[PageRange], len: u64) -> Option<u64> {
    const FIRST: u64 = 0x10000;
    const LAST: u64 = 0x7fff_ffff_f000;
    // growing stacks keep a gap below them free
    const MARGIN: u64 = 256 * PAGE_SIZE;
    let mut taken: Vec<PageRange> = taken.to_vec();
    taken.sort_unstable();
    let mut at = FIRST;
    for t in taken {
        if t.start().saturating_sub(at) >= len + 2 * MARGIN {
            return Some(at + MARGIN);
        }
        at = at.max(t.end());
    }
    (LAST.saturating_sub(at) >= len + 2 * MARGIN).then_some(at + MARGIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_survives_a_comm_with_spaces_and_parentheses() {
        let tail: String = (4..=52).map(|n| format!(" {n}")).collect();
        let s = parse_stat(format!("12 (a) (b c) S{tail}\n").as_bytes()).unwrap();
        assert_eq!(
            (s.pid, s.comm.as_slice(), s.state),
            (12, b"a) (b c".as_slice(), b'S')
        );
        assert_eq!(
            (s.ppid, s.sid, s.start_time, s.arg_start, s.exit_code),
            (4, 6, 22, 48, 52)
        );
    }

    #[test]
    fn a_map_line_keeps_spaces_and_escapes_of_its_path() {
        let m = parse_map(b"7f00-8000 rw-s 00001000 fd:0a 77   /a b\\012c (deleted)");
        assert_eq!(m, None, "unaligned ranges are refused");
        let m = parse_map(b"7f000-80000 rw-s 00001000 fd:0a 77   /a b\\012c (deleted)").unwrap();
        assert_eq!(m.name, "/a b\nc (deleted)");
        assert_eq!(
            (m.prot, m.shared, m.offset, m.dev, m.ino),
            (3, true, 0x1000, (0xfd, 10), 77)
        );
    }

    #[test]
    fn own_smaps_and_maps_name_the_same_areas_and_flags_are_there() {
        let me = HostPid(i32::try_from(std::process::id()).unwrap());
        let s = smaps(me).unwrap();
        assert!(s.iter().all(|m| !m.flags.is_empty()));
        assert!(s.iter().any(|m| m.name == "[stack]" && m.has("gd")));
    }

    #[test]
    fn a_hole_never_touches_an_area() {
        let taken = [PageRange::new(0x10000, 0x7fff_0000_0000).unwrap()];
        let hole = find_hole(&taken, 0x10000).unwrap();
        assert!(hole > taken[0].end());
        assert_eq!(
            find_hole(
                &[PageRange::new(0x10000, 0x7fff_ffff_f000).unwrap()],
                0x1000
            ),
            None
        );
    }
}
