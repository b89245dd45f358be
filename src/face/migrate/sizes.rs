//! How much a container brings, and how much room there is: asked before anything
//! moves. All figures are about right, no more: what cannot be known is 0, which
//! nobody judges.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::statvfs::statvfs;

use crate::base::{HostPid, Result, ResultExt};
use crate::sys::procfs;
use crate::wire::message::Offer;

/// Bytes of the regular files below `rootfs` as they lie on disk, and how many
/// entries there are.
///
/// # Errors
/// `rootfs` itself cannot be listed; what vanishes meanwhile is not counted.
pub(super) fn bundle(rootfs: &Path) -> Result<(u64, u64)> {
    let mut left = vec![rootfs.to_owned()];
    let mut linked = HashSet::new();
    let (mut bytes, mut entries) = (0, 0);
    while let Some(dir) = left.pop() {
        let list = match fs::read_dir(&dir) {
            Ok(list) => list,
            Err(_) if dir != rootfs => continue,
            Err(e) => return Err(e).context(|| format!("list {}", dir.display())),
        };
        for entry in list.flatten() {
            let Ok(m) = entry.metadata() else { continue };
            entries += 1;
            let first = m.nlink() < 2 || linked.insert((m.dev(), m.ino()));
            if m.is_dir() {
                left.push(entry.path());
            } else if m.is_file() && first {
                bytes += m.size().min(m.blocks() * 512);
            }
        }
    }
    Ok((bytes, entries))
}

/// Bytes of memory of a tree: what is private, and once what is shared.
pub(super) fn memory(root: HostPid) -> u64 {
    let (mut private, mut shared) = (0u64, 0u64);
    for pid in procfs::tree(root) {
        // A task that has just ended holds nothing.
        let Ok(text) = fs::read_to_string(format!("/proc/{pid}/status")) else {
            continue;
        };
        private += kib(&text, "RssAnon") + kib(&text, "VmSwap");
        shared = shared.max(kib(&text, "RssShmem"));
    }
    (private + shared) * 1024
}

/// Why an offer has no room here.
pub(super) fn judge(offer: &Offer, dir: &Path) -> Vec<String> {
    let mut no = Vec::new();
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let free = (kib(&text, "MemAvailable") + kib(&text, "SwapFree")) * 1024;
    if free > 0 && offer.memory_bytes > free {
        no.push(format!(
            "it holds {} of memory, {} are free here",
            mib(offer.memory_bytes),
            mib(free)
        ));
    }
    let Ok(s) = statvfs(dir) else { return no };
    let free = s.blocks_available() * s.fragment_size();
    if offer.bundle_bytes > free {
        no.push(format!(
            "its bundle has {}, {} are free in {}",
            mib(offer.bundle_bytes),
            mib(free),
            dir.display()
        ));
    }
    // Some file systems do not count.
    if s.files() > 0 && offer.bundle_entries > s.files_available() {
        no.push(format!(
            "its bundle has {} files, {} more can be made in {}",
            offer.bundle_entries,
            s.files_available(),
            dir.display()
        ));
    }
    no
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

/// The figure of a line `NAME: N kB`; 0 if there is none.
fn kib(text: &str, name: &str) -> u64 {
    text.lines()
        .find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))
        .and_then(|v| v.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_is_counted_as_it_lies_on_disk_each_file_once() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("sub")).unwrap();
        fs::write(at("sub/file"), vec![1; 100_000]).unwrap();
        fs::hard_link(at("sub/file"), at("again")).unwrap();
        std::os::unix::fs::symlink("/", at("link")).unwrap();
        let sparse = fs::File::create(at("sparse")).unwrap();
        sparse.set_len(1 << 40).unwrap();
        let (bytes, entries) = bundle(dir.path()).unwrap();
        assert_eq!(entries, 5);
        assert!((100_000..200_000).contains(&bytes), "{bytes}");
        assert!(bundle(&at("none")).is_err());
    }

    #[test]
    fn what_has_no_room_is_refused_in_words_and_what_is_unknown_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let mut offer = Offer::default();
        assert!(judge(&offer, dir.path()).is_empty());
        offer.memory_bytes = memory(HostPid(i32::try_from(std::process::id()).unwrap()));
        assert!(offer.memory_bytes > 0);
        assert!(judge(&offer, dir.path()).is_empty());
        offer.memory_bytes = 1 << 60;
        offer.bundle_bytes = 1 << 60;
        offer.bundle_entries = 1 << 60;
        let why = judge(&offer, dir.path()).join("; ");
        assert!(
            why.contains("of memory") && why.contains("its bundle has"),
            "{why}"
        );
    }
}
