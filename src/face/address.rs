//! Internet addresses as people type them.

use std::net::{SocketAddr, ToSocketAddrs};

use crate::base::{Error, Result, ResultExt};

/// The first address that the name or number `host` has.
///
/// # Errors
/// It has none.
pub(crate) fn of(host: &str, port: u16) -> Result<SocketAddr> {
    let what = || format!("address {host}:{port}");
    let mut found = (host, port).to_socket_addrs().context(what)?;
    found
        .next()
        .ok_or_else(|| Error::caller(what(), "the name has no address"))
}

/// `HOST:PORT` in its two parts; an IPv6 address stands in brackets.
///
/// # Errors
/// It is not that.
pub(crate) fn parts(text: &str) -> Result<(String, u16)> {
    let bad = || Error::caller(format!("address {text:?}"), "is not HOST:PORT");
    let (host, port) = text.rsplit_once(':').ok_or_else(bad)?;
    let host = match host.strip_prefix('[') {
        Some(host) => host.strip_suffix(']').ok_or_else(bad)?,
        None if host.contains(':') => return Err(bad()),
        None => host,
    };
    if host.is_empty() {
        return Err(bad());
    }
    Ok((host.to_owned(), port.parse().map_err(|_| bad())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_ports_are_told_apart() {
        for (text, host, port) in [
            ("192.0.2.2:7700", "192.0.2.2", 7700),
            ("name:0", "name", 0),
            ("[::1]:65535", "::1", 65535),
        ] {
            assert_eq!(parts(text).unwrap(), (host.to_owned(), port), "{text}");
        }
        for text in [
            "", ":", "h", "h:", ":1", "h:65536", "h:-1", "::1:7", "[::1:7",
        ] {
            let e = parts(text).unwrap_err().to_string();
            assert_eq!(e, format!("address {text:?}: is not HOST:PORT"));
        }
    }

    #[test]
    fn a_name_without_address_is_named() {
        assert_eq!(of("::1", 7).unwrap().to_string(), "[::1]:7");
        let e = of("no..where", 7).unwrap_err().to_string();
        assert!(e.starts_with("address no..where:7: "), "{e}");
    }
}
