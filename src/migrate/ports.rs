//! What a migration needs of a container and of a host, in few words: the faces
//! put engine and runtime behind these, tests put a model behind them.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use serde_json::Value;

use super::loss::LOSS;
use super::remote::Remote;
use crate::base::{Error, PageRange, Result};
use crate::engine::dump::Late;
use crate::engine::hold::Verdict;
use crate::memory::held::Existing;
use crate::memory::{Object, PageReader, PageSink, SpaceId};
use crate::wire::message::Offer;

/// What was captured of a stopped container.
pub struct Capture {
    /// Image files by name, as they go to the destination.
    pub images: Vec<(String, Vec<u8>)>,
    /// Reads pages in place, for as long as the container is held.
    pub pages: Arc<dyn PageReader>,
    /// Which pages there are that are not in the images; with a lister, which there
    /// may be.
    pub objects: Vec<(Object, Vec<PageRange>)>,
    /// Tells which of them there are.
    pub lister: Option<Arc<dyn Lister>>,
}

/// Knows which pages of a container that is held exist.
pub trait Lister: Send + Sync {
    /// What of `range` exists, beside guard pages that the images list.
    ///
    /// # Errors
    /// The page tables cannot be read.
    fn existing(&self, object: Object, range: PageRange) -> Result<Existing>;

    /// Guard pages in mappings of shared memory that the images do not list, by
    /// address.
    ///
    /// # Errors
    /// As [`Lister::existing`].
    fn guards(&self) -> Result<Vec<(SpaceId, PageRange)>>;
}

impl Lister for Late {
    fn existing(&self, object: Object, range: PageRange) -> Result<Existing> {
        Self::existing(self, object, range)
    }

    fn guards(&self) -> Result<Vec<(SpaceId, PageRange)>> {
        self.late_guards()
    }
}

impl fmt::Debug for Capture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Capture")
            .field("images", &self.images.len())
            .field("objects", &self.objects.len())
            .finish_non_exhaustive()
    }
}

/// A container that runs here. The calls come in the order in which they stand;
/// [`Container::thaw`] may come at any time, also when nothing was frozen.
pub trait Container {
    /// What the destination has to judge.
    ///
    /// # Errors
    /// The bundle or the runtime's state cannot be read.
    fn offer(&self) -> Result<Offer>;

    /// Its root file system, as the host sees it.
    fn rootfs(&self) -> &Path;

    /// Inode numbers of the files that its tasks map shared now; more than they
    /// are does no harm.
    ///
    /// # Errors
    /// Its tasks cannot be looked at.
    fn mapped_files(&self) -> Result<BTreeSet<u64>>;

    /// What settling needs after our death, for the journal; known before the
    /// freeze.
    fn place(&self) -> Value;

    /// Stops all tasks; tells when the first was interrupted.
    ///
    /// # Errors
    /// An object that cannot be carried; it runs on then.
    fn freeze(&mut self) -> Result<Instant>;

    /// Captures everything but page contents.
    ///
    /// # Errors
    /// An object that cannot be carried.
    fn capture(&mut self) -> Result<Capture>;

    /// Puts the stopped tasks where they stay frozen if we die.
    ///
    /// # Errors
    /// The kernel's; without this success there is no commit.
    fn hold(&mut self) -> Result<()>;

    /// Lets it run again. `verdict` was made by the journal's keeper.
    ///
    /// # Errors
    /// The kernel's: a person has to look.
    fn thaw(&mut self, verdict: Verdict) -> Result<()>;

    /// Kills the held tasks and lets the runtime forget the container.
    ///
    /// # Errors
    /// The kernel's or the runtime's.
    fn finish(&mut self, verdict: Verdict) -> Result<()>;
}

/// Where the destination put what came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Landed {
    /// The container's id.
    pub id: String,
    /// The bundle: config.json and rootfs.
    pub bundle: PathBuf,
    /// The images (pages are not in them): a directory in memory.
    pub images: PathBuf,
    /// For logs and sockets.
    pub work: PathBuf,
}

/// In the note of a destination's journal: every page has come.
pub const WHOLE: &str = "whole";

impl Landed {
    /// The [`LOSS`] file.
    pub fn loss(&self) -> PathBuf {
        self.bundle.with_file_name(LOSS)
    }
}

/// The memory of a container that was rebuilt here, while pages are missing.
pub trait Serving: Send + Sync {
    /// Where pages go that come in.
    fn sink(&self) -> Arc<dyn PageSink>;

    /// Returns when every page is accounted for. Called from a thread of its own.
    ///
    /// # Errors
    /// The memory cannot be completed; the container has been stopped.
    fn wait(&self) -> Result<()>;

    /// Which pages are still missing.
    ///
    /// # Errors
    /// The handler is gone.
    fn missing(&self) -> Result<Vec<(Object, PageRange)>>;

    /// No page comes any more: stops the container, which never reads zeros.
    fn fail(&self, why: Error);
}

/// A host that receives a container. The calls come in the order in which they
/// stand; [`Host::discard`] may come instead of [`Host::resume`] or before.
pub trait Host {
    /// Whether the offered container can be had here; reasons if not.
    ///
    /// # Errors
    /// Each reason why not.
    fn fit(&mut self, offer: &Offer, landed: &Landed) -> Result<(), Vec<String>>;

    /// What settling needs after our death, for the journal; more after
    /// [`Host::rebuild`] than before.
    fn place(&self, landed: &Landed) -> Value;

    /// Prepares for the images while the container still runs on the source; its
    /// bundle is here, as it was a moment ago.
    ///
    /// # Errors
    /// The container cannot be had here.
    fn begin(&mut self, landed: &Landed) -> Result<()>;

    /// Rebuilds everything from images that are whole; returns when all tasks stand
    /// and none runs. `pages` is asked for pages from the resume on.
    ///
    /// # Errors
    /// What could not be rebuilt; nothing of it is left then.
    fn rebuild(&mut self, landed: &Landed, pages: Arc<Remote>) -> Result<Arc<dyn Serving>>;

    /// Whether what was rebuilt still stands and can be resumed: the last question
    /// before the commit point.
    ///
    /// # Errors
    /// It died meanwhile, and why.
    fn stands(&mut self) -> Result<()>;

    /// Lets it run: the commit point has been journaled.
    ///
    /// # Errors
    /// It may have run: a person has to look.
    fn resume(&mut self) -> Result<()>;

    /// All pages are here: what still serves may end.
    ///
    /// # Errors
    /// The runtime does not have the container: this copy must not be the only one.
    fn settle(&mut self) -> Result<()>;

    /// Throws away whatever was rebuilt; only before [`Host::resume`].
    fn discard(&mut self);
}
