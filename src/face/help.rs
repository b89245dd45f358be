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

/// The text of one command, for those that have one.
pub(crate) fn of(command: &str) -> Option<&'static str> {
    match command {
        "check" => Some(CHECK),
        "migrate" => Some(MIGRATE),
        "receive" => Some(RECEIVE),
        "resolve" => Some(RESOLVE),
        _ => None,
    }
}

const CHECK: &str = "\
Usage: dunlin check [--json]
Tries what dunlin needs of this kernel and of its privileges, one thing a line: yes,
no, or NO where nothing works without it; then why not.

  --json   the same as JSON: name, purpose, required, available, reason

Ends with 1 if something required is missing.
";

const MIGRATE: &str = "\
Usage: dunlin migrate ID HOST:PORT --token-file FILE [options]
Moves a running runc container to the host where `dunlin receive` listens.

  --token-file FILE    the receiver's token, carried here by another way
  --plain              no TLS; the receiver must have said so too
  --report FILE        the account of the move, as JSON
  --bulk N             connections for pages that nobody waits for, 1 to 8 (2)
  --answer-time SECONDS
                       how long the receiver may take for an answer before the freeze,
                       at most 60 for the first (300)
  --patience SECONDS   how long it may say nothing after the switch, and how long a
                       lost link is tried again then (60)
  --max-pause SECONDS  how long the container may stand still before it goes on
                       here (30)
  --action-script FILE run at pre-dump and network-lock, and at network-unlock if
                       the container goes on here after all
  --file-locks, --ext-unix-sk
                       carry these too; the receiver must say so as well
  --root DIR           runc's (/run/runc)
  --state DIR          where the journal lies (/run/dunlin)
  -v, --verbose
";

const RECEIVE: &str = "\
Usage: dunlin receive --listen HOST:PORT --dir DIR [options]
Waits for one container, puts it into DIR/ID, and lets runc run it.

  --token-file FILE    where to write the token (else it is printed)
  --plain              no TLS
  --wait SECONDS       how long to wait for the source (for ever)
  --answer-time SECONDS
                       how long the source may say nothing before all is rebuilt, at
                       most 60 at first (300)
  --patience SECONDS   how long the switch, and a source that is lost, is waited for (60)
  --max-bundle BYTES   (64 GiB)
  --output FILE        where the container's output goes (nowhere)
  --cgroups-path PATH  where its cgroups go, whatever its configuration says
  --allow-bind PATH, --allow-device PATH, --allow-namespace PATH,
  --allow-sysctl NAME, --allow-cgroup PATH
                       what a bundle may have beyond the default, one by one
  --host-namespace SORT
                       it may live in this host's: pid, network, ipc, uts, mount
  --action-script FILE run at network-unlock and post-resume, when it runs
  --file-locks, --ext-unix-sk
                       take these too
  --root DIR           runc's (/run/runc)
  --state DIR          where the journal lies (/run/dunlin)
  -v, --verbose
";

const RESOLVE: &str = "\
Usage: dunlin resolve --list
       dunlin resolve ID [--thaw | --discard]
Settles what a broken migration, or a page server that was killed, left here.

  --list       each with its phase, what has to be decided, and, where memory was
               lost, when and why
  ID           what can be settled without asking
  --thaw       at the source: its copy runs on; only when the other never ran
  --discard    the copy on this host ends; at the destination nothing of it is left
  --root DIR   runc's (/run/runc)
  --state DIR  where journals lie (/run/dunlin)
";
