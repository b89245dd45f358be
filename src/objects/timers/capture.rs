//! Interval timers and POSIX timers. Capture.
