//! The archive of a tmpfs, unpacked to a directory that is removed again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::fs::File;
use std::os::fd::AsFd;

fuzz_target!(|data: &[u8]| {
    let dir = tempfile::tempdir().expect("a directory");
    let top = File::open(dir.path()).expect("open it");
    let _ = dunlin::image::archive::unpack(data, top.as_fd());
});
