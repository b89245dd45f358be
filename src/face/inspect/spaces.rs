//! Namespaces, mounts, control groups.

use crate::base::Result;
use crate::image::records::{
    CgroupEntry, Fstype, MntEntry, NdType, NetDeviceEntry, NetnsEntry, PidnsEntry,
    TaskKobjIdsEntry, TimensEntry, UsernsEntry, UtsnsEntry,
};
use crate::image::{Kind, Set};
use serde::Serialize;

/// One namespace that the image describes.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Namespace {
    pub(super) kind: &'static str,
    pub(super) id: u32,
    pub(super) content: String,
}

/// One mount.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Mount {
    pub(super) namespace: u32,
    pub(super) id: u32,
    pub(super) parent: u32,
    pub(super) mountpoint: String,
    pub(super) fstype: String,
    pub(super) source: String,
    /// Path in the file system that is mounted.
    pub(super) root: String,
    pub(super) options: String,
    /// The caller's name for it, if it is from outside.
    pub(super) external: Option<String>,
    /// Bytes of the archive that holds its content.
    pub(super) content_bytes: Option<u64>,
}

/// A set of control groups: one place in each hierarchy.
#[derive(Debug, Clone, Serialize)]
pub(super) struct CgroupPlace {
    pub(super) set: u32,
    /// Hierarchy and path.
    #[serde(serialize_with = "super::report::map")]
    pub(super) places: Vec<(String, String)>,
}

/// Namespaces of a task by kind.
pub(super) fn ids_of(ids: &TaskKobjIdsEntry) -> Vec<(&'static str, u32)> {
    let all = [
        ("pid", ids.pid_ns_id),
        ("net", ids.net_ns_id),
        ("ipc", ids.ipc_ns_id),
        ("uts", ids.uts_ns_id),
        ("mnt", ids.mnt_ns_id),
        ("user", ids.user_ns_id),
        ("cgroup", ids.cgroup_ns_id),
        ("time", ids.time_ns_id),
    ];
    all.into_iter()
        .filter_map(|(kind, id)| Some((kind, id?)))
        .collect()
}

/// The namespaces that the image can make.
pub(super) fn namespaces(set: &Set) -> Result<Vec<Namespace>> {
    let mut found = Vec::new();
    let mut add = |kind, id, content| found.push(Namespace { kind, id, content });
    for id in set.ids(Kind::Utsns) {
        let uts: UtsnsEntry = set.require(Kind::Utsns, id)?;
        add("uts", id, format!("host {:?}", uts.nodename));
    }
    for id in set.ids(Kind::Mountpoints) {
        let count = set.all::<MntEntry>(Kind::Mountpoints, id)?.len();
        add("mnt", id, format!("{count} mounts"));
    }
    for id in set.ids(Kind::Netns) {
        let net: NetnsEntry = set.require(Kind::Netns, id)?;
        let devices: Vec<NetDeviceEntry> = set.all(Kind::Netdev, id)?;
        let devices: Vec<_> = devices.iter().map(device).collect();
        let from = net
            .ext_key
            .map_or_else(String::new, |key| format!("from outside: {key}; "));
        add("net", id, format!("{from}devices [{}]", devices.join(", ")));
    }
    for id in set.ids(Kind::IpcnsVar) {
        let objects = [
            (Kind::IpcnsShm, "segments"),
            (Kind::IpcnsMsg, "queues"),
            (Kind::IpcnsSem, "semaphore sets"),
        ];
        let present: Vec<_> = objects
            .into_iter()
            .filter(|(kind, _)| {
                set.raw(&kind.file_name(id))
                    .is_some_and(|bytes| bytes.len() > 8)
            })
            .map(|(_, label)| label)
            .collect();
        let content = if present.is_empty() {
            String::from("empty")
        } else {
            format!("with {}", present.join(", "))
        };
        add("ipc", id, content);
    }
    for id in set.ids(Kind::Userns) {
        let user: UsernsEntry = set.require(Kind::Userns, id)?;
        let lines: Vec<_> = user
            .uid_map
            .iter()
            .map(|map| format!("{} {} {}", map.first, map.lower_first, map.count))
            .collect();
        add("user", id, format!("uids [{}]", lines.join(", ")));
    }
    for id in set.ids(Kind::Timens) {
        let time: TimensEntry = set.require(Kind::Timens, id)?;
        let (mono, boot) = (time.monotonic, time.boottime);
        let content = format!(
            "monotonic {}.{:09} s, boottime {}.{:09} s",
            mono.tv_sec, mono.tv_nsec, boot.tv_sec, boot.tv_nsec
        );
        // The one time namespace of a tree is saved under 0, whatever its number.
        let id = match id {
            0 => time_id(set)?.unwrap_or(0),
            id => id,
        };
        add("time", id, content);
    }
    for id in set.ids(Kind::Pidns) {
        let pid: PidnsEntry = set.require(Kind::Pidns, id)?;
        let key = pid.ext_key.unwrap_or_default();
        add("pid", id, format!("from outside: {key}"));
    }
    Ok(found)
}

/// The time namespace of the first task.
fn time_id(set: &Set) -> Result<Option<u32>> {
    let Some(&pid) = set.ids(Kind::Ids).first() else {
        return Ok(None);
    };
    let ids: TaskKobjIdsEntry = set.require(Kind::Ids, pid)?;
    Ok(ids.time_ns_id)
}

fn device(device: &NetDeviceEntry) -> String {
    let kind = match NdType::try_from(device.r#type) {
        Ok(NdType::Loopback) => "loopback",
        Ok(NdType::Veth) => "veth",
        Ok(NdType::Tun) => "tun",
        Ok(NdType::Extlink) => "from outside",
        Ok(NdType::Venet) => "venet",
        Ok(NdType::Bridge) => "bridge",
        Ok(NdType::Macvlan) => "macvlan",
        Ok(NdType::Sit) => "sit",
        Err(_) => "unknown",
    };
    format!("{} ({kind})", device.name)
}

/// All mounts of all namespaces, parents first.
pub(super) fn mounts(set: &Set) -> Result<Vec<Mount>> {
    let mut found = Vec::new();
    for namespace in set.ids(Kind::Mountpoints) {
        let mut entries: Vec<MntEntry> = set.all(Kind::Mountpoints, namespace)?;
        entries.sort_by(|a, b| a.mountpoint.cmp(&b.mountpoint));
        for entry in entries {
            found.push(mount(set, namespace, entry));
        }
    }
    Ok(found)
}

fn mount(set: &Set, namespace: u32, entry: MntEntry) -> Mount {
    let content = [
        (Kind::TmpfsDev, minor(entry.root_dev)),
        (Kind::Tmpfs, entry.mnt_id),
    ]
    .into_iter()
    .find_map(|(kind, id)| set.raw(&kind.file_name(id)));
    let tmpfs = Fstype::try_from(i32::try_from(entry.fstype).unwrap_or(-1)) == Ok(Fstype::Tmpfs);
    Mount {
        namespace,
        id: entry.mnt_id,
        parent: entry.parent_mnt_id,
        fstype: fstype(&entry),
        options: options(&entry),
        content_bytes: content
            .filter(|_| tmpfs && entry.ext_key.is_none())
            .map(|bytes| bytes.len() as u64),
        mountpoint: entry.mountpoint,
        source: entry.source,
        root: entry.root,
        external: entry.ext_key,
    }
}

/// Names of tmpfs archives have the kernel's device number, whose major is 0.
fn minor(dev: u32) -> u32 {
    dev & 0xf_ffff
}

fn fstype(entry: &MntEntry) -> String {
    let known = i32::try_from(entry.fstype).ok().map(Fstype::try_from);
    let name = match known {
        Some(Ok(known)) => match known {
            Fstype::Unsupported => "unsupported",
            Fstype::Proc => "proc",
            Fstype::Sysfs => "sysfs",
            Fstype::Devtmpfs => "devtmpfs",
            Fstype::BinfmtMisc => "binfmt_misc",
            Fstype::Tmpfs => "tmpfs",
            Fstype::Devpts => "devpts",
            Fstype::Simfs => "simfs",
            Fstype::Pstore => "pstore",
            Fstype::Securityfs => "securityfs",
            Fstype::Fusectl => "fusectl",
            Fstype::Debugfs => "debugfs",
            Fstype::Cgroup => "cgroup",
            Fstype::Aufs => "aufs",
            Fstype::Mqueue => "mqueue",
            Fstype::Fuse => "fuse",
            Fstype::Auto => return entry.fsname.clone().unwrap_or_else(|| String::from("auto")),
            Fstype::Overlayfs => "overlay",
            Fstype::Autofs => "autofs",
            Fstype::Tracefs => "tracefs",
            Fstype::Cgroup2 => "cgroup2",
        },
        Some(Err(_)) | None => return format!("type {}", entry.fstype),
    };
    String::from(name)
}

fn options(entry: &MntEntry) -> String {
    let bits = [
        (1, "ro"),
        (2, "nosuid"),
        (4, "nodev"),
        (8, "noexec"),
        (1 << 10, "noatime"),
        (1 << 11, "nodiratime"),
        (1 << 21, "relatime"),
    ];
    let mut words: Vec<&str> = bits
        .iter()
        .filter(|(bit, _)| entry.flags & bit != 0)
        .map(|(_, word)| *word)
        .collect();
    if !entry.options.is_empty() {
        words.push(&entry.options);
    }
    words.join(",")
}

/// Sets of control groups that tasks name.
pub(super) fn cgroups(set: &Set) -> Result<Vec<CgroupPlace>> {
    let Some(cgroup) = set.get::<CgroupEntry>(Kind::Cgroup, 0)? else {
        return Ok(Vec::new());
    };
    Ok(cgroup
        .sets
        .into_iter()
        .map(|set| CgroupPlace {
            set: set.id,
            places: set.ctls.into_iter().map(|c| (c.name, c.path)).collect(),
        })
        .collect())
}
