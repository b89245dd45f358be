//! A whole image from the bytes of a fuzzer, for the targets that need one.

use dunlin::image::{Kind, Set};

/// Files of all types one after the other, each with its type, id and length.
pub fn image(data: &[u8]) -> Set {
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
    set
}
