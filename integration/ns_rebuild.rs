//! Namespaces of a runc container, captured and made again by the two halves
//! of `objects::namespaces` alone: what the container sees must read the same.
//!
//! No libtest here: the first task of a restored tree is cloned from a process
//! with one thread.

#[path = "harness/mod.rs"]
mod harness;

use std::collections::BTreeMap;
use std::process::ExitCode;

use dunlin::base::HostPid;
use dunlin::image::records::{InventoryEntry, PstreeEntry, TaskKobjIdsEntry};
use dunlin::image::{Kind as Image, Set};
use dunlin::objects::namespaces::{Capture, CapturePolicy, Plan, RebuildPolicy};
use dunlin::sys::clone::{Request, spawn};
use harness::*;

/// A mount as it must come back: all but the numbers of the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    root: String,
    mountpoint: String,
    options: String,
    sharing: String,
    fstype: String,
    source: String,
    super_options: String,
    parent: String,
    same_device_as: String,
}

fn seen(pid: i32) -> Vec<Seen> {
    let all = dunlin::sys::mounts::mountinfo(HostPid(pid)).expect("mountinfo");
    let by_id: BTreeMap<u32, &str> = all.iter().map(|m| (m.id, m.mountpoint.as_str())).collect();
    all.iter()
        .map(|m| Seen {
            root: m.root.clone(),
            mountpoint: m.mountpoint.clone(),
            options: m.options.clone(),
            sharing: format!(
                "{} {} {}",
                m.shared.is_some(),
                m.master.is_some(),
                m.unbindable
            ),
            fstype: m.fstype.clone(),
            source: m.source.clone(),
            super_options: m.super_options.clone(),
            parent: by_id.get(&m.parent).copied().unwrap_or("").to_owned(),
            same_device_as: all
                .iter()
                .find(|o| (o.major, o.minor) == (m.major, m.minor))
                .map(|o| o.mountpoint.clone())
                .unwrap_or_default(),
        })
        .collect()
}

fn main() -> ExitCode {
    if std::env::args().any(|a| a == "--list") {
        println!("a_runc_containers_namespaces_come_back_the_same: test");
        return ExitCode::SUCCESS;
    }
    if let Some(why) = missing(&[Need::Root, Need::Runc]) {
        skipped(&why);
        return ExitCode::SUCCESS;
    }
    a_runc_containers_namespaces_come_back_the_same();
    println!("test a_runc_containers_namespaces_come_back_the_same ... ok");
    ExitCode::SUCCESS
}

fn a_runc_containers_namespaces_come_back_the_same() {
    let scratch = Scratch::new("nsrebuild");
    let runc = Runc::new(&scratch);
    let script = "echo kept > /dev/shm/file; mkdir -m 1700 /dev/shm/dir; mkfifo /dev/shm/dir/p; \
        mount -t tmpfs -o size=1m,nosuid inner /tmp 2>/dev/null; echo ready; sleep 10000";
    let bundle = Bundle::new(&scratch, "bundle", &[], &["/bin/sh", "-c", script]);
    let id = scratch.name().to_owned();
    let mut container = Container::run(&runc, bundle, &id);
    container.lines.expect("ready", PATIENCE);
    let pid = container.pid();
    let before = seen(pid);

    // As runc declares them.
    let binds: Vec<String> = before
        .iter()
        .filter(|m| m.fstype == "cgroup" || m.root == "/null")
        .map(|m| m.mountpoint.clone())
        .collect();
    let policy = CapturePolicy {
        ext_mnt: binds
            .iter()
            .map(|b| {
                let masked = !b.starts_with("/sys");
                (
                    b.clone(),
                    if masked {
                        "/dev/null".to_owned()
                    } else {
                        b.clone()
                    },
                )
            })
            .collect(),
        empty_ns: 0x4000_0000,
        ..CapturePolicy::default()
    };
    let mut set = Set::new();
    let began = std::time::Instant::now();
    let capture = Capture::new(HostPid(pid), &policy).expect("look at the namespaces");
    capture.capture(&mut set).expect("capture the namespaces");
    println!("captured in {:?}", began.elapsed());
    let inventory = InventoryEntry {
        img_version: 2,
        root_ids: Some(capture.own_ids()),
        ..InventoryEntry::default()
    };
    set.put(Image::Inventory, 0, &inventory);
    set.push(
        Image::Pstree,
        0,
        &PstreeEntry {
            pid: 1,
            ..PstreeEntry::default()
        },
    );
    let mut ids = TaskKobjIdsEntry::default();
    capture
        .fill_ids(HostPid(pid), &mut ids)
        .expect("number the namespaces");
    set.put(Image::Ids, 1, &ids);
    let began = std::time::Instant::now();
    dunlin::objects::cgroup::Cgroups::of(HostPid(pid), &[HostPid(pid)].into())
        .and_then(|c| c.capture(dunlin::objects::cgroup::Mode::Soft, &mut set))
        .expect("capture cgroups");
    println!("cgroups captured in {:?}", began.elapsed());
    let began = std::time::Instant::now();
    let strangers = dunlin::objects::cgroup::Outside::now(HostPid(pid))
        .strangers(HostPid(pid), &[HostPid(pid)].into());
    assert!(strangers.expect("look for strangers").len() <= 1);
    println!("strangers looked for in {:?}", began.elapsed());

    let mut sources: Vec<(String, String)> = policy
        .ext_mnt
        .iter()
        .filter(|(at, key)| at == key)
        .map(|(at, key)| {
            (
                key.clone(),
                format!(
                    "/sys/fs/cgroup/{}",
                    at.trim_start_matches("/sys/fs/cgroup/")
                ),
            )
        })
        .collect();
    sources.push(("/dev/null".to_owned(), "/dev/null".to_owned()));
    let plan = Plan::read(
        &set,
        &RebuildPolicy {
            ext_mnt: sources,
            root: Some(container.bundle.rootfs()),
            empty_ns: 0x4000_0000,
            ..RebuildPolicy::default()
        },
    )
    .expect("plan");
    plan.before_clone().expect("the host has all");
    let host_mounts = dunlin::sys::mounts::own_mountinfo().expect("own mounts");
    // The capture ends its helper mounts on threads of their own.
    let threads = || {
        std::fs::read_dir("/proc/self/task")
            .expect("our threads")
            .count()
    };
    let limit = std::time::Instant::now() + PATIENCE;
    while threads() > 1 && std::time::Instant::now() < limit {
        std::thread::yield_now();
    }
    let request = Request {
        flags: plan.clone_flags(),
        set_tid: vec![],
    };
    let began = std::time::Instant::now();
    let child = spawn(&request, |_| {
        plan.in_root(&mut |_| {})?;
        Ok(Vec::new())
    })
    .expect("clone");
    let result = child.result();
    println!("made in {:?}", began.elapsed());
    result.expect("make the namespaces");
    let pid2 = child.pid.0;
    let after = seen(pid2);
    for (b, a) in before.iter().zip(&after) {
        let mut b = b.clone();
        if b.fstype == "cgroup" {
            // This task is not in the container's cgroup, runc's swrk is.
            b.root.clone_from(&a.root);
        }
        assert_eq!(&b, a);
    }
    assert_eq!(before.len(), after.len());
    let inside = |what: &str| std::fs::read_to_string(format!("/proc/{pid2}/root/{what}"));
    assert_eq!(inside("dev/shm/file").expect("the file in shm"), "kept\n");
    assert_eq!(
        host_mounts,
        dunlin::sys::mounts::own_mountinfo().expect("own mounts")
    );
    for ns in ["pid", "net", "ipc", "uts", "mnt", "time"] {
        let link = |p: i32| std::fs::read_link(format!("/proc/{p}/ns/{ns}")).expect("ns link");
        assert_ne!(link(pid2), link(std::process::id().cast_signed()), "{ns}");
    }
    let offsets = std::fs::read_to_string(format!("/proc/{pid2}/timens_offsets")).expect("offsets");
    assert!(offsets.contains("monotonic"), "{offsets}");
    drop(child);
}
