//! Unix, TCP, UDP, netlink and packet sockets.
