//! Files that only their owner may read (mode 0600): images, tokens and logs hold
//! what a container knew. open(2), rename(2)

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::base::{Error, Result, ResultExt};

const MODE: u32 = 0o600;

/// A new file, open for writing.
///
/// # Errors
/// EEXIST if there is anything of that name, also a link to nothing.
pub fn create(path: &Path) -> Result<File> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(MODE)
        .open(path)
        .context(|| format!("create {}", path.display()))
}

/// A new file with these bytes.
///
/// # Errors
/// As [`create`]; write(2).
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    create(path)?
        .write_all(bytes)
        .context(|| format!("write {}", path.display()))
}

/// A file, made if it is not there, open for writing behind its end.
///
/// # Errors
/// Those of open(2).
pub fn append(path: &Path) -> Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(MODE)
        .open(path)
        .context(|| format!("open {}", path.display()))
}

/// Puts a file with these bytes in the place of what `path` names, whole or not at
/// all: readers see the old one or the new one. Not synced.
///
/// # Errors
/// `path` ends in no name; the calls that it takes. Then nothing is left.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let name = path
        .file_name()
        .ok_or_else(|| Error::caller(format!("write {}", path.display()), "it is no file name"))?;
    let mut aside = std::ffi::OsString::from(".");
    aside.push(name);
    aside.push(format!(".{}", std::process::id()));
    let aside = path.with_file_name(aside);
    let moved = write(&aside, bytes)
        .and_then(|()| fs::rename(&aside, path).context(|| "put it in place".to_owned()));
    moved.map_err(|e| {
        // One that was there before is not ours.
        if e.raw_os_error() != Some(libc::EEXIST) {
            let _ = fs::remove_file(&aside);
        }
        e.within(format!("write {}", path.display()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn only_the_owner_may_read_what_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        write(&at("new"), b"x").unwrap();
        append(&at("log")).unwrap();
        fs::write(at("old"), "for all").unwrap();
        replace(&at("old"), b"for one").unwrap();
        for name in ["new", "log", "old"] {
            assert_eq!(mode(&at(name)), 0o600, "{name}");
        }
        assert_eq!(fs::read(at("old")).unwrap(), b"for one");
    }

    #[test]
    fn a_new_file_is_never_written_through_a_name_that_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        symlink(at("elsewhere"), at("link")).unwrap();
        let e = write(&at("link"), b"x").unwrap_err();
        assert_eq!(e.raw_os_error(), Some(libc::EEXIST), "{e}");
        assert!(!at("elsewhere").exists());
    }

    #[test]
    fn a_replacement_is_whole_or_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        // who has the old one open goes on reading it
        fs::write(at("f"), "old").unwrap();
        let mut reader = File::open(at("f")).unwrap();
        replace(&at("f"), b"new").unwrap();
        let mut read = String::new();
        reader.read_to_string(&mut read).unwrap();
        assert_eq!(read, "old");
        // a directory cannot be replaced by a file
        fs::create_dir(at("d")).unwrap();
        let e = replace(&at("d"), b"x").unwrap_err().to_string();
        assert!(e.contains("/d"), "{e}");
        let names: Vec<_> = fs::read_dir(dir.path()).unwrap().flatten().collect();
        assert_eq!(names.len(), 2, "{names:?}");
        assert!(replace(Path::new("/"), b"x").is_err());
    }
}
