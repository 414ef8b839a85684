//! The services that mutated frames go to, one of each kind that has rules of its own.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use proxy_common::maps::{AddressFlags, ConfigFlags, NodeNumber, Pod, PodLink, RangeFlags, RangeKey};
use proxy_common::{Port, protocol};
use serde_json::{Value, json};

use crate::ip;
use crate::node::{NODE, Node, of_family};
use crate::pod_links::ip as run_ip;

pub const POD: [&str; 2] = ["10.244.1.5", "fd00:244:1::5"];
pub const OUTSIDE: [&str; 2] = ["172.31.0.5", "fd00:31::5"];
/// The pod's MAC address, the source of all frames.
pub const MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
pub const OTHER_NODE: [&str; 2] = ["192.168.50.12", "fd00:50::12"];
/// The node that the tunnel leads to.
pub const THIRD_NODE: [&str; 2] = ["192.168.50.13", "fd00:50::13"];
pub const THIRD_POD: [&str; 2] = ["10.244.3.2", "fd00:244:3::2"];
/// The other nodes, from number 2 on.
pub const PEERS: [[&str; 2]; 2] = [OTHER_NODE, THIRD_NODE];
/// The addresses of this node's end of the tunnel.
pub const TUNNEL: [&str; 2] = ["10.244.1.0", "fd00:244:1::"];
pub const TUNNEL_PORT: u16 = 8472;
pub const BROADCASTS: [&str; 2] = ["192.168.50.0", "192.168.50.255"];
/// The prefix of hosts whose route does not use the uplink.
pub const ELSEWHERE: [u8; 2] = [172, 29];
pub const STRANGER: &str = "172.29.0.5";
pub const ROUTER: [&str; 2] = ["172.30.0.1", "fd00:30::1"];
/// The source ports of masqueraded packets.
pub const MASQUERADE_PORTS: std::ops::Range<u16> = 61_000..65_000;
/// The port of the node that leads to a pod, for each protocol.
pub const HOST_PORT: u16 = 8081;
pub const LOCAL: [&str; 2] = ["10.244.1.2", "fd00:244:1::2"];
pub const REMOTE: [&str; 2] = ["10.244.2.2", "fd00:244:2::2"];
pub const PROTOCOLS: [(&str, u8); 3] = [
    ("TCP", protocol::TCP),
    ("UDP", protocol::UDP),
    ("SCTP", protocol::SCTP),
];

/// The property that distinguishes a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Has {
    /// The service has endpoints on both nodes.
    Endpoints,
    /// The service has no endpoints.
    NoEndpoints,
    /// The service has policy Local, and an endpoint on the other node.
    OnlyElsewhere,
    /// The service has policy Local, and endpoints on both nodes.
    Local,
    /// The service has session affinity.
    Affinity,
    /// The service has source ranges on the load balancer's address.
    Ranges,
    /// The endpoint of the service is the node itself.
    Node,
    /// The endpoint of the service is the client itself.
    Client,
}

const ALL: [Has; 8] = [
    Has::Endpoints,
    Has::NoEndpoints,
    Has::OnlyElsewhere,
    Has::Local,
    Has::Affinity,
    Has::Ranges,
    Has::Node,
    Has::Client,
];

/// The only clients that the service with ranges accepts.
pub const RANGES: [&str; 2] = ["172.31.0.0/24", "fd00:31::/64"];

/// Whether an address lies in these ranges.
pub fn is_in_ranges(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.octets().starts_with(&[172, 31, 0]),
        IpAddr::V6(address) => address.segments().starts_with(&[0xfd00, 0x31, 0, 0]),
    }
}

/// A frontend: an address and a port that lead to endpoints.
#[derive(Clone, Debug)]
pub struct Frontend {
    pub has: Has,
    pub is_cluster_ip: bool,
    pub is_load_balancer: bool,
    pub backends: Vec<SocketAddr>,
}

pub type Frontends = HashMap<(SocketAddr, u8), Frontend>;

/// The frontends of all services, in both families.
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

/// Whether an address lies in the pod range of a node with this number.
pub fn is_in_pods_of(node: u8, address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.octets().starts_with(&[10, 244, node]),
        IpAddr::V6(address) => address.segments().starts_with(&[0xfd00, 0x244, node.into(), 0]),
    }
}

/// Whether an address lies in the pod range of any node.
pub fn is_in_pods_range(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.octets().starts_with(&[10, 244]),
        IpAddr::V6(address) => address.segments().starts_with(&[0xfd00, 0x244]),
    }
}

/// Whether packets from an address arrive by the tunnel only.
pub fn is_tunnelled(address: IpAddr) -> bool {
    is_in_pods_of(3, address)
}

/// Makes the interface of a pod and the device of the tunnel, and returns their indices.
pub fn add_links(node: &Node) -> [u32; 2] {
    for (name, peer) in [("pod0", "eth0"), ("tunnel0", "other1")] {
        run_ip(&format!("link add {name} type veth peer name {peer}"));
        run_ip(&format!("link set {peer} up"));
        // The destination MAC address of frames.
        run_ip(&format!("link set {name} address 02:00:00:00:00:01"));
        run_ip(&format!("link set {name} up"));
    }
    run_ip(&format!("route add {} dev pod0", POD[0]));
    run_ip(&format!(
        "neigh add {} lladdr 02:00:00:00:00:02 dev pod0 nud permanent",
        POD[0]
    ));
    run_ip("route add 172.29.0.0/16 dev tunnel0");
    let [pod, tunnel] =
        ["pod0", "tunnel0"].map(|name| nix::net::if_::if_nametoindex(name).expect("an interface"));
    add_pods(node, pod);
    add_tunnel(node, tunnel);
    [pod, tunnel]
}

/// Adds the pod, whose packets are masqueraded, and the host ports of its neighbour.
fn add_pods(node: &Node, interface: u32) {
    crate::pods::add_pod(node, POD);
    crate::pods::add_host_ports(node, HOST_PORT, LOCAL, 1);
    let datapath = node.programmer.store();
    let pod = Pod {
        interface,
        mac: MAC,
        ..Pod::default()
    };
    for address in POD {
        datapath.pods.set(&ip(address), &pod).expect("a pod");
    }
    let link = PodLink {
        mac: MAC,
        ..PodLink::default()
    };
    datapath.pod_links.set(&interface, &link).expect("a link");
}

/// Adds the other nodes, of which one is behind the tunnel.
fn add_tunnel(node: &Node, device: u32) {
    let datapath = node.programmer.store();
    let mut config = datapath.config.get(0).expect("a configuration");
    config.flags |= ConfigFlags::TUNNEL_SEALED | ConfigFlags::TUNNEL_ONLY;
    config.tunnel_device = device;
    config.tunnel_port = Port::new(TUNNEL_PORT);
    [config.tunnel_v4, config.tunnel_v6] = TUNNEL.map(ip);
    config.around_pods = ["10.244.0.0", "fd00:244::"].map(ip);
    config.around_pods_mask = ["ffff:ffff:ffff:ffff:ffff:ffff:ffff:0", "ffff:ffff::"].map(ip);
    config.strict_interfaces[0] = node.uplink;
    for (place, address) in config.broadcasts.iter_mut().zip(BROADCASTS) {
        *place = ip(address).v4_word();
    }
    datapath.config.set(0, &config);
    for (number, peer) in (2..).zip(PEERS) {
        let flags = AddressFlags::of_peer(NodeNumber(number)).0;
        for address in peer {
            datapath.addresses.set(&ip(address), &flags).expect("a peer");
        }
    }
    for (number, flags) in [(1, 0), (2, 0), (3, RangeFlags::TUNNEL)] {
        let of = if number == 1 {
            0
        } else {
            number << NodeNumber::SHIFT
        };
        for (address, prefix_len) in [
            (format!("10.244.{number}.0"), 120),
            (format!("fd00:244:{number}::"), 64),
        ] {
            let key = RangeKey {
                prefix_len,
                address: ip(&address),
            };
            let flags = RangeFlags::PODS | flags | of;
            datapath.pod_ranges.set(&key, &flags).expect("a range of pods");
        }
    }
}

/// The cluster IP, the load balancer's and the external address, and the node port.
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
        Has::NoEndpoints => vec![],
        Has::OnlyElsewhere => vec![(REMOTE, "n2")],
        Has::Node => vec![(NODE, "n1")],
        Has::Client => vec![(POD, "n1")],
        _ => vec![(LOCAL, "n1"), (REMOTE, "n2")],
    }
}

/// The Kubernetes objects of these services.
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
