//! Mount, pid, net, uts, ipc, cgroup, time and user namespaces.
