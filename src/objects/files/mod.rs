//! Descriptor tables and every kind of open file.
