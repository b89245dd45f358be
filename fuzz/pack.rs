//! An image directory as one input of `image_set` and `restore_plan`:
//! `pack DIR`. Ids of files must be below 256.

use std::io::Write;
use std::path::Path;

use dunlin::image::{Kind, Set};

fn main() {
    let dir = std::env::args().nth(1).expect("usage: pack DIR");
    let set = Set::load(Path::new(&dir)).expect("load the image");
    let mut out = std::io::stdout().lock();
    for (index, kind) in Kind::ALL.iter().enumerate() {
        for id in set.ids(*kind) {
            let bytes = set.raw(&kind.file_name(id)).expect("it is listed");
            let Ok(length) = u16::try_from(bytes.len()) else {
                continue;
            };
            // a file without a number has number 0
            let id = u8::try_from(id).unwrap_or(1);
            let index = u8::try_from(index).expect("fewer than 256 types");
            out.write_all(&[index, id]).expect("write");
            out.write_all(&length.to_le_bytes()).expect("write");
            out.write_all(bytes).expect("write");
        }
    }
}
