//! A whole image: files of all types one after the other, each with its length.
#![no_main]

use dunlin::image::{Kind, Set};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut set = Set::new();
    let mut rest = data;
    while let Some((&[kind, id, low, high], after)) = rest.split_first_chunk() {
        let length = usize::from(u16::from_le_bytes([low, high])).min(after.len());
        let (bytes, after) = after.split_at(length);
        let kind = Kind::ALL[usize::from(kind) % Kind::ALL.len()];
        set.put_raw(kind.file_name(u32::from(id)), bytes.to_vec())
            .expect("names of types are plain");
        rest = after;
    }
    let _ = set.verify();
});
