//! Seccomp mode and filters. Capture.
