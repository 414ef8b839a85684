//! Nodes and the ranges of cluster IPs: the few facts about the cluster that do not concern one service.

use std::net::IpAddr;

use compact_str::CompactString;
use ipnet::IpNet;

use super::address::{canonical_ip, canonical_net};
use super::problems::Findings;
use crate::source::wire;

/// The taint of a node that the cluster autoscaler is about to delete.
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The name of the Node.
    pub name: CompactString,
    /// Its internal addresses, in the order given.
    pub addresses: Vec<IpAddr>,
    /// Its addresses of all other types: external ones, which a balancer in front of it may use, and names
    /// that are addresses.
    pub other_addresses: Vec<IpAddr>,
    /// The ranges of addresses for its pods.
    pub pod_cidrs: Vec<IpNet>,
    /// The zone of the node.
    pub zone: Option<CompactString>,
    /// The MAC address of its end of a VXLAN tunnel, from flannel's annotation.
    pub tunnel_mac: Option<[u8; 6]>,
    /// The node is being taken out of the cluster, so balancers should send it no new connections.
    pub leaving: bool,
}

impl Node {
    pub(super) fn read(wire: &wire::Node, findings: &mut Findings) -> Self {
        let (mut addresses, mut other_addresses) = (Vec::new(), Vec::new());
        let listed = wire
            .status
            .as_ref()
            .and_then(|status| status.addresses.as_deref())
            .unwrap_or_default();
        for (i, entry) in listed.iter().enumerate() {
            let (of_kind, may_be_name) = match &*entry.type_ {
                "InternalIP" => (&mut addresses, false),
                "ExternalIP" => (&mut other_addresses, false),
                _ => (&mut other_addresses, true),
            };
            match canonical_ip(&entry.address) {
                Some(address) if !of_kind.contains(&address) => of_kind.push(address),
                Some(_) => {}
                None if may_be_name => {}
                None => findings.add(|| {
                    format!(
                        "status.addresses[{i}].address: {:?} is not an address; it is left out",
                        entry.address
                    )
                }),
            }
        }
        let listed = wire.spec.as_ref().map(|spec| {
            let all = spec.pod_cidrs.as_deref().unwrap_or_default();
            if all.is_empty() {
                spec.pod_cidr.as_slice()
            } else {
                all
            }
        });
        let zone = wire
            .metadata
            .labels
            .as_ref()
            .and_then(|labels| labels.zone.clone());
        Self {
            name: wire.metadata.name.clone(),
            addresses,
            other_addresses,
            pod_cidrs: read_nets(listed.unwrap_or_default(), "spec.podCIDRs", findings),
            zone: zone.filter(|zone| !zone.is_empty()),
            tunnel_mac: read_tunnel_mac(wire, findings),
            leaving: is_leaving(wire),
        }
    }
}

/// Reads `{"VNI":1,"VtepMAC":"8e:2b:…"}`; flannel's other backends write `null` or other keys.
fn read_tunnel_mac(wire: &wire::Node, findings: &mut Findings) -> Option<[u8; 6]> {
    #[derive(serde::Deserialize)]
    struct Backend {
        #[serde(rename = "VtepMAC")]
        mac: Option<String>,
    }
    let text = wire.metadata.annotations.as_ref()?.flannel_backend.as_ref()?;
    let text = match serde_json::from_str::<Option<Backend>>(text) {
        Ok(backend) => backend?.mac?,
        Err(_) => text.to_string(),
    };
    let bytes: Result<Vec<u8>, _> = text.split(':').map(|part| u8::from_str_radix(part, 16)).collect();
    let mac = bytes.ok().and_then(|bytes| <[u8; 6]>::try_from(bytes).ok());
    if mac.is_none() {
        findings.add(|| {
            format!("metadata.annotations: {text:?} of flannel's backend is no MAC address; it is left out")
        });
    }
    mac
}

fn is_leaving(wire: &wire::Node) -> bool {
    let taints = wire.spec.as_ref().and_then(|spec| spec.taints.as_deref());
    let doomed = taints
        .unwrap_or_default()
        .iter()
        .any(|taint| taint.key == TO_BE_DELETED);
    doomed || wire.metadata.deletion_timestamp.is_some()
}

/// The ranges of cluster IPs in one ServiceCIDR object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceCidr {
    /// The ranges, at most one of each family.
    pub cidrs: Vec<IpNet>,
}

impl ServiceCidr {
    pub(super) fn read(wire: &wire::ServiceCidr, findings: &mut Findings) -> Self {
        let listed = wire
            .spec
            .as_ref()
            .and_then(|spec| spec.cidrs.as_deref())
            .unwrap_or_default();
        Self {
            cidrs: read_nets(listed, "spec.cidrs", findings),
        }
    }
}

fn read_nets(texts: &[wire::Text], field: &str, findings: &mut Findings) -> Vec<IpNet> {
    let mut nets = Vec::with_capacity(texts.len());
    for (i, text) in texts.iter().enumerate().filter(|(_, text)| !text.is_empty()) {
        match canonical_net(text) {
            Some(net) => nets.push(net),
            None => {
                findings.add(|| format!("{field}[{i}]: {text:?} is not an address range; it is left out"));
            }
        }
    }
    nets
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tunnel_mac(annotation: &str) -> (Option<[u8; 6]>, usize) {
        let node = serde_json::json!({
            "metadata": {
                "name": "a",
                "annotations": {"flannel.alpha.coreos.com/backend-data": annotation},
            },
        });
        let wire: wire::Node = serde_json::from_value(node).unwrap();
        let mut findings = Findings::default();
        let node = Node::read(&wire, &mut findings);
        (node.tunnel_mac, findings.into_messages().len())
    }

    #[test]
    fn addresses_of_every_type_are_the_nodes() {
        let typed = |type_: &str, address: &str| serde_json::json!({"type": type_, "address": address});
        let node = serde_json::json!({
            "metadata": {"name": "a"},
            "status": {"addresses": [
                typed("Hostname", "192.0.2.9"),
                typed("InternalIP", "192.0.2.12"),
                typed("ExternalIP", "198.51.100.3"),
                typed("ExternalIP", "2001:db8:3::3"),
                typed("InternalDNS", "a.example"),
                typed("ExternalDNS", " 198.51.100.004"),
                typed("ExternalIP", "nowhere"),
            ]},
        });
        let wire: wire::Node = serde_json::from_value(node).unwrap();
        let mut findings = Findings::default();
        let node = Node::read(&wire, &mut findings);
        let ips =
            |texts: &[&str]| -> Vec<IpAddr> { texts.iter().map(|text| text.parse().unwrap()).collect() };
        assert_eq!(node.addresses, ips(&["192.0.2.12"]));
        let others = ["192.0.2.9", "198.51.100.3", "2001:db8:3::3", "198.51.100.4"];
        assert_eq!(node.other_addresses, ips(&others));
        assert_eq!(
            findings.into_messages().len(),
            1,
            "an external IP has to be an address, and a name need not"
        );
    }

    #[test]
    fn flannels_annotation_has_the_end_of_the_tunnel() {
        let reported = tunnel_mac(r#"{"VNI":1,"VtepMAC":"8e:2b:00:00:00:0f"}"#);
        assert_eq!(reported, (Some([0x8e, 0x2b, 0, 0, 0, 0x0f]), 0));
        // Annotations of flannel's other backends.
        for other in ["null", r#"{"PublicKey":"x"}"#] {
            assert_eq!(tunnel_mac(other), (None, 0), "{other}");
        }
        for bad in [r#"{"VtepMAC":"8e:2b"}"#, r#"{"VtepMAC":"none"}"#, "{"] {
            assert_eq!(tunnel_mac(bad), (None, 1), "{bad}");
        }
    }
}
