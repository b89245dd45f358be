//! The state that runc keeps of a container.
