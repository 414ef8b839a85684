//! Nodes with several interfaces: what pods and services send takes whichever the routes name, and carries the address that
//! the node has there. The agents find the uplinks themselves.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use harness::cni::PodSpec;
use harness::config::{DEFAULTS, HOOKS_OFF};
use harness::forge::packet;
use harness::{
    Agent, Client, Endpoint, Node, NodeSpec, Place, Pod, Probe, Server, Service, World, eventually, skip_if,
    wait_for,
};
use serde_json::json;

const SECOND: Duration = Duration::from_secs(1);
/// How long a change may take to be served.
const SOON: Duration = Duration::from_secs(5);
const ANYWHERE: &str = "nodePortAddresses: [0.0.0.0/0, \"::/0\"]\n";
const CLUSTER_IP: [&str; 2] = ["10.96.0.10", "fd00:96::10"];
const REMOTE_CLUSTER_IP: [&str; 2] = ["10.96.0.11", "fd00:96::11"];
const BEYOND_CLUSTER_IP: [&str; 2] = ["10.96.0.12", "fd00:96::12"];
const BALANCER: [&str; 2] = ["203.0.113.66", "2001:db8:66::66"];
const NODE_PORT: u16 = 30_080;
const REMOTE_NODE_PORT: u16 = 30_081;
const HOST_PORT: u16 = 18_080;
/// Addresses of the far host that only a route leads to.
const BEYOND: [&str; 2] = ["203.0.113.9", "2001:db8:9::9"];

/// How the far host's link is made.
type AddClient = fn(&World, &Node, &'static str, &str) -> Client;

/// Two nodes, the first with a link to a host that knows nothing but this link.
struct Town {
    world: World,
    far: Client,
    outside: Client,
    local: Pod,
    remote: Pod,
    _servers: Vec<Server>,
    agents: Vec<Agent>,
}

impl Town {
    /// `routes` are given to `ip` in the first node, before its agent starts.
    fn build(config: &str, routes: &[&str]) -> Self {
        Self::build_on(World::add_client_on_link, config, routes)
    }

    fn build_on(add_client: AddClient, config: &str, routes: &[&str]) -> Self {
        let world = World::builder()
            .node(NodeSpec::millrace())
            .node(NodeSpec::millrace())
            .build();
        let node = world.node(1);
        let far = add_client(&world, node, "wan0", "far");
        let outside = world.add_client("outside");
        for address in BEYOND {
            let length = if address.contains(':') { 128 } else { 32 };
            far.add_address("lo", format!("{address}/{length}").parse().expect("a prefix"));
        }
        for line in routes {
            node.run_ip(line);
        }
        for (balancer, via) in BALANCER.iter().zip(["172.30.1.1", "fd00:30:1::1"]) {
            let length = if balancer.contains(':') { 128 } else { 32 };
            let prefix = format!("{balancer}/{length}").parse().expect("a prefix");
            far.add_route(prefix, Some(ip(via)), "eth0");
        }
        let config = format!("{config}{ANYWHERE}");
        let agents: Vec<_> = world
            .nodes()
            .iter()
            .map(|node| {
                let mut agent = node.agent().find_uplinks().config(&config).start();
                agent.wait_ready(20 * SECOND);
                agent
            })
            .collect();
        let ports = json!([{"hostPort": HOST_PORT, "containerPort": 8080, "protocol": "tcp"}]);
        let local = node.add_pod_by_plugin(&PodSpec::new("local").asking("portMappings", ports));
        let remote = world.node(2).add_pod("remote");
        let mut servers: Vec<Server> = Vec::new();
        for pod in [&local, &remote] {
            servers.extend(pod.serve(8080));
        }
        servers.extend(far.serve(53));
        servers.extend(far.serve(8080));
        let near = service("near", CLUSTER_IP, NODE_PORT)
            .load_balancer_ip(BALANCER[0])
            .load_balancer_ip(BALANCER[1]);
        world.apply(&near);
        world.apply_all(near.slices([Endpoint::of(&local)]));
        let elsewhere = service("elsewhere", REMOTE_CLUSTER_IP, REMOTE_NODE_PORT);
        world.apply(&elsewhere);
        world.apply_all(elsewhere.slices([Endpoint::of(&remote)]));
        let town = Self {
            world,
            far,
            outside,
            local,
            remote,
            _servers: servers,
            agents,
        };
        for vip in [CLUSTER_IP, REMOTE_CLUSTER_IP].concat() {
            let to = SocketAddr::new(ip(vip), 80);
            eventually("the service", SOON, || town.local.ask(Probe::Tcp, to).is_ok());
        }
        town
    }

    /// The first node's addresses on the link to the far host.
    fn on_link(&self) -> [IpAddr; 2] {
        self.far
            .addresses()
            .iter()
            .map(|far| near_end(*far))
            .collect::<Vec<_>>()
            .try_into()
            .expect("two")
    }

    /// What the far host sends to services, and what comes back to it.
    #[track_caller]
    fn assert_served(&self) {
        let mut entrances: Vec<SocketAddr> = BALANCER.map(|address| SocketAddr::new(ip(address), 80)).into();
        for node in self.on_link() {
            for port in [NODE_PORT, REMOTE_NODE_PORT, HOST_PORT] {
                entrances.push(SocketAddr::new(node, port));
            }
        }
        for to in entrances {
            assert_asked(&self.far, Probe::Tcp, to, None);
            if to.port() != HOST_PORT {
                assert_asked(&self.far, Probe::UdpConnected, to, None);
            }
        }
        // By the other uplink as before.
        for node in self.world.node(1).addresses() {
            for port in [NODE_PORT, REMOTE_NODE_PORT, HOST_PORT] {
                assert_asked(&self.outside, Probe::Tcp, SocketAddr::new(*node, port), None);
            }
        }
    }

    /// Waits until status says this of an interface, or nothing under this code.
    #[track_caller]
    fn assert_told(&self, code: &str, interface: &str, why: Option<&str>) {
        let object = json!(format!("interface {interface}"));
        wait_for(&format!("{interface} to be {why:?}"), SOON, || {
            let errors = self.agents[0].cli(&["status"])["errors"].clone();
            let mut listed = errors.as_array().expect("a list").iter();
            let told = listed.find(|error| error["object"] == object && error["code"] == code);
            let message = told.and_then(|error| error["message"].as_str());
            let is_so = match (message, why) {
                (Some(message), Some(why)) => message.contains(why),
                (message, why) => message.is_none() && why.is_none(),
            };
            if is_so { Ok(()) } else { Err(errors) }
        });
    }

    /// What pods send to the far host carries the node's address of that link.
    #[track_caller]
    fn assert_masqueraded(&self, to: &[IpAddr]) {
        for address in to {
            let source = self.on_link()[usize::from(address.is_ipv6())];
            for probe in [Probe::Tcp, Probe::UdpConnected] {
                // A server of datagrams replies from its address on the link, not from one beyond it.
                if matches!(probe, Probe::Tcp) || self.far.addresses().contains(address) {
                    assert_asked(&self.local, probe, SocketAddr::new(*address, 53), Some(source));
                }
            }
        }
    }

    /// A datagram of the far host with this source does not arrive at the pod; one with its own does.
    #[track_caller]
    fn assert_is_no_source(&self, source: IpAddr) {
        let n = usize::from(source.is_ipv6());
        let to = SocketAddr::new(self.local.addresses()[n], 9);
        let capture = self.local.packet_socket("eth0").expect("a capture");
        let forge = self.far.forge("eth0", self.world.node(1).mac("wan0"));
        let mark = |kind: &str| format!("{kind} {:016x}", fastrand::u64(..)).into_bytes();
        let (forged, honest) = (mark("forged"), mark("honest"));
        forge.send(&packet::udp(SocketAddr::new(source, 4000), to, &forged));
        let mut came = Vec::new();
        let own = SocketAddr::new(self.far.addresses()[n], 4000);
        let has_come = (0..20).any(|_| {
            forge.send(&packet::udp(own, to, &honest));
            let found = capture.receive_until(&honest, SECOND / 4, &mut came);
            found.expect("to read")
        });
        assert!(
            has_come,
            "the honest datagram did not arrive, so nothing is proven"
        );
        assert!(
            !came.iter().any(|frame| frame.carries(&forged)),
            "{source} arrived"
        );
    }

    /// A datagram of the far host with the source of another pod of this node does not arrive at the pod.
    #[track_caller]
    fn assert_takes_in_no_pods_source(&self) {
        for (n, forged) in ["10.244.1.200", "fd00:244:1::200"].into_iter().enumerate() {
            let to = SocketAddr::new(self.local.addresses()[n], 9);
            let length = if to.is_ipv4() { 32 } else { 128 };
            self.far
                .add_address("lo", format!("{forged}/{length}").parse().expect("a prefix"));
            let capture = self.local.packet_socket("eth0").expect("a capture");
            let send = |source: IpAddr, payload: &[u8]| {
                let socket = self.far.udp_bind(SocketAddr::new(source, 0)).expect("a socket");
                socket.send_to(payload, to).expect("to send");
            };
            self.far.run_ip(&format!(
                "route replace {} via {} dev eth0",
                to.ip(),
                near_end(self.far.addresses()[n])
            ));
            send(ip(forged), b"a forged datagram");
            send(self.far.addresses()[n], b"an honest datagram");
            let mut came = Vec::new();
            let has_come = capture.receive_until(b"an honest datagram", SECOND, &mut came);
            assert!(has_come.expect("to read"), "nothing is proven");
            assert!(
                !came.iter().any(|frame| frame.carries(b"a forged datagram")),
                "{forged}"
            );
        }
    }

    /// What goes neither by the far host's link nor comes from it.
    #[track_caller]
    fn assert_others_work(&self) {
        for vip in [CLUSTER_IP, REMOTE_CLUSTER_IP].concat() {
            let to = SocketAddr::new(ip(vip), 80);
            assert_asked(&self.local, Probe::Tcp, to, None);
            assert_asked(self.world.node(1), Probe::Tcp, to, None);
            assert_asked(self.world.node(2), Probe::Tcp, to, None);
        }
        for address in self.remote.addresses() {
            assert_asked(&self.local, Probe::Tcp, SocketAddr::new(*address, 8080), None);
        }
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// The node's end of a link whose far end ends in 2.
fn near_end(far: IpAddr) -> IpAddr {
    match far {
        IpAddr::V4(far) => IpAddr::from((u32::from(far) - 1).to_be_bytes()),
        IpAddr::V6(far) => IpAddr::from((u128::from(far) - 1).to_be_bytes()),
    }
}

fn service(name: &str, cluster_ips: [&str; 2], node_port: u16) -> Service {
    Service::new(name)
        .cluster_ip(cluster_ips[0])
        .cluster_ip(cluster_ips[1])
        .tcp("http", 80, 8080)
        .udp("dns", 80, 8080)
        .node_port("http", node_port)
        .node_port("dns", node_port)
}

/// There is a reply, and the server saw this source, if one is given.
#[track_caller]
fn assert_asked(from: &Place, probe: Probe, to: SocketAddr, source: Option<IpAddr>) {
    let answer = from.ask(probe, to);
    let answer = answer.unwrap_or_else(|error| panic!("{} to {to} by {probe:?}: {error}", from.name()));
    if let Some(source) = source {
        assert_eq!(
            answer.peer.ip().to_canonical(),
            source,
            "{} to {to} by {probe:?}",
            from.name()
        );
    }
}

#[test]
fn hosts_on_a_second_link_are_served_and_reached() {
    harness::require_root!();
    for config in [DEFAULTS, HOOKS_OFF] {
        let town = Town::build(config, &[]);
        town.assert_masqueraded(town.far.addresses());
        town.assert_served();
        town.assert_others_work();
    }
}

#[test]
fn the_default_route_may_lead_elsewhere_than_to_the_nodes_address() {
    harness::require_root!();
    let routes = [
        "route replace default via 172.30.1.2 dev wan0",
        "-6 route replace default via fd00:30:1::2 dev wan0",
    ];
    for config in [DEFAULTS, HOOKS_OFF] {
        let town = Town::build(config, &routes);
        town.assert_masqueraded(&[town.far.addresses(), &BEYOND.map(ip)[..]].concat());
        town.assert_served();
        town.assert_others_work();
    }
}

#[test]
fn a_default_route_of_another_table_is_a_way_out_too() {
    harness::require_root!();
    let routes = [
        "route add default via 172.30.1.2 dev wan0 table 100",
        "rule add to 203.0.113.9 lookup 100",
        "-6 route add default via fd00:30:1::2 dev wan0 table 100",
        "-6 rule add to 2001:db8:9::9 lookup 100",
    ];
    let town = Town::build(DEFAULTS, &routes);
    town.assert_masqueraded(&[town.far.addresses(), &BEYOND.map(ip)[..]].concat());
    town.assert_served();
    town.assert_others_work();
}

#[test]
fn a_link_that_comes_later_is_served_and_one_that_goes_leaves_the_others_alone() {
    harness::require_root!();
    let town = Town::build(DEFAULTS, &[]);
    let later = town.world.add_client_on_link(town.world.node(1), "wan1", "later");
    let _servers = later.serve(53);
    let to = SocketAddr::new(near_end(later.addresses()[0]), NODE_PORT);
    eventually("a node port at the new link", SECOND, || {
        later.ask(Probe::Tcp, to).is_ok()
    });
    for address in later.addresses() {
        let to = SocketAddr::new(*address, 53);
        eventually("masquerade by the new link", SECOND, || {
            let answer = town.local.ask_within(Probe::Tcp, to, SECOND / 4);
            answer.is_ok_and(|answer| answer.peer.ip().to_canonical() == near_end(*address))
        });
    }
    let node = town.world.node(1);
    // The address changes: the next flow follows.
    node.run_ip("addr del 172.30.3.1/24 dev wan1");
    node.run_ip("addr add 172.30.3.77/24 dev wan1");
    let to = SocketAddr::new(later.addresses()[0], 53);
    eventually("the new address as source", SECOND, || {
        // What leaves before the agent knows carries the old address, and gets no reply.
        let answer = town.local.ask_within(Probe::UdpConnected, to, SECOND / 8);
        answer.is_ok_and(|answer| answer.peer.ip() == ip("172.30.3.77"))
    });
    node.run_ip("link del wan1");
    town.assert_masqueraded(town.far.addresses());
    town.assert_served();
}

#[test]
fn an_uplink_that_is_down_is_named_until_it_is_up() {
    harness::require_root!();
    // The second link is a way to the world outside, though not the first that is taken.
    let routes = ["route add default via 172.30.1.2 dev wan0 metric 4096"];
    let town = Town::build(DEFAULTS, &routes);
    let node = town.world.node(1);
    let assert_told = |interface, why| town.assert_told("UplinkDown", interface, why);
    assert_told("wan0", None);
    town.far.run_ip("link set eth0 down");
    assert_told("wan0", Some("is down: it has no carrier"));
    town.far.run_ip("link set eth0 up");
    assert_told("wan0", None);
    node.run_ip("link set eth0 down");
    assert_told("eth0", Some("is down: it is switched off"));
    node.run_ip("link set eth0 up");
    assert_told("eth0", None);
}

/// The kernel hands what comes in by a port to the bridge, so the link's addresses get no packet.
#[test]
fn an_uplink_that_is_made_a_port_of_a_bridge_is_named_until_it_is_taken_out() {
    harness::require_root!();
    let town = Town::build(DEFAULTS, &[]);
    let node = town.world.node(1);
    let assert_told = |interface, why| town.assert_told("UplinkIsPort", interface, why);
    assert_told("wan0", None);
    node.run_ip("link add br9 type bridge");
    node.run_ip("link set wan0 master br9");
    assert_told("wan0", Some("a port of the bridge br9"));
    assert_told("eth0", None);
    node.run_ip("link set wan0 nomaster");
    assert_told("wan0", None);
}

#[test]
fn a_second_link_lets_no_forged_source_in() {
    harness::require_root!();
    let town = Town::build(DEFAULTS, &[]);
    let node = town.world.node(1);
    for rp_filter in ["0", "2"] {
        node.sysctl("net/ipv4/conf/all/rp_filter", rp_filter);
        for source in [
            node.addresses(),
            town.local.addresses(),
            &CLUSTER_IP.map(ip),
            &["10.244.1.200", "fd00:244:1::200"].map(ip),
        ]
        .concat()
        {
            town.assert_is_no_source(source);
        }
    }
}

/// `WireGuard`, tun and PPP devices.
#[test]
fn a_link_without_ethernet_header_is_served() {
    harness::require_root!();
    let routes = [
        "route replace default via 172.30.1.2 dev wan0",
        "-6 route replace default via fd00:30:1::2 dev wan0",
    ];
    for config in [DEFAULTS, HOOKS_OFF] {
        let town = Town::build_on(World::add_client_on_tun, config, &routes);
        town.assert_masqueraded(&[town.far.addresses(), &BEYOND.map(ip)[..]].concat());
        town.assert_served();
        town.assert_others_work();
        town.assert_takes_in_no_pods_source();
        let node = town.world.node(1);
        let errors = || town.agents[0].cli(&["status"])["errors"].clone();
        assert_eq!(errors(), json!([]));
        // A service whose endpoint is the far host.
        let beyond = service("beyond", BEYOND_CLUSTER_IP, 30_082);
        town.world.apply(&beyond);
        let endpoints = [Endpoint::at(town.far.addresses())];
        town.world.apply_all(beyond.slices(endpoints));
        for vip in BEYOND_CLUSTER_IP {
            let to = SocketAddr::new(ip(vip), 80);
            for place in [&town.local as &Place, node] {
                wait_for("the far host by a service", SOON, || {
                    [Probe::Tcp, Probe::UdpConnected]
                        .into_iter()
                        .try_for_each(|probe| {
                            let answer = place.ask_within(probe, to, SECOND / 2);
                            let failed = |error| format!("{} to {to}, {probe:?}: {error}", place.name());
                            answer.map(|_| ()).map_err(failed)
                        })
                });
            }
        }
    }
}

/// Packets of an IP tunnel have a header of their own.
#[test]
fn a_link_with_another_header_is_named() {
    harness::require_root!();
    let world = World::builder().node(NodeSpec::millrace()).build();
    let node = world.node(1);
    let mut agent = node.agent().find_uplinks().start();
    agent.wait_ready(20 * SECOND);
    let errors = || agent.cli(&["status"])["errors"].clone();
    assert_eq!(errors(), json!([]));
    let made = node
        .command("ip")
        .args("link add ipip7 type ipip remote 192.0.2.7".split(' '))
        .status();
    let has_kind = made.is_ok_and(|status| status.success());
    skip_if!((!has_kind).then(|| "no devices of kind ipip".to_owned()));
    node.run_ip("addr add 198.51.100.2/24 dev ipip7");
    node.run_ip("link set ipip7 up");
    eventually("ipip7 to be named", 3 * SECOND, || {
        let errors = errors();
        let of_link = |error: &serde_json::Value| {
            error["object"] == "interface ipip7" && error["code"] == "LinkNotServed"
        };
        errors.as_array().is_some_and(|errors| errors.iter().any(of_link))
    });
    node.run_ip("link del ipip7");
    eventually("no error", 3 * SECOND, || errors() == json!([]));
}
