//! The process tree: pids, sessions, groups, zombies, comm, exe, personality. Capture.
