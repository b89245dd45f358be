//! kcmp(2): are two kernel objects the same.
