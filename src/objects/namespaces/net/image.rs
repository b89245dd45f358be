//! Images of a network namespace, ours and CRIU's, whose tables are written by other
//! tools: `ip` (messages of rtnetlink(7) behind a word of its own), `iptables-save`
//! and `nft` (text).

use super::{Content, LOOPBACK, state};
use crate::base::{Error, Result};
use crate::image::records::{NdType, NetDeviceEntry, NetnsEntry};
use crate::image::{Kind as Image, Set};
use crate::sys::netlink::{Message, attributes, split, u32_at};

/// What `ip` writes first: of addresses, routes, rules.
const ADDRESSES: u32 = 0x4736_1222;
const ROUTES: u32 = 0x4531_1224;
const RULES: u32 = 0x7170_6986;
/// Length of fib_rule_hdr.
const RULE: usize = 12;
const FRA_PRIORITY: u16 = 6;
const FRA_SUPPRESS_PREFIXLEN: u16 = 14;
const FRA_TABLE: u16 = 15;
const FRA_PROTOCOL: u16 = 21;
/// Priority and table of the rules that a new namespace has.
const DEFAULT_RULES: [(u32, u32); 3] = [(0, 255), (32766, 254), (32767, 253)];
/// The addresses that the kernel gives to `lo`.
const OWN_ADDRESSES: [&str; 2] = ["address 127.0.0.1/8 of link 1", "address ::1/128 of link 1"];

/// Writes the records of namespace `id`.
///
/// # Errors
/// Never, in practice.
pub(in super::super) fn write(content: &Content, id: u32, set: &mut Set) -> Result<()> {
    set.put(Image::Netns, id, &content.settings);
    set.put(Image::Netdev, id, &content.lo);
    let raw = |word: u32, messages: &[u8]| [&word.to_le_bytes()[..], messages].concat();
    set.put_raw(
        Image::Ifaddr.file_name(id),
        raw(ADDRESSES, &content.addresses),
    )?;
    // in the main table, which is the one that is carried, lo has none
    set.put_raw(Image::Route.file_name(id), raw(ROUTES, &[]))?;
    set.put_raw(Image::Route6.file_name(id), raw(ROUTES, &[]))
}

/// Reads and checks the records of namespace `id`, whose first one is `settings`.
///
/// # Errors
/// What in it is not carried, by name; damaged records.
pub(in super::super) fn read(set: &Set, id: u32, settings: NetnsEntry) -> Result<Content> {
    let refused = |kind: Image, what: &str| {
        Error::refused(
            format!("{} of {}", what, kind.file_name(id)),
            "this is not carried; --empty-ns net leaves out all of the namespace",
        )
    };
    let devices: Vec<NetDeviceEntry> = set.all(Image::Netdev, id)?;
    let is_lo = |d: &&NetDeviceEntry| {
        (d.r#type, d.ifindex, d.name.as_str()) == (NdType::Loopback.into(), LOOPBACK.0, LOOPBACK.1)
    };
    if let Some(other) = devices.iter().find(|d| !is_lo(d)) {
        return Err(refused(Image::Netdev, &format!("link {}", other.name)));
    }
    let [lo] = <[NetDeviceEntry; 1]>::try_from(devices)
        .map_err(|all| refused(Image::Netdev, &format!("{} links", all.len())))?;
    let messages = |kind: Image, word: u32| listed(set, kind, id, word);
    let addresses = messages(Image::Ifaddr, ADDRESSES)?;
    for m in &addresses {
        let name = state::address_name(&m.body);
        if !OWN_ADDRESSES.contains(&name.as_str()) {
            return Err(refused(Image::Ifaddr, &name));
        }
    }
    for kind in [Image::Route, Image::Route6] {
        if let Some(m) = messages(kind, ROUTES)?.first() {
            return Err(refused(kind, &state::route_name(&m.body)));
        }
    }
    if !messages(Image::Rule, RULES)?.iter().all(is_default_rule) {
        return Err(refused(Image::Rule, "a routing rule"));
    }
    for kind in [Image::Iptables, Image::Ip6tables, Image::Nftables] {
        let text = set.raw(&kind.file_name(id)).unwrap_or(&[]);
        if let Some(rule) = foreign_rule(&String::from_utf8_lossy(text)) {
            return Err(refused(kind, &format!("rule {rule:?}")));
        }
    }
    for kind in [Image::NetnsCt, Image::NetnsExp] {
        if set.contains(kind, id) {
            return Err(refused(kind, "tracked connections"));
        }
    }
    Ok(Content {
        settings,
        lo,
        addresses: addresses.iter().flat_map(Message::to_bytes).collect(),
    })
}

/// The messages of a file that `ip` has written; none if there is no such file.
fn listed(set: &Set, kind: Image, id: u32, word: u32) -> Result<Vec<Message>> {
    let name = kind.file_name(id);
    let bytes = match set.raw(&name) {
        None | Some([]) => return Ok(Vec::new()),
        Some(bytes) => bytes,
    };
    let bad = || Error::image(name.clone(), "is not what ip(8) writes");
    let (first, rest) = bytes.split_first_chunk().ok_or_else(bad)?;
    if u32::from_le_bytes(*first) != word {
        return Err(bad());
    }
    split(rest).map(|(all, _)| all).map_err(|_| bad())
}

fn is_default_rule(m: &Message) -> bool {
    let (mut priority, mut table, mut plain) = (0, 0, true);
    for (kind, value) in attributes(m.body.get(RULE..).unwrap_or(&[])) {
        match kind {
            FRA_PRIORITY => priority = u32_at(value, 0).unwrap_or(u32::MAX),
            FRA_TABLE => table = u32_at(value, 0).unwrap_or(u32::MAX),
            FRA_SUPPRESS_PREFIXLEN => plain &= value == [0xff; 4],
            FRA_PROTOCOL => {}
            _ => plain = false,
        }
    }
    plain && DEFAULT_RULES.contains(&(priority, table))
}

/// The first line of a packet filter that has an effect and is not CRIU's: it locks the
/// network before it looks at it, and its lock does not belong to the container.
fn foreign_rule(text: &str) -> Option<&str> {
    let mut chain = "";
    let mut table = "";
    text.lines().map(str::trim).find(|line| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        match words[..] {
            ["}"] => {
                if chain.is_empty() {
                    table = "";
                }
                chain = "";
                false
            }
            [] | ["COMMIT"] => false,
            ["table", _, name, "{"] => {
                table = name;
                false
            }
            ["chain", name, "{"] => {
                chain = name;
                false
            }
            // iptables-save: comments, tables, chains with policy ACCEPT or none
            [first, ..] if first.starts_with('#') || first.starts_with('*') => false,
            [first, "ACCEPT" | "-", ..] if first.starts_with(':') => false,
            ["-A", name, ..] if name == LOCK => false,
            ["-A", .., "-j", to] => to != LOCK,
            ["type", .., "policy", "accept;"] => false,
            [.., "jump", to] => to != LOCK,
            _ => chain != LOCK && !table.starts_with("CRIU-"),
        }
    })
}

/// The chain of CRIU's lock; its tables, where it has its own, begin with this too.
const LOCK: &str = "CRIU";

#[cfg(test)]
mod tests;
