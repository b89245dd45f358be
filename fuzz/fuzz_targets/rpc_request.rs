//! A request of CRIU's RPC.
#![no_main]

use dunlin::image::records::{self, rpc::CriuReq};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = records::decode::<CriuReq>(data);
});
