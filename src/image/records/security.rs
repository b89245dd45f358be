//! Seccomp filters and AppArmor policies.

/// One filter program; `prev` is the index of that installed before it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SeccompFilter {
    /// Array of `struct sock_filter`.
    #[prost(bytes = "vec", required, tag = "1")]
    pub filter: Vec<u8>,
    #[prost(uint32, optional, tag = "2")]
    pub prev: Option<u32>,
    #[prost(uint32, optional, tag = "3")]
    pub flags: Option<u32>,
}

/// All filters of the image.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SeccompEntry {
    #[prost(message, repeated, tag = "1")]
    pub seccomp_filters: Vec<SeccompFilter>,
}

/// A compiled AppArmor profile.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AaPolicy {
    #[prost(string, required, tag = "1")]
    pub name: String,
    #[prost(bytes = "vec", required, tag = "2")]
    pub blob: Vec<u8>,
}

/// A namespace of AppArmor profiles.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AaNamespace {
    #[prost(string, required, tag = "1")]
    pub name: String,
    #[prost(message, repeated, tag = "2")]
    pub policies: Vec<AaPolicy>,
    #[prost(message, repeated, tag = "3")]
    pub namespaces: Vec<AaNamespace>,
}

/// All AppArmor policies of the image.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ApparmorEntry {
    #[prost(message, repeated, tag = "1")]
    pub namespaces: Vec<AaNamespace>,
}
