//! Tests every verdict for every combination of frontend, client, family, protocol, policy and endpoints. The
//! packets go through the live programs, the real planner fills the tables, and the tests derive their
//! expectations from the written rules.
//!
//! The rules follow Kubernetes' documentation of Services and their traffic policies, and kube-proxy's
//! behaviour where that is silent:
//! - A client *inside* is a pod of this node, or this node. Under `externalTrafficPolicy: Local` it reaches
//!   all endpoints all the same; `internalTrafficPolicy: Local` limits every client to endpoints of this
//!   node.
//! - The usable endpoints of a set are its ready ones; if there are none, those that serve while they
//!   terminate.
//! - With usable endpoints, the packet is translated to one of them. If the set has none, but there are some
//!   elsewhere, the packet is dropped without a reply. If there are none at all, the packet is refused, by
//!   RST for TCP and ICMP port unreachable for the others.
//! - The node replaces the client's address by its own in two cases. The client comes from outside to a node
//!   port, load balancer or external address under policy Cluster. Or the client is neither a pod nor this
//!   node, and sends to a cluster IP.

use std::net::{IpAddr, SocketAddr};

use proxy_common::protocol;
use serde_json::{Value, json};

use super::frame::{checked, ends, frame};
use super::node::{NODE, Node, of_family};
use super::{PASS, REDIRECT, SHOT};

const KINDS: [Kind; 4] = [
    Kind::ClusterIp,
    Kind::NodePort,
    Kind::LoadBalancer,
    Kind::ExternalIp,
];
const CLIENTS: [Client; 4] = [Client::Pod, Client::ThisNode, Client::OtherNode, Client::Outside];
const PROTOCOLS: [(&str, u8); 3] = [
    ("TCP", protocol::TCP),
    ("UDP", protocol::UDP),
    ("SCTP", protocol::SCTP),
];
const ENDPOINTS: [Endpoints; 5] = [
    Endpoints::None,
    Endpoints::Local,
    Endpoints::Remote,
    Endpoints::Both,
    Endpoints::Terminating,
];
const LOCAL: [&str; 2] = ["10.244.1.2", "fd00:244:1::2"];
const REMOTE: [&str; 2] = ["10.244.2.2", "fd00:244:2::2"];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    ClusterIp,
    NodePort,
    LoadBalancer,
    ExternalIp,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Client {
    Pod,
    ThisNode,
    OtherNode,
    Outside,
}

impl Client {
    fn is_inside(self) -> bool {
        matches!(self, Self::Pod | Self::ThisNode)
    }

    fn address(self, family: usize) -> IpAddr {
        let addresses = match self {
            Self::Pod => ["10.244.1.5", "fd00:244:1::5"],
            Self::ThisNode => NODE,
            Self::OtherNode => ["192.168.50.12", "fd00:50::12"],
            Self::Outside => ["172.31.0.5", "fd00:31::5"],
        };
        of_family(addresses, family)
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Endpoints {
    None,
    Local,
    Remote,
    Both,
    /// There are endpoints on both nodes, and all of them terminate.
    Terminating,
}

/// A service of one policy and one set of endpoints.
#[derive(Clone, Copy, Debug)]
struct Service {
    number: u16,
    is_local: bool,
    endpoints: Endpoints,
}

impl Service {
    fn all() -> impl Iterator<Item = Self> {
        [false, true]
            .into_iter()
            .flat_map(|is_local| ENDPOINTS.map(|endpoints| (is_local, endpoints)))
            .zip(1..)
            .map(|((is_local, endpoints), number)| Self {
                number,
                is_local,
                endpoints,
            })
    }

    fn address(self, kind: Kind, family: usize) -> IpAddr {
        let n = self.number;
        let addresses = match kind {
            Kind::ClusterIp => [format!("10.96.0.{n}"), format!("fd00:96::{n}")],
            Kind::NodePort => NODE.map(str::to_owned),
            Kind::LoadBalancer => [format!("203.0.113.{n}"), format!("2001:db8:7::{n}")],
            Kind::ExternalIp => [format!("198.51.100.{n}"), format!("2001:db8:8::{n}")],
        };
        addresses[family].parse().expect("an address")
    }

    fn port(self, kind: Kind) -> u16 {
        if kind == Kind::NodePort {
            30_000 + self.number
        } else {
            80
        }
    }

    fn objects(self) -> Vec<Value> {
        let policy = if self.is_local { "Local" } else { "Cluster" };
        let name = format!("s{}", self.number);
        let both = |kind| [0, 1].map(|family| self.address(kind, family));
        let ports: Vec<_> = PROTOCOLS
            .iter()
            .map(|(protocol, _)| {
                json!({"name": protocol, "protocol": protocol, "port": 80, "nodePort": self.port(Kind::NodePort)})
            })
            .collect();
        let ingress: Vec<_> = both(Kind::LoadBalancer)
            .iter()
            .map(|ip| json!({"ip": ip}))
            .collect();
        let mut objects = vec![json!({
            "kind": "Service",
            "metadata": {"namespace": "default", "name": name},
            "spec": {
                "type": "LoadBalancer",
                "clusterIPs": both(Kind::ClusterIp),
                "externalIPs": both(Kind::ExternalIp),
                "internalTrafficPolicy": policy,
                "externalTrafficPolicy": policy,
                "ports": ports,
            },
            "status": {"loadBalancer": {"ingress": ingress}},
        })];
        for (family, family_name) in ["IPv4", "IPv6"].into_iter().enumerate() {
            let is_terminating = self.endpoints == Endpoints::Terminating;
            let conditions =
                json!({"ready": !is_terminating, "serving": true, "terminating": is_terminating});
            let endpoint = |addresses, node| json!({"addresses": [of_family(addresses, family)], "nodeName": node, "conditions": conditions});
            let (local, remote) = (endpoint(LOCAL, "n1"), endpoint(REMOTE, "n2"));
            let endpoints = match self.endpoints {
                Endpoints::None => vec![],
                Endpoints::Local => vec![local],
                Endpoints::Remote => vec![remote],
                Endpoints::Both | Endpoints::Terminating => vec![local, remote],
            };
            let ports: Vec<_> = PROTOCOLS
                .iter()
                .map(|(protocol, _)| json!({"name": protocol, "protocol": protocol, "port": 8080}))
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
}

/// The verdict by the rules.
#[derive(Debug, PartialEq)]
enum Verdict {
    Translate { to: Vec<IpAddr>, masquerade: bool },
    Drop,
    Reject,
}

fn expected(service: Service, kind: Kind, client: Client, family: usize) -> Verdict {
    let all: Vec<IpAddr> = match service.endpoints {
        Endpoints::None => vec![],
        Endpoints::Local => vec![of_family(LOCAL, family)],
        Endpoints::Remote => vec![of_family(REMOTE, family)],
        Endpoints::Both | Endpoints::Terminating => vec![of_family(LOCAL, family), of_family(REMOTE, family)],
    };
    let held_to_node = service.is_local && (kind == Kind::ClusterIp || !client.is_inside());
    let to: Vec<IpAddr> = all
        .iter()
        .copied()
        .filter(|address| !held_to_node || *address == of_family(LOCAL, family))
        .collect();
    if all.is_empty() {
        Verdict::Reject
    } else if to.is_empty() {
        Verdict::Drop
    } else {
        let masquerade = !client.is_inside() && (kind == Kind::ClusterIp || !service.is_local);
        Verdict::Translate { to, masquerade }
    }
}

/// The program that handles such a packet.
fn program(kind: Kind, client: Client) -> &'static str {
    match client {
        Client::Pod => "from_pod",
        Client::ThisNode if kind == Kind::NodePort => "from_loopback",
        Client::ThisNode => "from_host",
        Client::OtherNode | Client::Outside => "from_uplink",
    }
}

#[test]
fn every_combination_gets_the_expected_verdict() {
    let mut node = Node::new();
    let objects: Vec<_> = Service::all().flat_map(Service::objects).collect();
    node.program(&objects);
    let mut wrong = Vec::new();
    let mut rows = 0_u16;
    for service in Service::all() {
        for kind in KINDS {
            for client in CLIENTS {
                for family in [0, 1] {
                    for (name, protocol) in PROTOCOLS {
                        rows += 1;
                        let from = SocketAddr::new(client.address(family), 20_000 + rows);
                        let to = SocketAddr::new(service.address(kind, family), service.port(kind));
                        let start = if protocol == protocol::TCP { 2 } else { 1 };
                        let request = frame(&from.to_string(), &to.to_string(), protocol, start, b"hello");
                        let (verdict, out) = node.run(program(kind, client), &request);
                        let expected = expected(service, kind, client, family);
                        if let Err(error) = compare(&expected, verdict, &out, from, to, protocol, client) {
                            wrong.push(format!(
                                "{kind:?} {name} from {client:?} {from} to {to}, {service:?}: expected {expected:?}: {error}"
                            ));
                        }
                    }
                }
            }
        }
    }
    assert_eq!(rows, 960);
    assert!(
        wrong.is_empty(),
        "{} of {rows} are wrong:\n{}",
        wrong.len(),
        wrong[..wrong.len().min(40)].join("\n")
    );
}

fn compare(
    expected: &Verdict,
    verdict: u32,
    out: &[u8],
    from: SocketAddr,
    to: SocketAddr,
    protocol: u8,
    client: Client,
) -> Result<(), String> {
    let check = |right: bool, what: String| if right { Ok(()) } else { Err(what) };
    match expected {
        Verdict::Drop => check(verdict == SHOT, format!("verdict {verdict}")),
        Verdict::Reject => {
            check(verdict == REDIRECT, format!("verdict {verdict}"))?;
            let headers = checked(out);
            let l4 = headers.l4 as usize;
            if protocol == protocol::TCP {
                check(ends(&headers) == (to, from), format!("{headers:?}"))?;
                return check(out[l4 + 13] == 0x14, format!("flags {:x}", out[l4 + 13]));
            }
            let expected = if from.is_ipv4() { [3, 3] } else { [1, 4] };
            check(
                out[l4..l4 + 2] == expected,
                format!("ICMP {:?}", &out[l4..l4 + 2]),
            )?;
            check(
                headers.dst == from.ip().into() && headers.src == to.ip().into(),
                format!("{headers:?}"),
            )
        }
        Verdict::Translate { to, masquerade } => {
            let headers = checked(out);
            let (source, destination) = ends(&headers);
            check(
                to.contains(&destination.ip()) && destination.port() == 8080,
                format!("goes to {destination}, verdict {verdict}"),
            )?;
            let node: IpAddr = of_family(NODE, usize::from(from.is_ipv6()));
            if *masquerade {
                check(source.ip() == node, format!("comes from {source}"))?;
            } else {
                check(source == from, format!("comes from {source}"))?;
            }
            // Packets of pods continue through the kernel's stack; all others are redirected at once.
            let expected = if client == Client::Pod { PASS } else { REDIRECT };
            check(verdict == expected, format!("verdict {verdict}"))?;
            check(
                headers.ttl == if client.is_inside() { 64 } else { 63 },
                format!("TTL {}", headers.ttl),
            )?;
            Ok(())
        }
    }
}
