//! Bytes to records and back: CRIU's image format 1.1.
