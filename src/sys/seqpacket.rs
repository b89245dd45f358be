//! SOCK_SEQPACKET sockets with a name in the file system: unix(7). Messages keep
//! their borders and carry descriptors ([`super::socket::send`],
//! [`super::socket::peek`]).

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, bind, connect, listen, recv,
    socket,
};

use crate::base::{Error, Result, ResultExt};

/// A listening socket at `path`, which only its owner may use. What lies there
/// already is replaced if it is a socket.
///
/// # Errors
/// ENAMETOOLONG beyond 107 bytes, EADDRINUSE when something else lies there.
pub fn listen_at(path: &Path) -> Result<OwnedFd> {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};
    let context = || format!("listen at {}", path.display());
    if std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket()) {
        std::fs::remove_file(path).context(context)?;
    }
    let fd = stream()?;
    let address = UnixAddr::new(path).context(context)?;
    bind(fd.as_raw_fd(), &address).context(context)?;
    // Nobody can connect before listen.
    let private = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(path, private).context(context)?;
    listen(&fd, Backlog::new(8).context(context)?).context(context)?;
    Ok(fd)
}

/// The next connection; call it when `listener` is readable.
///
/// # Errors
/// Those of accept4(2).
pub fn accept(listener: BorrowedFd<'_>) -> Result<OwnedFd> {
    // SAFETY: no address is asked for, so both pointers may be null.
    let fd = unsafe {
        libc::accept4(
            listener.as_raw_fd(),
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            libc::SOCK_CLOEXEC,
        )
    };
    if fd < 0 {
        return Err(Error::last_os("accept"));
    }
    // SAFETY: the kernel has just made this descriptor, for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Connects to the socket at `path`.
///
/// # Errors
/// ENOENT, ECONNREFUSED when nobody listens.
pub fn connect_to(path: &Path) -> Result<OwnedFd> {
    let context = || format!("connect to {}", path.display());
    let fd = stream()?;
    let address = UnixAddr::new(path).context(context)?;
    connect(fd.as_raw_fd(), &address).context(context)?;
    Ok(fd)
}

/// Throws the next message away, after it was looked at.
///
/// # Errors
/// Those of recv(2).
pub fn discard(fd: BorrowedFd<'_>) -> Result<()> {
    recv(fd.as_fd().as_raw_fd(), &mut [0; 1], MsgFlags::MSG_DONTWAIT)
        .map(drop)
        .context(|| "recv".to_owned())
}

fn stream() -> Result<OwnedFd> {
    socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .context(|| "make a Unix socket".to_owned())
}
