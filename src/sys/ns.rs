//! setns(2), unshare(2), ioctl_ns(2).
