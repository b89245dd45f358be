use super::*;
use std::process::Command;

fn sh(dir: &Path, text: &str) -> String {
    let out = Command::new("sh")
        .arg("-c")
        .arg(text)
        .current_dir(dir)
        .output()
        .unwrap();
    assert!(
        out.status.success(),
        "{text}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8(out.stdout).unwrap()
}

const MAKE: &str = "mkdir -m 1777 t; mkdir -p a/b; echo hello > a/b/f; chmod 4750 a/b/f; chown 7:8 a/b/f; \
    ln a/b/f a/hard; ln -s ../a/b sym; ln -s nowhere broken; mkfifo -m 600 p; mknod -m 666 null c 1 3; \
    truncate -s 9000000 sparse; printf x | dd of=sparse bs=1 seek=5000000 conv=notrunc 2>/dev/null; : > empty; \
    chmod 751 .; touch -d '2001-02-03 04:05:06.123456789' a a/b/f .";
const SHOW: &str = "find . -printf '%P %y %m %U %G %s %n %l %T@\\n' | sed 's/0$//' | sort; sha256sum sparse a/hard";

fn pair() -> (tempfile::TempDir, tempfile::TempDir, OwnedFd, OwnedFd) {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (fa, fb) = (
        File::open(a.path()).unwrap().into(),
        File::open(b.path()).unwrap().into(),
    );
    (a, b, fa, fb)
}

/// Directory sizes and times of links are not what is compared.
fn shown(dir: &Path) -> String {
    sh(dir, SHOW)
        .lines()
        .map(|l| {
            let w: Vec<_> = l.split(' ').collect();
            if w.get(1) == Some(&"d") {
                [&w[..5], &w[8..]].concat().join(" ")
            } else {
                l.to_owned()
            }
        })
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn all_kinds_of_files_come_back_the_same() {
    let (a, b, fa, fb) = pair();
    sh(a.path(), MAKE);
    let packed = pack(fa.as_fd()).unwrap();
    assert!(packed.len() < 100_000, "holes compress: {}", packed.len());
    unpack(&packed, fb.as_fd()).unwrap();
    assert_eq!(shown(a.path()), shown(b.path()));
    let blocks: u64 = sh(b.path(), "stat -c %b sparse").trim().parse().unwrap();
    assert!(blocks < 100, "the hole is a hole: {blocks} blocks");
}

#[test]
fn gnu_tar_reads_ours_and_we_read_gnu_tars() {
    let (a, b, fa, fb) = pair();
    sh(a.path(), MAKE);
    let file = b.path().join("x.tgz");
    fs::write(&file, pack(fa.as_fd()).unwrap()).unwrap();
    sh(
        b.path(),
        "mkdir o; tar --extract --gzip --numeric-owner --same-permissions --directory o < x.tgz",
    );
    assert_eq!(shown(a.path()), shown(&b.path().join("o")));
    sh(b.path(), "rm -r o");
    let theirs = Command::new("tar")
        .args([
            "--create",
            "--gzip",
            "--sparse",
            "--check-links",
            "--numeric-owner",
            "--directory",
        ])
        .arg(a.path())
        .arg(".")
        .output()
        .unwrap();
    fs::remove_file(file).unwrap();
    unpack(&theirs.stdout, fb.as_fd()).unwrap();
    // Its own format has whole seconds only.
    let whole = |s: String| {
        s.lines()
            .map(|l| l.split(".").next().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(whole(shown(a.path())), whole(shown(b.path())));
}

#[test]
fn names_that_climb_or_pass_through_links_are_refused() {
    let (a, _b, _fa, fb) = pair();
    for name in ["../x", "/x", "a/../../x"] {
        assert!(plain(Path::new(name)).is_err(), "{name}");
    }
    let outside = a.path().join("victim");
    let mut tar = Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    let header = || {
        let mut h = Header::new_gnu();
        h.set_mode(0o777);
        h.set_uid(0);
        h.set_gid(0);
        h.set_mtime(0);
        h.set_size(0);
        h
    };
    let mut h = header();
    h.set_entry_type(EntryType::Symlink);
    tar.append_link(&mut h, "l", a.path()).unwrap();
    let mut h = header();
    h.set_size(1);
    tar.append_data(&mut h, "l/victim", &b"x"[..]).unwrap();
    let bytes = tar.into_inner().unwrap().finish().unwrap();
    let e = unpack(&bytes, fb.as_fd()).unwrap_err();
    assert_eq!(e.raw_os_error(), Some(libc::ELOOP));
    assert!(!outside.exists());
}

#[test]
fn a_damaged_archive_is_an_error() {
    let (a, _b, fa, fb) = pair();
    sh(a.path(), "head -c 100000 /dev/urandom > f");
    let mut packed = pack(fa.as_fd()).unwrap();
    let middle = packed.len() / 2;
    packed[middle] ^= 0x55;
    unpack(&packed, fb.as_fd()).unwrap_err();
    packed.truncate(middle);
    unpack(&packed, fb.as_fd()).unwrap_err();
}
