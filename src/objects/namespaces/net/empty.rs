//! A network namespace of which a caller says that it is to be made empty. What
//! was in it the caller makes again; but for `lo`, which nobody thinks of: runc sets
//! it up when it makes a container, and not when it restores one. So whether it was
//! up is noted in a record of the device, which CRIU does not look for here.

use super::rebuild::set_lo;
use super::{IFF_UP, LOOPBACK, state};
use crate::base::{HostPid, Result};
use crate::image::records::{NdType, NetDeviceEntry};
use crate::image::{Kind as Image, Set};
use crate::sys::ns::{self, Kind};

/// Whether `lo` of the namespace of `pid` is up.
///
/// # Errors
/// Those of entering it and of rtnetlink(7).
pub(in super::super) fn capture(pid: HostPid) -> Result<bool> {
    ns::inside(pid, &[Kind::Net], state::lo_is_up)
}

/// Notes that it is up in namespace `id`.
pub(in super::super) fn write(id: u32, set: &mut Set) {
    let lo = NetDeviceEntry {
        r#type: NdType::Loopback.into(),
        ifindex: LOOPBACK.0,
        flags: IFF_UP,
        name: LOOPBACK.1.to_owned(),
        ..NetDeviceEntry::default()
    };
    set.put(Image::Netdev, id, &lo);
}

/// Whether it is noted so.
///
/// # Errors
/// A damaged record.
pub(in super::super) fn read(set: &Set, id: u32) -> Result<bool> {
    let devices: Vec<NetDeviceEntry> = set.all(Image::Netdev, id)?;
    let is_up = |d: &NetDeviceEntry| d.name == LOOPBACK.1 && d.flags & IFF_UP != 0;
    Ok(devices.iter().any(is_up))
}

/// Sets it up in the calling thread's namespace, which is new.
///
/// # Errors
/// The kernel refuses.
pub(in super::super) fn rebuild() -> Result<()> {
    set_lo(IFF_UP, IFF_UP, &[])
}
