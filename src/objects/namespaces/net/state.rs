//! Everything that the kernel tells about a network namespace, to be compared with
//! another one. rtnetlink(7), nfnetlink, xfrm, /proc/sys/net

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::settings;
use crate::base::{Error, Result, ResultExt};
use crate::image::records::NetDeviceEntry;
use crate::sys::netlink::{Link, Message, attributes, u32_at};

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_GETADDR: u16 = 22;
const RTM_GETROUTE: u16 = 26;
const RTM_GETNEIGH: u16 = 30;
const RTM_GETRULE: u16 = 34;
const RTM_GETQDISC: u16 = 38;
/// NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETTABLE
const GET_TABLES: u16 = 10 << 8 | 1;
const XFRM_MSG_GETSA: u16 = 18;
const XFRM_MSG_GETPOLICY: u16 = 21;

/// Lengths of ifinfomsg, ifaddrmsg, rtmsg (fib_rule_hdr), ndmsg, tcmsg, nfgenmsg.
const LINK: usize = 16;
const ADDRESS: usize = 8;
const ROUTE: usize = 12;
const NEIGHBOUR: usize = 12;
const QDISC: usize = 20;
const TABLE: usize = 4;

const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
/// Counters: IFLA_STATS, STATS64, AF_SPEC (settings, and counters), CARRIER_CHANGES,
/// CARRIER_UP_COUNT, CARRIER_DOWN_COUNT; and IFLA_QDISC, which is listed for itself.
const LINK_OTHERS: [u16; 7] = [6, 7, 23, 26, 35, 47, 48];
const IFA_CACHEINFO: u16 = 6;
const RTA_CACHEINFO: u16 = 12;
const RTM_F_CLONED: u32 = 0x200;
const NUD_PERMANENT: u16 = 0x80;
/// TCA_STATS, TCA_XSTATS, TCA_STATS2.
const QDISC_COUNTERS: [u16; 3] = [3, 4, 7];
const NFTA_TABLE_NAME: u16 = 1;
/// Keys that the kernel makes when they are first used.
const MADE_UP: &str = "tcp_fastopen_key";

/// What there is, by what a person would call it, in a form that is the same for the
/// same thing.
#[derive(Debug, Default)]
pub(super) struct State(BTreeMap<String, Vec<u8>>);

impl State {
    /// Of the calling thread's namespace.
    ///
    /// # Errors
    /// Those of netlink(7) and of reading /proc.
    pub(super) fn read() -> Result<Self> {
        let mut state = Self::default();
        let link = route()?;
        let list = |kind, header: usize| {
            let all = link.list(kind, &vec![0; header]);
            all.context(|| format!("list what a network namespace has (request {kind})"))
        };
        for m in list(RTM_GETLINK, LINK)? {
            state.add(link_name(&m), kept(&m.body, LINK, &LINK_OTHERS));
        }
        for m in list(RTM_GETADDR, ADDRESS)? {
            state.add(
                address_name(&m.body),
                kept(&m.body, ADDRESS, &[IFA_CACHEINFO]),
            );
        }
        for m in list(RTM_GETROUTE, ROUTE)? {
            let flags = u32_at(&m.body, 8).unwrap_or(0);
            if flags & RTM_F_CLONED == 0 {
                state.add(route_name(&m.body), kept(&m.body, ROUTE, &[RTA_CACHEINFO]));
            }
        }
        for m in list(RTM_GETRULE, ROUTE)? {
            state.add("routing rule".to_owned(), m.body);
        }
        for m in list(RTM_GETNEIGH, NEIGHBOUR)? {
            let permanent = m
                .body
                .get(8..10)
                .is_some_and(|s| u16::from_ne_bytes([s[0], s[1]]) & NUD_PERMANENT != 0);
            if permanent {
                state.add("permanent neighbour".to_owned(), m.body);
            }
        }
        for m in list(RTM_GETQDISC, QDISC)? {
            let of = u32_at(&m.body, 4).unwrap_or(0);
            let name = format!("queueing discipline of link {of}");
            state.add(name, kept(&m.body, QDISC, &QDISC_COUNTERS));
        }
        state.filters()?;
        state.settings(Path::new("/proc/sys/net"))?;
        Ok(state)
    }

    /// The first thing that is not the same in `other`.
    pub(super) fn difference(&self, other: &Self) -> Option<String> {
        let differs = |name: &&String| self.0.get(*name) != other.0.get(*name);
        let name = self.0.keys().chain(other.0.keys()).find(differs)?;
        let shown = |state: &Self| match state.0.get(name) {
            None => "there is none".to_owned(),
            Some(value) if name.starts_with("setting") => {
                format!("it is {}", String::from_utf8_lossy(value).trim())
            }
            Some(_) => "there is one".to_owned(),
        };
        let (here, there) = (shown(self), shown(other));
        Some(if here == there {
            format!("{name}: in a new namespace it is another one")
        } else {
            format!("{name}: {here}, and in a new namespace {there}")
        })
    }

    /// Two of one name are told apart by a number.
    fn add(&mut self, name: String, value: Vec<u8>) {
        let nth = |n: usize| match n {
            0 => name.clone(),
            n => format!("{name} ({})", n + 1),
        };
        let free = (0..).map(nth).find(|name| !self.0.contains_key(name));
        self.0.extend(free.map(|name| (name, value)));
    }

    /// Packet filters of both generations, and IPsec.
    fn filters(&mut self) -> Result<()> {
        for m in list_if_known(libc::NETLINK_NETFILTER, GET_TABLES, TABLE)? {
            let attributes = m.body.get(TABLE..).unwrap_or(&[]);
            let name = text(attributes, NFTA_TABLE_NAME);
            self.add(format!("nftables table {name}"), Vec::new());
        }
        for file in ["ip_tables_names", "ip6_tables_names", "arp_tables_names"] {
            let text = fs::read_to_string(format!("/proc/thread-self/net/{file}"));
            // without the module there is no file
            for table in text.unwrap_or_default().lines() {
                self.add(format!("table {table} of {file}"), Vec::new());
            }
        }
        for (kind, what) in [
            (XFRM_MSG_GETSA, "IPsec state"),
            (XFRM_MSG_GETPOLICY, "IPsec policy"),
        ] {
            for m in list_if_known(libc::NETLINK_XFRM, kind, 0)? {
                self.add(what.to_owned(), m.body);
            }
        }
        Ok(())
    }

    /// All that can be written, also what images have no place for.
    fn settings(&mut self, dir: &Path) -> Result<()> {
        let what = || format!("read {}", dir.display());
        for entry in fs::read_dir(dir).context(what)? {
            let entry = entry.context(what)?;
            let (path, about) = (entry.path(), entry.metadata().context(what)?);
            if about.is_dir() {
                self.settings(&path)?;
            } else if about.permissions().mode() & 0o600 == 0o600 && !path.ends_with(MADE_UP) {
                // a secret that is not set cannot be read
                let value = fs::read(&path).unwrap_or_default();
                self.add(format!("setting {}", path.display()), value);
            }
        }
        Ok(())
    }
}

/// Whether `lo` is up in the calling thread's namespace, whatever else is in it.
///
/// # Errors
/// Those of rtnetlink(7).
pub(super) fn lo_is_up() -> Result<bool> {
    let links = route()?
        .list(RTM_GETLINK, &[0; LINK])
        .context(|| "list links".to_owned())?;
    let mut links = links.iter().filter(|m| m.kind == RTM_NEWLINK);
    let lo = links.find(|m| u32_at(&m.body, 4) == Some(super::LOOPBACK.0));
    let flags = lo.and_then(|m| u32_at(&m.body, 8)).unwrap_or(0);
    Ok(flags & super::IFF_UP != 0)
}

/// The one device, as an image has it, and its addresses as messages.
///
/// # Errors
/// Another device, by name; those of netlink(7) and /proc.
pub(super) fn devices() -> Result<(NetDeviceEntry, Vec<u8>)> {
    let link = route()?;
    let links = link
        .list(RTM_GETLINK, &[0; LINK])
        .context(|| "list links".to_owned())?;
    let mut lo = None;
    for m in links.iter().filter(|m| m.kind == RTM_NEWLINK) {
        let attributes = m.body.get(LINK..).unwrap_or(&[]);
        let (index, name) = (
            u32_at(&m.body, 4).unwrap_or(0),
            text(attributes, IFLA_IFNAME),
        );
        if (index, name.as_str()) != super::LOOPBACK {
            return Err(Error::refused(
                link_name(m),
                "links are not carried, but lo",
            ));
        }
        let (conf4, conf6) = settings::of_device(&name)?;
        lo = Some(NetDeviceEntry {
            r#type: crate::image::records::NdType::Loopback.into(),
            ifindex: index,
            mtu: number(attributes, IFLA_MTU),
            flags: u32_at(&m.body, 8).unwrap_or(0),
            name,
            conf4,
            conf6,
            ..NetDeviceEntry::default()
        });
    }
    let lo = lo.ok_or_else(|| Error::refused("network namespace", "it has no lo"))?;
    let addresses = link.list(RTM_GETADDR, &[0; ADDRESS]);
    let addresses = addresses.context(|| "list addresses".to_owned())?;
    Ok((lo, addresses.iter().flat_map(Message::to_bytes).collect()))
}

fn route() -> Result<Link> {
    Link::open(libc::NETLINK_ROUTE)
}

/// Nothing of a subsystem that the kernel does not have.
fn list_if_known(protocol: i32, kind: u16, header: usize) -> Result<Vec<Message>> {
    let listed = Link::open(protocol).and_then(|link| link.list(kind, &vec![0; header]));
    match listed {
        Err(e)
            if matches!(
                e.raw_os_error(),
                Some(libc::EPROTONOSUPPORT | libc::EOPNOTSUPP | libc::EINVAL)
            ) =>
        {
            Ok(Vec::new())
        }
        listed => listed.context(|| format!("list what subsystem {protocol} has")),
    }
}

/// A message without the attributes `but`.
fn kept(body: &[u8], header: usize, but: &[u16]) -> Vec<u8> {
    let (head, rest) = body.split_at_checked(header).unwrap_or((body, &[]));
    let mut kept = head.to_vec();
    for (kind, value) in attributes(rest).filter(|(kind, _)| !but.contains(kind)) {
        kept.extend_from_slice(&kind.to_ne_bytes());
        kept.extend_from_slice(value);
        kept.push(0);
    }
    kept
}

fn link_name(m: &Message) -> String {
    let attributes = m.body.get(LINK..).unwrap_or(&[]);
    format!("link {}", text(attributes, IFLA_IFNAME))
}

/// What an ifaddrmsg says, with its attribute IFA_ADDRESS (1).
pub(super) fn address_name(body: &[u8]) -> String {
    let (family, bits) = (byte(body, 0), byte(body, 1));
    let link = u32_at(body, 4).unwrap_or(0);
    let address = place(family, body.get(ADDRESS..).unwrap_or(&[]), 1);
    format!("address {address}/{bits} of link {link}")
}

/// What an rtmsg says, with its attribute RTA_DST (1).
pub(super) fn route_name(body: &[u8]) -> String {
    let (family, bits, table) = (byte(body, 0), byte(body, 1), byte(body, 4));
    let to = place(family, body.get(ROUTE..).unwrap_or(&[]), 1);
    format!("route to {to}/{bits} in table {table}")
}

fn place(family: u8, attributes: &[u8], kind: u16) -> String {
    let found = value(attributes, kind);
    if let Ok(four) = <[u8; 4]>::try_from(found) {
        return Ipv4Addr::from(four).to_string();
    }
    if let Ok(sixteen) = <[u8; 16]>::try_from(found) {
        return Ipv6Addr::from(sixteen).to_string();
    }
    format!("any (family {family})")
}

fn byte(bytes: &[u8], at: usize) -> u8 {
    bytes.get(at).copied().unwrap_or(0)
}

fn value(bytes: &[u8], kind: u16) -> &[u8] {
    attributes(bytes)
        .find(|(k, _)| *k == kind)
        .map_or(&[][..], |(_, v)| v)
}

fn number(bytes: &[u8], kind: u16) -> u32 {
    u32_at(value(bytes, kind), 0).unwrap_or(0)
}

fn text(bytes: &[u8], kind: u16) -> String {
    let text = String::from_utf8_lossy(value(bytes, kind));
    text.trim_end_matches('\0').to_owned()
}
