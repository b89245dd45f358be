//! What an OCI runtime knows about a container.

pub mod runc;
