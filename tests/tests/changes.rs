//! The network of a node changes while connections are held. The agent serves the change within a second or
//! reports it within three. Connections that do not depend on the change go on.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use harness::config::{DEFAULTS, HOOKS_OFF};
use harness::{
    Agent, Client, Endpoint, LongFlows, Node, NodeSpec, Place, Pod, Probe, Server, Service, World,
    eventually, skip, slowness, wait_for,
};
use serde_json::{Value, json};

const SECOND: Duration = Duration::from_secs(1);
/// The time limit from a change until all questions about it are answered.
const SERVED: Duration = SECOND;
/// The time limit until the status names the change.
const NAMED: Duration = Duration::from_secs(3);
/// The longest wait for a reply on a connection that does not depend on the changes. The kernel sends a lost
/// segment again after 0.2, 0.6 and 1.4 s.
const UNNOTICED: Duration = Duration::from_secs(2);
const ANYWHERE: &str = "nodePortAddresses: [0.0.0.0/0, \"::/0\"]\n";
const NEAR: [&str; 2] = ["10.96.0.10", "fd00:96::10"];
const FAR: [&str; 2] = ["10.96.0.11", "fd00:96::11"];
const NEAR_PORT: u16 = 30_080;
const FAR_PORT: u16 = 30_081;
/// Addresses of the host on the second link that only a default route leads to.
const BEYOND: [&str; 2] = ["203.0.113.9", "2001:db8:9::9"];
/// The number of connections that are held on each of the eight paths.
const EACH: usize = 63;

/// The moment by which all questions about a change must be answered.
#[derive(Clone, Copy)]
struct Deadline(Instant);

impl Deadline {
    /// The deadline of a change that is complete now.
    fn of_change() -> Self {
        Self(Instant::now() + SERVED * slowness())
    }

    /// The time that is left for a wait, which multiplies it by the slowness.
    #[track_caller]
    fn left(self, what: &str) -> Duration {
        let left = self.0.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "no time is left for {what}");
        left / slowness()
    }
}

struct Topology {
    world: World,
    /// A host on the underlay.
    outside: Client,
    near: Pod,
    far: Pod,
    servers: Vec<Server>,
    agents: Vec<Agent>,
}

impl Topology {
    fn build(config: &str) -> Self {
        let world = World::builder()
            .node(NodeSpec::millrace())
            .node(NodeSpec::millrace())
            .build();
        let outside = world.add_client("outside");
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
        let near = world.node(1).add_pod("near");
        let far = world.node(2).add_pod("far");
        let mut servers: Vec<Server> = [&near, &far]
            .into_iter()
            .flat_map(|pod| pod.serve(8080))
            .collect();
        servers.extend(outside.serve(53));
        for (name, vips, port, pod) in [("near", NEAR, NEAR_PORT, &near), ("far", FAR, FAR_PORT, &far)] {
            let service = Service::new(name)
                .cluster_ip(vips[0])
                .cluster_ip(vips[1])
                .tcp("http", 80, 8080)
                .node_port("http", port);
            world.apply(&service);
            world.apply_all(service.slices([Endpoint::of(pod)]));
        }
        let topology = Self {
            world,
            outside,
            near,
            far,
            servers,
            agents,
        };
        for vip in [NEAR, FAR].concat() {
            let to = SocketAddr::new(ip(vip), 80);
            eventually("the service", 10 * SECOND, || {
                topology.near.ask(Probe::Tcp, to).is_ok()
            });
        }
        topology
    }

    fn node(&self) -> &Node {
        self.world.node(1)
    }

    /// Connections over the first node's own uplink, to its pods and within it, in both families.
    fn hold(&self) -> Vec<LongFlows> {
        let mut paths: Vec<(&Place, SocketAddr)> = Vec::new();
        for n in [0, 1] {
            let at_node = self.node().addresses()[n];
            paths.push((&self.outside, SocketAddr::new(at_node, NEAR_PORT)));
            paths.push((&self.outside, SocketAddr::new(at_node, FAR_PORT)));
            paths.push((&self.near, SocketAddr::new(ip(FAR[n]), 80)));
            paths.push((&self.near, SocketAddr::new(self.outside.addresses()[n], 53)));
        }
        let hold = |(from, to)| LongFlows::start(from, to, EACH, SECOND / 4).expect("connections");
        paths.into_iter().map(hold).collect()
    }

    /// The MTU of Millrace's own device on the first node.
    fn device_mtu(&self) -> u32 {
        let listed = self
            .node()
            .command("ip")
            .args("-o link show dev millrace0".split(' '))
            .output();
        let listed = String::from_utf8(listed.expect("to list").stdout).expect("text");
        let mut words = listed.split(' ').skip_while(|word| *word != "mtu");
        let mtu = words.nth(1).and_then(|mtu| mtu.parse().ok());
        mtu.unwrap_or_else(|| panic!("no MTU: {listed}"))
    }

    fn errors(&self) -> Value {
        self.agents[0].cli(&["status"])["errors"].clone()
    }

    /// Waits until the first node's status has an error with this code about this object.
    #[track_caller]
    fn wait_named(&self, code: &str, object: &str) {
        wait_for(&format!("{code} of {object}"), NAMED, || {
            let errors = self.errors();
            let is_it = |error: &Value| error["code"] == code && error["object"] == object;
            let is_named = errors.as_array().is_some_and(|errors| errors.iter().any(is_it));
            is_named.then_some(()).ok_or_else(|| errors.to_string())
        });
    }

    #[track_caller]
    fn wait_no_error(&self) {
        wait_for("a status without errors", NAMED, || {
            let errors = self.errors();
            (errors == json!([]))
                .then_some(())
                .ok_or_else(|| errors.to_string())
        });
    }
}

/// Waits until a connection gets a reply. If `source` is given, the server must have seen it.
#[track_caller]
fn served(from: &Place, to: SocketAddr, source: Option<IpAddr>, by: Deadline) {
    let what = format!("{} to reach {to}", from.name());
    wait_for(&what, by.left(&what), || {
        // The kernel would send a lost SYN again after a second.
        let reply = from.ask_within(Probe::Tcp, to, SECOND / 8 * slowness());
        let seen = reply.map_err(|error| error.to_string())?.peer.ip().to_canonical();
        match source {
            Some(source) if source != seen => Err(format!("the server saw {seen}, not {source}")),
            _ => Ok(()),
        }
    });
}

/// Sends many full-size segments through one connection and reads them back.
#[track_caller]
fn echoes(from: &Place, to: SocketAddr, by: Deadline) {
    const LINE: usize = 60_000;
    let what = format!("{} to send much to {to}", from.name());
    wait_for(&what, by.left(&what), || {
        let echo = || -> std::io::Result<()> {
            let mut stream = from.tcp_connect_within(to, SECOND / 8 * slowness())?;
            stream.set_read_timeout(Some(SECOND / 2 * slowness()))?;
            let mut line = vec![b'x'; LINE];
            line.push(b'\n');
            stream.write_all(&line)?;
            let mut read = 0;
            let mut buffer = vec![0; 1 << 16];
            while read < LINE {
                match stream.read(&mut buffer)? {
                    0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                    count => read += count,
                }
            }
            Ok(())
        };
        echo().map_err(|error| error.to_string())
    });
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// A host on a link that the first node gets while it runs, and the node's addresses there.
struct Later {
    host: Client,
    /// The addresses where the host listens, one for each of its addresses on the link.
    listens: [SocketAddr; 2],
    near: [IpAddr; 2],
}

impl Later {
    /// Adds the link.
    fn add(topology: &mut Topology) -> Self {
        let host = topology
            .world
            .add_client_on_link(topology.node(), "wan0", "later");
        topology.servers.extend(host.serve(53));
        for address in BEYOND {
            let length = if address.contains(':') { 128 } else { 32 };
            host.add_address("lo", format!("{address}/{length}").parse().expect("a prefix"));
        }
        Self {
            listens: ["172.30.2.2", "fd00:30:2::2"].map(|far| SocketAddr::new(ip(far), 53)),
            near: ["172.30.2.1", "fd00:30:2::1"].map(ip),
            host,
        }
    }

    /// The host reaches pods of both nodes. Packets that pods send to the host carry the node's address on
    /// the link.
    #[track_caller]
    fn assert_served(&self, topology: &Topology, by: Deadline) {
        for near in self.near {
            served(&self.host, SocketAddr::new(near, NEAR_PORT), None, by);
            served(&self.host, SocketAddr::new(near, FAR_PORT), None, by);
        }
        for (to, near) in self.listens.into_iter().zip(self.near) {
            served(&topology.near, to, Some(near), by);
        }
    }

    /// The default route moves to the link, and back. Only a default route leads to the remote host and to
    /// the addresses beyond the link.
    fn move_default_route(&self, topology: &Topology) {
        let node = topology.node();
        let remote = topology.world.add_remote_client("remote");
        let _servers = remote.serve(53);
        let assert_by_underlay = || {
            let by = Deadline::of_change();
            for (to, own) in remote.addresses().iter().zip(node.addresses()) {
                served(&topology.near, SocketAddr::new(*to, 53), Some(*own), by);
                served(&remote, SocketAddr::new(*own, NEAR_PORT), None, by);
                served(&remote, SocketAddr::new(*own, FAR_PORT), None, by);
            }
            self.assert_served(topology, by);
        };
        assert_by_underlay();
        let listed = node.command("ip").args(["route", "show", "default"]).output();
        let before = String::from_utf8(listed.expect("to list routes").stdout).expect("text");
        node.run_ip("route replace default via 172.30.2.2 dev wan0");
        node.run_ip("-6 route replace default via fd00:30:2::2 dev wan0 metric 1");
        let by = Deadline::of_change();
        for (to, near) in BEYOND.iter().zip(self.near) {
            served(&topology.near, SocketAddr::new(ip(to), 53), Some(near), by);
        }
        self.assert_served(topology, by);
        match before.lines().next() {
            Some(route) => node.run_ip(&format!("route replace {}", route.trim())),
            None => node.run_ip("route del default"),
        }
        node.run_ip("-6 route del default via fd00:30:2::2 dev wan0 metric 1");
        assert_by_underlay();
        topology.wait_no_error();
    }

    /// The link gets another name. For the change the link is down, so it loses its IPv6 addresses for a
    /// moment.
    fn rename(&self, topology: &Topology) {
        for line in [
            "link set wan0 down",
            "link set wan0 name lan0",
            "link set lan0 up",
            "-6 addr replace fd00:30:2::1/64 dev lan0 nodad",
        ] {
            topology.node().run_ip(line);
        }
        self.assert_served(topology, Deadline::of_change());
    }

    /// The link gets another IPv4 address by hand, and another IPv6 prefix as after a router's renumbering:
    /// the old prefix expires.
    fn renumber(&mut self, topology: &Topology) {
        self.host.run_ip("-6 addr add fd00:31:2::2/64 dev eth0 nodad");
        for line in [
            "addr del 172.30.2.1/24 dev lan0",
            "addr add 172.30.2.77/24 dev lan0",
            "-6 addr add fd00:31:2::77/64 dev lan0 nodad",
            "-6 addr change fd00:30:2::1/64 dev lan0 valid_lft 1 preferred_lft 0",
        ] {
            topology.node().run_ip(line);
        }
        self.near = ["172.30.2.77", "fd00:31:2::77"].map(ip);
        self.listens[1].set_ip(ip("fd00:31:2::2"));
        self.assert_served(topology, Deadline::of_change());
        wait_for("the old address to run out", 5 * SECOND, || {
            let listed = topology
                .node()
                .command("ip")
                .args(["-6", "addr", "show", "dev", "lan0"])
                .output();
            let listed = String::from_utf8(listed.expect("to list").stdout).expect("text");
            (!listed.contains("fd00:30:2::1/")).then_some(()).ok_or(listed)
        });
        self.assert_served(topology, Deadline::of_change());
    }

    /// The links get another MTU: the later one, and the underlay. All hosts of a link have the same one.
    /// Millrace's own device gets the MTU `device`.
    fn resize(&self, topology: &Topology, [link, underlay]: [u32; 2], device: u32) {
        let (node, other) = (topology.node(), topology.world.node(2));
        node.run_ip(&format!("link set lan0 mtu {link}"));
        self.host.run_ip(&format!("link set eth0 mtu {link}"));
        for place in [node as &Place, other, &topology.outside] {
            place.run_ip(&format!("link set eth0 mtu {underlay}"));
        }
        let by = Deadline::of_change();
        let mut paths: Vec<(&Place, SocketAddr)> = Vec::new();
        for n in [0, 1] {
            paths.push((&self.host, SocketAddr::new(self.near[n], NEAR_PORT)));
            paths.push((&topology.outside, SocketAddr::new(node.addresses()[n], FAR_PORT)));
            paths.push((&topology.near, SocketAddr::new(ip(FAR[n]), 80)));
            paths.push((
                &topology.near,
                SocketAddr::new(topology.outside.addresses()[n], 53),
            ));
            paths.push((&topology.far, SocketAddr::new(ip(NEAR[n]), 80)));
        }
        // A sender that learns a smaller MTU may wait for a retransmission, so all connections run at once.
        std::thread::scope(|scope| {
            for (from, to) in paths {
                scope.spawn(move || echoes(from, to, by));
            }
        });
        wait_for("the MTU of millrace0", by.left("the MTU of millrace0"), || {
            let mtu = topology.device_mtu();
            (mtu == device).then_some(()).ok_or(mtu)
        });
        topology.wait_no_error();
    }
}

/// The link is removed.
fn lose_the_link(topology: &Topology) {
    topology.node().run_ip("link del lan0");
    let by = Deadline::of_change();
    for n in [0, 1] {
        served(&topology.near, SocketAddr::new(ip(FAR[n]), 80), None, by);
        let at_node = SocketAddr::new(topology.node().addresses()[n], NEAR_PORT);
        served(&topology.outside, at_node, None, by);
    }
    topology.wait_no_error();
}

/// A firewall with Docker's rules comes and goes. The status names the chain that drops packets, and
/// established connections go on.
fn meet_a_firewall(topology: &Topology) {
    let nft = |command: &str| {
        let done = topology.node().command("nft").arg(command).status();
        assert!(done.expect("to run nft").success(), "{command}");
    };
    nft("add table ip filter");
    nft("add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }");
    nft("add rule ip filter FORWARD ct state related,established accept");
    topology.wait_named("FirewallDrops", "chain ip filter FORWARD");
    nft("delete table ip filter");
    topology.wait_no_error();
}

#[test]
fn changes_are_served_and_other_connections_go_on() {
    harness::require_root!();
    for config in [DEFAULTS, HOOKS_OFF] {
        let mut topology = Topology::build(config);
        let held = topology.hold();
        let mut later = Later::add(&mut topology);
        later.assert_served(&topology, Deadline::of_change());
        later.move_default_route(&topology);
        later.rename(&topology);
        later.renumber(&topology);
        let mtu = topology.device_mtu();
        later.resize(&topology, [1300, 1400], mtu - 100);
        later.resize(&topology, [9000, 1500], mtu);
        match skip::no_nft() {
            None => meet_a_firewall(&topology),
            // All other steps run, and the record names the reason that this one does not.
            Some(reason) => skip::skip(harness::current_test!(), &reason),
        }
        lose_the_link(&topology);
        for flows in held {
            flows.wait_progress(5 * SECOND);
            flows.stop().assert_unnoticed(UNNOTICED);
        }
    }
}
