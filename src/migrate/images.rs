//! Image files of a migration, written as they come; and what else is put beside
//! them for runc.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use crate::base::{Error, Result, ResultExt, limits};
use crate::sys::private;
use crate::wire::message::{Image, StateEnd};
use crate::wire::transport::printable;

/// Image files as they come.
pub(super) struct Images<'a> {
    dir: &'a Path,
    open: Option<(File, u64)>,
    count: u64,
    bytes: u64,
}

impl<'a> Images<'a> {
    pub(super) fn new(dir: &'a Path) -> Self {
        Self {
            dir,
            open: None,
            count: 0,
            bytes: 0,
        }
    }

    fn whole(&mut self) -> Result<()> {
        match self.open.take() {
            Some((_, left)) if left > 0 => Err(Error::peer("receive image", "it is cut short")),
            _ => Ok(()),
        }
    }

    pub(super) fn begin(&mut self, i: &Image) -> Result<()> {
        self.whole()?;
        let plain = !i.name.is_empty()
            && i.name.len() <= 200
            && !i.name.starts_with('.')
            && i.name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if !plain || i.name == "descriptors.json" || i.size > limits::MAX_IMAGE_FILE {
            return Err(Error::peer(
                format!("receive image {:?}", printable(&i.name)),
                "no such name or size is allowed",
            ));
        }
        self.count += 1;
        self.open = Some((private::create(&self.dir.join(&i.name))?, i.size));
        Ok(())
    }

    pub(super) fn data(&mut self, bytes: &[u8]) -> Result<()> {
        let len = bytes.len() as u64;
        match &mut self.open {
            Some((file, left)) if len <= *left => {
                *left -= len;
                self.bytes += len;
                file.write_all(bytes).context(|| "write image".to_owned())
            }
            _ => Err(Error::peer("receive image", "more bytes than it has")),
        }
    }

    pub(super) fn end(&mut self, e: &StateEnd) -> Result<()> {
        self.whole()?;
        if (self.count, self.bytes) != (e.images, e.bytes) {
            return Err(Error::peer("receive state", "images are missing"));
        }
        Ok(())
    }
}
