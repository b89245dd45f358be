//! rtnetlink, sock_diag(7), nfnetlink.
