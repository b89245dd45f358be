//! The program of a task: of which width it is. elf(5)

use std::fs::File;
use std::io::{ErrorKind, Read};

use crate::base::{Error, HostPid, Result};

/// `e_ident` up to EI_CLASS, of a file of ELFCLASS32.
const NARROW: [u8; 5] = [0x7f, b'E', b'L', b'F', 1];

/// Refuses a program of 32-bit addresses: 32-bit code, or x32, whose registers look
/// as those of others do, and whose signal frames and calls do not.
///
/// # Errors
/// It is one, or cannot be read.
pub(super) fn check_width(pid: HostPid) -> Result<()> {
    let path = format!("/proc/{pid}/exe");
    let opened = File::open(&path).map_err(|e| Error::os(format!("open {path}"), e))?;
    if is_narrow(opened).map_err(|e| Error::os(format!("read {path}"), e))? {
        return Err(Error::refused(
            format!("task {pid}"),
            "its program has 32-bit addresses (32-bit code or x32), which is not carried",
        ));
    }
    Ok(())
}

fn is_narrow(mut file: impl Read) -> std::io::Result<bool> {
    let mut head = [0; NARROW.len()];
    match file.read_exact(&mut head) {
        Ok(()) => Ok(head == NARROW),
        Err(e) if e.kind() == ErrorKind::UnexpectedEof => Ok(false),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn narrow_programs_are_told_by_their_first_bytes() {
        assert!(is_narrow(&b"\x7fELF\x01\x01\x01"[..]).unwrap());
        for other in [&b"\x7fELF\x02\x01\x01"[..], b"#!/bin/sh", b"\x7fE", b""] {
            assert!(!is_narrow(other).unwrap());
        }
        check_width(HostPid(i32::try_from(std::process::id()).unwrap())).unwrap();
    }
}
