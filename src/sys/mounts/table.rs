//! The table of a mount namespace, as proc_pid_mountinfo(5) shows it.

use crate::base::{Blame, Error, HostPid, Result, ResultExt};

/// One line of mountinfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountInfo {
    /// Id of the mount, unique while it exists.
    pub id: u32,
    /// Id of the mount that it is attached to.
    pub parent: u32,
    /// Device of the file system, major.
    pub major: u32,
    /// Device of the file system, minor.
    pub minor: u32,
    /// Which directory or file of the file system is mounted.
    pub root: String,
    /// The directory or file was deleted since.
    pub deleted: bool,
    /// Where it is mounted, seen from the root of the task that was asked.
    pub mountpoint: String,
    /// Options of the mount, comma separated.
    pub options: String,
    /// Peer group.
    pub shared: Option<u32>,
    /// Peer group that it receives from.
    pub master: Option<u32>,
    /// May not be bind mounted.
    pub unbindable: bool,
    /// File system type, with its subtype (`fuse.sshfs`).
    pub fstype: String,
    /// Source; may be empty.
    pub source: String,
    /// Options of the file system, comma separated.
    pub super_options: String,
}

impl MountInfo {
    /// Device number as the kernel encodes it internally (12:20 bits), which
    /// is how images name file systems.
    pub fn kdev(&self) -> u32 {
        (self.major << 20) | (self.minor & 0xf_ffff)
    }
}

/// The mount table of the namespace of `pid`, in the order of creation.
///
/// # Errors
/// ENOENT when the task is gone; a line that is no mountinfo or not UTF-8.
pub fn mountinfo(pid: HostPid) -> Result<Vec<MountInfo>> {
    let path = format!("/proc/{pid}/mountinfo");
    let bytes = std::fs::read(&path).context(|| format!("read {path}"))?;
    parse(&bytes).context(|| path)
}

/// The mount table of the calling thread's namespace.
///
/// # Errors
/// As [`mountinfo`].
pub fn own_mountinfo() -> Result<Vec<MountInfo>> {
    let path = "/proc/thread-self/mountinfo";
    let bytes = std::fs::read(path).context(|| format!("read {path}"))?;
    parse(&bytes).context(|| path.to_owned())
}

/// Parses a mountinfo file.
///
/// # Errors
/// A line that is no mountinfo, or holds a path that is not UTF-8.
pub fn parse(bytes: &[u8]) -> Result<Vec<MountInfo>> {
    let mut mounts = Vec::new();
    for line in bytes.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
        let shown = || format!("mountinfo line \"{}\"", String::from_utf8_lossy(line));
        let text = std::str::from_utf8(line)
            .map_err(|_| Error::refused(shown(), "a mount path is not UTF-8"))?;
        mounts.push(
            parse_line(text).ok_or_else(|| Error::new(Blame::Kernel, shown(), "not understood"))?,
        );
    }
    Ok(mounts)
}

fn parse_line(line: &str) -> Option<MountInfo> {
    let mut words = line.split(' ');
    let id = words.next()?.parse().ok()?;
    // A root whose parent cannot be seen has it shown as a number all the same.
    let parent = words.next()?.parse().ok()?;
    let (major, minor) = words.next()?.split_once(':')?;
    let mut root = unescape(words.next()?)?;
    let mountpoint = unescape(words.next()?)?;
    let options = words.next()?.to_owned();
    let (mut shared, mut master, mut unbindable) = (None, None, false);
    loop {
        match words.next()? {
            "-" => break,
            "unbindable" => unbindable = true,
            tag => match tag.split_once(':')? {
                ("shared", n) => shared = Some(n.parse().ok()?),
                ("master", n) => master = Some(n.parse().ok()?),
                ("propagate_from", _) => {}
                _ => return None,
            },
        }
    }
    let fstype = unescape(words.next()?)?;
    // An empty source leaves two blanks in a row.
    let source = unescape(words.next()?)?;
    let super_options = unescape(words.next()?)?;
    let deleted = root.ends_with("//deleted");
    if deleted {
        root.truncate(root.len() - "//deleted".len());
    }
    Some(MountInfo {
        id,
        parent,
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
        root,
        deleted,
        mountpoint,
        options,
        shared,
        master,
        unbindable,
        fstype,
        source,
        super_options,
    })
}

/// Turns `\040` and the like back into bytes.
fn unescape(word: &str) -> Option<String> {
    if !word.contains('\\') {
        return Some(word.to_owned());
    }
    let mut out = Vec::with_capacity(word.len());
    let mut rest = word.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        match (first, tail) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', more @ ..]) => {
                out.push((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'));
                rest = more;
            }
            _ => {
                out.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_table_is_read_with_escapes_tags_and_deleted_roots() {
        let text = b"65 43 254:0 /a\\040b//deleted /mnt\\011x rw,relatime shared:7 master:3 propagate_from:2 - fuse.x  rw,size=1\n\
            66 65 0:40 / /proc rw - proc proc rw\n\
            67 65 0:41 / /u rw unbindable - tmpfs tmpfs rw\n";
        let m = parse(text).unwrap();
        assert_eq!(m.len(), 3);
        assert_eq!((m[0].id, m[0].parent, m[0].kdev()), (65, 43, 254 << 20));
        assert_eq!((m[0].root.as_str(), m[0].deleted), ("/a b", true));
        assert_eq!(m[0].mountpoint, "/mnt\tx");
        assert_eq!((m[0].shared, m[0].master), (Some(7), Some(3)));
        assert_eq!((m[0].fstype.as_str(), m[0].source.as_str()), ("fuse.x", ""));
        assert_eq!(m[0].super_options, "rw,size=1");
        assert!(m[2].unbindable);
    }

    #[test]
    fn a_line_that_is_no_mountinfo_is_refused_by_its_text() {
        for bad in [
            &b"65"[..],
            b"65 43 254 / / rw - a b c",
            b"65 43 1:2 / / rw odd:1 - a b c",
        ] {
            let e = parse(bad).unwrap_err();
            assert!(e.to_string().contains("mountinfo line"), "{e}");
        }
        assert!(parse(b"65 43 1:2 / /\xff rw - a b c").is_err());
    }
}
