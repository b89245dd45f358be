//! userfaultfd(2) with all its events and ioctls.
