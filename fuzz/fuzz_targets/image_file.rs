//! One file of an image, of the type that the first byte picks.
#![no_main]

use dunlin::image::{Kind, Set};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((first, bytes)) = data.split_first() else {
        return;
    };
    let kind = Kind::ALL[usize::from(*first) % Kind::ALL.len()];
    let mut set = Set::new();
    set.put_raw(kind.file_name(1), bytes.to_vec())
        .expect("names of types are plain");
    let _ = set.check_records();
});
