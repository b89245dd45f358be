//! Seccomp mode and filters. Rebuild.
