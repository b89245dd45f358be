//! The few pages that go with the images are written into files first: in memory,
//! in a private directory that is gone a moment later, also when we are killed
//! meanwhile (its path is in the journal).

use std::fs::{self, DirBuilder};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::base::{Error, Result, ResultExt};
use crate::wire::secret::{hex, random};

/// Such a directory; removed when dropped.
pub(super) struct Eager<'a>(&'a Path);

impl<'a> Eager<'a> {
    /// Where it will be for this container; not made yet.
    ///
    /// # Errors
    /// No random bytes.
    pub(super) fn path(id: &str) -> Result<PathBuf> {
        let top = Path::new("/dev/shm");
        let top = if top.is_dir() { top } else { Path::new("/tmp") };
        Ok(top.join(format!("dunlin-{id}-{}", hex(&random::<8>()?))))
    }

    /// Makes it.
    ///
    /// # Errors
    /// Those of mkdir(2).
    pub(super) fn make(path: &'a Path) -> Result<Self> {
        DirBuilder::new()
            .mode(0o700)
            .create(path)
            .context(|| format!("make {}", path.display()))?;
        Ok(Self(path))
    }

    /// What lies in it, by name.
    ///
    /// # Errors
    /// It cannot be read.
    pub(super) fn files(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let what = || format!("read {}", self.0.display());
        let mut out = Vec::new();
        for e in fs::read_dir(self.0).context(what)? {
            let e = e.context(what)?;
            let bytes = fs::read(e.path()).context(what)?;
            out.push((e.file_name().to_string_lossy().into_owned(), bytes));
        }
        Ok(out)
    }
}

impl Drop for Eager<'_> {
    fn drop(&mut self) {
        if let Err(e) = remove(self.0) {
            tracing::warn!("{e}");
        }
    }
}

/// Removes one that was left; none is fine.
///
/// # Errors
/// Those of removing.
pub(super) fn remove(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => {
            Err(Error::os(format!("remove {}", path.display()), e))
        }
        _ => Ok(()),
    }
}
