//! sched_setattr(2), sched_getattr(2), priorities.
