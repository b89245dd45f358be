//! A whole image, up to the point where a restore would touch the kernel.
#![no_main]

#[path = "../image.rs"]
mod image;

use dunlin::engine::options::{Common, Restore};
use dunlin::engine::restore::Plan;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let set = image::image(data);
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
