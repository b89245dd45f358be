//! The vDSO and its data areas. Capture.
