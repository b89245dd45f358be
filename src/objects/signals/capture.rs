//! Actions, masks, pending queues, alternate stacks. Capture.
