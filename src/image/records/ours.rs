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
