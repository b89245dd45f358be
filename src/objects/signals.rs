//! Actions, masks, pending queues, alternate stacks.
