//! Ports of the node that lead to ports of a pod, as runtimes ask for them (`portMappings`).
//!
//! A host port applies to all addresses of the node, to those of one family (`0.0.0.0`, `::`), or to one
//! address. The addresses of the pod decide which families count. Two host ports clash if one packet could
//! match both.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proxy_common::maps::HostPortKey;
use proxy_common::{Ip, Port, protocol};
use serde::{Deserialize, Serialize};

use super::runtime::invalid;
use crate::spec::{CniError, Code};

/// How many host ports one pod may have.
const SHARE: usize = proxy_common::maps::HostPort::SHARE as usize;

/// A mapping as the runtime writes it. containerd begins keys with capitals, which plugins in Go accept as
/// well.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PortMapping {
    #[serde(default, alias = "HostPort")]
    host_port: i64,
    #[serde(default, alias = "ContainerPort")]
    container_port: i64,
    #[serde(default, alias = "Protocol")]
    protocol: Option<String>,
    #[serde(default, rename = "hostIP", alias = "HostIP")]
    host_ip: Option<String>,
}

/// A transport protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP, protocol 6.
    Tcp,
    /// UDP, protocol 17.
    Udp,
    /// SCTP, protocol 132.
    Sctp,
}

/// A port of the node that leads to a port of the pod, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostPort {
    /// The node's port.
    pub host_port: u16,
    /// The pod's port.
    pub container_port: u16,
    /// The transport protocol.
    pub protocol: Protocol,
    /// The address of the node. An unspecified address stands for all addresses of its family, `None` for all
    /// of both families.
    #[serde(rename = "hostIP", default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
}

impl Protocol {
    /// The protocol's number in IP headers.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => protocol::TCP,
            Self::Udp => protocol::UDP,
            Self::Sctp => protocol::SCTP,
        }
    }

    /// The protocol's name, as a runtime writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

impl HostPort {
    /// Checks the mappings that a runtime asks for; no two of them may clash.
    pub(super) fn all(mappings: &[PortMapping]) -> Result<Vec<Self>, CniError> {
        // Kubernetes objects write port 0 for "no host port".
        let wanted = mappings.iter().filter(|mapping| mapping.host_port != 0);
        let count = wanted.clone().count();
        if count > SHARE {
            let message = format!("runtimeConfig.portMappings has {count} host ports");
            return Err(CniError::new(Code::InvalidConfig, message).with_details(format!(
                "a pod may have {SHARE}, since all pods of the node share one table"
            )));
        }
        let ports: Vec<Self> = wanted.map(PortMapping::check).collect::<Result<_, _>>()?;
        // The keys are those of a pod with both families.
        let both: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        let keys = ports
            .iter()
            .flat_map(|port| port.keys(&both).into_iter().map(move |(key, _)| (key, port)));
        let mut keys: Vec<_> = keys.collect();
        // The key of all addresses sorts before the keys that it clashes with.
        keys.sort_by_key(|(key, _)| (key.port, key.protocol, key.address.is_v4(), key.address));
        if let Some(pair) = keys.windows(2).find(|pair| clash(&pair[0].0, &pair[1].0)) {
            let message = format!("runtimeConfig.portMappings has {} twice", pair[1].1);
            let details = "a port of all addresses includes that of each: leave one of the two out";
            return Err(CniError::new(Code::InvalidConfig, message).with_details(details));
        }
        Ok(ports)
    }

    /// The map keys of the host port for a pod with the addresses `pod`. Each key comes with the pod's
    /// address that it leads to.
    pub fn keys(&self, pod: &[IpAddr]) -> Vec<(HostPortKey, IpAddr)> {
        let every: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        let wanted = match &self.host_ip {
            Some(ip) => std::slice::from_ref(ip),
            None => &every,
        };
        let same_family = |ip: &IpAddr| pod.iter().find(|own| own.is_ipv4() == ip.is_ipv4());
        let key = |ip: &IpAddr| HostPortKey {
            address: Ip::from(*ip),
            port: Port::new(self.host_port),
            protocol: self.protocol.number(),
            reserved: 0,
        };
        let keys = wanted.iter().filter_map(|ip| Some((key(ip), *same_family(ip)?)));
        keys.collect()
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "host port {}/{}", self.host_port, self.protocol.name())?;
        match self.host_ip {
            Some(ip) => write!(f, " of {ip}"),
            None => Ok(()),
        }
    }
}

impl PortMapping {
    fn check(&self) -> Result<HostPort, CniError> {
        let port = |key: &str, value: i64| {
            u16::try_from(value)
                .ok()
                .filter(|port| *port != 0)
                .ok_or_else(|| {
                    let what = format!("portMappings: {key} {value}");
                    invalid(&what, "a port is between 1 and 65535")
                })
        };
        let protocol = self.protocol.as_deref().unwrap_or("tcp");
        let host_ip = self.host_ip.as_deref().filter(|ip| !ip.is_empty());
        let parse = |ip: &str| {
            let parsed = ip.parse::<IpAddr>().map(|ip| ip.to_canonical());
            parsed.map_err(|_| invalid(&format!("portMappings: hostIP {ip:?}"), "it is no IP address"))
        };
        Ok(HostPort {
            host_port: port("hostPort", self.host_port)?,
            container_port: port("containerPort", self.container_port)?,
            protocol: match protocol.to_ascii_lowercase().as_str() {
                "tcp" | "" => Protocol::Tcp,
                "udp" => Protocol::Udp,
                "sctp" => Protocol::Sctp,
                _ => {
                    let what = format!("portMappings: protocol {protocol:?}");
                    return Err(invalid(&what, "it is one of tcp, udp, sctp"));
                }
            },
            host_ip: host_ip.map(parse).transpose()?,
        })
    }
}

/// Whether one packet could match both keys.
pub fn clash(one: &HostPortKey, other: &HostPortKey) -> bool {
    let every = |key: &HostPortKey| key.address.is_unspecified() || key.address.is_v4_unspecified();
    (one.port, one.protocol) == (other.port, other.protocol)
        && one.address.is_v4() == other.address.is_v4()
        && (one.address == other.address || every(one) || every(other))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(mappings: Value) -> Result<Vec<HostPort>, CniError> {
        HostPort::all(&serde_json::from_value::<Vec<PortMapping>>(mappings).unwrap())
    }

    #[test]
    fn host_ports_are_read() {
        let ports = read(json!([
            {"hostPort": 80, "containerPort": 8080, "protocol": "TCP"},
            {"hostPort": 80, "containerPort": 8080, "protocol": "udp", "hostIP": ""},
            {"hostPort": 53, "containerPort": 53, "protocol": "SCTP", "hostIP": "192.0.2.1"},
            {"hostPort": 53, "containerPort": 53, "protocol": "SCTP", "hostIP": "192.0.2.2"},
            {"hostPort": 0, "containerPort": 9},
        ]))
        .unwrap();
        assert_eq!(ports.len(), 4);
        assert_eq!(ports[2].host_ip, Some("192.0.2.1".parse().unwrap()));
        let written = json!({"hostPort": 53, "containerPort": 53, "protocol": "sctp", "hostIP": "192.0.2.1"});
        assert_eq!(serde_json::to_value(ports[2]).unwrap(), written);
        for bad in [
            json!([{"hostPort": 70000, "containerPort": 1}]),
            json!([{"hostPort": -1, "containerPort": 1}]),
            json!([{"hostPort": 1, "containerPort": 0}]),
            json!([{"hostPort": 1, "containerPort": 1, "protocol": "icmp"}]),
            json!([{"hostPort": 1, "containerPort": 1, "hostIP": "host"}]),
            json!([{"hostPort": 1, "containerPort": 1}, {"hostPort": 1, "containerPort": 2, "hostIP": "192.0.2.1"}]),
            json!([{"hostPort": 1, "containerPort": 1}, {"hostPort": 1, "containerPort": 2, "hostIP": "::"}]),
        ] {
            assert_eq!(read(bad).unwrap_err().code, Code::InvalidConfig);
        }
    }

    #[test]
    fn a_pod_has_a_share_of_the_ports() {
        let ports = |count: usize| {
            let protocol = |number: usize| ["tcp", "udp"][number % 2];
            let mapping = |number: usize| json!({"hostPort": 1 + number / 2, "containerPort": 1, "protocol": protocol(number)});
            // A mapping with host port 0 asks for nothing.
            let none = json!({"hostPort": 0, "containerPort": 1});
            let mappings = (0..count).map(mapping).chain([none]);
            read(mappings.collect::<Vec<_>>().into())
        };
        assert_eq!(ports(SHARE).unwrap().len(), SHARE);
        let error = ports(SHARE + 1).unwrap_err();
        assert_eq!(error.code, Code::InvalidConfig);
        assert!(error.to_string().contains("8193 host ports"), "{error}");
        assert!(error.details.contains("8192"), "{error}");
    }

    #[test]
    fn the_same_port_twice_is_refused_however_its_address_is_written() {
        for (one, other) in [
            ("192.0.2.1", "192.0.2.1"),
            ("192.0.2.1", "::ffff:192.0.2.1"),
            ("192.0.2.1", "::ffff:0.0.0.0"),
            ("2001:db8::1", "2001:DB8:0::1"),
            ("2001:db8::1", "::"),
            ("", ""),
        ] {
            let port = |ip: &str| json!({"hostPort": 80, "containerPort": 80, "hostIP": ip});
            let error = read(json!([port(one), port(other)])).unwrap_err();
            assert_eq!(error.code, Code::InvalidConfig, "{one} {other}");
            assert!(error.msg.contains("host port 80/tcp"), "{error}");
        }
        for bad in [
            "fe80::1%eth0",
            "192.0.2.1/32",
            " 192.0.2.1",
            "192.0.2",
            "0300.0.2.1",
        ] {
            let error = read(json!([{"hostPort": 1, "containerPort": 1, "hostIP": bad}])).unwrap_err();
            assert!(error.msg.contains(bad), "{error}");
        }
    }

    #[test]
    fn an_entry_is_of_a_family_that_the_pod_has() {
        let ports = read(json!([
            {"hostPort": 80, "containerPort": 8080},
            {"hostPort": 81, "containerPort": 8080, "hostIP": "0.0.0.0"},
            {"hostPort": 81, "containerPort": 8080, "hostIP": "::"},
            {"hostPort": 82, "containerPort": 8080, "hostIP": "2001:db8::1"},
        ]))
        .unwrap();
        let (v4, v6): (IpAddr, IpAddr) = ("10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap());
        let keys = |pod: &[IpAddr]| -> Vec<(String, IpAddr)> {
            let keys = ports.iter().flat_map(|port| port.keys(pod));
            keys.map(|(key, pod)| (format!("{:?} {:?}", key.address, key.port), pod))
                .collect()
        };
        let expected = [
            ("0.0.0.0 80", v4),
            (":: 80", v6),
            ("0.0.0.0 81", v4),
            (":: 81", v6),
            ("2001:db8::1 82", v6),
        ];
        assert_eq!(keys(&[v4, v6]), expected.map(|(key, pod)| (key.to_owned(), pod)));
        let expected = [("0.0.0.0 80", v4), ("0.0.0.0 81", v4)];
        assert_eq!(keys(&[v4]), expected.map(|(key, pod)| (key.to_owned(), pod)));
    }
}
