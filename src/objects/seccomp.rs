//! Seccomp mode and filters.
