//! The tree of tasks, and what holds for a whole image.

use super::core::TaskKobjIdsEntry;

/// The security module that labels in this image belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Lsmtype {
    NoLsm = 0,
    Selinux = 1,
    Apparmor = 2,
}

/// Names of CRIU plugins that took part in the dump.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PluginsEntry {
    #[prost(string, repeated, tag = "12")]
    pub plugins: Vec<String>,
}

/// The head of an image: its version, and what holds for all of it.
/// Written last: a directory without it is no image.
#[derive(Clone, PartialEq, prost::Message)]
pub struct InventoryEntry {
    /// 1 or 2; 2 is format 1.1, where each file begins with a common magic.
    #[prost(uint32, required, tag = "1")]
    pub img_version: u32,
    /// fdinfo files are numbered by `files_id`, not by pid.
    #[prost(bool, optional, tag = "2")]
    pub fdinfo_per_id: Option<bool>,
    /// Kernel objects of whoever made the image.
    #[prost(message, optional, tag = "3")]
    pub root_ids: Option<TaskKobjIdsEntry>,
    /// Namespace files are numbered by namespace id, not by pid.
    #[prost(bool, optional, tag = "4")]
    pub ns_per_id: Option<bool>,
    /// The set of control groups of the root task; 0 is none.
    #[prost(uint32, optional, tag = "5")]
    pub root_cg_set: Option<u32>,
    #[prost(enumeration = "Lsmtype", optional, tag = "6")]
    pub lsmtype: Option<i32>,
    /// CLOCK_MONOTONIC at the dump, microseconds.
    #[prost(uint64, optional, tag = "8")]
    pub dump_uptime: Option<u64>,
    #[prost(uint32, optional, tag = "9")]
    pub pre_dump_mode: Option<u32>,
    #[prost(bool, optional, tag = "10")]
    pub tcp_close: Option<bool>,
    #[prost(uint32, optional, tag = "11")]
    pub network_lock_method: Option<u32>,
    #[prost(message, optional, tag = "12")]
    pub plugins_entry: Option<PluginsEntry>,
    /// A fresh UUID for each dump.
    #[prost(string, optional, tag = "13")]
    pub dump_criu_run_id: Option<String>,
    #[prost(bool, optional, tag = "14")]
    pub allow_uprobes: Option<bool>,
}

/// One task of the tree; parents come before their children. All ids are those
/// of the innermost pid namespace.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PstreeEntry {
    /// Also the number in the names of the task's files.
    #[prost(uint32, required, tag = "1")]
    pub pid: u32,
    #[prost(uint32, required, tag = "2")]
    pub ppid: u32,
    #[prost(uint32, required, tag = "3")]
    pub pgid: u32,
    #[prost(uint32, required, tag = "4")]
    pub sid: u32,
    #[prost(uint32, repeated, packed = "false", tag = "5")]
    pub threads: Vec<u32>,
}
