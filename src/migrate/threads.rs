//! Two sets of threads for lanes. What a task waits for goes over threads that run
//! as soon as they are woken; bulk lanes, which read, encrypt and place whole
//! megabytes, run on threads of their own that stand back for these, and for the
//! container itself. On one set for both, the slowest faults took several times as
//! long (99 of 100 below 20 ms against 2 to 5, on two busy processors).

use std::sync::OnceLock;

use tokio::runtime::{Builder, Handle, Runtime};

use crate::base::{Error, Result};
use crate::sys::sched;

/// Runs control and fault lanes, and all that waits.
///
/// # Errors
/// Threads cannot be made.
pub fn runtime() -> Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(4)
        .thread_name("lane")
        .on_thread_start(sched::prompt)
        .enable_all()
        .build()
        .map_err(|e| Error::os("start threads for lanes", e))
}

/// Runs bulk lanes, one set for a process; `own` does if there can be none.
pub(super) fn background(own: &Handle) -> Handle {
    static BULK: OnceLock<Option<Runtime>> = OnceLock::new();
    let bulk = BULK.get_or_init(|| {
        Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("bulk")
            .on_thread_start(sched::patient)
            .build()
            .ok()
    });
    bulk.as_ref().map_or(own, Runtime::handle).clone()
}
