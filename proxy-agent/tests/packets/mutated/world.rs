//! The services that mutated frames go to, one of each kind that is decided about in another way.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use proxy_common::protocol;
use serde_json::{Value, json};

use crate::node::{NODE, Node, of_family};

pub const POD: [&str; 2] = ["10.244.1.5", "fd00:244:1::5"];
pub const OUTSIDE: [&str; 2] = ["172.31.0.5", "fd00:31::5"];
pub const OTHER_NODE: [&str; 2] = ["192.168.50.12", "fd00:50::12"];
pub const ROUTER: [&str; 2] = ["172.30.0.1", "fd00:30::1"];
/// Ports of what is masqueraded.
pub const MASQUERADE_PORTS: std::ops::Range<u16> = 61_000..65_000;
/// The port of the node's that leads to a pod, by each protocol.
const HOST_PORT: u16 = 8081;
const LOCAL: [&str; 2] = ["10.244.1.2", "fd00:244:1::2"];
const REMOTE: [&str; 2] = ["10.244.2.2", "fd00:244:2::2"];
pub const PROTOCOLS: [(&str, u8); 3] = [
    ("TCP", protocol::TCP),
    ("UDP", protocol::UDP),
    ("SCTP", protocol::SCTP),
];

/// What a service has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Has {
    /// Endpoints on both nodes.
    Endpoints,
    /// None.
    Nobody,
    /// Policy Local, and an endpoint on the other node.
    OnlyElsewhere,
    /// Policy Local, and endpoints on both.
    Local,
    /// Session affinity.
    Affinity,
    /// Source ranges, on the load balancer's address.
    Ranges,
    /// The node itself as endpoint.
    Node,
    /// The client itself as endpoint.
    Client,
}

const ALL: [Has; 8] = [
    Has::Endpoints,
    Has::Nobody,
    Has::OnlyElsewhere,
    Has::Local,
    Has::Affinity,
    Has::Ranges,
    Has::Node,
    Has::Client,
];

/// The only clients of the service that has ranges.
pub const RANGES: [&str; 2] = ["172.31.0.0/24", "fd00:31::/64"];

/// Whether these ranges have an address.
pub fn is_in_ranges(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.octets().starts_with(&[172, 31, 0]),
        IpAddr::V6(address) => address.segments().starts_with(&[0xfd00, 0x31, 0, 0]),
    }
}

/// An address and port that leads to endpoints.
#[derive(Clone, Debug)]
pub struct Frontend {
    pub has: Has,
    pub is_cluster_ip: bool,
    pub is_load_balancer: bool,
    pub backends: Vec<SocketAddr>,
}

pub type Frontends = HashMap<(SocketAddr, u8), Frontend>;

/// All of them.
pub fn frontends() -> Frontends {
    let mut frontends = HashMap::new();
    for (n, has) in (1..).zip(ALL) {
        for family in [0, 1] {
            for (_, protocol) in PROTOCOLS {
                for (address, is_cluster_ip, is_load_balancer) in addresses(n, family) {
                    let frontend = Frontend {
                        has,
                        is_cluster_ip,
                        is_load_balancer,
                        backends: endpoints(has)
                            .iter()
                            .map(|(addresses, _)| SocketAddr::new(of_family(*addresses, family), 8080))
                            .collect(),
                    };
                    frontends.insert((address, protocol), frontend);
                }
            }
        }
    }
    for family in [0, 1] {
        for (_, protocol) in PROTOCOLS {
            let frontend = Frontend {
                has: Has::Endpoints,
                is_cluster_ip: false,
                is_load_balancer: false,
                backends: vec![SocketAddr::new(of_family(LOCAL, family), 80)],
            };
            let port = SocketAddr::new(of_family(NODE, family), HOST_PORT);
            frontends.insert((port, protocol), frontend);
        }
    }
    frontends
}

/// Enters the pod, which is masqueraded, and its neighbour's host ports.
pub fn add_pods(node: &Node) {
    crate::pods::add_pod(node, POD);
    crate::pods::add_host_ports(node, HOST_PORT, LOCAL, 1);
}

/// Cluster IP, load balancer's and external address, and node port.
fn addresses(n: u16, family: usize) -> [(SocketAddr, bool, bool); 4] {
    let v4 = [
        format!("10.96.0.{n}:80"),
        format!("203.0.113.{n}:80"),
        format!("198.51.100.{n}:80"),
        format!("{}:{}", NODE[0], 30_000 + n),
    ];
    let v6 = [
        format!("[fd00:96::{n}]:80"),
        format!("[2001:db8:7::{n}]:80"),
        format!("[2001:db8:8::{n}]:80"),
        format!("[{}]:{}", NODE[1], 30_000 + n),
    ];
    let texts = if family == 0 { v4 } else { v6 };
    let mut index = 0;
    texts.map(|text| {
        index += 1;
        (text.parse().expect("an address"), index == 1, index == 2)
    })
}

fn endpoints(has: Has) -> Vec<([&'static str; 2], &'static str)> {
    match has {
        Has::Nobody => vec![],
        Has::OnlyElsewhere => vec![(REMOTE, "n2")],
        Has::Node => vec![(NODE, "n1")],
        Has::Client => vec![(POD, "n1")],
        _ => vec![(LOCAL, "n1"), (REMOTE, "n2")],
    }
}

/// The objects that say so.
pub fn objects() -> Vec<Value> {
    (1..).zip(ALL).flat_map(|(n, has)| objects_of(n, has)).collect()
}

fn objects_of(n: u16, has: Has) -> Vec<Value> {
    let name = format!("s{n}");
    let both = [0, 1].map(|family| addresses(n, family).map(|(address, ..)| address.ip().to_string()));
    let [[v4, lb_v4, external_v4, _], [v6, lb_v6, external_v6, _]] = both;
    let is_local = matches!(has, Has::OnlyElsewhere | Has::Local);
    let policy = if is_local { "Local" } else { "Cluster" };
    let ranges: &[&str] = if has == Has::Ranges { &RANGES } else { &[] };
    let affinity = if has == Has::Affinity { "ClientIP" } else { "None" };
    let ports: Vec<_> = PROTOCOLS
        .iter()
        .map(|(name, _)| json!({"name": name, "protocol": name, "port": 80, "nodePort": 30_000 + n}))
        .collect();
    let mut objects = vec![json!({
        "kind": "Service",
        "metadata": {"namespace": "default", "name": name},
        "spec": {
            "type": "LoadBalancer",
            "clusterIPs": [v4, v6],
            "externalIPs": [external_v4, external_v6],
            "internalTrafficPolicy": policy,
            "externalTrafficPolicy": policy,
            "sessionAffinity": affinity,
            "loadBalancerSourceRanges": ranges,
            "ports": ports,
        },
        "status": {"loadBalancer": {"ingress": [{"ip": lb_v4}, {"ip": lb_v6}]}},
    })];
    for (family, family_name) in ["IPv4", "IPv6"].into_iter().enumerate() {
        let ports: Vec<_> = PROTOCOLS
            .iter()
            .map(|(name, _)| json!({"name": name, "protocol": name, "port": 8080}))
            .collect();
        let endpoints: Vec<_> = endpoints(has)
            .iter()
            .map(|(addresses, node)| json!({"addresses": [addresses[family]], "nodeName": node}))
            .collect();
        objects.push(json!({
            "kind": "EndpointSlice",
            "metadata": {
                "namespace": "default",
                "name": format!("{name}-{family_name}"),
                "labels": {"kubernetes.io/service-name": name},
            },
            "addressType": family_name,
            "ports": ports,
            "endpoints": endpoints,
        }));
    }
    objects
}
