//! Plan and apply, as callers see them.
