//! Records of our own, in files that CRIU does not know (`dunlin-*.img`).

/// One file of the image directory, as it was written.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ManifestEntry {
    /// Name of the file.
    #[prost(string, required, tag = "1")]
    pub name: String,
    /// Length, bytes.
    #[prost(uint64, required, tag = "2")]
    pub size: u64,
    /// SHA-256 of the content; none for contents of pages.
    #[prost(bytes = "vec", optional, tag = "3")]
    pub sha256: Option<Vec<u8>>,
}

/// What SO_PEERCRED of a Unix socket says: unix(7).
#[derive(Clone, PartialEq, prost::Message)]
pub struct PeerCredEntry {
    /// Id of the file.
    #[prost(uint32, required, tag = "1")]
    pub file: u32,
    /// Process, as the root task sees it; 0 for one that it does not see.
    #[prost(int32, required, tag = "2")]
    pub pid: i32,
    /// Effective user at that time.
    #[prost(uint32, required, tag = "3")]
    pub uid: u32,
    /// Effective group at that time.
    #[prost(uint32, required, tag = "4")]
    pub gid: u32,
}
