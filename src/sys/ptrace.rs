//! ptrace(2) as typestate: a stopped tracee is a value; resuming consumes it.
