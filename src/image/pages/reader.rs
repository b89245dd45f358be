//! Reading pages files, through a chain of parents.

use super::map::{Held, Pagemap, Run};
use crate::base::limits::MAX_IMAGE_FILE;
use crate::base::{Error, PAGE_SIZE, PageRange, Result, ResultExt};
use crate::image::{Kind, Set};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Link in an image directory to the image before it.
const PARENT: &str = "parent";

/// Longest chain of images.
const MAX_CHAIN: usize = 256;

/// Reads page contents of one address space or shared memory; any number of
/// threads may.
#[derive(Debug)]
pub struct PagesReader {
    /// This image first, then its parent, and so on.
    chain: Vec<Link>,
}

#[derive(Debug)]
struct Link {
    map: Pagemap,
    file: Option<File>,
    path: PathBuf,
}

impl PagesReader {
    /// Opens the pages of this type and id, and those of the parents as far as they
    /// are needed. `None`: the image has no such pagemap.
    ///
    /// Errors: a damaged pagemap; a pages file that is missing or too short, by
    /// name; a parent that is missing.
    pub fn open(set: &Set, dir: &Path, kind: Kind, id: u32) -> Result<Option<Self>> {
        let Some(map) = Pagemap::of(set, kind, id)? else {
            return Ok(None);
        };
        let mut chain = Vec::new();
        let mut dir = dir.to_path_buf();
        let mut map = map;
        loop {
            let link = Link::open(&dir, map)?;
            let needs = link.map.runs().iter().any(|run| run.held() == Held::Parent);
            chain.push(link);
            if !needs {
                return Ok(Some(Self { chain }));
            }
            if chain.len() > MAX_CHAIN {
                return Err(Error::image(
                    dir.display().to_string(),
                    format!("has more than {MAX_CHAIN} parents"),
                ));
            }
            dir.push(PARENT);
            map = parent_map(&dir, kind, id)?;
        }
    }

    /// Which pages there are.
    pub fn map(&self) -> &Pagemap {
        &self.chain[0].map
    }

    /// Where the content of the page at `addr` is after all parents were asked, and
    /// up to where that holds without a break. `None`: no such page in the image.
    pub fn lookup(&self, addr: u64) -> Option<(PageRange, Held)> {
        let (range, held, _) = self.resolve(addr)?;
        Some((range, held))
    }

    /// The part of a run from `addr` on, and the link that has it.
    fn resolve(&self, addr: u64) -> Option<(PageRange, Held, usize)> {
        let addr = addr - addr % PAGE_SIZE;
        let mut end = u64::MAX;
        for (depth, link) in self.chain.iter().enumerate() {
            let run = link.map.find(addr)?;
            end = end.min(run.range.end());
            if run.held() != Held::Parent {
                return Some((PageRange::new(addr, end)?, run.held(), depth));
            }
        }
        None
    }

    /// Reads the content of the pages from `start` on, as many as `buffer` holds.
    ///
    /// Errors: `start` or the length is no multiple of the page size; a page that
    /// the image does not have, or whose content is elsewhere; read(2).
    pub fn read(&self, start: u64, buffer: &mut [u8]) -> Result<()> {
        let whole = start
            .checked_add(buffer.len() as u64)
            .and_then(|end| PageRange::new(start, end));
        if whole.is_none() {
            return Err(Error::bug(
                format!("read {}", self.chain[0].path.display()),
                format!("{} bytes at {start:#x} are no pages", buffer.len()),
            ));
        }
        let mut addr = start;
        let mut rest = buffer;
        while !rest.is_empty() {
            let missing = |why: &'static str| {
                Error::image(
                    format!("{} page {addr:#x}", self.chain[0].path.display()),
                    why,
                )
            };
            let (range, held, depth) = self
                .resolve(addr)
                .ok_or_else(|| missing("is not in the image"))?;
            let len = usize::try_from(range.len())
                .unwrap_or(usize::MAX)
                .min(rest.len());
            let (part, after) = rest.split_at_mut(len);
            match held {
                Held::Here => self.chain[depth].read(addr, part)?,
                Held::Zero => part.fill(0),
                Held::Elsewhere => return Err(missing("is held elsewhere")),
                Held::Parent => return Err(missing("is in no parent")),
            }
            rest = after;
            addr += len as u64;
        }
        Ok(())
    }
}

impl Link {
    fn open(dir: &Path, map: Pagemap) -> Result<Self> {
        let path = dir.join(Kind::Pages.file_name(map.pages_id()));
        let what = || format!("open {}", path.display());
        let file = if map.bytes_here() == 0 {
            None
        } else {
            let file = OpenOptions::new()
                .read(true)
                .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
                .open(&path)
                .context(what)?;
            let found = file.metadata().context(what)?;
            if !found.is_file() {
                return Err(Error::image(what(), "is no regular file"));
            }
            if found.len() < map.bytes_here() {
                return Err(Error::image(
                    what(),
                    format!("has {} of {} bytes", found.len(), map.bytes_here()),
                ));
            }
            Some(file)
        };
        Ok(Self { map, file, path })
    }

    /// Reads from the run that holds `addr`, which holds all of `buffer`.
    fn read(&self, addr: u64, buffer: &mut [u8]) -> Result<()> {
        let what = || format!("read {} for page {addr:#x}", self.path.display());
        let (Some(run), Some(file)) = (self.map.find(addr), self.file.as_ref()) else {
            return Err(Error::bug(what(), "no such run"));
        };
        let Run { range, offset, .. } = *run;
        file.read_exact_at(buffer, offset + (addr - range.start()))
            .context(what)
    }
}

/// The pagemap of the same id in the parent image; empty if it has none.
fn parent_map(dir: &Path, kind: Kind, id: u32) -> Result<Pagemap> {
    let name = kind.file_name(id);
    let path = dir.join(&name);
    let what = || format!("read {}", path.display());
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => {
            return Err(Error::image(
                what(),
                "some pages are in the parent image, which has no such file",
            ));
        }
        Err(e) => return Err(e).context(what),
    };
    let mut bytes = Vec::new();
    file.take(MAX_IMAGE_FILE)
        .read_to_end(&mut bytes)
        .context(what)?;
    Pagemap::decode(kind, &path.display().to_string(), &bytes)
}
