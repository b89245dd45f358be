//! The mounts of a container made again, in its first task.
//!
//! Each mount is made detached, gets its attributes and its content, and is
//! then attached below its parent by descriptor: no path of the container is
//! ever looked up from the host's root, and a symbolic link in the way is an
//! error. Mounts are made in the order in which they were made first, so that
//! mountinfo reads as before.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use tracing::debug;

use super::content;
use super::flags;
use super::model::{self, Fs, How, Mount};
use super::sharing::Sharing;
use super::table::relative;
use crate::base::{Error, Result, ResultExt};
use crate::image::records::MntEntry;
use crate::image::{Kind as Image, Set, archive};
use crate::objects::files::{Owner, terminal_numbers};
use crate::sys::mounts::{self, BENEATH, FsContext, NO_SYMLINKS, NO_XDEV, Propagation};
use crate::sys::tty;

mod host;

/// The mount namespace that is to be made.
#[derive(Debug)]
pub(crate) struct Plan {
    mounts: Vec<Mount>,
    sharing: Sharing,
    /// Where the host has what external mounts (by index) are copies of.
    sources: HashMap<usize, PathBuf>,
    /// Packed content by index.
    contents: HashMap<usize, Vec<u8>>,
    root: PathBuf,
    /// Where the root task was, by hierarchy.
    cgroups: HashMap<String, String>,
    /// Pseudoterminals whose masters are outside, with the owner of their slave.
    terminals: BTreeMap<u32, Owner>,
}

impl Plan {
    /// Reads the records of namespace `id`.
    pub(crate) fn read(
        set: &Set,
        id: u32,
        external: &[(String, String)],
        root: Option<&Path>,
        cgroups: HashMap<String, String>,
    ) -> Result<Self> {
        let mut entries: Vec<MntEntry> = set.all(Image::Mountpoints, id)?;
        if entries.is_empty() {
            return Err(Error::image(
                Image::Mountpoints.file_name(id),
                "is missing or empty",
            ));
        }
        entries.reverse();
        let mounts = model::resolve(entries)?;
        let root = root.ok_or_else(|| {
            Error::caller(
                "restore a mount namespace",
                "the root file system is not given (--root)",
            )
        })?;
        let mut sources = HashMap::new();
        let mut contents = HashMap::new();
        for (i, m) in mounts.iter().enumerate() {
            flags::attributes(m.entry.flags, &m.entry.mountpoint)?;
            flags::fs_flags(m.entry.sb_flags.unwrap_or(0), &m.entry.mountpoint)?;
            match &m.how {
                How::External(key) => {
                    let source = external.iter().find(|(k, _)| k == key).ok_or_else(|| {
                        Error::caller(
                            format!("mount {}", m.entry.mountpoint),
                            format!("nothing is given for its external key {key}"),
                        )
                    })?;
                    sources.insert(i, PathBuf::from(&source.1));
                }
                How::New(Fs::Tmpfs) => {
                    let bytes = content::packed(set, m).ok_or_else(|| {
                        let name = Image::TmpfsDev.file_name(m.entry.root_dev);
                        Error::image(
                            name,
                            format!("the content of {} is missing", m.entry.mountpoint),
                        )
                    })?;
                    contents.insert(i, bytes.to_vec());
                }
                How::Root | How::New(_) | How::Bind(_) => {}
            }
        }
        masked_from_inside(&mounts, &mut sources);
        let sharing = Sharing::of(&mounts)?;
        let terminals = terminals(set, &mounts)?;
        Ok(Self {
            mounts,
            sharing,
            sources,
            contents,
            root: root.to_owned(),
            cgroups,
            terminals,
        })
    }

    /// Whether everything that the host provides is there; a look before
    /// anything is made.
    pub(crate) fn check_host(&self) -> Result<()> {
        let there = |path: &Path, what: String| {
            std::fs::metadata(path)
                .map(|_| ())
                .map_err(|e| Error::os(format!("{what}: {}", path.display()), e))
        };
        there(&self.root, "root file system".to_owned())?;
        for (i, source) in &self.sources {
            there(
                source,
                format!("source of mount {}", self.mounts[*i].entry.mountpoint),
            )?;
        }
        Ok(())
    }

    /// Makes all mounts and pivots into them. Runs in the new mount namespace,
    /// in the container's other namespaces, single-threaded. Returns the masters of
    /// its terminals.
    pub(crate) fn assemble(&self) -> Result<Vec<OwnedFd>> {
        // What the host provides is found before anything changes. A master
        // outside is kept only by a copy made while the source still shares.
        let mut given: HashMap<usize, Given> = HashMap::new();
        let host = host::Host::now()?;
        for (i, m) in self.mounts.iter().enumerate() {
            let Some(place) = self.place_on_host(i, m, &host).context(|| at(m))? else {
                continue;
            };
            let one = if self.sharing.has_outer_master(m) {
                let copy = mounts::clone_at(place.as_fd()).context(|| at(m))?;
                mounts::set_propagation(copy.as_fd(), Propagation::Slave, false)
                    .context(|| at(m))?;
                Given::Copy(copy)
            } else {
                Given::Place(place)
            };
            given.insert(i, one);
        }
        let here = open_path(Path::new("/"))?;
        mounts::set_propagation(here.as_fd(), Propagation::Private, true)
            .context(|| "make the host's mounts private".to_owned())?;

        let mut made: Vec<Option<OwnedFd>> = self.mounts.iter().map(|_| None).collect();
        let mut masters = Vec::new();
        let mut left = self.mounts.len();
        while left > 0 {
            let before = left;
            for (i, m) in self.mounts.iter().enumerate() {
                if made[i].is_some() || !self.is_ready(i, m, &made) {
                    continue;
                }
                let fd = self.make(i, m, given.remove(&i), &made).context(|| at(m))?;
                if m.how == How::New(Fs::Devpts) && masters.is_empty() {
                    // before what is a part of it: a terminal bound to /dev/console
                    masters = self.masters(fd.as_fd()).context(|| at(m))?;
                }
                made[i] = Some(fd);
                left -= 1;
            }
            if left == before {
                let stuck: Vec<_> = self
                    .mounts
                    .iter()
                    .zip(&made)
                    .filter(|(_, f)| f.is_none())
                    .map(|(m, _)| m.entry.mountpoint.as_str())
                    .collect();
                return Err(Error::image(
                    "mounts",
                    format!("no order makes {}", stuck.join(", ")),
                ));
            }
        }
        let fds: Vec<OwnedFd> = made.into_iter().flatten().collect();
        self.sharing.make(&self.mounts, &fds)?;
        let root = self
            .mounts
            .iter()
            .position(|m| m.parent.is_none())
            .unwrap_or(0);
        let root = fds
            .get(root)
            .ok_or_else(|| Error::bug("mounts", "the root was not made"))?;
        mounts::pivot_into(root.as_fd())?;
        Ok(masters)
    }

    /// Opens pairs until all that are wanted are there: the kernel gives the
    /// lowest free number.
    fn masters(&self, devpts: BorrowedFd<'_>) -> Result<Vec<OwnedFd>> {
        let Some((last, _)) = self.terminals.last_key_value() else {
            return Ok(Vec::new());
        };
        let (mut masters, mut others) = (Vec::new(), Vec::new());
        loop {
            let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
            let master = mounts::open_at(devpts, Path::new("ptmx"), flags, INSIDE)?;
            let number = tty::number(master.as_fd())?;
            if number > *last {
                let what = format!("terminal {last}");
                return Err(Error::bug(what, "its number is taken"));
            }
            match self.terminals.get(&number) {
                None => others.push(master),
                Some(owner) => {
                    tty::unlock(master.as_fd())?;
                    own_slave(devpts, number, *owner)?;
                    masters.push(master);
                }
            }
            if number == *last {
                return Ok(masters);
            }
        }
    }

    /// What must stand before this one: its parent, what it is a part of, and
    /// siblings that are mounted deeper and which it hides.
    fn is_ready(&self, i: usize, m: &Mount, made: &[Option<OwnedFd>]) -> bool {
        let parent = m.parent.is_none_or(|p| made[p].is_some());
        let whole = match m.how {
            How::Bind(j) => made[j].is_some(),
            How::External(_) if !self.sources.contains_key(&i) => {
                whole_of(&self.mounts, m).is_none_or(|j| made[j].is_some())
            }
            How::Root | How::External(_) | How::New(_) => true,
        };
        let hidden = |o: &Mount| {
            o.parent == m.parent
                && o.entry.mountpoint.len() > m.entry.mountpoint.len()
                && super::is_below(&o.entry.mountpoint, &m.entry.mountpoint)
        };
        let siblings = self
            .mounts
            .iter()
            .zip(made)
            .enumerate()
            .all(|(j, (o, f))| j == i || m.parent.is_none() || f.is_some() || !hidden(o));
        parent && whole && siblings
    }

    fn make(
        &self,
        i: usize,
        m: &Mount,
        given: Option<Given>,
        made: &[Option<OwnedFd>],
    ) -> Result<OwnedFd> {
        let attrs = flags::attributes(m.entry.flags, &m.entry.mountpoint)?;
        let (fd, fresh) = match (&m.how, given) {
            // A copy of the copy, so that it is made in its turn too; kernels
            // before 6.15 copy no detached mounts.
            (_, Some(Given::Copy(copy))) => match mounts::clone_at(copy.as_fd()) {
                Ok(again) => (again, false),
                Err(e) if e.raw_os_error() == Some(libc::EINVAL) => (copy, false),
                Err(e) => return Err(e),
            },
            (_, Some(Given::Place(place))) => {
                let fd = mounts::clone_at(place.as_fd())?;
                mounts::set_propagation(fd.as_fd(), Propagation::Private, false)?;
                (fd, false)
            }
            (How::New(fs), None) => (self.new_instance(i, m, *fs, attrs)?, true),
            (How::Bind(j), None) => {
                let whole = standing(made, *j)?;
                let fd = part_of(whole, &m.entry.root, &self.mounts[*j].entry.root)?;
                if !self.sharing.has_outer_master(m) {
                    mounts::set_propagation(fd.as_fd(), Propagation::Private, false)?;
                }
                (fd, false)
            }
            (How::External(_), None) => {
                // A masked path: the container's own null device.
                let (whole, rel) = self.inner_null(m, made)?;
                (
                    mounts::clone_at(mounts::open_at(whole, rel, PATH, INSIDE)?.as_fd())?,
                    false,
                )
            }
            (How::Root, None) => return Err(Error::bug("root mount", "was not copied")),
        };
        if !fresh {
            mounts::set_attributes(fd.as_fd(), attrs)?;
        }
        let target = match m.parent {
            None => open_path(&self.root)?,
            Some(p) => {
                let parent = standing(made, p)?;
                let top = &self.mounts[p].entry.mountpoint;
                match relative(&m.entry.mountpoint, top) {
                    Some("") | None => parent
                        .try_clone_to_owned()
                        .context(|| "duplicate a descriptor".to_owned())?,
                    Some(rel) => mounts::open_at(parent, Path::new(rel), PATH, INSIDE)
                        .context(|| "open the mountpoint".to_owned())?,
                }
            }
        };
        mounts::attach(fd.as_fd(), target.as_fd())?;
        debug!(mountpoint = m.entry.mountpoint, how = ?m.how, "mounted");
        Ok(fd)
    }

    fn new_instance(&self, i: usize, m: &Mount, fs: Fs, attrs: u64) -> Result<OwnedFd> {
        let context = FsContext::open(fs.name())?;
        if !m.entry.source.is_empty() {
            context.string("source", &m.entry.source)?;
        }
        context.options(&settable(&m.entry.options))?;
        let content = self.contents.get(&i);
        let mut late_ro = false;
        for flag in flags::fs_flags(m.entry.sb_flags.unwrap_or(0), &m.entry.mountpoint)? {
            if flag == "ro" && content.is_some() {
                late_ro = true;
            } else {
                context.flag(flag)?;
            }
        }
        // With content it has to be writable at first.
        let first = if content.is_some() { 0 } else { attrs };
        let fd = context.mount(first)?;
        if let Some(bytes) = content {
            archive::unpack(bytes.as_slice(), fd.as_fd())
                .context(|| "unpack its content".to_owned())?;
            if late_ro {
                let again = FsContext::pick(fd.as_fd())?;
                again.flag("ro")?;
                again.reconfigure()?;
            }
            mounts::set_attributes(fd.as_fd(), attrs)?;
        }
        Ok(fd)
    }

    /// The mount of the container in which the device of a masked path lies,
    /// and its path there.
    fn inner_null<'a>(
        &self,
        m: &'a Mount,
        made: &'a [Option<OwnedFd>],
    ) -> Result<(BorrowedFd<'a>, &'a Path)> {
        let j = whole_of(&self.mounts, m)
            .ok_or_else(|| Error::bug(at(m), "has no source and lies in no mount"))?;
        let rel = relative(&m.entry.root, &self.mounts[j].entry.root).unwrap_or("");
        Ok((standing(made, j)?, Path::new(rel)))
    }
}

/// What the host provides for a mount.
enum Given {
    /// A detached copy, ready to be attached.
    Copy(OwnedFd),
    /// The place of which a copy is to be made in its turn: the order of making
    /// is the order in which mountinfo shows mounts.
    Place(OwnedFd),
}

const PATH: i32 = libc::O_PATH | libc::O_NOFOLLOW;
const INSIDE: u64 = BENEATH | NO_SYMLINKS | NO_XDEV;

fn at(m: &Mount) -> String {
    format!("mount {}", m.entry.mountpoint)
}

fn standing(made: &[Option<OwnedFd>], i: usize) -> Result<BorrowedFd<'_>> {
    made.get(i)
        .and_then(Option::as_ref)
        .map(AsFd::as_fd)
        .ok_or_else(|| Error::bug("mounts", "one was needed before it was made"))
}

fn open_path(path: &Path) -> Result<OwnedFd> {
    use std::os::unix::fs::OpenOptionsExt;
    let fd = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH)
        .open(path)
        .context(|| format!("open {}", path.display()))?;
    Ok(fd.into())
}

/// A copy of the part `root` of a mount that shows `shown`.
fn part_of(whole: BorrowedFd<'_>, root: &str, shown: &str) -> Result<OwnedFd> {
    let rel = Path::new(relative(root, shown).unwrap_or(""));
    match mounts::open_at(whole, rel, PATH, INSIDE) {
        Ok(part) => mounts::clone_at(part.as_fd()),
        Err(e) if e.raw_os_error() == Some(libc::EXDEV) => {
            // Something is mounted in the way; a copy alone has nothing on it.
            let alone = mounts::clone_at(whole)?;
            let part = mounts::open_at(alone.as_fd(), rel, PATH, INSIDE)?;
            mounts::clone_at(part.as_fd())
        }
        Err(e) => Err(e),
    }
}

fn own_slave(devpts: BorrowedFd<'_>, number: u32, owner: Owner) -> Result<()> {
    let Some((uid, gid)) = owner else {
        return Ok(());
    };
    let what = || format!("owner of terminal {number}");
    let slave = mounts::open_at(devpts, Path::new(&number.to_string()), PATH, INSIDE)?;
    let path = format!("/proc/self/fd/{}", slave.as_raw_fd());
    std::os::unix::fs::chown(path, Some(uid), Some(gid)).context(what)
}

/// The pseudoterminals that tasks have open, and those that are mounted somewhere.
fn terminals(set: &Set, mounts: &[Mount]) -> Result<BTreeMap<u32, Owner>> {
    let bound = mounts.iter().filter_map(|m| match m.how {
        How::Bind(j) if mounts[j].how == How::New(Fs::Devpts) => {
            let number = m.entry.root.strip_prefix('/')?.parse().ok()?;
            Some((number, None))
        }
        _ => None,
    });
    Ok(bound.chain(terminal_numbers(set)?).collect())
}

/// Options that mountinfo shows but nobody may set are left out.
fn settable(options: &str) -> String {
    let keep = |o: &&str| {
        !matches!(
            *o,
            "seclabel" | "nsdelegate" | "memory_recursiveprot" | "favordynmods"
        )
    };
    options
        .split(',')
        .filter(keep)
        .collect::<Vec<_>>()
        .join(",")
}

/// The new instance that `m` shows a part of.
fn whole_of(all: &[Mount], m: &Mount) -> Option<usize> {
    all.iter().position(|o| {
        matches!(o.how, How::New(_))
            && o.entry.root_dev == m.entry.root_dev
            && super::is_below(&m.entry.root, &o.entry.root)
    })
}

/// A runtime masks a path with the container's own /dev/null and declares the
/// host's as its source. Where the container's /dev is made anew anyway, the
/// mask comes from there, as it did.
fn masked_from_inside(all: &[Mount], sources: &mut HashMap<usize, PathBuf>) {
    for (i, m) in all.iter().enumerate() {
        if sources.get(&i).is_some_and(|s| s == Path::new("/dev/null"))
            && m.entry.root == "/null"
            && whole_of(all, m).is_some()
        {
            sources.remove(&i);
        }
    }
}
