//! Which files of a cgroup directory are carried: the limits that a person or
//! a runtime sets, not counters.

/// Of every v1 directory.
const V1: &[&str] = &[
    "cgroup.clone_children",
    "notify_on_release",
    "cgroup.procs",
    "tasks",
];

/// Of every v2 directory.
const V2: &[&str] = &[
    "cgroup.subtree_control",
    "cgroup.max.descendants",
    "cgroup.max.depth",
    "cgroup.freeze",
    "cgroup.type",
];

/// Per controller of v1; the order is that of writing (a limit of memory
/// before that of memory and swap).
const CONTROLLERS: &[(&str, &[&str])] = &[
    (
        "cpu",
        &[
            "cpu.shares",
            "cpu.cfs_period_us",
            "cpu.cfs_quota_us",
            "cpu.rt_period_us",
            "cpu.rt_runtime_us",
        ],
    ),
    (
        "memory",
        &[
            "memory.limit_in_bytes",
            "memory.memsw.limit_in_bytes",
            "memory.swappiness",
            "memory.soft_limit_in_bytes",
            "memory.move_charge_at_immigrate",
            "memory.oom_control",
            "memory.use_hierarchy",
            "memory.kmem.limit_in_bytes",
            "memory.kmem.tcp.limit_in_bytes",
        ],
    ),
    (
        "cpuset",
        &[
            "cpuset.cpus",
            "cpuset.mems",
            "cpuset.memory_migrate",
            "cpuset.cpu_exclusive",
            "cpuset.mem_exclusive",
            "cpuset.mem_hardwall",
            "cpuset.memory_spread_page",
            "cpuset.memory_spread_slab",
            "cpuset.sched_load_balance",
            "cpuset.sched_relax_domain_level",
        ],
    ),
    ("blkio", &["blkio.weight"]),
    ("net_cls", &["net_cls.classid"]),
    ("pids", &["pids.max"]),
    ("devices", &["devices.list"]),
];

/// Controller files of v2, present where the controller is enabled.
const V2_CONTROLLERS: &[&str] = &[
    "cpu.weight",
    "cpu.max",
    "cpuset.cpus",
    "cpuset.mems",
    "io.max",
    "memory.low",
    "memory.min",
    "memory.high",
    "memory.max",
    "memory.swap.max",
    "memory.oom.group",
    "pids.max",
];

/// The files of a directory of the hierarchy `name`.
pub(super) fn of(name: &str) -> Vec<&'static str> {
    if name.is_empty() {
        return V2.iter().chain(V2_CONTROLLERS).copied().collect();
    }
    let mut files: Vec<&'static str> = Vec::new();
    for controller in name.split(',') {
        if let Some((_, own)) = CONTROLLERS.iter().find(|(c, _)| *c == controller) {
            files.extend(*own);
        }
    }
    files.extend(V1);
    files
}

/// Whether the file says who is in the directory; it is never written back.
pub(super) fn is_membership(file: &str) -> bool {
    matches!(file, "cgroup.procs" | "tasks")
}

/// What must be set while the directory is empty.
pub(super) fn is_early(file: &str) -> bool {
    matches!(
        file,
        "cpuset.cpus"
            | "cpuset.mems"
            | "devices.list"
            | "memory.kmem.limit_in_bytes"
            | "memory.swappiness"
            | "memory.oom_control"
            | "memory.use_hierarchy"
            | "cgroup.type"
    )
}

/// Whether we know the file at all: an image must not make us write into
/// others (`release_agent`, `cgroup.kill`).
pub(super) fn is_known(name: &str, file: &str) -> bool {
    of(name).contains(&file)
}
