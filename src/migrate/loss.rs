//! The file beside a bundle that tells when and why memory was lost; empty, or not
//! there, while it is not. Whoever looks at the container later has nothing else.

use std::fmt::Display;
use std::io::Write;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use tracing::warn;

use crate::base::{ResultExt, utc};
use crate::sys::private;

/// Its name.
pub const LOSS: &str = "memory-lost";

/// Adds a line with the time to such a file. If it cannot be written the log says
/// so: what happens to the container does not depend on it.
pub fn say(path: &Path, why: impl Display) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let when = utc(now.map_or(0, |d| d.as_secs()));
    let line = format!("{} {why}\n", String::from_utf8_lossy(&when));
    let said = private::append(path).and_then(|mut f| {
        f.write_all(line.as_bytes())
            .context(|| format!("write {}", path.display()))
    });
    if let Err(e) = said {
        warn!("{e}");
    }
}
