//! The settings below /proc/sys/net for which images have places: by their order,
//! so the names are part of the format.

use std::io::ErrorKind;

use crate::base::{Blame, Error, Result, ResultExt};
use crate::image::records::{NetnsEntry, SysctlEntry, SysctlType};

/// `net/ipv4/conf/DEVICE/`.
const IPV4: [&str; 30] = [
    "accept_local",
    "accept_redirects",
    "accept_source_route",
    "arp_accept",
    "arp_announce",
    "arp_filter",
    "arp_ignore",
    "arp_notify",
    "bootp_relay",
    "disable_policy",
    "disable_xfrm",
    "force_igmp_version",
    "forwarding",
    "igmpv2_unsolicited_report_interval",
    "igmpv3_unsolicited_report_interval",
    "log_martians",
    "medium_id",
    "promote_secondaries",
    "proxy_arp",
    "proxy_arp_pvlan",
    "route_localnet",
    "rp_filter",
    "secure_redirects",
    "send_redirects",
    "shared_media",
    "src_valid_mark",
    "tag",
    "ignore_routes_with_linkdown",
    "drop_gratuitous_arp",
    "drop_unicast_in_l2_multicast",
];

/// `net/ipv6/conf/DEVICE/`.
const IPV6: [&str; 42] = [
    "accept_dad",
    "accept_ra",
    "accept_ra_defrtr",
    "accept_ra_from_local",
    "accept_ra_min_hop_limit",
    "accept_ra_mtu",
    "accept_ra_pinfo",
    "accept_ra_rt_info_max_plen",
    "accept_ra_rtr_pref",
    "accept_redirects",
    "accept_source_route",
    "autoconf",
    "dad_transmits",
    "disable_ipv6",
    "drop_unicast_in_l2_multicast",
    "drop_unsolicited_na",
    "force_mld_version",
    "force_tllao",
    "forwarding",
    "hop_limit",
    "ignore_routes_with_linkdown",
    "keep_addr_on_down",
    "max_addresses",
    "max_desync_factor",
    "mldv1_unsolicited_report_interval",
    "mldv2_unsolicited_report_interval",
    "mtu",
    "ndisc_notify",
    "optimistic_dad",
    "proxy_ndp",
    "regen_max_retry",
    "router_probe_interval",
    "router_solicitation_delay",
    "router_solicitation_interval",
    "router_solicitations",
    "stable_secret",
    "suppress_frag_ndisc",
    "temp_prefered_lft",
    "temp_valid_lft",
    "use_oif_addrs_only",
    "use_optimistic",
    "use_tempaddr",
];
const UNIX: [&str; 1] = ["max_dgram_qlen"];
const OTHER_IPV4: [&str; 1] = ["ping_group_range"];
/// Those that are no number.
const TEXTS: [&str; 2] = ["stable_secret", "ping_group_range"];
/// The kernel changes it when `forwarding` is written: so it goes last.
const LAST: &str = "accept_redirects";
/// Nobody may: what a new namespace has. Images leave it out.
const NO_GROUPS: &str = "1\t0";

/// Settings of one device, or of the pattern for all or for new ones.
pub(super) type OfDevice = (Vec<SysctlEntry>, Vec<SysctlEntry>);

/// Those of the calling thread's namespace.
///
/// # Errors
/// Those of reading /proc/sys, and what is no number and no text.
pub(super) fn of_namespace() -> Result<NetnsEntry> {
    let (def_conf4, def_conf6) = of_device("default")?;
    let (all_conf4, all_conf6) = of_device("all")?;
    let mut ipv4_sysctl = read("ipv4", &OTHER_IPV4)?;
    for groups in &mut ipv4_sysctl {
        groups.sarg.take_if(|text| text == NO_GROUPS);
    }
    Ok(NetnsEntry {
        def_conf4,
        all_conf4,
        def_conf6,
        all_conf6,
        unix_conf: read("unix", &UNIX)?,
        ipv4_sysctl,
        ..NetnsEntry::default()
    })
}

/// Those of a device, for IPv4 and IPv6.
///
/// # Errors
/// As [`of_namespace`].
pub(super) fn of_device(name: &str) -> Result<OfDevice> {
    Ok((
        read(&format!("ipv4/conf/{name}"), &IPV4)?,
        read(&format!("ipv6/conf/{name}"), &IPV6)?,
    ))
}

/// Gives the calling thread's namespace these settings, for all devices first: that
/// changes those of each.
///
/// # Errors
/// Which one, and why not.
pub(super) fn set_namespace(want: &NetnsEntry) -> Result<()> {
    set_device("all", &want.all_conf4, &want.all_conf6)?;
    set_device("default", &want.def_conf4, &want.def_conf6)?;
    set("unix", &UNIX, &want.unix_conf)?;
    set("ipv4", &OTHER_IPV4, &want.ipv4_sysctl)
}

/// Gives a device these settings.
///
/// # Errors
/// As [`set_namespace`].
pub(super) fn set_device(name: &str, ipv4: &[SysctlEntry], ipv6: &[SysctlEntry]) -> Result<()> {
    set(&format!("ipv4/conf/{name}"), &IPV4, ipv4)?;
    set(&format!("ipv6/conf/{name}"), &IPV6, ipv6)
}

fn read(dir: &str, names: &[&str]) -> Result<Vec<SysctlEntry>> {
    names.iter().map(|name| one(dir, name)).collect()
}

/// One setting; without a value where there is none.
fn one(dir: &str, name: &str) -> Result<SysctlEntry> {
    let path = path(dir, name);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => Some(text.trim().to_owned()),
        Err(e) if e.kind() == ErrorKind::NotFound => None,
        // a secret that was never set
        Err(e) if e.raw_os_error() == Some(libc::EIO) => None,
        Err(e) => return Err(Error::os(format!("read {path}"), e)),
    };
    if TEXTS.contains(&name) {
        return Ok(SysctlEntry {
            r#type: SysctlType::CtlStr.into(),
            sarg: text,
            iarg: None,
        });
    }
    let number = text.map(|t| t.parse::<i32>()).transpose();
    Ok(SysctlEntry {
        r#type: SysctlType::Ctl32.into(),
        iarg: number.map_err(|e| Error::other(Blame::Kernel, path, e))?,
        sarg: None,
    })
}

/// Writes what is not so already. What has no value, and what this kernel has no
/// file for, stays as it is.
fn set(dir: &str, names: &[&str], want: &[SysctlEntry]) -> Result<()> {
    let (last, first): (Vec<_>, Vec<_>) =
        names.iter().zip(want).partition(|(name, _)| **name == LAST);
    for (name, want) in first.into_iter().chain(last) {
        let value = want.sarg.clone().or(want.iarg.map(|n| n.to_string()));
        let Some(value) = value.map(|v| v.trim().to_owned()) else {
            continue;
        };
        let path = path(dir, name);
        let now = one(dir, name)?;
        if now.sarg.clone().or(now.iarg.map(|n| n.to_string())) == Some(value.clone()) {
            continue;
        }
        match std::fs::write(&path, &value) {
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            written => written.context(|| format!("write {value} to {path}"))?,
        }
    }
    Ok(())
}

fn path(dir: &str, name: &str) -> String {
    format!("/proc/sys/net/{dir}/{name}")
}
