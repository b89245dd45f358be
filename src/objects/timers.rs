//! Interval timers and POSIX timers.
