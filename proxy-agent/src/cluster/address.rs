//! Addresses from Kubernetes objects, brought into one form.
//!
//! Objects older than strict validation have leading zeros (`172.30.0.041`, which Kubernetes has always read
//! as decimal), white space, or IPv4-mapped IPv6 addresses. One address must be one key in the maps. So this
//! module reads all of these forms, and the code behind it sees `IpAddr` and `IpNet` only. Texts that cannot
//! be an address (a zone, an octal or hexadecimal number, a name) are refused.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// The family IPv4.
    V4,
    /// The family IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// The family as Kubernetes writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// Reads an address leniently; `None` if it is not one.
pub fn canonical_ip(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    if !text.contains(':') {
        return parse_v4(text).map(IpAddr::V4);
    }
    let address = match text.rsplit_once(':') {
        // An IPv4 tail (`::ffff:010.0.0.1`) may have leading zeros as well.
        Some((head, tail)) if tail.contains('.') => {
            let [a, b, c, d] = parse_v4(tail)?.octets();
            let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
            format!("{head}:{high:x}:{low:x}").parse::<Ipv6Addr>().ok()?
        }
        _ => text.parse::<Ipv6Addr>().ok()?,
    };
    Some(address.to_canonical())
}

/// Reads a range leniently, with host bits cleared; `None` if it is not one.
pub fn canonical_net(text: &str) -> Option<IpNet> {
    let (address, length) = text.trim().split_once('/')?;
    let length = decimal(length.trim(), 3)?;
    let mapped = address.contains(':');
    let net = match (canonical_ip(address)?, length) {
        (IpAddr::V4(address), 0..=32) if !mapped => IpNet::V4(Ipv4Net::new(address, length as u8).ok()?),
        (IpAddr::V4(address), 96..=128) if mapped => {
            IpNet::V4(Ipv4Net::new(address, length as u8 - 96).ok()?)
        }
        (IpAddr::V6(address), 0..=128) => IpNet::V6(Ipv6Net::new(address, length as u8).ok()?),
        _ => return None,
    };
    Some(net.trunc())
}

fn parse_v4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        *octet = u8::try_from(decimal(parts.next()?, 8)?).ok()?;
    }
    parts.next().is_none().then(|| Ipv4Addr::from(octets))
}

/// A number of up to `digits` decimal digits. (`str::parse` would accept a sign.)
fn decimal(text: &str, digits: usize) -> Option<u32> {
    let good = !text.is_empty() && text.len() <= digits && text.bytes().all(|byte| byte.is_ascii_digit());
    good.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_has_one_form() {
        for (text, canonical) in [
            ("172.30.0.041", "172.30.0.41"),
            (" 10.96.0.1\n", "10.96.0.1"),
            ("010.000.00.1", "10.0.0.1"),
            ("FD00:0010:0096::1", "fd00:10:96::1"),
            ("::ffff:10.0.0.1", "10.0.0.1"),
            ("::ffff:010.0.0.001", "10.0.0.1"),
            ("::ffff:a00:1", "10.0.0.1"),
            ("::1", "::1"),
        ] {
            assert_eq!(canonical_ip(text), canonical.parse().ok(), "{text:?}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "",
            "None",
            "10.0.0",
            "10.0.0.0.1",
            "10.0.0.256",
            "10.0.0.+1",
            "0x0a.0.0.1",
            "fe80::1%eth0",
            "::1::",
            "a b",
        ] {
            assert_eq!(canonical_ip(text), None, "{text:?}");
        }
    }

    #[test]
    fn one_range_has_one_form() {
        for (text, canonical) in [
            (" 203.0.113.0/25", "203.0.113.0/25"),
            ("203.0.113.077/25", "203.0.113.0/25"),
            ("fd00:10:244::1/56", "fd00:10:244::/56"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("0.0.0.0/0", "0.0.0.0/0"),
        ] {
            assert_eq!(canonical_net(text), canonical.parse().ok(), "{text:?}");
        }
        for text in [
            "10.0.0.0",
            "10.0.0.0/33",
            "10.0.0.0/",
            "10.0.0.0/-1",
            "::/129",
            "::ffff:10.0.0.0/8",
        ] {
            assert_eq!(canonical_net(text), None, "{text:?}");
        }
    }
}
