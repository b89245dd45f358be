//! Tasks that outlive us frozen: the hold cgroup.
