//! Sockets of ip(7) and ipv6(7) without a connection: TCP that listens or is
//! not connected, UDP.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::capture::{Capture, Open};
use super::options;
use super::unix::{CLOSE, ESTABLISHED, LISTEN};
use crate::base::{Error, Result};
use crate::image::records::{FdTypes, FileEntry, InetSkEntry, IpOptsEntry, TcpOptsEntry};
use crate::sys::socket::{
    bind, connect, listen, local_address, option, option_bytes, peer_address, set_option, socket,
};

const IPV6_RECVPKTINFO: i32 = libc::IPV6_RECVPKTINFO;
const IPV6_FREEBIND: i32 = 78;
const V4: i32 = libc::AF_INET;
const V6: i32 = libc::AF_INET6;

/// An address and port as the image has them: words as they lie in memory.
#[derive(Debug, PartialEq, Eq)]
struct Address {
    words: Vec<u32>,
    port: u32,
}

impl Address {
    /// From the bytes of sockaddr_in or sockaddr_in6.
    fn parse(family: i32, bytes: &[u8]) -> Option<Self> {
        let port: [u8; 2] = bytes.get(2..4)?.try_into().ok()?;
        let at = if family == V4 {
            bytes.get(4..8)?
        } else {
            bytes.get(8..24)?
        };
        let words = at
            .chunks_exact(4)
            .filter_map(|w| Some(u32::from_ne_bytes(w.try_into().ok()?)))
            .collect();
        Some(Self {
            words,
            port: u32::from(u16::from_be_bytes(port)),
        })
    }

    fn none(family: i32) -> Self {
        Self {
            words: vec![0; if family == V4 { 1 } else { 4 }],
            port: 0,
        }
    }

    /// The bytes of sockaddr_in or sockaddr_in6.
    fn bytes(family: i32, words: &[u32], port: u32, scope: u32) -> Vec<u8> {
        let mut out = u16::try_from(family).unwrap_or(0).to_ne_bytes().to_vec();
        out.extend_from_slice(&u16::try_from(port).unwrap_or(0).to_be_bytes());
        let words = words.iter().flat_map(|w| w.to_ne_bytes());
        if family == V4 {
            out.extend(words.take(4));
            out.extend_from_slice(&[0; 8]);
        } else {
            out.extend_from_slice(&[0; 4]);
            out.extend(words);
            out.extend_from_slice(&scope.to_ne_bytes());
        }
        out
    }
}

/// Only an address that means something on one interface needs its name.
fn scoped(bytes: &[u8]) -> Option<u32> {
    let scope: [u8; 4] = bytes.get(24..28)?.try_into().ok()?;
    Some(u32::from_ne_bytes(scope)).filter(|s| *s != 0)
}

pub(super) fn capture(all: &Capture, open: &Open<'_>, family: i32) -> Result<FileEntry> {
    let fd = open.fd;
    let kind = option(fd, libc::SOL_SOCKET, libc::SO_TYPE)?;
    let proto = option(fd, libc::SOL_SOCKET, libc::SO_PROTOCOL)?;
    let name = match (kind, proto) {
        (libc::SOCK_STREAM, libc::IPPROTO_TCP) => "TCP",
        (libc::SOCK_DGRAM, libc::IPPROTO_UDP) => "UDP",
        _ => {
            return Err(Error::refused(
                format!("internet socket of type {kind} protocol {proto}"),
                "cannot be carried",
            ));
        }
    };
    let local = local_address(fd)?;
    let src = Address::parse(family, &local).ok_or_else(|| Error::bug(name, "has no address"))?;
    let peer = peer_address(fd)?;
    let dst = peer.and_then(|a| Address::parse(family, &a));
    let (state, backlog) = match name {
        "TCP" => tcp_state(fd)?,
        _ if dst.is_some() => (ESTABLISHED, 0),
        _ => (CLOSE, 0),
    };
    if name == "UDP" && option(fd, libc::SOL_UDP, 1)? != 0 {
        return Err(Error::refused("corked UDP socket", "cannot be carried"));
    }
    let dst = dst.unwrap_or_else(|| Address::none(family));
    let entry = InetSkEntry {
        id: open.id,
        ino: u32::try_from(open.ino).map_err(|_| Error::bug("socket", "inode above 32 bits"))?,
        family: family.cast_unsigned(),
        r#type: kind.cast_unsigned(),
        proto: proto.cast_unsigned(),
        state,
        src_port: src.port,
        dst_port: dst.port,
        flags: open.flags,
        backlog,
        src_addr: src.words,
        dst_addr: dst.words,
        fown: open.fown.clone(),
        opts: options::capture(fd, false)?,
        v6only: if family == V6 {
            Some(option(fd, libc::SOL_IPV6, libc::IPV6_V6ONLY)? != 0)
        } else {
            None
        },
        ip_opts: Some(ip_options(fd, family)?),
        ifname: scoped(&local).map(|_| bound_name(fd)).transpose()?,
        ns_id: all.net_ns_id,
        shutdown: None,
        tcp_opts: if name == "TCP" {
            Some(tcp_options(fd)?)
        } else {
            None
        },
    };
    Ok(FileEntry {
        r#type: FdTypes::Inetsk.into(),
        id: open.id,
        isk: Some(entry),
        ..FileEntry::default()
    })
}

fn bound_name(fd: BorrowedFd<'_>) -> Result<String> {
    let name = option_bytes(fd, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, libc::IFNAMSIZ)?;
    let name: Vec<u8> = name.into_iter().take_while(|b| *b != 0).collect();
    match String::from_utf8(name) {
        Ok(name) if !name.is_empty() => Ok(name),
        _ => Err(Error::refused(
            "socket bound to an address of one interface but not to the interface",
            "cannot be carried",
        )),
    }
}

/// State, and the backlog of a listener.
fn tcp_state(fd: BorrowedFd<'_>) -> Result<(u32, u32)> {
    let info = option_bytes(fd, libc::SOL_TCP, libc::TCP_INFO, 256)?;
    let word = |at: usize| -> Option<u32> {
        Some(u32::from_ne_bytes(info.get(at..at + 4)?.try_into().ok()?))
    };
    // tcpi_state; of a listener tcpi_unacked counts those to accept, and
    // tcpi_sacked is its backlog.
    let (state, waiting, backlog) = match (info.first(), word(24), word(28)) {
        (Some(s), Some(w), Some(b)) => (u32::from(*s), w, b),
        _ => return Err(Error::bug("getsockopt TCP_INFO", "gave a short value")),
    };
    match state {
        LISTEN if waiting > 0 => Err(Error::refused(
            "listening TCP socket",
            format!("has {waiting} connections that nobody has accepted yet"),
        )),
        LISTEN => Ok((state, backlog)),
        CLOSE => Ok((state, 0)),
        _ => Err(Error::refused(
            format!("TCP connection (state {state})"),
            "cannot be carried yet",
        )),
    }
}

fn ip_options(fd: BorrowedFd<'_>, family: i32) -> Result<IpOptsEntry> {
    let flag = |level, name| -> Result<Option<bool>> {
        Ok((option(fd, level, name)? != 0).then_some(true))
    };
    if family == V6 {
        return Ok(IpOptsEntry {
            freebind: flag(libc::SOL_IPV6, IPV6_FREEBIND)?,
            pktinfo: flag(libc::SOL_IPV6, IPV6_RECVPKTINFO)?,
            ..IpOptsEntry::default()
        });
    }
    let number = |name| -> Result<Option<u32>> {
        let value = option(fd, libc::SOL_IP, name)?.cast_unsigned();
        Ok((value != 0).then_some(value))
    };
    Ok(IpOptsEntry {
        freebind: flag(libc::SOL_IP, libc::IP_FREEBIND)?,
        pktinfo: flag(libc::SOL_IP, libc::IP_PKTINFO)?,
        tos: number(libc::IP_TOS)?,
        ttl: number(libc::IP_TTL)?,
        raw: None,
    })
}

fn tcp_options(fd: BorrowedFd<'_>) -> Result<TcpOptsEntry> {
    let number = |name| -> Result<Option<u32>> {
        let value = option(fd, libc::SOL_TCP, name)?.cast_unsigned();
        Ok((value != 0).then_some(value))
    };
    Ok(TcpOptsEntry {
        nodelay: number(libc::TCP_NODELAY)?.map(|_| true),
        cork: number(libc::TCP_CORK)?.map(|_| true),
        keepcnt: number(libc::TCP_KEEPCNT)?,
        keepidle: number(libc::TCP_KEEPIDLE)?,
        keepintvl: number(libc::TCP_KEEPINTVL)?,
    })
}

/// Refuses a record that makes no sense or that cannot be made.
pub(in crate::objects) fn check(entry: &InetSkEntry) -> Result<()> {
    let bad = |why: &'static str| Err(Error::image(format!("internet socket {}", entry.ino), why));
    let words = match entry.family.cast_signed() {
        V4 => 1,
        V6 => 4,
        _ => return bad("is of an unknown family"),
    };
    if entry.src_addr.len() < words || entry.dst_addr.len() < words {
        return bad("has a short address");
    }
    if entry.src_port > 0xffff || entry.dst_port > 0xffff {
        return bad("has an impossible port");
    }
    let kind = (entry.r#type.cast_signed(), entry.proto.cast_signed());
    match (kind, entry.state) {
        ((libc::SOCK_STREAM, libc::IPPROTO_TCP), LISTEN | CLOSE) if entry.dst_port == 0 => Ok(()),
        ((libc::SOCK_STREAM, libc::IPPROTO_TCP), _) => {
            bad("is a TCP connection, which cannot be restored yet")
        }
        ((libc::SOCK_DGRAM, libc::IPPROTO_UDP), ESTABLISHED | CLOSE) => Ok(()),
        _ => bad("is of a type or in a state that cannot be restored"),
    }
}

/// Makes it, in the network namespace of the calling thread.
pub(super) fn rebuild(entry: &InetSkEntry) -> Result<OwnedFd> {
    let family = entry.family.cast_signed();
    let sk = socket(
        family,
        entry.r#type.cast_signed(),
        entry.proto.cast_signed(),
    )?;
    let fd = sk.as_fd();
    let sol = libc::SOL_SOCKET;
    if entry.v6only == Some(true) {
        set_option(fd, libc::SOL_IPV6, libc::IPV6_V6ONLY, 1)?;
    }
    // Old connections may still linger on the port, whatever the program asked for.
    set_option(fd, sol, libc::SO_REUSEADDR, 1)?;
    if entry.opts.so_reuseport == Some(true) {
        set_option(fd, sol, libc::SO_REUSEPORT, 1)?;
    }
    if let Some(device) = &entry.opts.so_bound_dev {
        crate::sys::socket::set_option_bytes(fd, sol, libc::SO_BINDTODEVICE, device.as_bytes())?;
    }
    if entry.src_port != 0 {
        let scope = match &entry.ifname {
            Some(name) => nix::net::if_::if_nametoindex(name.as_str())
                .map_err(|e| Error::errno(format!("interface {name}"), e as i32))?,
            None => 0,
        };
        // An address may come up only after the restore.
        set_option(fd, libc::SOL_IP, libc::IP_FREEBIND, 1)?;
        let address = Address::bytes(family, &entry.src_addr, entry.src_port, scope);
        bind(fd, &address).map_err(|e| e.within(format!("port {}", entry.src_port)))?;
        set_option(fd, libc::SOL_IP, libc::IP_FREEBIND, 0)?;
    }
    if entry.state == LISTEN {
        listen(fd, entry.backlog)?;
    } else if entry.dst_port != 0 {
        connect(
            fd,
            &Address::bytes(family, &entry.dst_addr, entry.dst_port, 0),
        )?;
    }
    let reuse = i32::from(entry.opts.reuseaddr == Some(true));
    set_option(fd, sol, libc::SO_REUSEADDR, reuse)?;
    set_ip_options(fd, family, entry.ip_opts.as_ref())?;
    options::rebuild(fd, &entry.opts)?;
    set_tcp_options(fd, entry.tcp_opts.as_ref())?;
    options::half_close(fd, entry.shutdown)?;
    Ok(sk)
}

fn set_ip_options(fd: BorrowedFd<'_>, family: i32, o: Option<&IpOptsEntry>) -> Result<()> {
    let Some(o) = o else { return Ok(()) };
    let flags = if family == V6 {
        [
            (libc::SOL_IPV6, IPV6_FREEBIND, o.freebind),
            (libc::SOL_IPV6, IPV6_RECVPKTINFO, o.pktinfo),
        ]
    } else {
        [
            (libc::SOL_IP, libc::IP_FREEBIND, o.freebind),
            (libc::SOL_IP, libc::IP_PKTINFO, o.pktinfo),
        ]
    };
    for (level, name, value) in flags {
        if value == Some(true) {
            set_option(fd, level, name, 1)?;
        }
    }
    for (name, value) in [(libc::IP_TOS, o.tos), (libc::IP_TTL, o.ttl)] {
        if let Some(value) = value.filter(|_| family == V4) {
            set_option(fd, libc::SOL_IP, name, value.cast_signed())?;
        }
    }
    Ok(())
}

fn set_tcp_options(fd: BorrowedFd<'_>, o: Option<&TcpOptsEntry>) -> Result<()> {
    let Some(o) = o else { return Ok(()) };
    let flag = |f: Option<bool>| f.map(u32::from);
    let values = [
        (libc::TCP_NODELAY, flag(o.nodelay)),
        (libc::TCP_CORK, flag(o.cork)),
        (libc::TCP_KEEPCNT, o.keepcnt),
        (libc::TCP_KEEPIDLE, o.keepidle),
        (libc::TCP_KEEPINTVL, o.keepintvl),
    ];
    for (name, value) in values {
        if let Some(value) = value.filter(|v| *v != 0) {
            set_option(fd, libc::SOL_TCP, name, value.cast_signed())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_the_same_after_both_ways() {
        let v4 = Address::bytes(V4, &[0x0100_007f], 8080, 0);
        assert_eq!(v4, [2, 0, 0x1f, 0x90, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
        let back = Address::parse(V4, &v4).unwrap();
        assert_eq!((back.words, back.port), (vec![0x0100_007f], 8080));
        let words = vec![1, 2, 3, 4];
        let v6 = Address::bytes(V6, &words, 9, 7);
        assert_eq!(v6.len(), 28);
        assert_eq!(scoped(&v6), Some(7));
        assert_eq!(Address::parse(V6, &v6).unwrap(), Address { words, port: 9 });
    }

    #[test]
    fn a_connection_in_an_image_is_refused_before_anything_is_made() {
        let entry = InetSkEntry {
            family: 2,
            r#type: 1,
            proto: 6,
            state: ESTABLISHED,
            dst_port: 80,
            src_addr: vec![0],
            dst_addr: vec![0],
            ..InetSkEntry::default()
        };
        assert!(
            check(&entry)
                .unwrap_err()
                .to_string()
                .contains("TCP connection")
        );
    }
}
