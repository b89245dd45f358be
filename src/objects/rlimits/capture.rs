//! Resource limits, read without CAP_SYS_RESOURCE. Capture.
