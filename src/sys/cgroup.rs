//! cgroup v1 and v2 directories, both freezers.
