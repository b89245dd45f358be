//! The journal of a migration, as it may lie there after a crash.
#![no_main]

use dunlin::migrate::journal;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("source-x.journal");
    std::fs::write(&path, data).expect("write it");
    let _ = journal::read(&path);
});
