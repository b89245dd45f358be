//! The entries of a bundle that a peer sends: nothing is made outside of the
//! directory in which it lands. Entries as they come, and entries with names
//! that the bytes choose.
#![no_main]

use std::fs;

use dunlin::migrate::bundle::land::Landing;
use dunlin::migrate::policy::{Policy, admit};
use dunlin::wire::frame::Kind;
use dunlin::wire::message::{Entry, Remove, Xattr, parse};
use libfuzzer_sys::fuzz_target;

const PARTS: [&str; 8] = ["a", "b", "c", "..", ".", "", "../beside", "a/b"];
/// Directory, file, link, FIFO, socket, device, device, none.
const TYPES: [u32; 8] = [
    0o040000, 0o100000, 0o120000, 0o010000, 0o140000, 0o020000, 0o060000, 0,
];

fn path(byte: u8) -> Vec<u8> {
    let parts = [byte & 7, (byte >> 3) & 7].map(|n| PARTS[usize::from(n)]);
    let text = match byte >> 6 {
        0 => parts[0].to_owned(),
        1 => parts.join("/"),
        2 => format!("/{}", parts.join("/")),
        _ => format!("{}/{}/x", parts[1], parts[0]),
    };
    text.into_bytes()
}

fn chosen(body: &[u8]) -> Entry {
    let at = |n: usize| body.get(n).copied().unwrap_or(0);
    Entry {
        path: path(at(0)),
        mode: TYPES[usize::from(at(1) & 7)] | u32::from(at(1)) << 1 & 0o777,
        size: u64::from(at(2)),
        mtime: i64::from(at(3)),
        target: if at(1) & 7 == 2 {
            path(at(4))
        } else {
            Vec::new()
        },
        hard_link: if at(5) & 1 == 0 {
            Vec::new()
        } else {
            path(at(6))
        },
        xattrs: body
            .get(7..)
            .filter(|n| !n.is_empty())
            .map_or(Vec::new(), |name| {
                let value = b"x".to_vec();
                vec![Xattr {
                    name: name.to_vec(),
                    value,
                }]
            }),
        ..Entry::default()
    }
}

fuzz_target!(|data: &[u8]| {
    let _ = admit(data, &Policy::default());
    let top = tempfile::tempdir().expect("a directory");
    let (inside, beside) = (top.path().join("in"), top.path().join("beside"));
    fs::create_dir(&inside).expect("make it");
    fs::write(&beside, "untouched").expect("write a file");
    let mut landing = Landing::new(&inside, 1 << 20).expect("an empty directory");
    let mut rest = data;
    while let Some((&[kind, len], after)) = rest.split_first_chunk() {
        let (body, after) = after.split_at(usize::from(len).min(after.len()));
        rest = after;
        let _ = match kind % 5 {
            0 => parse::<Entry>(Kind::Entry, body).and_then(|e| landing.entry(&e)),
            1 | 2 => landing.entry(&chosen(body)),
            3 => landing.data(u64::from(kind >> 3), body),
            _ if kind & 8 == 0 => landing.remove(&path(kind ^ len)),
            _ => parse::<Remove>(Kind::Remove, body).and_then(|r| landing.remove(&r.path)),
        };
    }
    let _ = landing.settle();
    drop(landing);
    assert_eq!(fs::read(&beside).expect("it is there"), b"untouched");
    assert_eq!(fs::read_dir(top.path()).expect("list it").count(), 2);
});
