//! What an OCI runtime knows about a container.

pub mod kept;
pub mod runc;
