//! Registers, extended state, rseq, robust lists, interrupted system calls. Rebuild.
