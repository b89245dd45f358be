use super::*;
use crate::base::Blame;
use flate2::Compression;
use flate2::write::GzEncoder;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use tar::{EntryType, Header};

/// Everything that has to come back, by path.
fn tree(dir: &Path) -> BTreeMap<String, String> {
    fn walk(top: &Path, path: &Path, out: &mut BTreeMap<String, String>) {
        let meta = fs::symlink_metadata(path).unwrap();
        let kind = meta.file_type();
        let content = if kind.is_file() {
            let bytes = fs::read(path).unwrap();
            format!("{} {:x}", bytes.len(), fold(&bytes))
        } else if kind.is_symlink() {
            fs::read_link(path).unwrap().display().to_string()
        } else {
            String::new()
        };
        let xattrs: BTreeMap<_, _> = xattr::list(path)
            .unwrap()
            .map(|name| {
                let value = xattr::get(path, &name).unwrap();
                (name, value)
            })
            .collect();
        let links = if kind.is_file() { meta.nlink() } else { 0 };
        out.insert(
            path.strip_prefix(top).unwrap().display().to_string(),
            format!(
                "{:o} {}:{} dev {:x} links {links} {}.{:09} {content} {xattrs:?}",
                meta.mode(),
                meta.uid(),
                meta.gid(),
                meta.rdev(),
                meta.mtime(),
                meta.mtime_nsec(),
            ),
        );
        if kind.is_dir() {
            for entry in fs::read_dir(path).unwrap() {
                walk(top, &entry.unwrap().path(), out);
            }
        }
    }
    let mut out = BTreeMap::new();
    walk(dir, dir, &mut out);
    out
}

fn fold(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(7, |sum: u64, byte| sum.rotate_left(5) ^ u64::from(*byte))
}

/// One of everything that needs no privilege.
fn sample(dir: &Path) {
    fs::create_dir(dir.join("d")).unwrap();
    fs::create_dir(dir.join("empty")).unwrap();
    fs::write(dir.join("d/text"), "some text").unwrap();
    fs::write(dir.join("d/none"), "").unwrap();
    let block: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
    fs::write(dir.join("d/long"), block).unwrap();
    fs::hard_link(dir.join("d/text"), dir.join("again")).unwrap();
    symlink("d/text", dir.join("link")).unwrap();
    symlink("/".repeat(300), dir.join("long link")).unwrap();
    let deep = dir.join("x".repeat(200)).join("y".repeat(200));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("z"), "deep").unwrap();
    let mode = nix::sys::stat::Mode::from_bits_truncate(0o640);
    nix::unistd::mkfifo(&dir.join("fifo"), mode).unwrap();
    xattr::set(dir.join("d/text"), "user.note", b"a\nb=c\0d").unwrap();
    fs::set_permissions(dir.join("d/text"), fs::Permissions::from_mode(0o4751)).unwrap();
    let sparse = File::create(dir.join("sparse")).unwrap();
    for at in [1u64 << 20, 3 << 20, 5 << 20, 7 << 20, 9 << 20, 11 << 20] {
        sparse.write_all_at(b"island", at).unwrap();
    }
    sparse.set_len(13 << 20).unwrap();
    let hole = File::create(dir.join("hole")).unwrap();
    hole.set_len(16 << 20).unwrap();
    std::os::unix::net::UnixListener::bind(dir.join("socket")).unwrap();
    fs::hard_link(dir.join("socket"), dir.join("d/socket")).unwrap();
    for (name, seconds, nanos) in [("d/text", 12, 345_678_901), ("d/none", -5, 250_000_000)] {
        let time = nix::sys::time::TimeSpec::new(seconds, nanos);
        let file = File::open(dir.join(name)).unwrap();
        nix::sys::stat::futimens(&file, &time, &time).unwrap();
    }
    fs::set_permissions(dir.join("d"), fs::Permissions::from_mode(0o1755)).unwrap();
}

/// Sockets are left out of archives.
fn without_sockets(tree: &mut BTreeMap<String, String>) {
    for name in ["socket", "d/socket"] {
        tree.remove(name).unwrap();
    }
}

fn packed(dir: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    pack(File::open(dir).unwrap().as_fd(), &mut bytes).unwrap();
    bytes
}

fn unpacked(bytes: &[u8], dir: &Path) -> crate::base::Result<usize> {
    unpack(bytes, File::open(dir).unwrap().as_fd())
}

#[test]
fn a_file_of_holes_may_be_larger_than_any_archive() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let huge = File::create(from.path().join("huge")).unwrap();
    // as far as this file system goes
    let most = (30..=62).rev().map(|bits| 1u64 << bits);
    let size = most.into_iter().find(|s| huge.set_len(*s).is_ok()).unwrap();
    unpacked(&packed(from.path()), to.path()).unwrap();
    let found = fs::metadata(to.path().join("huge")).unwrap();
    assert_eq!((found.len(), found.blocks()), (size, 0));
}

#[test]
fn what_could_not_be_unpacked_is_refused_when_it_is_packed() {
    use nix::fcntl::{OFlag, openat};
    use nix::sys::stat::{Mode, mkdirat};
    let dir = tempfile::tempdir().unwrap();
    let name = "x".repeat(250);
    let mut at = std::os::fd::OwnedFd::from(File::open(dir.path()).unwrap());
    for _ in 0..20 {
        mkdirat(&at, name.as_str(), Mode::S_IRWXU).unwrap();
        at = openat(&at, name.as_str(), OFlag::O_DIRECTORY, Mode::empty()).unwrap();
    }
    let e = pack(File::open(dir.path()).unwrap().as_fd(), std::io::sink()).unwrap_err();
    assert_eq!(e.blame(), Blame::Container);
    let said = e.to_string();
    assert!(
        said.contains("too long a path") && said.contains(&name),
        "{said}"
    );
}

#[test]
fn a_tree_comes_back_as_it_was() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    sample(from.path());
    let bytes = packed(from.path());
    assert!(bytes.len() < 1 << 20, "holes are packed: {}", bytes.len());
    unpacked(&bytes, to.path()).unwrap();
    let mut expected = tree(from.path());
    without_sockets(&mut expected);
    assert_eq!(tree(to.path()), expected);
    let blocks = fs::metadata(to.path().join("hole")).unwrap().blocks();
    assert_eq!(blocks, 0, "a hole takes room");
    // Over what is there.
    unpacked(&bytes, to.path()).unwrap();
    assert_eq!(tree(to.path()), expected);
}

/// `None` with a word about it if there is no GNU tar here.
fn tar(arguments: &[&str], dir: &Path) -> Option<()> {
    match Command::new("tar")
        .args(arguments)
        .current_dir(dir)
        .output()
    {
        Ok(output) => {
            assert!(output.status.success(), "{output:?}");
            Some(())
        }
        Err(e) => {
            println!("skipped: tar is not here: {e}");
            None
        }
    }
}

#[test]
fn gnu_tar_reads_what_we_write() {
    let work = tempfile::tempdir().unwrap();
    let (from, to) = (work.path().join("from"), work.path().join("to"));
    fs::create_dir(&from).unwrap();
    fs::create_dir(&to).unwrap();
    sample(&from);
    fs::write(work.path().join("a.tar.gz"), packed(&from)).unwrap();
    let arguments = [
        "--extract",
        "--gzip",
        "--xattrs",
        "--xattrs-include=*",
        "--file",
        "../a.tar.gz",
    ];
    if tar(&arguments, &to).is_none() {
        return;
    }
    let mut expected = tree(&from);
    without_sockets(&mut expected);
    assert_eq!(tree(&to), expected);
}

#[test]
fn we_read_what_gnu_tar_writes() {
    for format in ["gnu", "posix"] {
        let work = tempfile::tempdir().unwrap();
        let (from, to) = (work.path().join("from"), work.path().join("to"));
        fs::create_dir(&from).unwrap();
        fs::create_dir(&to).unwrap();
        sample(&from);
        let format_argument = format!("--format={format}");
        let mut arguments = vec![
            "--create",
            "--gzip",
            "--sparse",
            "--numeric-owner",
            &format_argument,
            "--file",
            "../a.tar.gz",
        ];
        if format == "posix" {
            arguments.push("--xattrs");
        }
        arguments.push(".");
        if tar(&arguments, &from).is_none() {
            return;
        }
        let bytes = fs::read(work.path().join("a.tar.gz")).unwrap();
        unpacked(&bytes, &to).unwrap();
        let mut expected = tree(&from);
        without_sockets(&mut expected);
        let mut found = tree(&to);
        if format == "gnu" {
            // It keeps neither fractions of a second nor attributes.
            let strip = |tree: &mut BTreeMap<String, String>| {
                for line in tree.values_mut() {
                    let words: Vec<_> = line.split(' ').collect();
                    *line = format!("{} {} {:?}", words[0], words[1], &words[7..words.len() - 1]);
                }
            };
            xattr::remove(from.join("d/text"), "user.note").unwrap();
            expected = tree(&from);
            without_sockets(&mut expected);
            strip(&mut expected);
            strip(&mut found);
        }
        assert_eq!(found, expected, "{format}");
    }
}

/// An archive of one member that is made by hand.
fn forged(path: &[u8], kind: EntryType, link: &[u8], content: &[u8]) -> Vec<u8> {
    let mut out = GzEncoder::new(Vec::new(), Compression::fast());
    let mut header = Header::new_gnu();
    header.as_old_mut().name[..path.len()].copy_from_slice(path);
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link);
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_uid(u64::from(nix::unistd::getuid().as_raw()));
    header.set_gid(u64::from(nix::unistd::getgid().as_raw()));
    header.set_mtime(0);
    header.set_size(content.len() as u64);
    header.set_cksum();
    out.write_all(header.as_bytes()).unwrap();
    out.write_all(content).unwrap();
    out.write_all(&vec![
        0;
        content.len().next_multiple_of(512) - content.len()
            + 1024
    ])
    .unwrap();
    out.finish().unwrap()
}

#[test]
fn nothing_is_written_outside_of_the_directory() {
    let work = tempfile::tempdir().unwrap();
    let to = work.path().join("to");
    let outside = work.path().join("outside");
    fs::create_dir(&to).unwrap();
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "secret").unwrap();
    symlink(&outside, to.join("way")).unwrap();
    symlink(outside.join("new"), to.join("file")).unwrap();
    let refused: [(&[u8], EntryType, &[u8]); 7] = [
        (b"../outside/new", EntryType::Regular, b""),
        (b"/tmp/dunlin-archive-test", EntryType::Regular, b""),
        (b"way/new", EntryType::Regular, b""),
        (b"way", EntryType::Directory, b""),
        (b"way/x/", EntryType::Directory, b""),
        (b"stolen", EntryType::Link, b"way/secret"),
        (b"stolen", EntryType::Link, b"../outside/secret"),
    ];
    for (path, kind, link) in refused {
        let archive = forged(path, kind, link, b"");
        assert!(unpacked(&archive, &to).is_err(), "{path:?}");
    }
    // A link in the way of a file is replaced, not followed.
    unpacked(&forged(b"file", EntryType::Regular, b"", b"x"), &to).unwrap();
    assert!(fs::symlink_metadata(to.join("file")).unwrap().is_file());
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    assert!(!to.join("stolen").exists());
}

#[test]
fn a_cut_or_flipped_archive_is_refused() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(from.path().join("a"), "content").unwrap();
    let whole = packed(from.path());
    for len in 0..whole.len() {
        assert!(unpacked(&whole[..len], to.path()).is_err(), "cut at {len}");
    }
    // The head of gzip has a time and a system in it that mean nothing.
    for bit in 10 * 8..whole.len() * 8 {
        let mut torn = whole.clone();
        torn[bit / 8] ^= 1 << (bit % 8);
        // A bit of the compression may mean nothing for what is compressed.
        if unpacked(&torn, to.path()).is_ok() {
            assert_eq!(tree(to.path()), tree(from.path()), "bit {bit}");
        }
    }
}

#[test]
fn lengths_that_are_forged_allocate_nothing() {
    let to = tempfile::tempdir().unwrap();
    for kind in [
        EntryType::XHeader,
        EntryType::GNULongName,
        EntryType::Regular,
    ] {
        let mut out = GzEncoder::new(Vec::new(), Compression::fast());
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.as_old_mut().name[0] = b'a';
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(u64::MAX / 2);
        header.set_cksum();
        out.write_all(header.as_bytes()).unwrap();
        let error = unpacked(&out.finish().unwrap(), to.path()).unwrap_err();
        assert_eq!(error.blame(), Blame::Image, "{error}");
    }
}
