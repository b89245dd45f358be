//! clone3(2) with set_tid, and the child that runs our own code after it.
