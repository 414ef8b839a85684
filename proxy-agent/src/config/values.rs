//! Values of single settings, with the same syntax in files, flags and the environment.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use clap::ValueEnum;
use http::Uri;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::cluster::{canonical_ip, canonical_net};

/// The sockets whose destination is translated when they connect or send, rather than packet by packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum SocketLb {
    /// The sockets of pods and of the node.
    #[default]
    All,
    /// The sockets of the node.
    Host,
    /// No sockets at all.
    Off,
}

/// How packets reach pods of this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum HostRouting {
    /// Through the node's stack, where netfilter sees them.
    #[default]
    Stack,
    /// Directly into the pod's namespace.
    Redirect,
}

/// A range of ports, both ends included, written `61000-65535`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// A range; `None` if it is empty or contains port 0.
    pub const fn new(first: u16, last: u16) -> Option<Self> {
        if first == 0 || first > last {
            None
        } else {
            Some(Self { first, last })
        }
    }

    /// The lowest port.
    pub const fn first(self) -> u16 {
        self.first
    }

    /// The highest port.
    pub const fn last(self) -> u16 {
        self.last
    }

    /// The number of ports.
    pub const fn count(self) -> u16 {
        // Port 0 is in no range, so the largest range has 65535 ports.
        self.last - self.first + 1
    }
}

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let range = text.trim().split_once('-').and_then(|(first, last)| {
            let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
            Self::new(first, last)
        });
        range.ok_or_else(|| format!("{text:?} is no range of ports: write FIRST-LAST, such as 61000-65535"))
    }
}

impl TryFrom<String> for PortRange {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<PortRange> for String {
    fn from(range: PortRange) -> Self {
        range.to_string()
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// A range of addresses, read as leniently as one of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Cidr(pub IpNet);

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let range = canonical_net(text).map(Self);
        range.ok_or_else(|| {
            format!("{text:?} is no range of addresses: write ADDRESS/LENGTH, such as 10.96.0.0/16")
        })
    }
}

impl TryFrom<String> for Cidr {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// An address, read as leniently as one of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Address(pub IpAddr);

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        canonical_ip(text)
            .map(Self)
            .ok_or_else(|| format!("{text:?} is no IP address"))
    }
}

impl TryFrom<String> for Address {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// The addresses of the node that serve node ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum NodePortAddress {
    /// The node's first address of each family.
    Primary,
    /// The node's addresses in this range.
    In(IpNet),
}

impl FromStr for NodePortAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.trim() == "primary" {
            return Ok(Self::Primary);
        }
        text.parse::<Cidr>()
            .map(|range| Self::In(range.0))
            .map_err(|error| format!("{error}, or primary for the node's first address of each family"))
    }
}

impl TryFrom<String> for NodePortAddress {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<NodePortAddress> for String {
    fn from(address: NodePortAddress) -> Self {
        match address {
            NodePortAddress::Primary => "primary".into(),
            NodePortAddress::In(range) => range.to_string(),
        }
    }
}

/// The address of an API server: `https://HOST`, `https://HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ApiServer(Uri);

impl ApiServer {
    /// The address as a URI.
    pub const fn uri(&self) -> &Uri {
        &self.0
    }
}

impl FromStr for ApiServer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let uri = text.trim().parse::<Uri>().ok();
        // Every request carries a token, which must not be sent unencrypted.
        let good = uri.filter(|uri| uri.scheme_str() == Some("https") && uri.authority().is_some());
        good.map(Self).ok_or_else(|| {
            format!("{text:?} is no address of an API server: write https://HOST:PORT, such as https://192.0.2.1:6443")
        })
    }
}

impl TryFrom<String> for ApiServer {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ApiServer> for String {
    fn from(server: ApiServer) -> Self {
        server.0.to_string().trim_end_matches('/').to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_ranges_include_both_ends() {
        let range: PortRange = " 61000 - 65535".parse().unwrap();
        assert_eq!((range.first(), range.last(), range.count()), (61000, 65535, 4536));
        assert_eq!(range.to_string(), "61000-65535");
        assert_eq!("1-65535".parse::<PortRange>().unwrap().count(), 65535);
        for text in ["", "61000", "0-5", "6-5", "1-65536", "a-b", "1-2-3"] {
            let error = text.parse::<PortRange>().unwrap_err();
            assert!(error.contains("is no range of ports"), "{error}");
        }
    }

    #[test]
    fn addresses_and_ranges_have_one_form() {
        assert_eq!(
            " 10.96.0.10/16".parse::<Cidr>().unwrap().0.to_string(),
            "10.96.0.0/16"
        );
        assert_eq!("FD00::1".parse::<Address>().unwrap().0.to_string(), "fd00::1");
        assert_eq!(
            "10.96.0.0".parse::<Cidr>().unwrap_err().split(':').next(),
            Some("\"10.96.0.0\" is no range of addresses")
        );
        assert_eq!(
            "node-1".parse::<Address>().unwrap_err(),
            "\"node-1\" is no IP address"
        );
    }

    #[test]
    fn an_api_server_is_asked_by_https_only() {
        for (text, written) in [
            ("https://192.0.2.1:6443", "https://192.0.2.1:6443"),
            (" https://[2001:db8::1]:6443/ ", "https://[2001:db8::1]:6443"),
            ("https://api.example", "https://api.example"),
        ] {
            assert_eq!(String::from(text.parse::<ApiServer>().unwrap()), written);
        }
        for text in [
            "",
            "192.0.2.1",
            "192.0.2.1:6443",
            "http://192.0.2.1:6443",
            "https://",
            "/api",
        ] {
            assert!(text.parse::<ApiServer>().is_err(), "{text}");
        }
    }
}
