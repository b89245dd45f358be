//! (room header)
