//! Steps to kernel, undo on failure.
