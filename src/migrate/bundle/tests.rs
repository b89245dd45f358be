use super::land::Landing;
use super::walk::{Sink, Tree};
use crate::base::Result;
use crate::wire::message::Entry;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

impl Sink for Landing {
    fn entry(&mut self, e: &Entry) -> Result<()> {
        Landing::entry(self, e)
    }
    fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        Landing::data(self, offset, bytes)
    }
    fn remove(&mut self, path: &[u8]) -> Result<()> {
        Landing::remove(self, path)
    }
}

fn same(a: &Path, b: &Path) {
    let mut names: Vec<_> = fs::read_dir(a)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    let mut other: Vec<_> = fs::read_dir(b)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    names.sort();
    other.sort();
    assert_eq!(names, other);
    for n in names {
        let (x, y) = (a.join(&n), b.join(&n));
        let (m, o) = (
            fs::symlink_metadata(&x).unwrap(),
            fs::symlink_metadata(&y).unwrap(),
        );
        assert_eq!(m.mode(), o.mode(), "{}", x.display());
        assert_eq!((m.uid(), m.gid()), (o.uid(), o.gid()));
        assert_eq!(
            (m.mtime(), m.mtime_nsec()),
            (o.mtime(), o.mtime_nsec()),
            "{}",
            x.display()
        );
        if m.is_dir() {
            same(&x, &y);
        } else if m.is_symlink() {
            assert_eq!(fs::read_link(&x).unwrap(), fs::read_link(&y).unwrap());
        } else if m.is_file() {
            assert_eq!(fs::read(&x).unwrap(), fs::read(&y).unwrap());
            assert_eq!(m.nlink(), o.nlink());
        }
    }
}

#[test]
fn a_tree_arrives_whole_and_its_changes_follow() {
    let (src, dst) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let s = src.path();
    fs::create_dir_all(s.join("a/b")).unwrap();
    fs::write(s.join("a/big"), vec![3u8; 700_000]).unwrap();
    fs::write(s.join("a/log"), b"one\n").unwrap();
    fs::hard_link(s.join("a/log"), s.join("a/b/twin")).unwrap();
    symlink("/etc/passwd", s.join("a/link")).unwrap();
    fs::set_permissions(s.join("a/big"), PermissionsExt::from_mode(0o4711)).unwrap();
    fs::write(s.join("gone"), b"x").unwrap();
    let holes = fs::File::create(s.join("holes")).unwrap();
    holes.set_len(5 << 20).unwrap();
    nix::unistd::mkfifo(&s.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut tree = Tree::open(s).unwrap();
    tree.grain = Duration::ZERO;
    let mut land = Landing::new(dst.path(), 1 << 30).unwrap();
    let first = tree.send(&mut land).unwrap();
    land.settle().unwrap();
    same(s, dst.path());
    assert!(first.bytes < 800_000, "holes travelled: {first:?}");
    assert!(fs::metadata(dst.path().join("holes")).unwrap().blocks() < 64);

    let again = tree.send(&mut land).unwrap();
    assert_eq!((again.entries, again.removed), (0, 0), "{again:?}");

    use std::io::Write;
    let mut log = fs::OpenOptions::new()
        .append(true)
        .open(s.join("a/log"))
        .unwrap();
    log.write_all(b"two\n").unwrap();
    fs::remove_file(s.join("gone")).unwrap();
    fs::remove_file(s.join("a/link")).unwrap();
    fs::create_dir(s.join("a/link")).unwrap();
    fs::write(s.join("a/link/in"), b"y").unwrap();
    let delta = tree.send(&mut land).unwrap();
    land.settle().unwrap();
    same(s, dst.path());
    assert!(delta.bytes < 100, "{delta:?}");
    assert_eq!(delta.removed, 1);
    assert_eq!(
        fs::read(dst.path().join("a/b/twin")).unwrap(),
        b"one\ntwo\n"
    );
}

#[test]
fn a_file_that_is_mapped_shared_is_sent_by_every_walk() {
    let (src, dst) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(src.path().join("mapped"), b"content").unwrap();
    fs::write(src.path().join("other"), b"content").unwrap();
    let mut tree = Tree::open(src.path()).unwrap();
    tree.grain = Duration::ZERO;
    let mut land = Landing::new(dst.path(), 1 << 20).unwrap();
    tree.send(&mut land).unwrap();
    assert_eq!(tree.send(&mut land).unwrap().entries, 0);
    tree.distrust([fs::metadata(src.path().join("mapped")).unwrap().ino()]);
    for _ in 0..2 {
        assert_eq!(tree.send(&mut land).unwrap().entries, 1);
    }
    land.settle().unwrap();
    same(src.path(), dst.path());
}

fn file(path: &str) -> Entry {
    Entry {
        path: path.into(),
        mode: 0o100_644,
        size: 4,
        ..Entry::default()
    }
}

#[test]
fn a_hostile_source_writes_nowhere_else() {
    let top = tempfile::tempdir().unwrap();
    let dst = top.path().join("in");
    fs::create_dir(&dst).unwrap();
    fs::write(top.path().join("victim"), b"mine").unwrap();
    let mut land = Landing::new(&dst, 1 << 20).unwrap();
    for path in [
        "../victim",
        "/victim",
        "a/../../victim",
        "",
        ".",
        "a//b",
        "x\0y",
    ] {
        assert!(land.entry(&file(path)).is_err(), "{path:?}");
        assert!(
            path.is_empty() || land.remove(path.as_bytes()).is_err(),
            "{path:?}"
        );
    }
    // Through a link of its own making.
    for target in ["..", "/", "../victim"] {
        let link = Entry {
            path: b"l".to_vec(),
            mode: 0o120_777,
            target: target.into(),
            ..Entry::default()
        };
        land.entry(&link).unwrap();
        assert!(land.entry(&file("l/victim")).is_err());
        let hard = Entry {
            hard_link: b"l/victim".to_vec(),
            ..file("h")
        };
        assert!(land.entry(&hard).is_err());
        // In place of the link, not through it.
        land.entry(&file("l")).unwrap();
        land.data(0, b"evil").unwrap();
    }
    let device = Entry {
        mode: 0o060_600,
        ..file("sda")
    };
    assert!(
        land.entry(&device)
            .unwrap_err()
            .to_string()
            .contains("not allowed")
    );
    assert_eq!(fs::read(top.path().join("victim")).unwrap(), b"mine");
    assert_eq!(fs::read_dir(top.path()).unwrap().count(), 2);
}

#[test]
fn bytes_past_the_end_or_over_the_limit_are_refused() {
    let dst = tempfile::tempdir().unwrap();
    let mut land = Landing::new(dst.path(), 6).unwrap();
    assert!(land.data(0, b"x").is_err(), "no file");
    land.entry(&file("a")).unwrap();
    assert!(land.data(1, b"1234").is_err());
    assert!(land.data(u64::MAX, b"1234").is_err());
    land.data(0, b"1234").unwrap();
    land.entry(&file("b")).unwrap();
    assert!(land.data(0, b"1234").is_err(), "over the bundle's limit");
    assert!(
        land.entry(&Entry {
            size: 7,
            ..file("c")
        })
        .is_err()
    );
}

/// Two writes within one tick of an older kernel's clock leave the same times.
#[test]
fn a_file_that_has_just_changed_is_sent_by_the_next_walk_too() {
    let (src, dst) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(src.path().join("file"), b"content").unwrap();
    let mut tree = Tree::open(src.path()).unwrap();
    tree.grain = Duration::from_secs(3600);
    let mut land = Landing::new(dst.path(), 1 << 20).unwrap();
    tree.send(&mut land).unwrap();
    let sent = tree.send(&mut land).unwrap();
    assert_eq!((sent.entries, sent.bytes), (1, 7));
    tree.grain = Duration::ZERO;
    tree.send(&mut land).unwrap();
    let sent = tree.send(&mut land).unwrap();
    assert_eq!((sent.entries, sent.bytes), (0, 0));
}
