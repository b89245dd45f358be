use super::*;
use crate::base::Blame;
use crate::image::records::{InventoryEntry, PstreeEntry};
use std::os::unix::fs::PermissionsExt;

fn small() -> Set {
    let mut set = Set::new();
    let inventory = InventoryEntry {
        img_version: 2,
        ..Default::default()
    };
    set.put(Kind::Inventory, 0, &inventory);
    for pid in 1..4 {
        let task = PstreeEntry {
            pid,
            ppid: pid - 1,
            pgid: 1,
            sid: 1,
            threads: vec![pid],
        };
        set.push(Kind::Pstree, 0, &task);
    }
    set.put_raw("tmpfs-dev-70.tar.gz.img", vec![1, 2, 3])
        .unwrap();
    set.put_raw("dunlin-extra.img", vec![4, 5]).unwrap();
    set.put_raw("descriptors.json", b"[]".to_vec()).unwrap();
    set
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn what_was_stored_is_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("image");
    let set = small();
    set.store(&at).unwrap();
    let mut loaded = Set::read(&at).unwrap();
    assert!(loaded.remove("dunlin-manifest.img").is_some());
    assert_eq!(loaded, set);
    // Again, over itself.
    set.store(&at).unwrap();
    Set::read(&at).unwrap();
}

#[test]
fn an_image_without_its_inventory_is_not_loaded() {
    let dir = tempfile::tempdir().unwrap();
    small().store(dir.path()).unwrap();
    for name in ["inventory.img", "dunlin-manifest.img"] {
        fs::remove_file(dir.path().join(name)).unwrap();
    }
    let error = Set::load(dir.path()).unwrap_err();
    assert!(error.to_string().contains("interrupted"), "{error}");
}

#[test]
fn an_image_whose_pages_are_written_anew_is_none_until_it_is_stored_again() {
    let dir = tempfile::tempdir().unwrap();
    let write = |byte| {
        let mut writer = crate::image::pages::PagesWriter::create(dir.path(), 1).unwrap();
        writer.write(0x1000, &[byte; 4096], false).unwrap();
        writer.finish(&mut Set::new(), Kind::Pagemap, 1).unwrap();
    };
    write(1);
    small().store(dir.path()).unwrap();
    Set::read(dir.path()).unwrap();
    // As many bytes of another moment, and then the end of the writer.
    write(2);
    let error = Set::load(dir.path()).unwrap_err().to_string();
    assert!(error.contains("inventory.img"), "{error}");
    small().store(dir.path()).unwrap();
    Set::read(dir.path()).unwrap();
}

#[test]
fn what_is_too_large_to_be_read_again_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("image");
    let mut set = small();
    let length = usize::try_from(MAX_IMAGE_FILE).unwrap() + 1;
    set.put_raw("tmpfs-dev-71.tar.gz.img", vec![0; length])
        .unwrap();
    let error = set.store(&at).unwrap_err();
    assert_eq!(error.blame(), Blame::Container);
    assert!(error.to_string().contains("tmpfs-dev-71"), "{error}");
    assert!(!at.exists());
}

#[test]
fn only_the_owner_can_read_an_image() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("image");
    small().store(&at).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&at), 0o700);
    for name in names(&at) {
        assert_eq!(mode(&at.join(&name)), 0o600, "{name}");
    }
}

#[test]
fn nothing_of_an_older_image_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let mut old = small();
    old.put(Kind::Core, 99, &PstreeEntry::default());
    old.put_raw("dunlin-old.img", vec![1]).unwrap();
    old.store(dir.path()).unwrap();
    fs::write(dir.path().join("dump.log"), "kept").unwrap();
    fs::write(dir.path().join("pages-1.img"), "kept").unwrap();
    fs::create_dir(dir.path().join(ASIDE)).unwrap();
    fs::write(dir.path().join(ASIDE).join("core-7.img"), "left").unwrap();
    small().store(dir.path()).unwrap();
    assert_eq!(
        names(dir.path()),
        [
            "descriptors.json",
            "dump.log",
            "dunlin-extra.img",
            "dunlin-manifest.img",
            "inventory.img",
            "pages-1.img",
            "pstree.img",
            "tmpfs-dev-70.tar.gz.img"
        ]
    );
}

#[test]
fn a_failed_store_leaves_no_image() {
    let dir = tempfile::tempdir().unwrap();
    small().store(dir.path()).unwrap();
    // A directory in the way of a file, so that moving it into place fails.
    fs::remove_file(dir.path().join("dunlin-extra.img")).unwrap();
    fs::create_dir(dir.path().join("dunlin-extra.img")).unwrap();
    let error = small().store(dir.path()).unwrap_err();
    assert!(error.raw_os_error().is_some(), "{error}");
    assert!(!dir.path().join("inventory.img").exists());
    assert!(!dir.path().join(ASIDE).exists());
    assert!(Set::load(dir.path()).is_err());
}

#[test]
fn every_flipped_bit_is_refused_by_the_name_of_its_file() {
    let dir = tempfile::tempdir().unwrap();
    small().store(dir.path()).unwrap();
    for name in names(dir.path()) {
        let path = dir.path().join(&name);
        let whole = fs::read(&path).unwrap();
        if name == "descriptors.json" {
            continue;
        }
        for bit in 0..whole.len() * 8 {
            let mut torn = whole.clone();
            torn[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, &torn).unwrap();
            match Set::read(dir.path()) {
                Err(error) => {
                    assert_eq!(error.blame(), Blame::Image, "{error}");
                    assert!(
                        name == "dunlin-manifest.img" || error.to_string().contains(&name),
                        "{name} bit {bit}: {error}"
                    );
                }
                // In the manifest a flipped field number can read as an unknown
                // optional field; the image itself is whole then.
                Ok(_) => assert_eq!(name, "dunlin-manifest.img", "bit {bit}"),
            }
        }
        fs::write(&path, &whole).unwrap();
    }
}

#[test]
fn every_truncated_file_is_refused_by_its_name() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("pages-1.img"), [0; 4096]).unwrap();
    small().store(dir.path()).unwrap();
    for name in names(dir.path()) {
        let path = dir.path().join(&name);
        let whole = fs::read(&path).unwrap();
        if name == "descriptors.json" || name == "dunlin-manifest.img" {
            continue;
        }
        fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        let error = Set::read(dir.path()).unwrap_err();
        assert!(error.to_string().contains(&name), "{error}");
        fs::remove_file(&path).unwrap();
        let error = Set::read(dir.path()).unwrap_err();
        assert!(error.to_string().contains(&name), "{error}");
        fs::write(&path, &whole).unwrap();
    }
    Set::read(dir.path()).unwrap();
}

#[test]
fn an_image_without_a_manifest_is_read_too() {
    let dir = tempfile::tempdir().unwrap();
    small().store(dir.path()).unwrap();
    fs::remove_file(dir.path().join("dunlin-manifest.img")).unwrap();
    assert_eq!(Set::read(dir.path()).unwrap(), small());
}

#[test]
fn a_link_or_a_pipe_is_no_image_file() {
    let dir = tempfile::tempdir().unwrap();
    small().store(dir.path()).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", dir.path().join("core-1.img")).unwrap();
    assert!(Set::read(dir.path()).is_err());
    fs::remove_file(dir.path().join("core-1.img")).unwrap();
    nix::unistd::mkfifo(
        &dir.path().join("core-1.img"),
        nix::sys::stat::Mode::from_bits_truncate(0o600),
    )
    .unwrap();
    let error = Set::read(dir.path()).unwrap_err();
    assert!(error.to_string().contains("no regular file"), "{error}");
}
