//! Options that sockets of all families have: socket(7).

use std::os::fd::BorrowedFd;

use crate::base::{Error, Result};
use crate::image::records::{SkOptsEntry, SkShutdown};
use crate::sys::socket::{
    filter, option, option_bytes, set_filter, set_option, set_option_bytes, shutdown,
};

const SOL: i32 = libc::SOL_SOCKET;
const SO_BUF_LOCK: i32 = 72;
const SO_NO_CHECK: i32 = 11;

fn flag(fd: BorrowedFd<'_>, name: i32) -> Result<Option<bool>> {
    Ok(Some(option(fd, SOL, name)? != 0))
}

fn number(fd: BorrowedFd<'_>, name: i32) -> Result<u32> {
    Ok(option(fd, SOL, name)?.cast_unsigned())
}

/// Seconds and microseconds of SO_RCVTIMEO and SO_SNDTIMEO.
fn timeout(fd: BorrowedFd<'_>, name: i32) -> Result<(u64, u64)> {
    let bytes = option_bytes(fd, SOL, name, 16)?;
    let word = |at: usize| {
        let b: [u8; 8] = bytes.get(at..at + 8)?.try_into().ok()?;
        Some(i64::from_ne_bytes(b).cast_unsigned())
    };
    match (word(0), word(8)) {
        (Some(sec), Some(usec)) => Ok((sec, usec)),
        _ => Err(Error::bug("getsockopt of a timeout", "gave a short value")),
    }
}

/// Reads them all. `local`: the family has credentials (Unix, netlink).
pub(super) fn capture(fd: BorrowedFd<'_>, local: bool) -> Result<SkOptsEntry> {
    let (so_snd_tmo_sec, so_snd_tmo_usec) = timeout(fd, libc::SO_SNDTIMEO)?;
    let (so_rcv_tmo_sec, so_rcv_tmo_usec) = timeout(fd, libc::SO_RCVTIMEO)?;
    let mark = number(fd, libc::SO_MARK)?;
    let linger = option_bytes(fd, SOL, libc::SO_LINGER, 8)?;
    let (on, seconds) = linger.split_at(linger.len().min(4));
    Ok(SkOptsEntry {
        so_sndbuf: number(fd, libc::SO_SNDBUF)?,
        so_rcvbuf: number(fd, libc::SO_RCVBUF)?,
        so_snd_tmo_sec,
        so_snd_tmo_usec,
        so_rcv_tmo_sec,
        so_rcv_tmo_usec,
        reuseaddr: flag(fd, libc::SO_REUSEADDR)?,
        so_reuseport: flag(fd, libc::SO_REUSEPORT)?,
        so_priority: Some(number(fd, libc::SO_PRIORITY)?),
        so_rcvlowat: Some(number(fd, libc::SO_RCVLOWAT)?),
        so_mark: (mark != 0).then_some(mark),
        so_passcred: if local {
            flag(fd, libc::SO_PASSCRED)?
        } else {
            None
        },
        so_passsec: if local {
            flag(fd, libc::SO_PASSSEC)?
        } else {
            None
        },
        so_dontroute: flag(fd, libc::SO_DONTROUTE)?,
        so_no_check: flag(fd, SO_NO_CHECK)?,
        so_broadcast: flag(fd, libc::SO_BROADCAST)?,
        so_keepalive: flag(fd, libc::SO_KEEPALIVE)?,
        so_oobinline: Some(number(fd, libc::SO_OOBINLINE)?),
        so_linger: (on.iter().any(|b| *b != 0))
            .then(|| u32::from_ne_bytes(seconds.try_into().unwrap_or_default())),
        so_buf_lock: option(fd, SOL, SO_BUF_LOCK).ok().map(i32::cast_unsigned),
        so_bound_dev: bound_device(fd)?,
        so_filter: filter(fd)?.iter().map(encode).collect(),
        ..SkOptsEntry::default()
    })
}

fn bound_device(fd: BorrowedFd<'_>) -> Result<Option<String>> {
    let bytes = option_bytes(fd, SOL, libc::SO_BINDTODEVICE, libc::IFNAMSIZ)?;
    let name: Vec<u8> = bytes.into_iter().take_while(|b| *b != 0).collect();
    if name.is_empty() {
        return Ok(None);
    }
    String::from_utf8(name)
        .map(Some)
        .map_err(|_| Error::refused("socket bound to a device", "whose name is not UTF-8"))
}

/// The fields of an instruction (u16 code, u8 jt, u8 jf, u32 k), code on top.
fn encode(i: &[u8; 8]) -> u64 {
    let code = u64::from(u16::from_ne_bytes([i[0], i[1]]));
    let k = u64::from(u32::from_ne_bytes([i[4], i[5], i[6], i[7]]));
    code << 48 | u64::from(i[2]) << 40 | u64::from(i[3]) << 32 | k
}

fn decode(word: u64) -> [u8; 8] {
    let [c0, c1, jt, jf, k0, k1, k2, k3] = word.to_be_bytes();
    let code = u16::from_be_bytes([c0, c1]).to_ne_bytes();
    let k = u32::from_be_bytes([k0, k1, k2, k3]).to_ne_bytes();
    [code[0], code[1], jt, jf, k[0], k[1], k[2], k[3]]
}

/// As large as the kernel allows, so that a queue can be filled.
pub(super) fn widest(fd: BorrowedFd<'_>) -> Result<()> {
    set_option(fd, SOL, libc::SO_SNDBUFFORCE, i32::MAX / 2)?;
    set_option(fd, SOL, libc::SO_RCVBUFFORCE, i32::MAX / 2)
}

/// Sets all but SO_REUSEADDR and SO_REUSEPORT, which depend on the family.
pub(super) fn rebuild(fd: BorrowedFd<'_>, o: &SkOptsEntry) -> Result<()> {
    buffer(fd, libc::SO_SNDBUF, libc::SO_SNDBUFFORCE, o.so_sndbuf)?;
    buffer(fd, libc::SO_RCVBUF, libc::SO_RCVBUFFORCE, o.so_rcvbuf)?;
    let values = [
        (SO_BUF_LOCK, o.so_buf_lock),
        (libc::SO_PRIORITY, o.so_priority),
        (libc::SO_RCVLOWAT, o.so_rcvlowat),
        (libc::SO_MARK, o.so_mark),
        (libc::SO_OOBINLINE, o.so_oobinline.filter(|v| *v != 0)),
    ];
    for (name, value) in values {
        if let Some(value) = value {
            change(fd, name, value.cast_signed())?;
        }
    }
    let flags = [
        (libc::SO_PASSCRED, o.so_passcred),
        (libc::SO_PASSSEC, o.so_passsec),
        (libc::SO_DONTROUTE, o.so_dontroute),
        (SO_NO_CHECK, o.so_no_check),
        (libc::SO_BROADCAST, o.so_broadcast),
        (libc::SO_KEEPALIVE, o.so_keepalive),
    ];
    for (name, value) in flags {
        if value == Some(true) {
            set_option(fd, SOL, name, 1)?;
        }
    }
    if let Some(seconds) = o.so_linger {
        let mut bytes = 1i32.to_ne_bytes().to_vec();
        bytes.extend_from_slice(&seconds.to_ne_bytes());
        set_option_bytes(fd, SOL, libc::SO_LINGER, &bytes)?;
    }
    times(fd, libc::SO_SNDTIMEO, o.so_snd_tmo_sec, o.so_snd_tmo_usec)?;
    times(fd, libc::SO_RCVTIMEO, o.so_rcv_tmo_sec, o.so_rcv_tmo_usec)?;
    if let Some(device) = &o.so_bound_dev {
        set_option_bytes(fd, SOL, libc::SO_BINDTODEVICE, device.as_bytes())?;
    }
    if !o.so_filter.is_empty() {
        let program: Vec<[u8; 8]> = o.so_filter.iter().map(|w| decode(*w)).collect();
        set_filter(fd, &program)?;
    }
    Ok(())
}

/// The kernel doubles what is set. A size that is right already is left
/// alone, since setting it would switch its own growing off.
fn buffer(fd: BorrowedFd<'_>, name: i32, force: i32, bytes: u32) -> Result<()> {
    if number(fd, name)? == bytes {
        return Ok(());
    }
    set_option(fd, SOL, force, (bytes / 2).cast_signed())
}

/// Sets a value that differs; some protocols refuse options at their default.
fn change(fd: BorrowedFd<'_>, name: i32, value: i32) -> Result<()> {
    match option(fd, SOL, name) {
        Ok(now) if now == value => Ok(()),
        _ => set_option(fd, SOL, name, value),
    }
}

fn times(fd: BorrowedFd<'_>, name: i32, sec: u64, usec: u64) -> Result<()> {
    if (sec, usec) == (0, 0) {
        return Ok(());
    }
    let mut bytes = sec.to_ne_bytes().to_vec();
    bytes.extend_from_slice(&usec.to_ne_bytes());
    set_option_bytes(fd, SOL, name, &bytes)
}

/// Shuts down what the record's `shutdown` (a [`SkShutdown`]) says. One whose peer is
/// gone has nothing left to shut.
///
/// # Errors
/// Those of shutdown(2).
pub(super) fn half_close(fd: BorrowedFd<'_>, sides: Option<i32>) -> Result<()> {
    let how = match sides.and_then(|s| SkShutdown::try_from(s).ok()) {
        None | Some(SkShutdown::None) => return Ok(()),
        Some(SkShutdown::Read) => libc::SHUT_RD,
        Some(SkShutdown::Write) => libc::SHUT_WR,
        Some(SkShutdown::Both) => libc::SHUT_RDWR,
    };
    match shutdown(fd, how) {
        Err(e) if e.raw_os_error() == Some(libc::ENOTCONN) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::socket::socket;
    use std::os::fd::AsFd;

    #[test]
    fn options_come_back_as_they_were() {
        let a = socket(libc::AF_INET, libc::SOCK_STREAM, 0).unwrap();
        let fd = a.as_fd();
        set_option(fd, SOL, libc::SO_KEEPALIVE, 1).unwrap();
        set_option(fd, SOL, libc::SO_SNDBUF, 70_000).unwrap();
        set_option(fd, SOL, libc::SO_MARK, 9).unwrap();
        set_option(fd, SOL, libc::SO_PRIORITY, 3).unwrap();
        set_option_bytes(fd, SOL, libc::SO_LINGER, &[1, 0, 0, 0, 5, 0, 0, 0]).unwrap();
        times(fd, libc::SO_RCVTIMEO, 2, 500_000).unwrap();
        set_option_bytes(fd, SOL, libc::SO_BINDTODEVICE, b"lo").unwrap();
        // ret 0xffff
        set_filter(fd, &[[6, 0, 0, 0, 0xff, 0xff, 0, 0]]).unwrap();
        let before = capture(fd, false).unwrap();
        let b = socket(libc::AF_INET, libc::SOCK_STREAM, 0).unwrap();
        rebuild(b.as_fd(), &before).unwrap();
        assert_eq!(capture(b.as_fd(), false).unwrap(), before);
        assert_eq!(before.so_filter, [0x0006_0000_0000_ffff]);
    }

    #[test]
    fn a_fresh_socket_is_left_as_it_is() {
        let a = socket(libc::AF_UNIX, libc::SOCK_STREAM, 0).unwrap();
        let before = capture(a.as_fd(), true).unwrap();
        rebuild(a.as_fd(), &before).unwrap();
        assert_eq!(capture(a.as_fd(), true).unwrap(), before);
    }
}
