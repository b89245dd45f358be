//! The archive of a tmpfs, unpacked: nothing is made outside of the directory.
//! The bytes themselves, and an archive of members that they choose.
#![no_main]

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsFd;

use flate2::{Compression, write::GzEncoder};
use libfuzzer_sys::fuzz_target;
use tar::{EntryType, Header};

const NAMES: [&str; 16] = [
    ".",
    "..",
    "a",
    "b",
    "c",
    "./a",
    "./a/b",
    "./a/b/c",
    "./../beside",
    "../beside",
    "/",
    "./",
    "./a/../../beside",
    "./b/x",
    "",
    "./././@LongLink",
];
const TYPES: [u8; 16] = *b"0123456751gxLKSV";

fuzz_target!(|data: &[u8]| {
    unpack(data);
    let mut tar = Vec::new();
    let mut rest = data;
    while let Some((&[what, name, link, size, mode], after)) = rest.split_first_chunk() {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::new(TYPES[usize::from(what % 16)]));
        let name = NAMES[usize::from(name % 16)].as_bytes();
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        let link = NAMES[usize::from(link % 16)].as_bytes();
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link);
        header.set_mode(u32::from(mode) << 4);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(u64::from(mode));
        // half of all sizes lie
        let said = if what & 16 == 0 {
            u64::from(size)
        } else {
            u64::from(size) << 40
        };
        header.set_size(said);
        header.set_cksum();
        tar.extend_from_slice(header.as_bytes());
        let (content, after) = after.split_at(usize::from(size).min(after.len()));
        rest = after;
        tar.extend_from_slice(content);
        tar.resize(tar.len().next_multiple_of(512), 0);
    }
    tar.resize(tar.len() + 1024, 0);
    let mut gz = GzEncoder::new(Vec::new(), Compression::fast());
    gz.write_all(&tar).expect("compress");
    unpack(&gz.finish().expect("compress"));
});

fn unpack(archive: &[u8]) {
    let top = tempfile::tempdir().expect("a directory");
    let (inside, beside) = (top.path().join("in"), top.path().join("beside"));
    fs::create_dir(&inside).expect("make it");
    fs::write(&beside, "untouched").expect("write a file");
    let dir = File::open(&inside).expect("open it");
    let _ = dunlin::image::archive::unpack(archive, dir.as_fd());
    assert_eq!(fs::read(&beside).expect("it is there"), b"untouched");
    assert_eq!(fs::read_dir(top.path()).expect("list it").count(), 2);
}
