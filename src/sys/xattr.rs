//! Extended attributes of files: listxattr(2), getxattr(2), setxattr(2).

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::base::{Error, Result, ResultExt};

/// Longest value or list that the kernel allows, bytes (XATTR_SIZE_MAX).
const MAX: usize = 65536;

/// All extended attributes of `path` (a symbolic link is followed) whose names
/// are UTF-8. None where the file system has no such thing.
///
/// # Errors
/// Those of listxattr(2) and getxattr(2).
pub fn all(path: &Path) -> io::Result<Vec<(String, Vec<u8>)>> {
    let c = CString::new(path.as_os_str().as_bytes())?;
    let mut list = vec![0u8; MAX];
    // SAFETY: pointer and length are those of the buffer.
    let n = unsafe { libc::listxattr(c.as_ptr(), list.as_mut_ptr().cast(), list.len()) };
    let Ok(n) = usize::try_from(n) else {
        let e = io::Error::last_os_error();
        return if e.raw_os_error() == Some(libc::EOPNOTSUPP) {
            Ok(Vec::new())
        } else {
            Err(e)
        };
    };
    let mut found = Vec::new();
    for name in list
        .get(..n)
        .unwrap_or_default()
        .split(|b| *b == 0)
        .filter(|n| !n.is_empty())
    {
        let Ok(text) = std::str::from_utf8(name) else {
            continue;
        };
        let name = CString::new(name)?;
        let mut value = vec![0u8; MAX];
        // SAFETY: pointer and length are those of the buffer.
        let n = unsafe {
            libc::getxattr(
                c.as_ptr(),
                name.as_ptr(),
                value.as_mut_ptr().cast(),
                value.len(),
            )
        };
        let n = usize::try_from(n).map_err(|_| io::Error::last_os_error())?;
        value.truncate(n);
        found.push((text.to_owned(), value));
    }
    Ok(found)
}

/// Sets one extended attribute of `path` (a symbolic link is followed).
///
/// # Errors
/// Those of setxattr(2): EOPNOTSUPP where the file system has no such name.
pub fn set(path: &Path, name: &str, value: &[u8]) -> Result<()> {
    let what = || format!("setxattr {name} of {}", path.display());
    let p = CString::new(path.as_os_str().as_bytes())
        .map_err(io::Error::from)
        .context(what)?;
    let n = CString::new(name).map_err(io::Error::from).context(what)?;
    // SAFETY: strings and buffer outlive the call, the length is the buffer's.
    let r = unsafe {
        libc::setxattr(
            p.as_ptr(),
            n.as_ptr(),
            value.as_ptr().cast(),
            value.len(),
            0,
        )
    };
    if r == 0 {
        Ok(())
    } else {
        Err(Error::last_os(what()))
    }
}
