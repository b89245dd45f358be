//! Sockets by raw address bytes and option numbers: socket(7), unix(7), ip(7).
//!
//! An address stays the bytes that the kernel uses (`sockaddr_un` and friends
//! from the family on), because an abstract Unix name is not text.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

use crate::base::{Error, Result};
use crate::sys::fdops::c_path;

/// Descriptors that one message can carry (SCM_MAX_FD of the kernel).
pub const MAX_RIGHTS: usize = 253;

fn check(ret: i32) -> io::Result<i32> {
    if ret < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(ret)
    }
}

fn own(fd: i32) -> OwnedFd {
    // SAFETY: called only with a number that a system call just returned to us.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn len32(n: usize) -> libc::socklen_t {
    libc::socklen_t::try_from(n).unwrap_or(libc::socklen_t::MAX)
}

/// A new close-on-exec socket. socket(2)
///
/// # Errors
/// EAFNOSUPPORT, EPROTONOSUPPORT, EPERM, EMFILE.
pub fn socket(family: i32, kind: i32, protocol: i32) -> Result<OwnedFd> {
    // SAFETY: three integers.
    check(unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) })
        .map(own)
        .map_err(|e| Error::os(format!("socket of family {family} type {kind}"), e))
}

/// Two connected Unix sockets. socketpair(2)
///
/// # Errors
/// EMFILE, ESOCKTNOSUPPORT.
pub fn unix_pair(kind: i32) -> Result<(OwnedFd, OwnedFd)> {
    let mut ends = [-1; 2];
    // SAFETY: `ends` has room for two descriptors.
    check(unsafe {
        libc::socketpair(
            libc::AF_UNIX,
            kind | libc::SOCK_CLOEXEC,
            0,
            ends.as_mut_ptr(),
        )
    })
    .map_err(|e| Error::os(format!("socketpair of type {kind}"), e))?;
    Ok((own(ends[0]), own(ends[1])))
}

/// Binds to an address given as its bytes. bind(2)
///
/// # Errors
/// EADDRINUSE, EADDRNOTAVAIL, EACCES.
pub fn bind(fd: BorrowedFd<'_>, address: &[u8]) -> Result<()> {
    // SAFETY: the kernel reads `address` within its length.
    check(unsafe {
        libc::bind(
            fd.as_raw_fd(),
            address.as_ptr().cast(),
            len32(address.len()),
        )
    })
    .map(drop)
    .map_err(|e| Error::os("bind", e))
}

/// Connects to an address given as its bytes. connect(2)
///
/// # Errors
/// ECONNREFUSED, ENOENT, EAGAIN, EINPROGRESS.
pub fn connect(fd: BorrowedFd<'_>, address: &[u8]) -> Result<()> {
    // SAFETY: the kernel reads `address` within its length.
    check(unsafe {
        libc::connect(
            fd.as_raw_fd(),
            address.as_ptr().cast(),
            len32(address.len()),
        )
    })
    .map(drop)
    .map_err(|e| Error::os("connect", e))
}

/// Takes the next connection. accept(2)
///
/// # Errors
/// EAGAIN, ECONNABORTED.
pub fn accept(fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    // SAFETY: null address and length are allowed.
    check(unsafe {
        libc::accept4(
            fd.as_raw_fd(),
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            libc::SOCK_CLOEXEC,
        )
    })
    .map(own)
    .map_err(|e| Error::os("accept", e))
}

/// Lets others connect. listen(2)
///
/// # Errors
/// EADDRINUSE, EOPNOTSUPP.
pub fn listen(fd: BorrowedFd<'_>, backlog: u32) -> Result<()> {
    let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
    // SAFETY: two integers.
    check(unsafe { libc::listen(fd.as_raw_fd(), backlog) })
        .map(drop)
        .map_err(|e| Error::os("listen", e))
}

/// Shuts down reading, writing or both. shutdown(2)
///
/// # Errors
/// ENOTCONN.
pub fn shutdown(fd: BorrowedFd<'_>, how: i32) -> Result<()> {
    // SAFETY: two integers.
    check(unsafe { libc::shutdown(fd.as_raw_fd(), how) })
        .map(drop)
        .map_err(|e| Error::os(format!("shutdown {how}"), e))
}

type NameCall =
    unsafe extern "C" fn(libc::c_int, *mut libc::sockaddr, *mut libc::socklen_t) -> libc::c_int;

fn name(fd: BorrowedFd<'_>, call: NameCall) -> io::Result<Vec<u8>> {
    let mut room = [0u8; size_of::<libc::sockaddr_storage>()];
    let mut len = len32(room.len());
    // SAFETY: the kernel writes at most `len` bytes into `room`.
    check(unsafe { call(fd.as_raw_fd(), room.as_mut_ptr().cast(), &raw mut len) })?;
    let len = usize::try_from(len).unwrap_or(0).min(room.len());
    Ok(room[..len].to_vec())
}

/// The address that the socket is bound to, from the family on. getsockname(2)
///
/// # Errors
/// ENOTSOCK.
pub fn local_address(fd: BorrowedFd<'_>) -> Result<Vec<u8>> {
    name(fd, libc::getsockname).map_err(|e| Error::os("getsockname", e))
}

/// The address of the other end, `None` when there is none. getpeername(2)
///
/// # Errors
/// ENOTSOCK.
pub fn peer_address(fd: BorrowedFd<'_>) -> Result<Option<Vec<u8>>> {
    match name(fd, libc::getpeername) {
        Ok(address) => Ok(Some(address)),
        Err(e) if e.raw_os_error() == Some(libc::ENOTCONN) => Ok(None),
        Err(e) => Err(Error::os("getpeername", e)),
    }
}

/// Up to `max` bytes of an option. getsockopt(2)
///
/// # Errors
/// ENOPROTOOPT, EOPNOTSUPP.
pub fn option_bytes(fd: BorrowedFd<'_>, level: i32, name: i32, max: usize) -> Result<Vec<u8>> {
    let mut value = vec![0u8; max];
    let mut len = len32(max);
    // SAFETY: the kernel writes at most `len` bytes into `value`.
    check(unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            level,
            name,
            value.as_mut_ptr().cast(),
            &raw mut len,
        )
    })
    .map_err(|e| Error::os(format!("getsockopt {level}:{name}"), e))?;
    value.truncate(usize::try_from(len).unwrap_or(0));
    Ok(value)
}

/// An integer option. getsockopt(2)
///
/// # Errors
/// ENOPROTOOPT, EOPNOTSUPP; a value shorter than an int.
pub fn option(fd: BorrowedFd<'_>, level: i32, name: i32) -> Result<i32> {
    let bytes = option_bytes(fd, level, name, size_of::<i32>())?;
    <[u8; 4]>::try_from(bytes.as_slice())
        .map(i32::from_ne_bytes)
        .map_err(|_| Error::errno(format!("getsockopt {level}:{name}"), libc::EINVAL))
}

/// Sets an option to these bytes. setsockopt(2)
///
/// # Errors
/// ENOPROTOOPT, EPERM, EINVAL.
pub fn set_option_bytes(fd: BorrowedFd<'_>, level: i32, name: i32, value: &[u8]) -> Result<()> {
    // SAFETY: the kernel reads `value` within its length.
    check(unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            value.as_ptr().cast(),
            len32(value.len()),
        )
    })
    .map(drop)
    .map_err(|e| Error::os(format!("setsockopt {level}:{name}"), e))
}

/// Sets an integer option. setsockopt(2)
///
/// # Errors
/// ENOPROTOOPT, EPERM, EINVAL.
pub fn set_option(fd: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> Result<()> {
    set_option_bytes(fd, level, name, &value.to_ne_bytes())
}

/// The classic BPF program on a socket, eight bytes an instruction. SO_GET_FILTER
///
/// # Errors
/// ENOPROTOOPT.
pub fn filter(fd: BorrowedFd<'_>) -> Result<Vec<[u8; 8]>> {
    /// SO_GET_FILTER: its length counts instructions, not bytes.
    const SO_GET_FILTER: i32 = libc::SO_ATTACH_FILTER;
    /// BPF_MAXINSNS.
    const MAX: usize = 4096;
    let mut program = vec![[0u8; 8]; MAX];
    let mut len = len32(MAX);
    // SAFETY: the kernel writes at most `len` instructions of eight bytes.
    check(unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_GET_FILTER,
            program.as_mut_ptr().cast(),
            &raw mut len,
        )
    })
    .map_err(|e| Error::os("getsockopt SO_GET_FILTER", e))?;
    program.truncate(usize::try_from(len).unwrap_or(0));
    Ok(program)
}

/// Puts a classic BPF program on a socket. SO_ATTACH_FILTER
///
/// # Errors
/// EINVAL for a bad program, EPERM when the filter is locked.
pub fn set_filter(fd: BorrowedFd<'_>, program: &[[u8; 8]]) -> Result<()> {
    let fprog = libc::sock_fprog {
        len: u16::try_from(program.len())
            .map_err(|_| Error::errno("setsockopt SO_ATTACH_FILTER", libc::EINVAL))?,
        filter: program.as_ptr().cast_mut().cast(),
    };
    // SAFETY: the kernel reads sock_fprog and the `len` instructions that it
    // points to (eight bytes each, copied without regard to alignment).
    check(unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const fprog).cast(),
            len32(size_of::<libc::sock_fprog>()),
        )
    })
    .map(drop)
    .map_err(|e| Error::os("setsockopt SO_ATTACH_FILTER", e))
}

/// The network namespace that a socket lives in (SIOCGSKNS, netdevice(7)).
///
/// # Errors
/// EPERM without CAP_NET_ADMIN in it.
pub fn namespace(fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    const SIOCGSKNS: libc::Ioctl = 0x894c;
    // SAFETY: no argument; the kernel returns a new descriptor.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), SIOCGSKNS) })
        .map(own)
        .map_err(|e| Error::os("SIOCGSKNS", e))
}

/// The file that a Unix socket is bound to, as an O_PATH descriptor
/// (SIOCUNIXFILE); `None` when it is not bound to one. unix(7)
///
/// # Errors
/// EPERM without CAP_NET_ADMIN.
pub fn unix_file(fd: BorrowedFd<'_>) -> Result<Option<OwnedFd>> {
    /// SIOCPROTOPRIVATE + 0
    const SIOCUNIXFILE: libc::Ioctl = 0x89e0;
    // SAFETY: no argument; the kernel returns a new descriptor.
    match check(unsafe { libc::ioctl(fd.as_raw_fd(), SIOCUNIXFILE) }) {
        Ok(fd) => Ok(Some(own(fd))),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(e) => Err(Error::os("SIOCUNIXFILE", e)),
    }
}

/// One message that was looked at, not taken.
#[derive(Debug)]
pub struct Peeked {
    /// Its bytes.
    pub data: Vec<u8>,
    /// Duplicates of the descriptors that travel with it.
    pub rights: Vec<OwnedFd>,
    /// It carries control data other than descriptors (of this SOL_SOCKET type).
    pub other_control: Option<i32>,
    /// It was longer than the room for it, in bytes or in control data.
    pub truncated: bool,
}

/// Looks at the next message, of at most `max` bytes, without waiting; `None`
/// when there is none. With SO_PEEK_OFF set, the following call looks at the
/// message after it. recvmsg(2), MSG_PEEK
///
/// # Errors
/// ENOTCONN, ECONNRESET.
pub fn peek(fd: BorrowedFd<'_>, max: usize) -> Result<Option<Peeked>> {
    let mut data = vec![0u8; max];
    let mut iov = libc::iovec {
        iov_base: data.as_mut_ptr().cast(),
        iov_len: data.len(),
    };
    // Aligned for a cmsghdr.
    let mut control = [0u64; 256];
    // SAFETY: an all-zero msghdr is valid.
    let mut msg: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    msg.msg_iov = &raw mut iov;
    msg.msg_iovlen = 1;
    msg.msg_control = control.as_mut_ptr().cast();
    msg.msg_controllen = size_of_val(&control);
    // SAFETY: msg points to live buffers of the lengths it states.
    let n = unsafe {
        libc::recvmsg(
            fd.as_raw_fd(),
            &raw mut msg,
            libc::MSG_PEEK | libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC,
        )
    };
    let Ok(n) = usize::try_from(n) else {
        let e = io::Error::last_os_error();
        return match e.raw_os_error() {
            Some(libc::EAGAIN) => Ok(None),
            _ => Err(Error::os("recvmsg with MSG_PEEK", e)),
        };
    };
    let (rights, other_control) = control_data(&msg);
    data.truncate(n);
    Ok(Some(Peeked {
        data,
        rights,
        other_control,
        truncated: msg.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0,
    }))
}

/// Bytes that wait to be read: all of a stream, or the next message. unix(7), SIOCINQ.
///
/// # Errors
/// EINVAL on a listening socket.
pub fn unread(fd: BorrowedFd<'_>) -> Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the request writes one int.
    if unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &raw mut bytes) } != 0 {
        return Err(Error::last_os("ioctl SIOCINQ"));
    }
    Ok(usize::try_from(bytes).unwrap_or(0))
}

/// Takes the descriptors out of a message that recvmsg filled.
fn control_data(msg: &libc::msghdr) -> (Vec<OwnedFd>, Option<i32>) {
    let mut rights = Vec::new();
    let mut other = None;
    // SAFETY: the kernel filled the control buffer up to msg_controllen, and
    // the CMSG macros walk it within that length.
    let mut at = unsafe { libc::CMSG_FIRSTHDR(msg) };
    while !at.is_null() {
        // SAFETY: `at` is a header inside the control buffer.
        let header = unsafe { &*at };
        if header.cmsg_level == libc::SOL_SOCKET && header.cmsg_type == libc::SCM_RIGHTS {
            // SAFETY: as above.
            let payload = unsafe { libc::CMSG_DATA(at) };
            let count =
                header.cmsg_len.saturating_sub(payload.addr() - at.addr()) / size_of::<i32>();
            for i in 0..count {
                // SAFETY: `count` ints lie in the payload; the kernel just
                // made each of them ours.
                rights.push(own(unsafe {
                    payload.cast::<i32>().add(i).read_unaligned()
                }));
            }
        } else {
            other = Some(header.cmsg_type);
        }
        // SAFETY: as for CMSG_FIRSTHDR.
        at = unsafe { libc::CMSG_NXTHDR(msg, at) };
    }
    (rights, other)
}

/// Sends one message with descriptors, all or nothing, without waiting and
/// without SIGPIPE. sendmsg(2)
///
/// # Errors
/// EAGAIN when the queue is full, ETOOMANYREFS, EPIPE, EMSGSIZE.
pub fn send(fd: BorrowedFd<'_>, data: &[u8], rights: &[BorrowedFd<'_>]) -> Result<()> {
    if rights.len() > MAX_RIGHTS {
        return Err(Error::errno("sendmsg", libc::EINVAL));
    }
    let mut iov = libc::iovec {
        iov_base: data.as_ptr().cast_mut().cast(),
        iov_len: data.len(),
    };
    // Room for the header and MAX_RIGHTS descriptors, aligned for a cmsghdr.
    let mut control = [0u64; 160];
    // SAFETY: an all-zero msghdr is valid.
    let mut msg: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    msg.msg_iov = &raw mut iov;
    msg.msg_iovlen = 1;
    if !rights.is_empty() {
        let bytes = len32(size_of_val(rights));
        msg.msg_control = control.as_mut_ptr().cast();
        // SAFETY: arithmetic only.
        msg.msg_controllen = usize::try_from(unsafe { libc::CMSG_SPACE(bytes) }).unwrap_or(0);
        // SAFETY: the control buffer has room for the header and the ints
        // (16 + 253 * 4 <= 160 * 8), so both macros stay inside it.
        unsafe {
            let header = libc::CMSG_FIRSTHDR(&raw const msg);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = usize::try_from(libc::CMSG_LEN(bytes)).unwrap_or(0);
            let payload = libc::CMSG_DATA(header).cast::<i32>();
            for (i, right) in rights.iter().enumerate() {
                payload.add(i).write_unaligned(right.as_raw_fd());
            }
        }
    }
    // SAFETY: msg points to live buffers of the lengths it states.
    let n = unsafe {
        libc::sendmsg(
            fd.as_raw_fd(),
            &raw const msg,
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
        )
    };
    match usize::try_from(n) {
        Ok(n) if n == data.len() => Ok(()),
        Ok(n) => Err(Error::bug(
            format!("sendmsg of {} bytes", data.len()),
            format!("only {n} went out"),
        )),
        Err(_) => Err(Error::last_os(format!("sendmsg of {} bytes", data.len()))),
    }
}

/// Where a socket has to be made: a network namespace, and for names in the
/// file system a root directory and a working directory below it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Place<'a> {
    /// The network namespace; `None`: ours.
    pub net: Option<BorrowedFd<'a>>,
    /// The root directory and, inside it, the working directory.
    pub root: Option<(BorrowedFd<'a>, &'a Path)>,
}

/// Runs `f` at a place, on a thread of its own that ends with it, so that
/// nothing else of this process moves. setns(2), chroot(2)
///
/// # Errors
/// Those of `f`; EPERM without CAP_SYS_ADMIN and CAP_SYS_CHROOT.
pub fn at_place<T: Send>(place: Place<'_>, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    if place.net.is_none() && place.root.is_none() {
        return f();
    }
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("place".into())
            .spawn_scoped(scope, move || {
                enter(place)?;
                f()
            })
            .map_err(|e| Error::os("start a thread", e))?;
        thread
            .join()
            .unwrap_or_else(|_| Err(Error::bug("a thread in the container", "it panicked")))
    })
}

/// Moves the calling thread, for good.
fn enter(place: Place<'_>) -> Result<()> {
    if let Some(net) = place.net {
        // SAFETY: two integers; moves only this thread.
        check(unsafe { libc::setns(net.as_raw_fd(), libc::CLONE_NEWNET) })
            .map_err(|e| Error::os("setns to the network namespace", e))?;
    }
    if let Some((root, dir)) = place.root {
        let dir = c_path(dir)?;
        // SAFETY: integers and C strings; unshare gives this thread a root and
        // a working directory of its own first.
        unsafe {
            check(libc::unshare(libc::CLONE_FS))
                .and_then(|_| check(libc::fchdir(root.as_raw_fd())))
                .and_then(|_| check(libc::chroot(c".".as_ptr())))
                .and_then(|_| check(libc::chdir(dir.as_ptr())))
        }
        .map_err(|e| Error::os("change the root of a thread", e))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_message_with_descriptors_can_be_looked_at_twice() {
        let (a, b) = unix_pair(libc::SOCK_SEQPACKET).unwrap();
        send(a.as_fd(), b"one", &[a.as_fd(), b.as_fd()]).unwrap();
        send(a.as_fd(), b"two", &[]).unwrap();
        for _ in 0..2 {
            set_option(b.as_fd(), libc::SOL_SOCKET, libc::SO_PEEK_OFF, 0).unwrap();
            let first = peek(b.as_fd(), 100).unwrap().unwrap();
            assert_eq!(
                (first.data.as_slice(), first.rights.len()),
                (&b"one"[..], 2)
            );
            let second = peek(b.as_fd(), 100).unwrap().unwrap();
            assert_eq!(
                (second.data.as_slice(), second.rights.len()),
                (&b"two"[..], 0)
            );
            assert!(peek(b.as_fd(), 100).unwrap().is_none());
        }
    }

    #[test]
    fn a_message_longer_than_the_room_says_so() {
        let (a, b) = unix_pair(libc::SOCK_DGRAM).unwrap();
        send(a.as_fd(), b"12345", &[]).unwrap();
        assert!(peek(b.as_fd(), 2).unwrap().unwrap().truncated);
    }

    #[test]
    fn a_name_bound_at_a_place_is_relative_to_its_root() {
        let dir = tempfile::tempdir().unwrap();
        let root = std::fs::File::open(dir.path()).unwrap();
        let mut address = 1u16.to_ne_bytes().to_vec();
        address.extend_from_slice(b"/sock");
        let socket = at_place(
            Place {
                net: None,
                root: Some((root.as_fd(), Path::new("/"))),
            },
            || {
                let s = socket(libc::AF_UNIX, libc::SOCK_STREAM, 0)?;
                bind(s.as_fd(), &address)?;
                Ok(s)
            },
        )
        .unwrap();
        assert!(dir.path().join("sock").exists());
        let got = local_address(socket.as_fd()).unwrap();
        assert_eq!(got.strip_suffix(b"\0").unwrap_or(&got), address);
    }
}
