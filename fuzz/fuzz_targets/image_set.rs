//! A whole image, checked.
#![no_main]

#[path = "../image.rs"]
mod image;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = image::image(data).verify();
});
