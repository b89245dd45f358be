//! A container of runc, as the source of a migration sees it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};

use super::args::Carried;
use super::eager::Eager;
use super::{mapped, sizes};
use crate::base::{Error, HostPid, Result};
use crate::engine::dump::{self, Captured, Frozen};
use crate::engine::hold::{Hold, Place, Verdict};
use crate::engine::options::{Dump, Observer, Stage};
use crate::face::place;
use crate::face::scripts::Scripts;
use crate::migrate::ports::{Capture, Container, Lister};
use crate::runtime::runc;
use crate::sys::cgroup;
use crate::wire::message::Offer;

/// The operator's scripts on the source. A network that one has locked is unlocked
/// again if the container goes on here; not if it has moved.
struct Told {
    scripts: Scripts,
    root: HostPid,
    locked: bool,
}

impl Observer for Told {
    fn at(&mut self, stage: Stage, _root: Option<HostPid>) -> Result<()> {
        // Also if it fails: it may have done a part.
        self.locked |= stage == Stage::NetworkLock;
        self.scripts.run(stage.name(), Some(self.root), None)
    }
}

impl Told {
    fn goes_on(&mut self) {
        if std::mem::take(&mut self.locked)
            && let Err(e) = self.at(Stage::NetworkUnlock, None)
        {
            tracing::error!("{e}");
        }
    }
}

enum Now {
    Running,
    Frozen(Frozen),
    Held(Hold),
    Gone,
}

/// A running container, its dump options, and how it is being stopped.
pub(super) struct RuncContainer {
    runc: runc::Container,
    dump: Dump,
    now: Now,
    place: Place,
    /// Where pages lie for a moment that go with the images.
    eager: PathBuf,
    /// Between freeze and hold.
    warm: Option<cgroup::Warm>,
    told: Told,
}

impl RuncContainer {
    /// Takes the container `id` of runc's `root`.
    ///
    /// # Errors
    /// It does not run, or cannot be read.
    pub(super) fn load(root: &Path, id: &str, scripts: &[PathBuf]) -> Result<Self> {
        let runc = runc::Container::load(root, id)?;
        let mut dump = runc.dump()?;
        dump.list_later = true;
        // Known before the freeze, so that a guard can find what we leave.
        let place = Place::of(runc.init())?;
        Ok(Self {
            told: Told {
                scripts: Scripts::typed(scripts),
                root: runc.init(),
                locked: false,
            },
            runc,
            dump,
            now: Now::Running,
            place,
            eager: Eager::path(id)?,
            warm: None,
        })
    }

    /// What may be carried beside the default.
    pub(super) fn options(&mut self) -> &mut Dump {
        &mut self.dump
    }
}

impl Container for RuncContainer {
    fn offer(&self) -> Result<Offer> {
        let (bundle_bytes, bundle_entries) = sizes::bundle(self.runc.rootfs())?;
        let carried = Carried {
            file_locks: self.dump.common.file_locks,
            ext_unix_sk: self.dump.common.ext_unix_sk,
        };
        Ok(Offer {
            bundle_bytes,
            bundle_entries,
            memory_bytes: sizes::memory(self.runc.init()),
            id: self.runc.id().to_owned(),
            config: self.runc.config_json()?,
            machine: std::env::consts::ARCH.to_owned(),
            descriptors: self.runc.descriptors(),
            cpu_flags: cpu_flags(),
            carried: carried.options(),
        })
    }

    fn rootfs(&self) -> &Path {
        self.runc.rootfs()
    }

    fn mapped_files(&self) -> Result<BTreeSet<u64>> {
        Ok(mapped::written(self.runc.init()))
    }

    fn place(&self) -> Value {
        let mut place = place::to_json(&self.place);
        place["runc_root"] = json!(self.runc.runc_root());
        place["eager"] = json!(self.eager);
        place["init"] = json!(self.runc.init().0);
        place["scripts"] = json!(self.told.scripts.in_order());
        place
    }

    fn freeze(&mut self) -> Result<Instant> {
        self.told.at(Stage::PreDump, None)?;
        self.warm = cgroup::Warm::start();
        let frozen = dump::freeze(&self.dump)?;
        let since = frozen.tree().since;
        self.now = Now::Frozen(frozen);
        Ok(since)
    }

    fn capture(&mut self) -> Result<Capture> {
        let Now::Frozen(frozen) = &mut self.now else {
            return Err(Error::bug("capture", "it is not frozen"));
        };
        let Captured { mut set, pages, .. } = frozen.capture(&self.dump, &mut self.told)?;
        // Pages that cannot wait go with the images: stacks in use, arguments,
        // what a userfaultfd cannot guard.
        let eager = Eager::make(&self.eager)?;
        pages.write(&self.eager, &mut set, true)?;
        let mut images: Vec<(String, Vec<u8>)> =
            set.files().map(|(n, b)| (n, b.to_vec())).collect();
        images.extend(eager.files()?);
        let objects = pages.lazy();
        Ok(Capture {
            images,
            pages: pages.held,
            objects,
            lister: pages.late.map(|late| Arc::new(late) as Arc<dyn Lister>),
        })
    }

    fn hold(&mut self) -> Result<()> {
        let _warm = self.warm.take();
        match std::mem::replace(&mut self.now, Now::Running) {
            Now::Frozen(f) => {
                let hold = f.hold()?;
                self.place = hold.place();
                self.now = Now::Held(hold);
                Ok(())
            }
            other => {
                self.now = other;
                Err(Error::bug("hold", "it is not frozen"))
            }
        }
    }

    fn thaw(&mut self, verdict: Verdict) -> Result<()> {
        drop(self.warm.take());
        match std::mem::replace(&mut self.now, Now::Running) {
            Now::Running => {}
            Now::Frozen(f) => f.resume()?,
            Now::Held(h) => h.release(verdict).map_err(|both| {
                let (hold, e) = *both;
                self.now = Now::Held(hold);
                e
            })?,
            Now::Gone => {
                self.now = Now::Gone;
                return Err(Error::bug("thaw", "its tasks have been killed"));
            }
        }
        self.told.goes_on();
        Ok(())
    }

    fn finish(&mut self, verdict: Verdict) -> Result<()> {
        match std::mem::replace(&mut self.now, Now::Gone) {
            Now::Held(h) => h.kill(verdict).map_err(|both| {
                let (hold, e) = *both;
                self.now = Now::Held(hold);
                e
            })?,
            other => {
                self.now = other;
                return Err(Error::bug("kill", "it is not held"));
            }
        }
        runc::delete(self.runc.runc_root(), self.runc.id())
    }
}

/// The flags of this host's first CPU.
pub(super) fn cpu_flags() -> Vec<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    text.lines()
        .find_map(|l| l.strip_prefix("flags")?.split_once(':'))
        .map(|(_, f)| f.split_whitespace().map(str::to_owned).collect())
        .unwrap_or_default()
}
