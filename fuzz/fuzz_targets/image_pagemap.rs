//! A pagemap: what it says must be consistent.
#![no_main]

use dunlin::image::Kind;
use dunlin::image::pages::Pagemap;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(map) = Pagemap::decode(Kind::Pagemap, "pagemap-1.img", data) else {
        return;
    };
    let mut end = 0;
    for run in map.runs() {
        assert!(!run.range.is_empty());
        assert!(run.range.start() >= end);
        end = run.range.end();
        assert_eq!(map.find(run.range.start()), Some(run));
        assert_eq!(map.find(run.range.end() - 1), Some(run));
    }
});
