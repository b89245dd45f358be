//! The vDSO and its data areas. Rebuild.
