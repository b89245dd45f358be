//! Memory of other processes: process_vm_readv(2), process_vm_writev(2), and
//! /proc/PID/mem where they refuse.
//!
//! process_vm_readv obeys page protection: a PROT_NONE page gives EFAULT though
//! it is there. /proc/PID/mem reads it. A page that neither can read is an
//! error; nothing here ever makes up zeros. (On a page that a userfaultfd
//! guards, process_vm_readv waits for the handler, and /proc/PID/mem gives EIO.)
//!
//! A pid may be recycled between two calls: [`crate::memory::held`] checks
//! identity around them.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;

use crate::base::{Error, HostPid, Result, VAddr};

/// Bytes that one call moves: larger pieces gain nothing (measured), and keep
/// the target's mm locked for longer.
pub const PIECE: usize = 1 << 20;

/// Fills `buf` from the memory of `pid` at `addr`.
///
/// # Errors
/// ESRCH, EPERM; EFAULT or EIO for an address that is not mapped or cannot be
/// read. `buf` is then partly written.
pub fn read(pid: HostPid, addr: VAddr, buf: &mut [u8]) -> Result<()> {
    let mut done = 0;
    while done < buf.len() {
        let end = buf.len().min(done + PIECE);
        let at = offset(addr, done)?;
        let piece = &mut buf[done..end];
        match readv_once(pid, at, piece) {
            Ok(0) => return Err(fault("process_vm_readv", pid, at)),
            Ok(n) => done += n,
            Err(e) if e.raw_os_error() == Some(libc::EFAULT) => {
                mem(pid, false)?
                    .read_exact_at(piece, at.0)
                    .map_err(|e| Error::os(format!("read /proc/{pid}/mem at {at}"), e))?;
                done = end;
            }
            Err(e) => return Err(Error::os(format!("process_vm_readv of {pid} at {at}"), e)),
        }
    }
    Ok(())
}

/// As [`read`], through /proc/PID/mem alone: it never waits for a page.
///
/// # Errors
/// As [`read`]; EIO for a page that a userfaultfd guards and that has not come.
pub fn peek(pid: HostPid, addr: VAddr, buf: &mut [u8]) -> Result<()> {
    mem(pid, false)?
        .read_exact_at(buf, addr.0)
        .map_err(|e| Error::os(format!("read /proc/{pid}/mem at {addr}"), e))
}

/// Reads `len` bytes of the memory of `pid` at `addr`; the caller has bounded
/// `len`.
///
/// # Errors
/// As [`read`].
pub fn read_vec(pid: HostPid, addr: VAddr, len: usize) -> Result<Vec<u8>> {
    let mut buf = vec![0; len];
    read(pid, addr, &mut buf)?;
    Ok(buf)
}

/// Writes `buf` to the memory of `pid` at `addr`, read-only areas too (those get
/// a private copy, as with ptrace).
///
/// # Errors
/// ESRCH, EPERM; EFAULT or EIO for an address that is not mapped.
pub fn write(pid: HostPid, addr: VAddr, buf: &[u8]) -> Result<()> {
    let mut done = 0;
    while done < buf.len() {
        let end = buf.len().min(done + PIECE);
        let at = offset(addr, done)?;
        let piece = &buf[done..end];
        match writev_once(pid, at, piece) {
            Ok(0) => return Err(fault("process_vm_writev", pid, at)),
            Ok(n) => done += n,
            Err(e) if e.raw_os_error() == Some(libc::EFAULT) => {
                mem(pid, true)?
                    .write_all_at(piece, at.0)
                    .map_err(|e| Error::os(format!("write /proc/{pid}/mem at {at}"), e))?;
                done = end;
            }
            Err(e) => return Err(Error::os(format!("process_vm_writev to {pid} at {at}"), e)),
        }
    }
    Ok(())
}

fn mem(pid: HostPid, write: bool) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(write)
        .open(format!("/proc/{pid}/mem"))
        .map_err(|e| Error::os(format!("open /proc/{pid}/mem"), e))
}

fn offset(addr: VAddr, done: usize) -> Result<VAddr> {
    u64::try_from(done)
        .ok()
        .and_then(|done| addr.0.checked_add(done))
        .map(VAddr)
        .ok_or_else(|| Error::errno(format!("address behind {addr}"), libc::EFAULT))
}

fn fault(call: &str, pid: HostPid, at: VAddr) -> Error {
    Error::errno(format!("{call} of {pid} at {at}"), libc::EFAULT)
}

fn readv_once(pid: HostPid, at: VAddr, piece: &mut [u8]) -> io::Result<usize> {
    let local = libc::iovec {
        iov_base: piece.as_mut_ptr().cast(),
        iov_len: piece.len(),
    };
    let remote = remote(at, piece.len())?;
    // SAFETY: `local` describes `piece`, which is borrowed for the call; the
    // remote address is only given meaning in the other address space.
    let n = unsafe { libc::process_vm_readv(pid.0, &raw const local, 1, &raw const remote, 1, 0) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

fn writev_once(pid: HostPid, at: VAddr, piece: &[u8]) -> io::Result<usize> {
    let local = libc::iovec {
        iov_base: piece.as_ptr().cast_mut().cast(),
        iov_len: piece.len(),
    };
    let remote = remote(at, piece.len())?;
    // SAFETY: the kernel only reads through `local`, which describes `piece`;
    // the remote address is only given meaning in the other address space.
    let n = unsafe { libc::process_vm_writev(pid.0, &raw const local, 1, &raw const remote, 1, 0) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

fn remote(at: VAddr, len: usize) -> io::Result<libc::iovec> {
    let base = usize::try_from(at.0).map_err(|_| io::Error::from_raw_os_error(libc::EFAULT))?;
    Ok(libc::iovec {
        iov_base: std::ptr::without_provenance_mut(base),
        iov_len: len,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::testing::Child;

    #[test]
    fn pages_without_read_permission_are_read_all_the_same() {
        let child = Child::fork();
        let at = child.mmap(3 * 4096);
        child.fill(at, 3 * 4096, 0x5a);
        child.mprotect(at + 4096, 4096, libc::PROT_NONE);
        let got = read_vec(child.pid(), VAddr(at), 3 * 4096).unwrap();
        assert!(got.iter().all(|b| *b == 0x5a));
        child.mprotect(at + 4096, 4096, libc::PROT_READ);
        write(child.pid(), VAddr(at), &[0x77; 3 * 4096]).unwrap();
        assert_eq!(child.sum(at, 3 * 4096), 0x77 * 3 * 4096);
    }

    #[test]
    fn an_unmapped_page_in_the_middle_is_an_error_and_no_zeros() {
        let child = Child::fork();
        let at = child.mmap(3 * 4096);
        child.fill(at, 3 * 4096, 1);
        child.munmap(at + 4096, 4096);
        let e = read_vec(child.pid(), VAddr(at), 3 * 4096).unwrap_err();
        assert_eq!(e.raw_os_error(), Some(libc::EIO), "{e}");
        let e = write(child.pid(), VAddr(at), &[0; 3 * 4096]).unwrap_err();
        assert_eq!(e.raw_os_error(), Some(libc::EIO), "{e}");
    }

    #[test]
    fn a_dead_process_is_an_error() {
        let e = read_vec(HostPid(i32::MAX), VAddr(4096), 8).unwrap_err();
        assert_eq!(e.raw_os_error(), Some(libc::ESRCH));
    }
}
