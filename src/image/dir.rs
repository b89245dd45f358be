//! A [`Set`] on disk: an image directory.
//!
//! An interrupted dump must never look like a whole one, nor mix with an older
//! one. So the old inventory goes first, all files are written aside, then moved
//! into place, and the inventory comes last: a directory without it is no image,
//! for CRIU as for us. Files are readable by their owner only, because
//! they hold the memory and the secrets of a container.

use super::kind::{Kind, Magic};
use super::records::ManifestEntry;
use super::set::Set;
use crate::base::limits::MAX_IMAGE_FILE;
use crate::base::{Error, Result, ResultExt};
use crate::sys::private;
use ring::digest::{SHA256, digest};
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// Where files are written before they are moved into place.
const ASIDE: &str = ".dunlin-aside";

/// Most bytes of all files of an image together, without contents of pages.
const MAX_TOTAL: u64 = 4 << 30;

/// Whether a file of this name is part of a set.
fn belongs(name: &str) -> bool {
    match Kind::of_file_name(name) {
        Some((kind, _)) => !beside(kind),
        None => {
            name == "descriptors.json" || (name.starts_with("dunlin-") && name.ends_with(".img"))
        }
    }
}

/// Files that lie in the directory, but come and go without the set.
fn beside(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Pages | Kind::StatsDump | Kind::StatsRestore | Kind::IrmapCache
    )
}

impl Set {
    /// Reads the files of an image directory, without contents of pages, and
    /// verifies that they are a whole image.
    ///
    /// Errors: as [`Set::read`] and [`Set::verify`].
    pub fn load(dir: &Path) -> Result<Self> {
        let set = Self::read(dir)?;
        set.verify()
            .context(|| format!("read image directory {}", dir.display()))?;
        Ok(set)
    }

    /// Reads the files of an image directory, even if they are no whole image: to
    /// look at them.
    ///
    /// Files that are not of an image are left alone. Each file of records is
    /// decoded once, and all are compared with our manifest if there is one.
    ///
    /// Errors: no such directory; a damaged file, by its name and record; a file of
    /// an image that is no regular file, or too large.
    pub fn read(dir: &Path) -> Result<Self> {
        let what = || format!("read image directory {}", dir.display());
        let mut set = Set::new();
        let mut total = 0;
        for entry in fs::read_dir(dir).context(what)? {
            let entry = entry.context(what)?;
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            if !belongs(&name) {
                continue;
            }
            let bytes = read_file(&dir.join(&name)).context(what)?;
            total += bytes.len() as u64;
            if total > MAX_TOTAL {
                return Err(Error::image(what(), format!("more than {MAX_TOTAL} bytes")));
            }
            set.put_raw(name, bytes)?;
        }
        set.check_manifest(dir).context(what)?;
        set.check_records().context(what)?;
        Ok(set)
    }

    /// Writes the image to a directory, which is made if it is not there (mode
    /// 0700; files 0600). What an older image has left there is removed, except for
    /// contents of pages, which are written before and beside.
    ///
    /// Nothing is synced: the order of the renames is what makes it whole or not
    /// when we are interrupted, the sums of the manifest after a power failure.
    ///
    /// Errors: the set has no inventory; it is more than [`Set::read`] takes, by name
    /// (nothing was touched then); a call failed, then there is no image in the
    /// directory.
    pub fn store(&self, dir: &Path) -> Result<()> {
        let what = || format!("write image directory {}", dir.display());
        if !self.contains(Kind::Inventory, 0) {
            return Err(Error::bug(what(), "the image has no inventory"));
        }
        self.check_size().context(what)?;
        match DirBuilder::new().mode(0o700).create(dir) {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(e).context(what),
            _ => {}
        }
        let done = self.commit(dir).context(what);
        if done.is_err() {
            // The first error is the one to tell.
            let _ = fs::remove_dir_all(dir.join(ASIDE));
        }
        done
    }

    /// Whoever was saved is gone soon: what could not be read again is not written.
    fn check_size(&self) -> Result<()> {
        let mut total = 0;
        for (name, bytes) in self.files() {
            let length = bytes.len() as u64;
            total += length;
            if length > MAX_IMAGE_FILE || total > MAX_TOTAL {
                let why = format!("has {length} bytes: the image grows too large");
                return Err(Error::refused(name, why));
            }
        }
        Ok(())
    }

    fn commit(&self, dir: &Path) -> Result<()> {
        remove_old(self, dir)?;
        let aside = dir.join(ASIDE);
        DirBuilder::new()
            .mode(0o700)
            .create(&aside)
            .context(|| format!("create {}", aside.display()))?;
        let manifest = self.manifest(dir)?;
        let manifest_name = Kind::DunlinManifest.file_name(0);
        let inventory_name = Kind::Inventory.file_name(0);
        let files = || {
            self.files()
                .filter(|(name, _)| *name != manifest_name)
                .chain([(manifest_name.clone(), manifest.as_slice())])
        };
        for (name, bytes) in files() {
            private::write(&aside.join(&name), bytes)?;
        }
        let place = |name: &str| {
            fs::rename(aside.join(name), dir.join(name)).context(|| format!("rename {name}"))
        };
        for (name, _) in files().filter(|(name, _)| *name != inventory_name) {
            place(&name)?;
        }
        place(&inventory_name)?;
        fs::remove_dir(&aside).context(|| format!("remove {}", aside.display()))
    }

    /// Sums of all files that belong to the image, and lengths of those beside it.
    fn manifest(&self, dir: &Path) -> Result<Vec<u8>> {
        let mut sums = Set::new();
        sums.touch(Kind::DunlinManifest, 0);
        for (name, bytes) in self.files().filter(|(name, _)| summed(name)) {
            let entry = ManifestEntry {
                name,
                size: bytes.len() as u64,
                sha256: Some(digest(&SHA256, bytes).as_ref().to_vec()),
            };
            sums.push(Kind::DunlinManifest, 0, &entry);
        }
        for (name, size) in pages_files(dir)? {
            let entry = ManifestEntry {
                name,
                size,
                sha256: None,
            };
            sums.push(Kind::DunlinManifest, 0, &entry);
        }
        let name = Kind::DunlinManifest.file_name(0);
        Ok(sums.remove(&name).unwrap_or_default())
    }

    /// Compares with the sums that were written, if any were.
    fn check_manifest(&self, dir: &Path) -> Result<()> {
        let entries: Vec<ManifestEntry> = self.all(Kind::DunlinManifest, 0)?;
        for entry in entries {
            let why = match (self.raw(&entry.name), &entry.sha256) {
                (Some(bytes), Some(sum)) => {
                    if bytes.len() as u64 != entry.size {
                        format!("has {} of {} bytes", bytes.len(), entry.size)
                    } else if digest(&SHA256, bytes).as_ref() != sum.as_slice() {
                        String::from("is not what was written")
                    } else {
                        continue;
                    }
                }
                (None, Some(_)) => String::from("is gone"),
                (_, None) => {
                    if !super::set::is_plain(&entry.name) {
                        String::from("is no plain file name")
                    } else {
                        match fs::symlink_metadata(dir.join(&entry.name)) {
                            Ok(found) if found.len() == entry.size => continue,
                            Ok(found) => format!("has {} of {} bytes", found.len(), entry.size),
                            Err(e) => e.to_string(),
                        }
                    }
                }
            };
            return Err(Error::image(
                entry.name,
                format!(
                    "{why} (dunlin-manifest.img tells; remove that if it was changed on purpose)"
                ),
            ));
        }
        Ok(())
    }
}

/// Whether the manifest holds the sum of this file; runc writes its own again.
fn summed(name: &str) -> bool {
    name != "descriptors.json" && name != Kind::DunlinManifest.file_name(0)
}

fn pages_files(dir: &Path) -> Result<Vec<(String, u64)>> {
    let what = || format!("list {}", dir.display());
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).context(what)? {
        let entry = entry.context(what)?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        if let Some((Kind::Pages, _)) = Kind::of_file_name(&name) {
            found.push((name, entry.metadata().context(what)?.len()));
        }
    }
    found.sort();
    Ok(found)
}

/// Removes what an older image has left, its inventory first.
fn remove_old(set: &Set, dir: &Path) -> Result<()> {
    let remove = |name: &str| match fs::remove_file(dir.join(name)) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e).context(|| format!("remove {name}")),
        _ => Ok(()),
    };
    remove(&Kind::Inventory.file_name(0))?;
    match fs::remove_dir_all(dir.join(ASIDE)) {
        Err(e) if e.kind() != ErrorKind::NotFound => {
            return Err(e).context(|| format!("remove {ASIDE}"));
        }
        _ => {}
    }
    let what = || format!("list {}", dir.display());
    for entry in fs::read_dir(dir).context(what)? {
        let Ok(name) = entry.context(what)?.file_name().into_string() else {
            continue;
        };
        let ours = belongs(&name) && name != "descriptors.json";
        if ours && set.raw(&name).is_none() {
            remove(&name)?;
        }
    }
    Ok(())
}

/// Reads a file that must be a regular one, not a link to another.
fn read_file(path: &Path) -> Result<Vec<u8>> {
    let what = || format!("read {}", path.display());
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
        .context(what)?;
    let found = file.metadata().context(what)?;
    if !found.is_file() {
        return Err(Error::image(what(), "is no regular file"));
    }
    if found.len() > MAX_IMAGE_FILE {
        return Err(Error::image(
            what(),
            format!("has {} bytes, more than {MAX_IMAGE_FILE}", found.len()),
        ));
    }
    let mut bytes = Vec::new();
    file.take(MAX_IMAGE_FILE)
        .read_to_end(&mut bytes)
        .context(what)?;
    Ok(bytes)
}

/// Whether the file of this type holds records.
pub(super) fn has_records(kind: Kind) -> bool {
    kind.magic() != Magic::Raw
}

#[cfg(test)]
#[path = "dir_tests.rs"]
mod tests;
