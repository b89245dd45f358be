//! Standard output and standard error as a face uses them. Their reader may be
//! gone (`| head -1`, a closed session): nothing that is done may end by that,
//! where `println!` would panic.

use std::io::{self, Write};

use tracing::warn;

use crate::base::{Result, ResultExt};

/// Writes `text` to standard output. That nobody reads any more is no error.
///
/// # Errors
/// write(2) failed otherwise, such as on a full disk.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // Whoever reads has seen enough.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => done.context(|| String::from("write to standard output")),
    }
}

/// As [`print`], about something that is done: that it cannot be told does not
/// undo it, and is only logged.
pub(crate) fn tell(text: &str) {
    if let Err(e) = print(text) {
        warn!("{e}");
    }
}

/// Writes a line to standard error, if anybody reads that.
pub(crate) fn complain(text: &str) {
    let _ = writeln!(io::stderr(), "{}", text.trim_end());
}
