//! A request of asynchronous I/O that holds a file for as long as an address space
//! lives. io_setup(2), io_submit(2)
//!
//! The context belongs to the address space, not to a process, and not to a table
//! of descriptors: exit and exec end it with the space, nothing else does (its ring
//! may be unmapped). A request to poll a file holds a reference of that file until
//! the file is ready. So a file that never becomes ready is held exactly as long.

use std::mem::size_of;

/// `struct iocb`, linux/aio_abi.h, on a little-endian machine.
#[repr(C)]
struct Iocb {
    data: u64,
    key: u32,
    rw_flags: u32,
    opcode: u16,
    priority: i16,
    fildes: u32,
    buf: u64,
    nbytes: u64,
    offset: i64,
    reserved2: u64,
    flags: u32,
    resfd: u32,
}

/// Bytes of a request.
pub const REQUEST: usize = 64;

const _: () = assert!(size_of::<Iocb>() == REQUEST && cfg!(target_endian = "little"));

/// IOCB_CMD_POLL
const POLL: u16 = 5;

/// A request that is over when the file behind descriptor `fd` of the calling task
/// is at its end or in error (POLLHUP, POLLERR), whatever there is to read.
pub fn until_its_end(fd: i32) -> [u8; REQUEST] {
    let mut bytes = [0; REQUEST];
    let opcode = std::mem::offset_of!(Iocb, opcode);
    let fildes = std::mem::offset_of!(Iocb, fildes);
    bytes[opcode..opcode + 2].copy_from_slice(&POLL.to_ne_bytes());
    bytes[fildes..fildes + 4].copy_from_slice(&fd.to_ne_bytes());
    bytes
}
