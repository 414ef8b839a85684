//! What a runtime asks for by capabilities: host ports, limits, name resolution.
//!
//! Rates are in bits per second and bursts in bits, as Kubernetes' annotations give them, from 1 kbit/s to 1 Pbit/s.
//! `ingress` is towards the pod.

use std::net::IpAddr;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::spec::{CniError, Code};

/// The slowest and the fastest limit, in bits per second (`pkg/util/bandwidth` of Kubernetes).
const RATES: std::ops::RangeInclusive<u64> = 1_000..=1_000_000_000_000_000;

/// `runtimeConfig`, as far as it is not asked for elsewhere too.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuntimeConfig {
    #[serde(default)]
    port_mappings: Option<Vec<PortMapping>>,
    #[serde(default)]
    bandwidth: Option<Bandwidth>,
    #[serde(default)]
    dns: Option<Dns>,
}

/// A port of the node that leads to a port of the pod.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PortMapping {
    host_port: i64,
    container_port: i64,
    #[serde(default)]
    protocol: Option<String>,
    #[serde(default, rename = "hostIP")]
    host_ip: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bandwidth {
    #[serde(default)]
    ingress_rate: u64,
    #[serde(default)]
    ingress_burst: u64,
    #[serde(default)]
    egress_rate: u64,
    #[serde(default)]
    egress_burst: u64,
}

#[derive(Debug, Clone, Deserialize)]
struct Dns {
    #[serde(default)]
    servers: Option<Vec<String>>,
    #[serde(default)]
    searches: Option<Vec<String>>,
    #[serde(default)]
    options: Option<Vec<String>>,
}

/// A transport protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// A port of the node that leads to a port of the pod, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostPort {
    /// The node's port.
    pub host_port: u16,
    /// The pod's port.
    pub container_port: u16,
    /// The protocol.
    pub protocol: Protocol,
    /// Which address of the node; `None` for all.
    pub host_ip: Option<IpAddr>,
}

/// A limit in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// Bits per second.
    pub rate: u64,
    /// Bits that may pass at once; `None` if it is left to us.
    pub burst: Option<u64>,
}

/// What was asked for, checked.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Wishes {
    /// Host ports.
    pub host_ports: Vec<HostPort>,
    /// Towards the pod.
    pub ingress: Option<Limit>,
    /// From the pod.
    pub egress: Option<Limit>,
    /// Name resolution, as a result has it.
    pub dns: Option<Value>,
}

impl RuntimeConfig {
    /// Checks what was asked for.
    pub fn check(self) -> Result<Wishes, CniError> {
        let mappings = self.port_mappings.unwrap_or_default();
        // Port 0 stands for "none" in Kubernetes' objects.
        let wanted = mappings.iter().filter(|mapping| mapping.host_port != 0);
        let host_ports: Vec<HostPort> = wanted.map(host_port).collect::<Result<_, _>>()?;
        for (index, port) in host_ports.iter().enumerate() {
            let same = |other: &HostPort| {
                (other.host_port, other.protocol) == (port.host_port, port.protocol)
                    && (other.host_ip.is_none() || port.host_ip.is_none() || other.host_ip == port.host_ip)
            };
            if host_ports[..index].iter().any(same) {
                let message = format!(
                    "runtimeConfig.portMappings has host port {} twice",
                    port.host_port
                );
                return Err(CniError::new(Code::InvalidConfig, message));
            }
        }
        let bandwidth = self.bandwidth.unwrap_or_default();
        Ok(Wishes {
            host_ports,
            ingress: limit("ingress", bandwidth.ingress_rate, bandwidth.ingress_burst)?,
            egress: limit("egress", bandwidth.egress_rate, bandwidth.egress_burst)?,
            dns: self.dns.map(|dns| {
                json!({
                    "nameservers": dns.servers.unwrap_or_default(),
                    "search": dns.searches.unwrap_or_default(),
                    "options": dns.options.unwrap_or_default(),
                })
            }),
        })
    }
}

fn host_port(mapping: &PortMapping) -> Result<HostPort, CniError> {
    let port = |key: &str, value: i64| {
        u16::try_from(value)
            .ok()
            .filter(|port| *port != 0)
            .ok_or_else(|| {
                invalid(
                    &format!("portMappings: {key} {value}"),
                    "a port is between 1 and 65535",
                )
            })
    };
    let protocol = mapping.protocol.as_deref().unwrap_or("tcp");
    let host_ip = mapping.host_ip.as_deref().filter(|ip| !ip.is_empty());
    let host_ip: Option<IpAddr> = host_ip
        .map(|ip| {
            ip.parse()
                .map_err(|_| invalid(&format!("portMappings: hostIP {ip:?}"), "it is no IP address"))
        })
        .transpose()?;
    Ok(HostPort {
        host_port: port("hostPort", mapping.host_port)?,
        container_port: port("containerPort", mapping.container_port)?,
        protocol: match protocol.to_ascii_lowercase().as_str() {
            "tcp" | "" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "sctp" => Protocol::Sctp,
            _ => {
                let what = format!("portMappings: protocol {protocol:?}");
                return Err(invalid(&what, "it is one of tcp, udp, sctp"));
            }
        },
        host_ip: host_ip.filter(|ip| !ip.is_unspecified()),
    })
}

fn limit(direction: &str, rate: u64, burst: u64) -> Result<Option<Limit>, CniError> {
    if rate == 0 && burst == 0 {
        return Ok(None);
    }
    if !RATES.contains(&rate) {
        let what = format!("bandwidth: {direction}Rate {rate}");
        return Err(invalid(&what, "it is between 1k and 1P bits per second"));
    }
    Ok(Some(Limit {
        rate,
        burst: Some(burst).filter(|burst| *burst != 0),
    }))
}

fn invalid(what: &str, why: &str) -> CniError {
    CniError::new(Code::InvalidConfig, format!("runtimeConfig.{what} is invalid")).with_details(why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(document: Value) -> Result<Wishes, CniError> {
        serde_json::from_value::<RuntimeConfig>(document).unwrap().check()
    }

    #[test]
    fn host_ports_are_read() {
        let wishes = check(json!({"portMappings": [
            {"hostPort": 80, "containerPort": 8080, "protocol": "TCP"},
            {"hostPort": 80, "containerPort": 8080, "protocol": "udp", "hostIP": ""},
            {"hostPort": 53, "containerPort": 53, "protocol": "SCTP", "hostIP": "192.0.2.1"},
            {"hostPort": 53, "containerPort": 53, "protocol": "SCTP", "hostIP": "192.0.2.2"},
            {"hostPort": 0, "containerPort": 9},
        ]}))
        .unwrap();
        assert_eq!(wishes.host_ports.len(), 4);
        assert_eq!(wishes.host_ports[2].host_ip, Some("192.0.2.1".parse().unwrap()));
        for bad in [
            json!([{"hostPort": 70000, "containerPort": 1}]),
            json!([{"hostPort": -1, "containerPort": 1}]),
            json!([{"hostPort": 1, "containerPort": 0}]),
            json!([{"hostPort": 1, "containerPort": 1, "protocol": "icmp"}]),
            json!([{"hostPort": 1, "containerPort": 1, "hostIP": "host"}]),
            json!([{"hostPort": 1, "containerPort": 1}, {"hostPort": 1, "containerPort": 2, "hostIP": "192.0.2.1"}]),
        ] {
            assert_eq!(
                check(json!({"portMappings": bad})).unwrap_err().code,
                Code::InvalidConfig
            );
        }
    }

    #[test]
    fn limits_are_between_1k_and_1p() {
        let wishes = check(json!({"bandwidth": {"ingressRate": 1000, "ingressBurst": 5000}})).unwrap();
        assert_eq!(
            wishes.ingress,
            Some(Limit {
                rate: 1000,
                burst: Some(5000)
            })
        );
        assert_eq!(wishes.egress, None);
        let fastest = json!({"bandwidth": {"egressRate": 1_000_000_000_000_000_u64}});
        assert!(check(fastest).unwrap().egress.is_some());
        for bad in [
            json!({"ingressRate": 999}),
            json!({"egressRate": 1_000_000_000_000_001_u64}),
            json!({"ingressBurst": 1}),
        ] {
            assert_eq!(
                check(json!({"bandwidth": bad})).unwrap_err().code,
                Code::InvalidConfig
            );
        }
    }
}
