//! The address of a server, read as kube-proxy reads its `healthzBindAddress` and `metricsBindAddress`.
//!
//! These are an address with or without a port; an empty text stands for the default. Ports alone, and 0 for
//! "nowhere", were flags of kube-proxy once and are accepted too. Host names are not, since the listening
//! address must not depend on a resolver.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Deserializer};

use crate::cluster::canonical_ip;

/// An address to listen at; parts that are left out are those of the default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ListenAddress {
    ip: Option<IpAddr>,
    port: Option<u16>,
}

impl ListenAddress {
    /// The address with the parts of the default; `None` for no server.
    pub fn or(self, default: SocketAddr) -> Option<SocketAddr> {
        let port = self.port.unwrap_or(default.port());
        (port != 0).then(|| SocketAddr::new(self.ip.unwrap_or(default.ip()), port))
    }
}

impl From<SocketAddr> for ListenAddress {
    fn from(address: SocketAddr) -> Self {
        Self {
            ip: Some(address.ip()),
            port: Some(address.port()),
        }
    }
}

impl FromStr for ListenAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || format!("{text:?} is no address to listen at: write IP:PORT, or 0 for none");
        let text = text.trim();
        if text.is_empty() {
            return Ok(Self::default());
        }
        let ip = |text: &str| {
            let inside = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
            canonical_ip(inside.unwrap_or(text))
        };
        if let Some(ip) = ip(text) {
            return Ok(Self {
                ip: Some(ip),
                port: None,
            });
        }
        let (host, port) = text.rsplit_once(':').unwrap_or(("", text));
        let port = port.parse().map_err(|_| error())?;
        if host.is_empty() {
            return Ok(Self {
                ip: None,
                port: Some(port),
            });
        }
        // An IPv6 address without brackets would have reached another branch, and would have no port.
        let bracketed = host.starts_with('[') && host.ends_with(']');
        let ip = ip(host)
            .filter(|ip| ip.is_ipv4() || bracketed)
            .ok_or_else(error)?;
        Ok(Self {
            ip: Some(ip),
            port: Some(port),
        })
    }
}

/// Accepts numbers too: `healthAddress: 0` is no text in YAML.
impl<'de> Deserialize<'de> for ListenAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_kube_proxy_reads_them() {
        let default = "0.0.0.0:10256".parse().unwrap();
        for (text, expected) in [
            ("", Some("0.0.0.0:10256")),
            ("0.0.0.0:10256", Some("0.0.0.0:10256")),
            ("127.0.0.1", Some("127.0.0.1:10256")),
            ("::", Some("[::]:10256")),
            ("[::1]", Some("[::1]:10256")),
            ("[::1]:99", Some("[::1]:99")),
            (":99", Some("0.0.0.0:99")),
            ("99", Some("0.0.0.0:99")),
            ("0", None),
            ("127.0.0.1:0", None),
        ] {
            let address = text.parse::<ListenAddress>().unwrap().or(default);
            assert_eq!(address, expected.map(|text| text.parse().unwrap()), "{text}");
        }
        for text in ["localhost:80", "1.2.3.4:x", "1.2.3.4:70000", "x", "[::1"] {
            assert!(text.parse::<ListenAddress>().is_err(), "{text}");
        }
    }
}
