//! What this kernel and these privileges allow, found by trying.
