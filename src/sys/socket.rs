//! Socket options, peeking, SCM_RIGHTS, TCP_REPAIR.
