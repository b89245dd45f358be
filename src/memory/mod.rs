//! Page contents: which exist, where they come from, who serves them.
