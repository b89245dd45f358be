//! Structs and request numbers of `<linux/userfaultfd.h>`.

use std::mem::size_of;

pub(super) const API: u64 = 0xaa;

pub(super) const DONTWAKE: u64 = 1 << 0;

#[repr(C)]
pub(super) struct Api {
    pub(super) api: u64,
    pub(super) features: u64,
    pub(super) ioctls: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Range {
    pub(super) start: u64,
    pub(super) len: u64,
}

#[repr(C)]
pub(super) struct Register {
    pub(super) range: Range,
    pub(super) mode: u64,
    pub(super) ioctls: u64,
}

/// `uffdio_copy`.
#[repr(C)]
pub(super) struct Transfer {
    pub(super) dst: u64,
    pub(super) src: u64,
    pub(super) len: u64,
    pub(super) mode: u64,
    pub(super) done: i64,
}

/// `uffdio_zeropage`, `uffdio_continue` and `uffdio_poison`.
#[repr(C)]
pub(super) struct Fill {
    pub(super) range: Range,
    pub(super) mode: u64,
    pub(super) done: i64,
}

const fn ioc(dir: u32, nr: u32, size: usize) -> u32 {
    assert!(size < 1 << 14);
    #[allow(clippy::cast_possible_truncation, reason = "asserted above")]
    let size = size as u32;
    dir << 30 | size << 16 | 0xaa << 8 | nr
}
const READ: u32 = 2;
const READ_WRITE: u32 = 3;
pub(super) const UFFDIO_API: u32 = ioc(READ_WRITE, 0x3f, size_of::<Api>());
pub(super) const UFFDIO_REGISTER: u32 = ioc(READ_WRITE, 0x00, size_of::<Register>());
pub(super) const UFFDIO_UNREGISTER: u32 = ioc(READ, 0x01, size_of::<Range>());
pub(super) const UFFDIO_WAKE: u32 = ioc(READ, 0x02, size_of::<Range>());
pub(super) const UFFDIO_COPY: u32 = ioc(READ_WRITE, 0x03, size_of::<Transfer>());
pub(super) const UFFDIO_ZEROPAGE: u32 = ioc(READ_WRITE, 0x04, size_of::<Fill>());
pub(super) const UFFDIO_CONTINUE: u32 = ioc(READ_WRITE, 0x07, size_of::<Fill>());
pub(super) const UFFDIO_POISON: u32 = ioc(READ_WRITE, 0x08, size_of::<Fill>());

const _: () = assert!(UFFDIO_API == 0xc018_aa3f);
const _: () = assert!(UFFDIO_REGISTER == 0xc020_aa00);
const _: () = assert!(UFFDIO_UNREGISTER == 0x8010_aa01);
const _: () = assert!(UFFDIO_WAKE == 0x8010_aa02);
const _: () = assert!(UFFDIO_COPY == 0xc028_aa03);
const _: () = assert!(UFFDIO_ZEROPAGE == 0xc020_aa04);
const _: () = assert!(UFFDIO_CONTINUE == 0xc020_aa07);
const _: () = assert!(UFFDIO_POISON == 0xc020_aa08);
