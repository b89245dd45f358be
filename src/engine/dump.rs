//! The order of a capture.
