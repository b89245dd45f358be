//! `dunlin --help`.

/// The whole text.
pub(crate) const TEXT: &str = "\
dunlin moves running OCI containers between hosts, and saves and restarts them,
with their memory following lazily.

Usage:
  dunlin check [--json]         what this kernel and these privileges allow
  dunlin criu ARGS...           act as criu (also: start it under that name)
  dunlin --help | --version

Exit codes: 0 done, 1 failed, 2 wrong usage.
";
