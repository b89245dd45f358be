//! Actions, masks, pending queues, alternate stacks. Rebuild.
