//! A new network namespace becomes what an image says.

use super::{Content, IFF_UP, LOOPBACK, settings};
use crate::base::{Result, ResultExt};
use crate::sys::netlink::{Link, attribute, split};

const RTM_NEWLINK: u16 = 16;
const IFLA_MTU: u16 = 4;
const AF_INET: u8 = 2;

/// Gives the calling thread's namespace, which is new, its content.
///
/// # Errors
/// The setting or the request that the kernel refused.
pub(in super::super) fn rebuild(content: &Content) -> Result<()> {
    let (lo, up) = (&content.lo, content.lo.flags & IFF_UP != 0);
    settings::set_namespace(&content.settings)?;
    set_lo(0, 0, &attribute(IFLA_MTU, &lo.mtu.to_ne_bytes()))?;
    settings::set_device(LOOPBACK.1, &lo.conf4, &lo.conf6)?;
    // the kernel gives it its addresses and routes
    if up || was_up(&content.addresses)? {
        set_lo(IFF_UP, IFF_UP, &[])?;
    }
    if !up {
        set_lo(0, IFF_UP, &[])?;
    }
    Ok(())
}

/// It keeps its IPv4 address when it goes down, and has none before it was up.
fn was_up(addresses: &[u8]) -> Result<bool> {
    let (all, _) = split(addresses)?;
    Ok(all.iter().any(|m| m.body.first() == Some(&AF_INET)))
}

/// Changes `lo`: those flags that are in `mask`, and what `attributes` say.
pub(super) fn set_lo(flags: u32, mask: u32, attributes: &[u8]) -> Result<()> {
    // ifinfomsg: family, pad, type, index, flags, mask
    let mut request = vec![0; 4];
    for word in [LOOPBACK.0, flags, mask] {
        request.extend_from_slice(&word.to_ne_bytes());
    }
    request.extend_from_slice(attributes);
    Link::open(libc::NETLINK_ROUTE)?
        .change(RTM_NEWLINK, &request)
        .context(|| format!("set lo to flags {flags:#x} of {mask:#x}"))
}
