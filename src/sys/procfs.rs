//! Parsers of /proc/PID/{stat,status,maps,smaps,fdinfo,...}: proc(5).
