//! External addresses of services that other machines hold as well. The service gets its own ports there. All
//! other packets go to the machine, from pods, from the node, and from outside through the node.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use harness::config::{DEFAULTS, HOOKS_OFF};
use harness::{Agent, Client, Endpoint, Place, Pod, Probe, Server, Service, World, eventually};
use serde_json::{Value, json};

const SECOND: Duration = Duration::from_secs(1);
/// The time limit until a change is served.
const SOON: Duration = Duration::from_secs(5);
/// A port of the other machine.
const OTHER_PORT: u16 = 9000;
const API_PORT: u16 = 6443;
/// Addresses that are in no link's subnet.
const FAR: [&str; 2] = ["198.51.100.3", "2001:db8:51::3"];
/// Addresses in the subnet of all nodes.
const FLOATING: [&str; 2] = ["192.168.50.77", "fd00:50::77"];

/// Two nodes. The first has an agent, a client and the backend of a service. The second one is the other
/// machine.
struct Topology {
    world: World,
    outside: Client,
    backend: Pod,
    client: Pod,
    agent: Agent,
    servers: Vec<Server>,
}

impl Topology {
    /// A topology whose other machine holds these addresses.
    fn build(config: &str, addresses: &[&str]) -> Self {
        let world = World::with_nodes(2);
        let outside = world.add_client("outside");
        // The client must go on sending through the node, although the node knows a shorter route.
        outside.sysctl("net/ipv6/conf/eth0/accept_redirects", "0");
        let [backend, client] = ["backend", "client"].map(|name| world.node(1).add_pod(name));
        let mut servers: Vec<Server> = backend.serve(8080).into();
        servers.push(world.node(2).serve_tcp(OTHER_PORT));
        servers.push(world.node(2).serve_tcp(API_PORT));
        let mut agent = world.node(1).agent().config(config).start();
        agent.wait_ready(20 * SECOND);
        let mut topology = Self {
            world,
            outside,
            backend,
            client,
            agent,
            servers,
        };
        for address in addresses.iter().map(|text| ip(text)) {
            topology.hold(address);
        }
        topology
    }

    /// Gives the other machine an address. The client outside reaches it through the first node.
    fn hold(&mut self, address: IpAddr) {
        let other = self.world.node(2);
        let nodad = if address.is_ipv6() { " nodad" } else { "" };
        if FAR.map(ip).contains(&address) {
            other.run_ip(&format!("addr add {} dev lo{nodad}", lone(address)));
            let via = other.address_like(address);
            let fabric = self.world.fabric();
            fabric.run_ip(&format!("route add {} via {via}", lone(address)));
        } else {
            other.run_ip(&format!("addr add {} dev eth0{nodad}", lone(address)));
        }
        let server = other.serve_udp_at(SocketAddr::new(address, OTHER_PORT));
        self.servers.push(server);
        self.route_by_node(address);
    }

    fn route_by_node(&self, address: IpAddr) {
        let prefix = lone(address).parse().expect("a prefix");
        self.outside.route_via(prefix, self.world.node(1));
    }

    fn apply(&self, service: &Service) {
        self.world
            .apply_all(service.slices([Endpoint::of(&self.backend)]));
        self.world.apply(service);
    }

    /// A node's object, with these addresses in addition.
    fn node_with(&self, number: usize, more: &[(&str, &str)]) -> Value {
        let mut object = self.world.node(number).object();
        let addresses = object["status"]["addresses"].as_array_mut().expect("addresses");
        let more = more.iter();
        addresses.extend(more.map(|(kind, address)| json!({"type": kind, "address": address})));
        object
    }

    fn places(&self) -> [&Place; 3] {
        [&self.client, self.world.node(1), &self.outside]
    }

    /// Asks at a port by all probes, from all places, until this backend answers.
    #[track_caller]
    fn assert_replies(&self, to: SocketAddr, backend: &str, what: &str) {
        for place in self.places() {
            for probe in Probe::ALL {
                let question = format!("{what}: {probe:?} {to} from {}", place.name());
                eventually(&question, SOON, || {
                    let reply = place.ask_within(probe, to, SECOND);
                    reply.is_ok_and(|reply| reply.backend == backend)
                });
            }
        }
    }

    /// Asserts that the other machine has its ports and replies to ping.
    #[track_caller]
    fn assert_open(&self, address: IpAddr, what: &str) {
        self.assert_replies(SocketAddr::new(address, OTHER_PORT), "n2", what);
        for place in self.places() {
            let echo = place.ping(address, SECOND);
            assert!(echo.is_ok(), "{what}: echo from {}: {echo:?}", place.name());
        }
    }

    /// Asserts that the service has its port.
    #[track_caller]
    fn assert_served(&self, address: IpAddr, what: &str) {
        self.assert_replies(SocketAddr::new(address, 80), "backend", what);
    }

    /// Waits until the service has the address as a whole.
    #[track_caller]
    fn wait_whole(&self, address: IpAddr, what: &str) {
        let to = SocketAddr::new(address, OTHER_PORT);
        for place in [&self.client as &Place, self.world.node(1)] {
            let question = format!("{what}: {to} to be refused from {}", place.name());
            eventually(&question, SOON, || {
                let reply = place.ask_within(Probe::Tcp, to, SECOND);
                reply.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
            });
        }
    }

    /// The other holder of an address, as `status` shows it.
    fn owner(&self, address: IpAddr) -> Option<String> {
        let status = self.agent.cli(&["status"]);
        let mut shared = status["sharedAddresses"].as_array().expect("a list").iter();
        let shared = shared.find(|shared| shared["address"] == address.to_string())?;
        Some(shared["holder"].as_str().expect("words").to_owned())
    }

    /// Errors of `status` about an object.
    fn errors_about(&self, object: &str) -> Vec<String> {
        let status = self.agent.cli(&["status"]);
        let errors = status["errors"].as_array().expect("a list").iter();
        let about = errors.filter(|error| error["object"] == object);
        let messages = about.filter_map(|error| error["message"].as_str());
        messages.map(ToOwned::to_owned).collect()
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// The prefix that holds only this address.
fn lone(address: IpAddr) -> String {
    format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 })
}

#[test]
fn a_balancers_address_that_is_an_external_ip_of_another_node_captures_none_of_its_packets() {
    harness::require_root!();
    for config in [DEFAULTS, HOOKS_OFF] {
        let topology = Topology::build(config, &FAR);
        let external = topology.node_with(2, &[("ExternalIP", FAR[0]), ("Hostname", FAR[1])]);
        topology.world.apply(&external);
        for address in FAR.map(ip) {
            topology.assert_open(address, "before the service");
        }
        let service = Service::web().load_balancer_ip(FAR[0]).load_balancer_ip(FAR[1]);
        topology.apply(&service);
        for address in FAR.map(ip) {
            topology.assert_served(address, "with the service");
            topology.assert_open(address, "with the service");
            assert_eq!(topology.owner(address).as_deref(), Some("Node n2"));
        }
        // Addresses of nodes come and go while the service exists.
        topology.world.apply(&topology.node_with(2, &[]));
        for address in FAR.map(ip) {
            topology.wait_whole(address, "without the node's address");
            assert_eq!(topology.owner(address), None);
        }
        topology.world.apply(&external);
        for address in FAR.map(ip) {
            topology.assert_open(address, "with the node's address again");
            topology.assert_served(address, "with the node's address again");
        }
        topology.world.delete(&service);
        for address in FAR.map(ip) {
            topology.assert_open(address, "after the service");
        }
    }
}

#[test]
fn an_external_ip_of_this_node_without_an_interface_gets_only_its_ports() {
    harness::require_root!();
    let topology = Topology::build(DEFAULTS, &FAR);
    topology
        .world
        .apply(&topology.node_with(1, &FAR.map(|address| ("ExternalIP", address))));
    topology.apply(&Service::web().set("externalIPs", json!(FAR)));
    for address in FAR.map(ip) {
        topology.assert_served(address, "this node's");
        topology.assert_open(address, "this node's");
    }
}

#[test]
fn the_address_of_an_api_server_stays_open_and_its_port_is_no_services() {
    harness::require_root!();
    for config in [DEFAULTS, HOOKS_OFF] {
        let topology = Topology::build(config, &FAR);
        for (family, address) in ["IPv4", "IPv6"].iter().zip(FAR) {
            topology.world.apply(&json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
                "metadata": {
                    "name": format!("kubernetes-{}", family.to_lowercase()),
                    "namespace": "default",
                    "labels": {"kubernetes.io/service-name": "kubernetes"},
                },
                "ports": [{"name": "https", "port": API_PORT}],
                "endpoints": [{"addresses": [address]}],
            }));
        }
        let kubernetes = Service::new("kubernetes")
            .cluster_ip("10.96.0.1")
            .cluster_ip("fd00:96::1")
            .tcp("https", 443, API_PORT);
        topology.world.apply(&kubernetes);
        let service = Service::web()
            .tcp("thief", API_PORT, 8080)
            .load_balancer_ip(FAR[0]);
        topology.apply(&service.set("externalIPs", json!([FAR[1]])));
        for address in FAR.map(ip) {
            topology.assert_served(address, "an API server's");
            topology.assert_open(address, "an API server's");
            let about = topology.errors_about(&format!("address {address}"));
            let is_named = about.iter().any(|message| message.contains("an API server"));
            assert!(is_named, "{about:?}");
            let by_cluster_ip = if address.is_ipv4() {
                "10.96.0.1"
            } else {
                "fd00:96::1"
            };
            let direct = SocketAddr::new(address, API_PORT);
            let paths = topology.places().map(|place| (place, direct));
            for (place, to) in paths
                .into_iter()
                .chain([(&*topology.client, (ip(by_cluster_ip), 443).into())])
            {
                let reply = place.ask_within(Probe::Tcp, to, SECOND);
                let reply = reply.unwrap_or_else(|error| panic!("{to} from {}: {error}", place.name()));
                assert_eq!(reply.backend, "n2", "the API server");
            }
        }
        let about = topology.errors_about("Service default/web");
        let refused = about.iter().filter(|message| message.contains("port 6443"));
        assert_eq!(refused.count(), 2, "{about:?}");
    }
}

#[test]
fn an_external_ip_of_a_neighbour_gets_only_its_ports() {
    harness::require_root!();
    for config in [DEFAULTS, HOOKS_OFF] {
        let topology = Topology::build(config, &FLOATING);
        // These addresses belong to the service only.
        let own = ["192.168.50.78", "fd00:50::78"];
        topology.apply(&Service::web().set("externalIPs", json!([FLOATING, own].concat())));
        for address in FLOATING.map(ip) {
            topology.assert_open(address, "a neighbour's");
            topology.assert_served(address, "a neighbour's");
            let about = topology.errors_about(&format!("address {address}"));
            let is_named = about
                .iter()
                .any(|message| message.contains("on the link of eth0"));
            assert!(is_named, "{about:?}");
        }
        for address in own.map(ip) {
            topology.wait_whole(address, "the service's alone");
            assert_eq!(topology.owner(address), None);
        }
        // A removed neighbour entry does not give the address to the service.
        for address in FLOATING {
            topology
                .world
                .node(1)
                .run_ip(&format!("neigh del {address} dev eth0"));
            topology.assert_open(ip(address), "forgotten");
        }
    }
}

#[test]
fn an_external_ip_with_a_route_gets_only_its_ports() {
    harness::require_root!();
    let topology = Topology::build(DEFAULTS, &FAR);
    let node = topology.world.node(1);
    topology.apply(&Service::web().set("externalIPs", json!(FAR)));
    for address in FAR.map(ip) {
        topology.wait_whole(address, "the service's alone");
        let via = topology.world.node(2).address_like(address);
        let range = if address.is_ipv4() {
            "198.51.100.0/24"
        } else {
            "2001:db8:51::/64"
        };
        for prefix in [range.to_owned(), lone(address)] {
            // A route to this prefix may exist, which leads to the service.
            node.run_ip(&format!("route add {prefix} via {via} metric 2048"));
            topology.assert_open(address, &prefix);
            topology.assert_served(address, &prefix);
            let owner = topology.owner(address).expect("a holder");
            assert!(owner.contains(&prefix), "{owner}");
            node.run_ip(&format!("route del {prefix} via {via} metric 2048"));
            topology.wait_whole(address, "without the route");
        }
    }
}

#[test]
fn an_address_in_a_range_that_is_local_by_a_route_stays_the_nodes() {
    harness::require_root!();
    for config in [DEFAULTS, HOOKS_OFF] {
        let topology = Topology::build(config, &[]);
        let node = topology.world.node(1);
        for (address, range) in FAR
            .map(ip)
            .into_iter()
            .zip(["198.51.100.0/24", "2001:db8:51::/64"])
        {
            node.run_ip(&format!("route add local {range} dev lo"));
            topology.route_by_node(address);
        }
        let _servers = [
            node.serve_tcp(OTHER_PORT),
            node.serve_udp_at(SocketAddr::new(ip(FAR[0]), OTHER_PORT)),
        ];
        topology.apply(&Service::web().set("externalIPs", json!(FAR)));
        for address in FAR.map(ip) {
            topology.assert_served(address, "a local range");
            // A UDP socket would have to be bound to this address, which IPv6 refuses.
            let probes = if address.is_ipv4() {
                &Probe::ALL[..]
            } else {
                &[Probe::Tcp]
            };
            let to = SocketAddr::new(address, OTHER_PORT);
            for place in topology.places() {
                for probe in probes {
                    let reply = place.ask_within(*probe, to, SECOND);
                    let reply =
                        reply.unwrap_or_else(|error| panic!("{probe:?} {to} from {}: {error}", place.name()));
                    assert_eq!(reply.backend, "n1");
                }
            }
        }
    }
}
