//! Ports that two settings use for different purposes. The configuration works as long as no port is used for
//! both.

use std::net::SocketAddr;

use super::configuration::Configuration;
use super::pod_network::RoutingMode;
use super::values::PortRange;

/// The default range of node ports of kube-apiserver; `--service-node-port-range` changes it.
const NODE_PORTS: PortRange = match PortRange::new(30_000, 32_767) {
    Some(range) => range,
    None => panic!("the range is not empty"),
};

/// Warnings about such ports.
pub fn warnings(configuration: &Configuration) -> Vec<String> {
    let mut warnings = Vec::new();
    let masquerade = configuration.masquerade_ports;
    if let Some(common) = common(masquerade, NODE_PORTS) {
        warnings.push(format!(
            "masqueradePorts {masquerade} and Kubernetes' default range of node ports {NODE_PORTS} overlap ({common}): a client \
             that a masqueraded flow leads to does not reach the node port that the flow has; take a range outside of it"
        ));
    }
    if configuration.routing_mode != RoutingMode::Direct {
        warnings.extend(of_tunnel(configuration));
    }
    warnings
}

fn of_tunnel(configuration: &Configuration) -> Vec<String> {
    let mut warnings = Vec::new();
    let (port, masquerade) = (configuration.vxlan.port, configuration.masquerade_ports);
    let lies_in = |range: PortRange| (range.first()..=range.last()).contains(&port);
    if lies_in(masquerade) {
        warnings.push(format!(
            "vxlan.port {port} lies in masqueradePorts {masquerade}: replies to masqueraded datagrams that get this port are taken \
             for packets of the tunnel; take a port outside of the range"
        ));
    }
    if lies_in(NODE_PORTS) {
        warnings.push(format!(
            "vxlan.port {port} lies in Kubernetes' default range of node ports {NODE_PORTS}: a Service with this node port of UDP is \
             not reached; take a port outside of the range"
        ));
    }
    for (key, listens) in [
        ("healthAddress", configuration.health_address),
        ("metricsAddress", configuration.metrics_address),
    ] {
        if let Some(address) = listens.filter(|address: &SocketAddr| address.port() == port) {
            warnings.push(format!(
                "vxlan.port {port} and {key} {address} have the same port, the one of UDP and the other of TCP: a rule of a firewall \
                 about the port alone means both; take another port"
            ));
        }
    }
    warnings
}

/// The common part of two ranges.
fn common(one: PortRange, other: PortRange) -> Option<PortRange> {
    PortRange::new(one.first().max(other.first()), one.last().min(other.last()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;

    fn of(document: &str) -> Vec<String> {
        let mut configuration = Configuration::default();
        let settings: Settings = serde_saphyr::from_str(document).unwrap();
        configuration.apply(&settings);
        warnings(&configuration)
    }

    #[test]
    fn each_conflict_names_both_values() {
        assert_eq!(of("{}"), [""; 0]);
        assert_eq!(of("masqueradePorts: 61000-65535"), [""; 0]);
        for (document, expected) in [
            (
                "masqueradePorts: 20000-31000",
                &[
                    "masqueradePorts 20000-31000 and Kubernetes' default range of node ports 30000-32767 overlap (30000-31000)",
                ][..],
            ),
            (
                "vxlan: {port: 10256}",
                &[
                    "vxlan.port 10256 lies in masqueradePorts 10000-29999",
                    "vxlan.port 10256 and healthAddress 0.0.0.0:10256 have the same port",
                ],
            ),
            (
                "{vxlan: {port: 10249}, masqueradePorts: 61000-65535}",
                &["vxlan.port 10249 and metricsAddress 127.0.0.1:10249 have the same port"],
            ),
            (
                "vxlan: {port: 30472}",
                &["vxlan.port 30472 lies in Kubernetes' default range of node ports 30000-32767"],
            ),
            ("{vxlan: {port: 10256}, routingMode: direct}", &[]),
            ("{vxlan: {port: 7000}, healthAddress: 0}", &[]),
        ] {
            let found = of(document);
            assert_eq!(found.len(), expected.len(), "{document}: {found:?}");
            for (found, expected) in found.iter().zip(expected) {
                assert!(found.starts_with(expected), "{document}: {found}");
            }
        }
    }
}
