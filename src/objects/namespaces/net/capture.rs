//! Looks at a network namespace, and tries whether a new one would be the same.

use super::state::{self, State};
use super::{Content, rebuild, settings};
use crate::base::{Error, HostPid, Result};
use crate::sys::ns::{self, Kind};

/// What the network namespace of `pid` holds. The tasks in it are stopped, and no
/// action script has closed it yet.
///
/// # Errors
/// What in it would not come back, by name.
pub(in super::super) fn capture(pid: HostPid) -> Result<Content> {
    let content = ns::inside(pid, &[Kind::Net], || {
        let (lo, addresses) = state::devices()?;
        Ok(Content {
            settings: settings::of_namespace()?,
            lo,
            addresses,
        })
    })?;
    // both take some milliseconds, for there are hundreds of settings
    let (is, would_be) = std::thread::scope(|s| {
        let would_be = s.spawn(|| rehearse(&content));
        let is = ns::inside(pid, &[Kind::Net], State::read);
        let would_be = would_be
            .join()
            .unwrap_or_else(|_| Err(Error::bug("a new network namespace", "it panicked")));
        Ok::<_, Error>((is?, would_be?))
    })?;
    match is.difference(&would_be) {
        None => Ok(content),
        Some(what) => Err(Error::refused(what, "this is not carried")),
    }
}

/// What a restore would make of it, on a thread that ends with it.
fn rehearse(content: &Content) -> Result<State> {
    ns::unshare(&[Kind::Net])?;
    rebuild(content)?;
    State::read()
}
