//! What a runtime asks for by capabilities: host ports, limits, name resolution.
//!
//! Rates are in bits per second and bursts in bits, as Kubernetes' annotations give them, from 1 kbit/s to 1 Pbit/s.
//! `ingress` is towards the pod. containerd begins keys with capitals, which plugins in Go read as well.

use serde::Deserialize;
use serde_json::{Value, json};

use super::host_port::{HostPort, PortMapping};
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

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bandwidth {
    #[serde(default, alias = "IngressRate")]
    ingress_rate: u64,
    #[serde(default, alias = "IngressBurst")]
    ingress_burst: u64,
    #[serde(default, alias = "EgressRate")]
    egress_rate: u64,
    #[serde(default, alias = "EgressBurst")]
    egress_burst: u64,
}

#[derive(Debug, Clone, Deserialize)]
struct Dns {
    #[serde(default, alias = "Servers")]
    servers: Option<Vec<String>>,
    #[serde(default, alias = "Searches")]
    searches: Option<Vec<String>>,
    #[serde(default, alias = "Options")]
    options: Option<Vec<String>>,
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
        let bandwidth = self.bandwidth.unwrap_or_default();
        Ok(Wishes {
            host_ports: HostPort::all(&self.port_mappings.unwrap_or_default())?,
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

pub(super) fn invalid(what: &str, why: &str) -> CniError {
    CniError::new(Code::InvalidConfig, format!("runtimeConfig.{what} is invalid")).with_details(why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(document: Value) -> Result<Wishes, CniError> {
        serde_json::from_value::<RuntimeConfig>(document).unwrap().check()
    }

    #[test]
    fn keys_may_be_written_as_containerd_writes_them() {
        let wishes = check(json!({
            "bandwidth": {"IngressRate": 1000, "IngressBurst": 5000, "EgressRate": 2000, "EgressBurst": 4_294_967_295_u64},
            "dns": {"Servers": ["192.0.2.53"], "Searches": null, "Options": []},
            "portMappings": [{"HostPort": 80, "ContainerPort": 8080, "Protocol": "TCP", "HostIP": ""}],
        }))
        .unwrap();
        let rates = [wishes.ingress, wishes.egress].map(|limit| limit.map(|limit| limit.rate));
        assert_eq!(rates, [Some(1000), Some(2000)]);
        let ports: Vec<_> = wishes
            .host_ports
            .iter()
            .map(|port| (port.host_port, port.container_port))
            .collect();
        assert_eq!(ports, [(80, 8080)]);
        assert_eq!(wishes.dns.unwrap()["nameservers"], json!(["192.0.2.53"]));
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
