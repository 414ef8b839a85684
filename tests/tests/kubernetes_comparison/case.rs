//! One service that is compared, its endpoints, and the frontends that are asked. Service number `n` has the
//! cluster IP 10.96.1.`n`, the node port 30100 + `n` and so on. So two services share an address only on
//! purpose.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use harness::manifest::{self, Family};
use harness::{Endpoint, EndpointSlice, Manifest, Service};
use serde_json::{Value, json};

use crate::topology::{SECONDARY, Topology};

/// The port of services, and one that no service has.
const PORT: u16 = 80;
const UNDEFINED: u16 = 81;
/// The port of endpoints.
pub const TARGET: u16 = 8080;

pub const DUAL: &[Family] = &[Family::V4, Family::V6];
pub const V4: &[Family] = &[Family::V4];
pub const V6: &[Family] = &[Family::V6];
pub const BOTH: &[Protocol] = &[Protocol::Tcp, Protocol::Udp];

/// The protocol of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Tcp,
    Udp,
    Ping,
}

/// The kind of address that a question goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    ClusterIp,
    /// The node's port at its address.
    NodePort,
    /// The node's port at its loopback address, asked by the node itself.
    Loopback,
    /// The node's port at an address that is not the node's primary one.
    Secondary,
    /// An address of a load balancer.
    Balancer,
    /// The same for a balancer that handles the traffic itself (`ipMode: Proxy`).
    Proxied,
    External,
    /// An address or a port that no service has.
    Unused,
}

/// The addresses of a service besides its cluster IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exposure {
    None,
    NodePort,
    Balancer,
    /// Two addresses of balancers.
    Balancers,
    /// A balancer without node ports.
    BalancerOnly,
    /// `ipMode: Proxy`.
    Proxied,
    External,
    /// The addresses of the second node as external IPs.
    SecondNode,
}

/// Conditions of an endpoint.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum State {
    Ready,
    /// Terminates and serves.
    Terminating,
    /// Terminates and serves no more.
    Stopping,
    NotReady,
    /// The conditions that controllers write if `publishNotReadyAddresses` is set.
    Published,
}

/// An address and a port that are asked.
#[derive(Clone, Debug)]
pub struct Frontend {
    pub kind: Kind,
    /// Whether the service has this port.
    pub defined: bool,
    pub address: IpAddr,
    pub port: u16,
    pub protocol: Protocol,
}

/// The place of an endpoint, its state, and its hints.
type Backend = (&'static str, State, Option<Value>);

pub struct Case {
    pub name: String,
    pub frontends: Vec<Frontend>,
    /// Places that ask besides the usual ones.
    pub askers: Vec<&'static str>,
    service: Option<Service>,
    backends: Vec<Backend>,
    families: &'static [Family],
    protocols: &'static [Protocol],
    scattered: bool,
    renamed: bool,
    curious: bool,
    number: u8,
}

impl Case {
    /// A service of both families with a TCP and a UDP port.
    pub fn new(name: impl Into<String>, backends: &[(&'static str, State)]) -> Self {
        let name = name.into();
        let backends = backends.iter().map(|(who, state)| (*who, *state, None));
        Self {
            service: Some(Service::new(&name)),
            name,
            frontends: Vec::new(),
            askers: Vec::new(),
            backends: backends.collect(),
            families: DUAL,
            protocols: BOTH,
            scattered: false,
            renamed: false,
            curious: false,
            number: 0,
        }
    }

    /// Questions that belong to no service.
    pub fn without_service(name: &str) -> Self {
        Self {
            service: None,
            ..Self::new(name, &[])
        }
    }

    pub fn only(self, families: &'static [Family], protocols: &'static [Protocol]) -> Self {
        Self {
            families,
            protocols,
            ..self
        }
    }

    fn change(mut self, change: impl FnOnce(Service) -> Service) -> Self {
        self.service = self.service.map(change);
        self
    }

    pub fn set(self, field: &str, value: Value) -> Self {
        self.change(|service| service.set(field, value))
    }

    pub fn label(self, key: &str, value: &str) -> Self {
        self.change(|service| service.label(key, value))
    }

    pub fn local(self) -> Self {
        self.set("externalTrafficPolicy", json!("Local"))
    }

    pub fn internal_local(self) -> Self {
        self.set("internalTrafficPolicy", json!("Local"))
    }

    pub fn staying(self) -> Self {
        self.change(|service| service.client_ip_affinity(600))
    }

    pub fn asked_by(mut self, who: &'static str) -> Self {
        self.askers.push(who);
        self
    }

    /// Hints of the endpoints, in their order.
    pub fn hints(mut self, hints: &[Value]) -> Self {
        for (backend, hints) in self.backends.iter_mut().zip(hints) {
            backend.2 = Some(hints.clone());
        }
        self
    }

    /// Writes a slice for each endpoint.
    pub fn scattered(self) -> Self {
        Self {
            scattered: true,
            ..self
        }
    }

    /// Gives the endpoints a port of another name.
    pub fn renamed(self) -> Self {
        Self {
            renamed: true,
            ..self
        }
    }

    /// Also asks for ports that the service does not have, and for an echo reply.
    pub fn curious(self) -> Self {
        Self {
            curious: true,
            ..self
        }
    }

    pub fn ask(mut self, kind: Kind, defined: bool, address: IpAddr, port: u16, protocol: Protocol) -> Self {
        self.frontends.push(Frontend {
            kind,
            defined,
            address,
            port,
            protocol,
        });
        self
    }

    /// Sets the number of the case, from which all its addresses follow, and asks at each of them.
    pub fn exposed(mut self, number: u8, exposure: Exposure) -> Self {
        self.number = number;
        let families = self.families;
        for (protocol, name) in [(Protocol::Tcp, "tcp"), (Protocol::Udp, "udp")] {
            if self.protocols.contains(&protocol) {
                let protocol = manifest_protocol(protocol);
                self = self.change(|service| service.port(name, protocol, PORT, TARGET));
            }
        }
        for family in families {
            let address = cluster_ip(*family, number);
            self = self.change(|service| service.cluster_ip(&address.to_string()));
            self = self.ask_all(Kind::ClusterIp, address);
        }
        match exposure {
            Exposure::None => self,
            Exposure::NodePort => self.with_node_ports(),
            Exposure::Balancer => self.with_node_ports().with_balancer(number, None),
            Exposure::Balancers => self
                .with_node_ports()
                .with_balancer(number, None)
                .with_balancer(u8::MAX - number, None),
            Exposure::BalancerOnly => self
                .with_balancer(number, None)
                .set("allocateLoadBalancerNodePorts", json!(false)),
            Exposure::Proxied => self.with_node_ports().with_balancer(number, Some("Proxy")),
            Exposure::External => {
                let addresses = self.families.iter().map(|family| external(*family, number));
                let addresses = addresses.collect();
                self.with_external(addresses)
            }
            Exposure::SecondNode => {
                let addresses = self.families.iter().map(|family| node(*family, 2)).collect();
                self.with_external(addresses)
            }
        }
    }

    fn with_node_ports(mut self) -> Self {
        let port = 30_100 + u16::from(self.number);
        self = self.change(|service| service.node_port("tcp", port).node_port("udp", port));
        for protocol in self.protocols {
            for family in self.families {
                for number in [1, 2] {
                    self = self.ask(Kind::NodePort, true, node(*family, number), port, *protocol);
                }
                let loopback = match family {
                    Family::V4 => Ipv4Addr::LOCALHOST.into(),
                    Family::V6 => Ipv6Addr::LOCALHOST.into(),
                };
                self = self.ask(Kind::Loopback, true, loopback, port, *protocol);
            }
            if self.families.contains(&Family::V4) {
                self = self.ask(Kind::Secondary, true, SECONDARY[0].into(), port, *protocol);
            }
        }
        self
    }

    fn with_balancer(mut self, number: u8, mode: Option<&str>) -> Self {
        let kind = if mode.is_some() {
            Kind::Proxied
        } else {
            Kind::Balancer
        };
        for family in self.families {
            let address = balancer(*family, number);
            self = self.change(|service| service.load_balancer_ip(&address.to_string()));
            self = self.ask_all(kind, address);
        }
        if self.is_local() {
            // The API server would choose a port that may be another service's node port.
            let port = 31_300 + u16::from(self.number);
            self = self.set("healthCheckNodePort", json!(port));
        }
        match mode {
            Some(mode) => self.change(|service| service.ip_mode(mode)),
            None => self,
        }
    }

    fn with_external(mut self, addresses: Vec<IpAddr>) -> Self {
        self = self.set("externalIPs", json!(addresses));
        for address in addresses {
            self = self.ask_all(Kind::External, address);
        }
        self
    }

    /// Asks the service's ports at an address and, if wanted, a port and protocols that the service does not
    /// have.
    fn ask_all(mut self, kind: Kind, address: IpAddr) -> Self {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let defined = self.protocols.contains(&protocol);
            self = self.ask(kind, defined, address, PORT, protocol);
            if self.curious {
                self = self.ask(kind, false, address, UNDEFINED, protocol);
            }
        }
        if self.curious {
            self = self.ask(kind, false, address, 0, Protocol::Ping);
        }
        self
    }

    /// Whether clients from outside get endpoints of their node only.
    pub fn is_local(&self) -> bool {
        self.has_field("externalTrafficPolicy", "Local")
    }

    /// Whether clients stay with a backend.
    pub fn stays(&self) -> bool {
        self.has_field("sessionAffinity", "ClientIP")
    }

    fn has_field(&self, field: &str, value: &str) -> bool {
        self.service()
            .is_some_and(|service| service["spec"][field] == value)
    }

    /// The number of endpoints that may answer.
    pub fn breadth(&self) -> usize {
        self.backends.len()
    }

    pub fn service(&self) -> Option<Value> {
        self.service.as_ref().map(Manifest::object)
    }

    pub fn slices(&self, topology: &Topology) -> Vec<EndpointSlice> {
        let Some(service) = &self.service else {
            return Vec::new();
        };
        let backends: Vec<Endpoint> = self
            .backends
            .iter()
            .map(|backend| endpoint(topology, backend))
            .collect();
        let source = if self.renamed {
            Service::new(&self.name).tcp("renamed", PORT, TARGET)
        } else {
            service.clone()
        };
        let whole = |family| EndpointSlice::of(&source, family);
        if !self.scattered {
            let slices = self.families.iter();
            return slices
                .map(|family| whole(*family).endpoints(backends.clone()))
                .collect();
        }
        let one = |(family, number): (Family, usize)| {
            let name = format!("{}-{}-{number}", self.name, family as u8);
            whole(family).named(&name).endpoints([backends[number].clone()])
        };
        let each = self.families.iter();
        each.flat_map(|family| (0..backends.len()).map(|number| (*family, number)))
            .map(one)
            .collect()
    }
}

fn manifest_protocol(protocol: Protocol) -> manifest::Protocol {
    if protocol == Protocol::Udp {
        manifest::Protocol::Udp
    } else {
        manifest::Protocol::Tcp
    }
}

fn endpoint(topology: &Topology, (who, state, hints): &Backend) -> Endpoint {
    let made = match (topology.pod(who), *who) {
        (Some(pod), _) => Endpoint::of(pod),
        (None, "far") => Endpoint::at(topology.place(who).addresses()),
        (None, _) => Endpoint::on_host(topology.place(who)),
    };
    let made = match state {
        State::Ready => made,
        State::Terminating => made.terminating(),
        State::Stopping => made.conditions(false, false, true),
        State::NotReady => made.not_ready(),
        State::Published => made.conditions(true, false, false),
    };
    match hints {
        Some(hints) => made.hints(hints.clone()),
        None => made,
    }
}

pub fn cluster_ip(family: Family, number: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 96, 1, number).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 0x100 + u16::from(number)).into(),
    }
}

fn balancer(family: Family, number: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(203, 0, 113, number).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 7, 0, 0, 0, 0, number.into()).into(),
    }
}

fn external(family: Family, number: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(198, 51, 100, number).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 8, 0, 0, 0, 0, number.into()).into(),
    }
}

/// The primary address of `n1` or `n2`.
pub fn node(family: Family, number: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(192, 168, 50, 10 + number).into(),
        // Both families have the same digits: .11 and ::11.
        Family::V6 => Ipv6Addr::new(0xfd00, 0x50, 0, 0, 0, 0, 0, 0x10 + u16::from(number)).into(),
    }
}
