//! Terminals: ioctl_tty(2), pts(4).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::base::{Error, Result};

const TIOCGLCKTRMIOS: u64 = 0x5456;
const TIOCSLCKTRMIOS: u64 = 0x5457;
const TIOCGPTPEER: u64 = 0x5441;
const TIOCGPTN: u64 = 0x8004_5430;
const TIOCSPTLCK: u64 = 0x4004_5431;
const TIOCGEXCL: u64 = 0x8004_5440;

/// `struct termios` of the kernel (not the C library's).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Termios {
    /// Input modes.
    pub iflag: u32,
    /// Output modes.
    pub oflag: u32,
    /// Control modes, with the speed.
    pub cflag: u32,
    /// Local modes.
    pub lflag: u32,
    /// Line discipline.
    pub line: u8,
    /// Control characters.
    pub cc: [u8; 19],
}
const _: () = assert!(size_of::<Termios>() == 36);

/// Rows, columns, and pixels of both.
pub type Winsize = [u16; 4];

/// A request whose argument the kernel reads or writes as a whole `T`.
fn request<T>(fd: BorrowedFd<'_>, number: u64, what: &str, value: &mut T) -> Result<()> {
    // SAFETY: each caller below pairs `number` with the type that the kernel
    // expects; plain data in both directions.
    let ret = unsafe { libc::ioctl(fd.as_raw_fd(), number, std::ptr::from_mut(value)) };
    if ret < 0 {
        return Err(Error::os(what.to_owned(), io::Error::last_os_error()));
    }
    Ok(())
}

/// The modes.
///
/// # Errors
/// ENOTTY, EIO after a hangup.
pub fn modes(fd: BorrowedFd<'_>) -> Result<Termios> {
    let mut modes = Termios::default();
    request(fd, libc::TCGETS, "TCGETS", &mut modes)?;
    Ok(modes)
}

/// Which of the modes are locked.
///
/// # Errors
/// ENOTTY.
pub fn locked_modes(fd: BorrowedFd<'_>) -> Result<Termios> {
    let mut modes = Termios::default();
    request(fd, TIOCGLCKTRMIOS, "TIOCGLCKTRMIOS", &mut modes)?;
    Ok(modes)
}

/// Sets modes, size and locked modes.
///
/// # Errors
/// ENOTTY; EPERM for locks without CAP_SYS_ADMIN.
pub fn set(fd: BorrowedFd<'_>, modes: Termios, size: Winsize, locked: Termios) -> Result<()> {
    let (mut modes, mut size, mut locked) = (modes, size, locked);
    request(fd, libc::TCSETS, "TCSETS", &mut modes)?;
    request(fd, libc::TIOCSWINSZ, "TIOCSWINSZ", &mut size)?;
    if locked != Termios::default() {
        request(fd, TIOCSLCKTRMIOS, "TIOCSLCKTRMIOS", &mut locked)?;
    }
    Ok(())
}

/// The size of the window.
///
/// # Errors
/// ENOTTY.
pub fn size(fd: BorrowedFd<'_>) -> Result<Winsize> {
    let mut size = Winsize::default();
    request(fd, libc::TIOCGWINSZ, "TIOCGWINSZ", &mut size)?;
    Ok(size)
}

/// Whether nobody else may open it.
///
/// # Errors
/// ENOTTY.
pub fn is_exclusive(fd: BorrowedFd<'_>) -> Result<bool> {
    let mut exclusive = 0i32;
    request(fd, TIOCGEXCL, "TIOCGEXCL", &mut exclusive)?;
    Ok(exclusive != 0)
}

/// The number of the pair of this master.
///
/// # Errors
/// ENOTTY.
pub fn number(master: BorrowedFd<'_>) -> Result<u32> {
    let mut number = 0u32;
    request(master, TIOCGPTN, "TIOCGPTN", &mut number)?;
    Ok(number)
}

/// Lets the slave of this master be opened.
///
/// # Errors
/// ENOTTY.
pub fn unlock(master: BorrowedFd<'_>) -> Result<()> {
    let mut locked = 0i32;
    request(master, TIOCSPTLCK, "TIOCSPTLCK", &mut locked)
}

/// Opens the slave of this master, close-on-exec, and not as our own terminal.
///
/// # Errors
/// EIO when it is locked, ENOTTY.
pub fn peer(master: BorrowedFd<'_>, flags: i32) -> Result<OwnedFd> {
    let flags = flags | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: two integers; a new descriptor comes back.
    let fd = unsafe { libc::ioctl(master.as_raw_fd(), TIOCGPTPEER, flags) };
    if fd < 0 {
        return Err(Error::os("TIOCGPTPEER", io::Error::last_os_error()));
    }
    // SAFETY: the kernel just returned it to us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
