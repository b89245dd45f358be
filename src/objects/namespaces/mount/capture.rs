//! The mounts of a running container as records.

use std::collections::HashSet;
use std::path::PathBuf;

use super::flags;
use super::model::{self, Fs, How, Mount};
use super::table::MountTable;
use crate::base::{Error, HostPid, Result};
use crate::image::records::MntEntry;
use crate::image::{Kind as Image, Set};
use crate::sys::mounts::{self, MountInfo};
use crate::sys::ns::{self, Kind};

/// What the caller says of mounts.
#[derive(Debug, Clone, Default)]
pub(crate) struct Declared {
    /// Mountpoint in the container to the key that names it at the restore.
    pub(crate) external: Vec<(String, String)>,
    /// Mountpoints that are left out.
    pub(crate) skip: Vec<PathBuf>,
}

/// Captured mounts.
#[derive(Debug)]
pub(crate) struct Mounts {
    pub(crate) table: MountTable,
    pub(crate) mounts: Vec<Mount>,
}

/// Reads and resolves the table of `pid`; touches nothing.
pub(crate) fn read(pid: HostPid, declared: &Declared, own_cgroup_ns: bool) -> Result<Mounts> {
    // How a cgroup mount's root is shown depends on who reads.
    let spaces: &[Kind] = if own_cgroup_ns { &[Kind::Cgroup] } else { &[] };
    let lines = if spaces.is_empty() {
        mounts::mountinfo(pid)?
    } else {
        ns::inside(pid, spaces, || mounts::mountinfo(pid))?
    };
    let lines: Vec<_> = lines
        .into_iter()
        .filter(|l| {
            !declared
                .skip
                .iter()
                .any(|s| s.as_os_str() == l.mountpoint.as_str())
        })
        .collect();
    let host: HashSet<u32> = mounts::own_mountinfo()?
        .iter()
        .map(MountInfo::kdev)
        .collect();
    let entries = lines
        .iter()
        .map(|l| entry(l, declared, &host))
        .collect::<Result<Vec<_>>>()?;
    let resolved = model::resolve(entries)?;
    for m in &resolved {
        carried(m, &host)?;
    }
    Ok(Mounts {
        table: MountTable::new(lines),
        mounts: resolved,
    })
}

/// Writes the records (the last mount first, as CRIU's readers expect).
pub(crate) fn write(mounts: &Mounts, id: u32, set: &mut Set) {
    for m in mounts.mounts.iter().rev() {
        set.push(Image::Mountpoints, id, &m.entry);
    }
}

fn entry(line: &MountInfo, declared: &Declared, host: &HashSet<u32>) -> Result<MntEntry> {
    let fs = Fs::from_name(&line.fstype);
    let (sb_flags, mut options) = flags::of_fs(&line.super_options);
    let mut mount_flags = flags::of_mount(&line.options, &line.mountpoint)?;
    if line.shared.is_some() {
        mount_flags |= flags::SHARED;
    }
    if line.master.is_some() {
        mount_flags |= flags::SLAVE;
    }
    if line.unbindable {
        mount_flags |= flags::UNBINDABLE;
    }
    if fs == Some(Fs::Devpts) && !host.contains(&line.kdev()) {
        if !options.is_empty() {
            options.push(',');
        }
        options.push_str("newinstance");
    }
    let code = match (fs, line.fstype.as_str()) {
        (Some(fs), _) => fs.record(),
        (None, "overlay") => crate::image::records::Fstype::Overlayfs,
        (None, _) => crate::image::records::Fstype::Unsupported,
    };
    let key = declared
        .external
        .iter()
        .find(|(at, _)| *at == line.mountpoint)
        .map(|(at, key)| {
            if key.is_empty() {
                at.clone()
            } else {
                key.clone()
            }
        });
    Ok(MntEntry {
        fstype: u32::try_from(code as i32).unwrap_or(0),
        mnt_id: line.id,
        root_dev: line.kdev(),
        parent_mnt_id: line.parent,
        flags: mount_flags,
        root: line.root.clone(),
        mountpoint: line.mountpoint.clone(),
        source: line.source.clone(),
        options,
        shared_id: Some(line.shared.unwrap_or(0)),
        master_id: Some(line.master.unwrap_or(0)),
        deleted: line.deleted.then_some(true),
        sb_flags: Some(sb_flags),
        ext_key: if line.mountpoint == "/" { None } else { key },
        ..MntEntry::default()
    })
}

/// Refuses a new instance of something that is in truth shared with the host.
fn carried(m: &Mount, host: &HashSet<u32>) -> Result<()> {
    let How::New(fs) = m.how else { return Ok(()) };
    let shared = host.contains(&m.entry.root_dev);
    match fs {
        Fs::Tmpfs | Fs::Devpts if shared => Err(Error::refused(
            format!("mount {}", m.entry.mountpoint),
            format!("this {} is the host's too; declare it external", fs.name()),
        )),
        Fs::Tmpfs
        | Fs::Devpts
        | Fs::Proc
        | Fs::Sysfs
        | Fs::Devtmpfs
        | Fs::Mqueue
        | Fs::Cgroup
        | Fs::Cgroup2 => Ok(()),
    }
}
