//! The system-call loop: records in, results out, run inside a stopped task.
