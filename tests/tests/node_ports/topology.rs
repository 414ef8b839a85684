//! A world with a service that is reached from outside, and functions that ask it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use harness::{Client, Endpoint, NodeSpec, Place, Pod, Probe, Reply, Server, Service, World};
use serde_json::json;

pub const SECOND: Duration = Duration::from_secs(1);
pub const PORT: u16 = 30_080;

/// Two nodes with a backend and a client pod each, and a client outside. The service has every kind of
/// address.
pub struct Topology {
    pub world: World,
    pub outside: Client,
    pub clients: [Pod; 2],
    backends: Vec<(Pod, [Server; 2])>,
    pub service: Service,
}

impl Topology {
    pub fn build(adjust: impl FnOnce(Service) -> Service) -> Self {
        let spec = || NodeSpec::routed().strict_rp_filter();
        let world = World::builder().node(spec()).node(spec()).build();
        let outside = world.add_remote_client("outside");
        for (number, addresses) in [
            (1, ["203.0.113.7/32", "2001:db8:7::7/128"]),
            (2, ["198.51.100.7/32", "2001:db8:8::7/128"]),
        ] {
            for address in addresses {
                outside.route_via(address.parse().expect("a prefix"), world.node(number));
            }
        }
        let clients = [1, 2].map(|number| world.node(number).add_pod(&format!("client-{number}")));
        let backends = [(1, "a"), (2, "b")].map(|(number, name)| {
            let pod = world.node(number).add_pod(name);
            let servers = pod.serve(8080);
            (pod, servers)
        });
        let service = Service::web()
            .node_port("http", PORT)
            .node_port("dns", PORT)
            .load_balancer_ip("203.0.113.7")
            .load_balancer_ip("2001:db8:7::7")
            .set("externalIPs", json!(["198.51.100.7", "2001:db8:8::7"]));
        let service = adjust(service);
        world.apply(&service);
        let topology = Self {
            world,
            outside,
            clients,
            backends: backends.into(),
            service,
        };
        topology.endpoints(&["a", "b"]);
        topology
    }

    pub fn endpoints(&self, names: &[&str]) {
        let pods = self.backends.iter().map(|(pod, ..)| pod);
        let endpoints = pods.filter(|pod| names.contains(&pod.name())).map(Endpoint::of);
        self.world.apply_all(self.service.slices(endpoints));
    }

    /// The node port at both addresses of a node.
    pub fn node_port(&self, number: usize) -> Vec<SocketAddr> {
        let addresses = self.world.node(number).addresses();
        addresses
            .iter()
            .map(|address| SocketAddr::new(*address, PORT))
            .collect()
    }
}

pub fn ask(place: &Place, probe: Probe, to: SocketAddr) -> Reply {
    place
        .ask(probe, to)
        .unwrap_or_else(|error| panic!("{} asks {to} by {probe:?}: {error}", place.name()))
}

/// Asks until every one of `backends` has answered; returns the client addresses that they saw.
pub fn peers(place: &Place, probe: Probe, to: SocketAddr, backends: &[&str]) -> Vec<IpAddr> {
    let mut replies: Vec<Reply> = Vec::new();
    for _ in 0..60 {
        replies.push(ask(place, probe, to));
    }
    let mut seen: Vec<_> = replies.iter().map(|reply| reply.backend.as_str()).collect();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen, backends, "{} asks {to} by {probe:?}", place.name());
    let mut peers: Vec<IpAddr> = replies
        .iter()
        .map(|reply| reply.peer.ip().to_canonical())
        .collect();
    peers.sort_unstable();
    peers.dedup();
    peers
}

pub fn addresses(texts: [&str; 2], port: u16) -> Vec<SocketAddr> {
    texts
        .iter()
        .map(|text| SocketAddr::new(text.parse().expect("an address"), port))
        .collect()
}
