//! A whole image, up to the point where a restore would touch the kernel.
#![no_main]

use dunlin::engine::options::{Common, Restore};
use dunlin::engine::restore::Plan;
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
    if set.verify().is_err() {
        return;
    }
    let options = Restore {
        common: Common {
            shell_job: true,
            file_locks: true,
            ext_unix_sk: true,
            ..Common::default()
        },
        sibling: false,
        inherit: Vec::new(),
        join_ns: Vec::new(),
        lazy: data.len() % 2 == 1,
        stopped: false,
    };
    if let Ok(plan) = Plan::read(&set, options) {
        plan.steps().for_each(drop);
    }
});
