//! A network namespace with nothing in it but `lo`, as a runtime makes it that is
//! told of no network.
//!
//! Carried are the settings that images have a place for, and of `lo`: whether it is
//! up, its MTU, its settings. Addresses and routes of `lo` are the kernel's own
//! doing. Whether that is all is not for us to guess: [`capture`] makes a second
//! namespace as a restore would make it, and asks the kernel about both
//! ([`state`]). What differs is what a restore would lose, and is refused by name.

mod capture;
pub(super) mod empty;
mod image;
mod rebuild;
mod settings;
mod state;

use crate::image::records::{NetDeviceEntry, NetnsEntry};

pub(super) use capture::capture;
pub(super) use image::{read, write};
pub(super) use rebuild::rebuild;

/// The index and the name of the one device.
const LOOPBACK: (u32, &str) = (1, "lo");
/// net_device flag of linux/if.h: it is up.
const IFF_UP: u32 = 1;

/// What is carried.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Content {
    settings: NetnsEntry,
    lo: NetDeviceEntry,
    /// RTM_NEWADDR messages. An IPv4 address of `lo` that is down tells that it was
    /// up before.
    addresses: Vec<u8>,
}
