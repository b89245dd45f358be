//! Stopping a tree of tasks, and letting it go.
