//! Uids, groups, capabilities, securebits, no_new_privs. Rebuild.
