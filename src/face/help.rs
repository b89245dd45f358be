//! `dunlin --help`.

/// The whole text.
pub(crate) const TEXT: &str = "\
dunlin moves running OCI containers between hosts, and saves and restarts them,
with their memory following lazily.

Usage:
  dunlin check [--json]         what this kernel and these privileges allow
  dunlin inspect [--json] DIR   show a directory of images
  dunlin criu ARGS...           act as criu (also: start it under that name)
  dunlin migrate ID HOST:PORT --token-file FILE
                                move a running runc container there
  dunlin receive --listen HOST:PORT --dir DIR [--token-file FILE]
                                take one container in
  dunlin resolve --list | ID [--thaw | --discard]
                                settle what a broken migration left
  dunlin --help | --version

Exit codes: 0 done, 1 failed, 2 wrong usage.
";
