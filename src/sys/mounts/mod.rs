//! Mounts by descriptor: open_tree(2), move_mount(2), fsopen(2), fsconfig(2),
//! fsmount(2), mount_setattr(2), openat2(2), pivot_root(2); and the table of a
//! mount namespace.
//!
//! Everything goes by descriptor, because the paths of a container are foreign:
//! a name is looked up inside a mount that we hold, never from our own root.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use crate::base::{Error, Result, ResultExt};

mod fs;
mod table;

pub use fs::FsContext;
pub use table::{MountInfo, mountinfo, own_mountinfo, parse};

/// How mount propagates: mount_namespaces(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// Neither sends nor receives.
    Private,
    /// Sends and receives.
    Shared,
    /// Receives only.
    Slave,
    /// Private, and may not be bind mounted.
    Unbindable,
}

/// Attribute bits of mount_setattr(2) and fsmount(2).
pub mod attr {
    /// `ro`.
    pub const RDONLY: u64 = 0x1;
    /// `nosuid`.
    pub const NOSUID: u64 = 0x2;
    /// `nodev`.
    pub const NODEV: u64 = 0x4;
    /// `noexec`.
    pub const NOEXEC: u64 = 0x8;
    /// The field that holds one of relatime (0), noatime, strictatime.
    pub const ATIME: u64 = 0x70;
    /// `noatime`.
    pub const NOATIME: u64 = 0x10;
    /// `strictatime`.
    pub const STRICTATIME: u64 = 0x20;
    /// `nodiratime`.
    pub const NODIRATIME: u64 = 0x80;
    /// `nosymfollow`.
    pub const NOSYMFOLLOW: u64 = 0x20_0000;
    /// All that a mount of ours sets or clears.
    pub const ALL: u64 = RDONLY | NOSUID | NODEV | NOEXEC | ATIME | NODIRATIME | NOSYMFOLLOW;
}

#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}
const _: () = assert!(size_of::<MountAttr>() == 32);

#[repr(C)]
struct OpenHow {
    flags: u64,
    mode: u64,
    resolve: u64,
}
const _: () = assert!(size_of::<OpenHow>() == 24);

const OPEN_TREE_CLONE: u32 = 1;
const OPEN_TREE_CLOEXEC: u32 = 0o2_000_000;
const AT_EMPTY_PATH: u32 = 0x1000;
const AT_RECURSIVE: u32 = 0x8000;
const MOVE_MOUNT_F_EMPTY_PATH: u32 = 0x4;
const MOVE_MOUNT_T_EMPTY_PATH: u32 = 0x40;
const MOVE_MOUNT_SET_GROUP: u32 = 0x100;

/// openat2(2): no step may leave the directory.
pub const BENEATH: u64 = 0x8;
/// openat2(2): no symbolic link is followed.
pub const NO_SYMLINKS: u64 = 0x4;
/// openat2(2): no mount is crossed.
pub const NO_XDEV: u64 = 0x1;

fn path_arg(path: &Path) -> Result<CString> {
    use std::os::unix::ffi::OsStrExt;
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| Error::caller(format!("path {path:?}"), "holds a zero byte"))
}

fn owned(r: libc::c_long) -> io::Result<OwnedFd> {
    match RawFd::try_from(r) {
        // SAFETY: the kernel has just made this descriptor, and for us alone.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

fn done(r: libc::c_long) -> io::Result<()> {
    if r == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Opens `path` (relative) at `dir` with open(2) `flags` and openat2(2)
/// `resolve` bits; close-on-exec. An empty path is `.`.
///
/// # Errors
/// Those of openat2(2): EXDEV or ELOOP when a rule of `resolve` is broken.
pub fn open_at(dir: BorrowedFd<'_>, path: &Path, flags: i32, resolve: u64) -> Result<OwnedFd> {
    let name = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    let c = path_arg(name)?;
    let how = OpenHow {
        flags: u64::from((flags | libc::O_CLOEXEC).cast_unsigned()),
        mode: 0,
        resolve,
    };
    // SAFETY: the string and the struct outlive the call, its size is passed.
    let r = unsafe {
        libc::syscall(
            libc::SYS_openat2,
            dir.as_raw_fd(),
            c.as_ptr(),
            &raw const how,
            size_of::<OpenHow>(),
        )
    };
    owned(r).context(|| format!("openat2 {}", name.display()))
}

/// A detached copy of the mount that `at` lies in, rooted at `at`.
///
/// # Errors
/// Those of open_tree(2): EINVAL when the mount is of another namespace or
/// unbindable.
pub fn clone_at(at: BorrowedFd<'_>) -> Result<OwnedFd> {
    let flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH;
    // SAFETY: the empty string is static.
    let r = unsafe { libc::syscall(libc::SYS_open_tree, at.as_raw_fd(), c"".as_ptr(), flags) };
    owned(r).context(|| "open_tree of a descriptor".to_owned())
}

/// Attaches the detached mount `mount` on top of what `target` names.
///
/// # Errors
/// Those of move_mount(2): ENOTDIR when a file is to go on a directory.
pub fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<()> {
    move_mount(
        mount,
        target,
        MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH,
    )
    .context(|| "move_mount".to_owned())
}

/// Puts `mount` into the peer group (and under the master) of `of`, whose root
/// must contain the root of `mount`.
///
/// # Errors
/// Those of move_mount(2) with MOVE_MOUNT_SET_GROUP.
pub fn join_group(mount: BorrowedFd<'_>, of: BorrowedFd<'_>) -> Result<()> {
    move_mount(
        of,
        mount,
        MOVE_MOUNT_SET_GROUP | MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH,
    )
    .context(|| "move_mount (set group)".to_owned())
}

fn move_mount(from: BorrowedFd<'_>, to: BorrowedFd<'_>, flags: u32) -> io::Result<()> {
    // SAFETY: the empty strings are static.
    done(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            from.as_raw_fd(),
            c"".as_ptr(),
            to.as_raw_fd(),
            c"".as_ptr(),
            flags,
        )
    })
}

fn setattr(mount: BorrowedFd<'_>, at_flags: u32, a: &MountAttr) -> io::Result<()> {
    // SAFETY: the struct outlives the call, its size is passed.
    done(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            AT_EMPTY_PATH | at_flags,
            std::ptr::from_ref(a),
            size_of::<MountAttr>(),
        )
    })
}

/// Gives the mount exactly the attributes `attrs` (bits of [`attr`]).
///
/// # Errors
/// Those of mount_setattr(2): EPERM for locked flags.
pub fn set_attributes(mount: BorrowedFd<'_>, attrs: u64) -> Result<()> {
    let a = MountAttr {
        set: attrs,
        clear: attr::ALL & !attrs | attr::ATIME,
        propagation: 0,
        userns_fd: 0,
    };
    setattr(mount, 0, &a).context(|| format!("mount_setattr {attrs:#x}"))
}

/// Changes propagation; with `recursive` of all below too.
///
/// # Errors
/// Those of mount_setattr(2).
pub fn set_propagation(mount: BorrowedFd<'_>, p: Propagation, recursive: bool) -> Result<()> {
    let propagation = match p {
        Propagation::Private => libc::MS_PRIVATE,
        Propagation::Shared => libc::MS_SHARED,
        Propagation::Slave => libc::MS_SLAVE,
        Propagation::Unbindable => libc::MS_UNBINDABLE,
    };
    let a = MountAttr {
        set: 0,
        clear: 0,
        propagation,
        userns_fd: 0,
    };
    setattr(mount, if recursive { AT_RECURSIVE } else { 0 }, &a)
        .context(|| format!("mount_setattr {p:?}"))
}

/// Makes the directory `root` (a mount) the root of the namespace and drops
/// the old one with all that is mounted in it; the working directory is the
/// new root then.
///
/// # Errors
/// Those of pivot_root(2): EINVAL when the parent mount is shared.
pub fn pivot_into(root: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: no pointers but static strings are passed.
    unsafe {
        done(libc::fchdir(root.as_raw_fd()).into())
            .context(|| "fchdir to the new root".to_owned())?;
        done(libc::syscall(
            libc::SYS_pivot_root,
            c".".as_ptr(),
            c".".as_ptr(),
        ))
        .context(|| "pivot_root".to_owned())?;
        done(libc::umount2(c".".as_ptr(), libc::MNT_DETACH).into())
            .context(|| "umount of the old root".to_owned())?;
        done(libc::chdir(c"/".as_ptr()).into()).context(|| "chdir to the new root".to_owned())
    }
}

/// Closes detached mounts, on a thread of its own: the end of a mount waits for
/// all processors (0.5 ms and more), and nobody has to wait for that.
pub fn close_later(mounts: Vec<OwnedFd>) {
    // If there can be no thread, the closure is dropped here, and they with it.
    let _ = std::thread::Builder::new()
        .name("umount".to_owned())
        .spawn(move || drop(mounts));
}

/// Id of the mount that the descriptor lies in, as mountinfo names it:
/// statx(2) with STATX_MNT_ID. Needs no /proc.
///
/// # Errors
/// Those of statx(2); a kernel older than 5.8.
pub fn mount_id(fd: BorrowedFd<'_>) -> Result<u32> {
    const STATX_MNT_ID: u32 = 0x1000;
    // SAFETY: all-zero is a value of this plain struct.
    let mut out: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the string is static, the struct outlives the call.
    let r = unsafe {
        libc::statx(
            fd.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            STATX_MNT_ID,
            &raw mut out,
        )
    };
    done(r.into()).context(|| "statx".to_owned())?;
    match u32::try_from(out.stx_mnt_id) {
        Ok(id) if out.stx_mask & STATX_MNT_ID != 0 => Ok(id),
        _ => Err(Error::errno("statx of a mount id", libc::EOPNOTSUPP)),
    }
}
