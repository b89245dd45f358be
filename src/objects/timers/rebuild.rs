//! Interval timers and POSIX timers. Rebuild.
