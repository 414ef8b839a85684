//! The requests that a runtime makes by capabilities: host ports, limits, name resolution.
//!
//! Rates are in bits per second and bursts in bits, as in the annotations of Kubernetes, from 1 kbit/s to 1
//! Pbit/s. `ingress` is towards the pod. containerd begins keys with capitals, which plugins in Go accept as
//! well. The network's configuration may limit all of its pods, by the keys of the stock bandwidth plugin. If
//! both the pod and the network set a limit, the smaller one applies.

use serde::Deserialize;
use serde_json::{Value, json};

use super::host_port::{HostPort, PortMapping};
use crate::spec::{CniError, Code};

/// The slowest and the fastest limit, in bits per second (`pkg/util/bandwidth` of Kubernetes).
const RATES: std::ops::RangeInclusive<u64> = 1_000..=1_000_000_000_000_000;

/// The keys of `runtimeConfig` that only this module reads.
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

/// The limits of both directions, in the form of runtimes and network configurations; 0 stands for none.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Bandwidth {
    #[serde(default, alias = "IngressRate")]
    pub(super) ingress_rate: u64,
    #[serde(default, alias = "IngressBurst")]
    pub(super) ingress_burst: u64,
    #[serde(default, alias = "EgressRate")]
    pub(super) egress_rate: u64,
    #[serde(default, alias = "EgressBurst")]
    pub(super) egress_burst: u64,
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
    /// The rate in bits per second.
    pub rate: u64,
    /// The bits that may pass at once; `None` if the plugin chooses.
    pub burst: Option<u64>,
}

/// The requests, checked.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CapabilityArgs {
    /// The ports of the node that lead to the pod.
    pub host_ports: Vec<HostPort>,
    /// The limit towards the pod.
    pub ingress: Option<Limit>,
    /// The limit from the pod.
    pub egress: Option<Limit>,
    /// The settings of name resolution, in the form of a result.
    pub dns: Option<Value>,
}

impl RuntimeConfig {
    /// Checks the requests. `of_network` holds the limits of the network.
    pub(super) fn check(self, of_network: &Bandwidth) -> Result<CapabilityArgs, CniError> {
        let asked = self
            .bandwidth
            .unwrap_or_default()
            .limits("runtimeConfig.bandwidth.")?;
        let given = of_network.limits("")?;
        Ok(CapabilityArgs {
            host_ports: HostPort::all(&self.port_mappings.unwrap_or_default())?,
            ingress: smaller(asked[0], given[0]),
            egress: smaller(asked[1], given[1]),
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

impl Bandwidth {
    /// The limits of both directions, towards the pod first. `place` is the prefix of the keys in messages.
    fn limits(&self, place: &str) -> Result<[Option<Limit>; 2], CniError> {
        let ingress = limit(place, "ingress", self.ingress_rate, self.ingress_burst)?;
        let egress = limit(place, "egress", self.egress_rate, self.egress_burst)?;
        Ok([ingress, egress])
    }
}

fn limit(place: &str, direction: &str, rate: u64, burst: u64) -> Result<Option<Limit>, CniError> {
    if rate == 0 && burst == 0 {
        return Ok(None);
    }
    if !RATES.contains(&rate) {
        let message = format!("{place}{direction}Rate is invalid");
        return Err(CniError::new(Code::InvalidConfig, message)
            .with_details(format!("{rate} is not between 1k and 1P bits per second")));
    }
    Ok(Some(Limit {
        rate,
        burst: Some(burst).filter(|burst| *burst != 0),
    }))
}

/// The smaller of two limits, with the smaller of their bursts.
fn smaller(one: Option<Limit>, other: Option<Limit>) -> Option<Limit> {
    let (Some(one), Some(other)) = (one, other) else {
        return one.or(other);
    };
    Some(Limit {
        rate: one.rate.min(other.rate),
        burst: one.burst.into_iter().chain(other.burst).min(),
    })
}

pub(super) fn invalid(what: &str, why: &str) -> CniError {
    CniError::new(Code::InvalidConfig, format!("runtimeConfig.{what} is invalid")).with_details(why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(document: Value) -> Result<CapabilityArgs, CniError> {
        check_within(document, json!({}))
    }

    fn check_within(document: Value, network: Value) -> Result<CapabilityArgs, CniError> {
        let config = serde_json::from_value::<RuntimeConfig>(document).unwrap();
        config.check(&serde_json::from_value(network).unwrap())
    }

    #[test]
    fn capitalized_keys_of_containerd_are_accepted() {
        let capability_args = check(json!({
            "bandwidth": {"IngressRate": 1000, "IngressBurst": 5000, "EgressRate": 2000, "EgressBurst": 4_294_967_295_u64},
            "dns": {"Servers": ["192.0.2.53"], "Searches": null, "Options": []},
            "portMappings": [{"HostPort": 80, "ContainerPort": 8080, "Protocol": "TCP", "HostIP": ""}],
        }))
        .unwrap();
        let rates =
            [capability_args.ingress, capability_args.egress].map(|limit| limit.map(|limit| limit.rate));
        assert_eq!(rates, [Some(1000), Some(2000)]);
        let ports: Vec<_> = capability_args
            .host_ports
            .iter()
            .map(|port| (port.host_port, port.container_port))
            .collect();
        assert_eq!(ports, [(80, 8080)]);
        assert_eq!(capability_args.dns.unwrap()["nameservers"], json!(["192.0.2.53"]));
    }

    #[test]
    fn limits_are_between_1k_and_1p() {
        let capability_args =
            check(json!({"bandwidth": {"ingressRate": 1000, "ingressBurst": 5000}})).unwrap();
        assert_eq!(
            capability_args.ingress,
            Some(Limit {
                rate: 1000,
                burst: Some(5000)
            })
        );
        assert_eq!(capability_args.egress, None);
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

    #[test]
    fn the_smaller_of_two_limits_applies() {
        let network = json!({"ingressRate": 5_000_000, "ingressBurst": 40_000, "egressRate": 5_000_000});
        for (asked, expected) in [
            (json!({}), [(5_000_000, Some(40_000)), (5_000_000, None)]),
            (
                json!({"ingressRate": 900_000_000, "ingressBurst": 50_000, "egressRate": 900_000_000}),
                [(5_000_000, Some(40_000)), (5_000_000, None)],
            ),
            (
                json!({"ingressRate": 1_000_000, "egressRate": 1_000_000, "egressBurst": 30_000}),
                [(1_000_000, Some(40_000)), (1_000_000, Some(30_000))],
            ),
        ] {
            let capability_args = check_within(json!({"bandwidth": asked}), network.clone()).unwrap();
            let limits = [capability_args.ingress, capability_args.egress].map(|limit| limit.unwrap());
            assert_eq!(limits.map(|limit| (limit.rate, limit.burst)), expected, "{asked}");
        }
        let error = check_within(json!({}), json!({"egressRate": 1})).unwrap_err();
        assert_eq!(error.msg, "egressRate is invalid");
    }
}
