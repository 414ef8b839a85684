//! The network of a node changes while connections are held. The agent serves the change within a second or
//! reports it within three. Connections that do not depend on the change go on.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use harness::config::{DEFAULTS, HOOKS_OFF};
use harness::{
    Agent, Client, Endpoint, LongFlows, Node, NodeSpec, Place, Pod, Probe, Server, Service, World,
    eventually, skip, wait_for,
};
use serde_json::{Value, json};

const SECOND: Duration = Duration::from_secs(1);
/// The time limit until a change is served.
const SERVED: Duration = SECOND;
/// The time limit until the status names the change.
const NAMED: Duration = Duration::from_secs(3);
const ANYWHERE: &str = "nodePortAddresses: [0.0.0.0/0, \"::/0\"]\n";
const NEAR: [&str; 2] = ["10.96.0.10", "fd00:96::10"];
const FAR: [&str; 2] = ["10.96.0.11", "fd00:96::11"];
const NEAR_PORT: u16 = 30_080;
const FAR_PORT: u16 = 30_081;
/// Addresses of the host on the second link that only a default route leads to.
const BEYOND: [&str; 2] = ["203.0.113.9", "2001:db8:9::9"];
/// The number of connections that are held on each of the eight paths.
const EACH: usize = 63;

struct Town {
    world: World,
    /// A host on the underlay.
    outside: Client,
    near: Pod,
    far: Pod,
    servers: Vec<Server>,
    agents: Vec<Agent>,
}

impl Town {
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
        let town = Self {
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
                town.near.ask(Probe::Tcp, to).is_ok()
            });
        }
        town
    }

    fn node(&self) -> &Node {
        self.world.node(1)
    }

    /// Connections over the first node's own uplink, to its pods and within it, in both families.
    fn hold(&self) -> Vec<LongFlows> {
        let mut ways: Vec<(&Place, SocketAddr)> = Vec::new();
        for n in [0, 1] {
            let at_node = self.node().addresses()[n];
            ways.push((&self.outside, SocketAddr::new(at_node, NEAR_PORT)));
            ways.push((&self.outside, SocketAddr::new(at_node, FAR_PORT)));
            ways.push((&self.near, SocketAddr::new(ip(FAR[n]), 80)));
            ways.push((&self.near, SocketAddr::new(self.outside.addresses()[n], 53)));
        }
        let hold = |(from, to)| LongFlows::start(from, to, EACH, SECOND / 4).expect("connections");
        ways.into_iter().map(hold).collect()
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

/// Waits for a second at most until a connection gets a reply. If `source` is given, the server must have
/// seen it.
#[track_caller]
fn served(from: &Place, to: SocketAddr, source: Option<IpAddr>) {
    wait_for(&format!("{} to reach {to}", from.name()), SERVED, || {
        let answer = from.ask_within(Probe::Tcp, to, SECOND / 4);
        let seen = answer
            .map_err(|error| error.to_string())?
            .peer
            .ip()
            .to_canonical();
        match source {
            Some(source) if source != seen => Err(format!("the server saw {seen}, not {source}")),
            _ => Ok(()),
        }
    });
}

/// Sends many full-size segments through one connection and reads them back.
#[track_caller]
fn echoes(from: &Place, to: SocketAddr) {
    const LINE: usize = 60_000;
    wait_for(&format!("{} to send much to {to}", from.name()), SERVED, || {
        let echo = || -> std::io::Result<()> {
            let mut stream = from.tcp_connect_within(to, SECOND / 2)?;
            stream.set_read_timeout(Some(SECOND))?;
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
    fn add(town: &mut Town) -> Self {
        let host = town.world.add_client_on_link(town.node(), "wan0", "later");
        town.servers.extend(host.serve(53));
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
    fn assert_served(&self, town: &Town) {
        for near in self.near {
            served(&self.host, SocketAddr::new(near, NEAR_PORT), None);
            served(&self.host, SocketAddr::new(near, FAR_PORT), None);
        }
        for (to, near) in self.listens.into_iter().zip(self.near) {
            served(&town.near, to, Some(near));
        }
    }

    /// The default route moves to the link, and back.
    fn lead_out(&self, town: &Town) {
        let node = town.node();
        let listed = node.command("ip").args(["route", "show", "default"]).output();
        let before = String::from_utf8(listed.expect("to list routes").stdout).expect("text");
        node.run_ip("route replace default via 172.30.2.2 dev wan0");
        node.run_ip("-6 route replace default via fd00:30:2::2 dev wan0 metric 1");
        for (to, near) in BEYOND.iter().zip(self.near) {
            served(&town.near, SocketAddr::new(ip(to), 53), Some(near));
        }
        match before.lines().next() {
            Some(route) => node.run_ip(&format!("route replace {}", route.trim())),
            None => node.run_ip("route del default"),
        }
        node.run_ip("-6 route del default via fd00:30:2::2 dev wan0 metric 1");
    }

    /// The link gets another name. For the change the link is down, so it loses its IPv6 addresses for a
    /// moment.
    fn rename(&self, town: &Town) {
        for line in [
            "link set wan0 down",
            "link set wan0 name lan0",
            "link set lan0 up",
            "-6 addr replace fd00:30:2::1/64 dev lan0 nodad",
        ] {
            town.node().run_ip(line);
        }
        self.assert_served(town);
    }

    /// The link gets another IPv4 address by hand, and another IPv6 prefix as after a router's renumbering:
    /// the old prefix expires.
    fn renumber(&mut self, town: &Town) {
        self.host.run_ip("-6 addr add fd00:31:2::2/64 dev eth0 nodad");
        for line in [
            "addr del 172.30.2.1/24 dev lan0",
            "addr add 172.30.2.77/24 dev lan0",
            "-6 addr add fd00:31:2::77/64 dev lan0 nodad",
            "-6 addr change fd00:30:2::1/64 dev lan0 valid_lft 1 preferred_lft 0",
        ] {
            town.node().run_ip(line);
        }
        self.near = ["172.30.2.77", "fd00:31:2::77"].map(ip);
        self.listens[1].set_ip(ip("fd00:31:2::2"));
        self.assert_served(town);
        wait_for("the old address to run out", 5 * SECOND, || {
            let listed = town
                .node()
                .command("ip")
                .args(["-6", "addr", "show", "dev", "lan0"])
                .output();
            let listed = String::from_utf8(listed.expect("to list").stdout).expect("text");
            (!listed.contains("fd00:30:2::1/")).then_some(()).ok_or(listed)
        });
        self.assert_served(town);
    }

    /// The links get a smaller MTU. All hosts of a link have the same one.
    fn shorten(&self, town: &Town) {
        let (node, other) = (town.node(), town.world.node(2));
        node.run_ip("link set lan0 mtu 1300");
        self.host.run_ip("link set eth0 mtu 1300");
        for place in [node as &Place, other, &town.outside] {
            place.run_ip("link set eth0 mtu 1400");
        }
        for n in [0, 1] {
            echoes(&self.host, SocketAddr::new(self.near[n], NEAR_PORT));
            echoes(&town.outside, SocketAddr::new(node.addresses()[n], FAR_PORT));
            echoes(&town.near, SocketAddr::new(ip(FAR[n]), 80));
            echoes(&town.near, SocketAddr::new(town.outside.addresses()[n], 53));
            echoes(&town.far, SocketAddr::new(ip(NEAR[n]), 80));
        }
        town.wait_no_error();
    }
}

/// The link is removed.
fn lose_the_link(town: &Town) {
    town.node().run_ip("link del lan0");
    town.wait_no_error();
    for n in [0, 1] {
        served(&town.near, SocketAddr::new(ip(FAR[n]), 80), None);
        let at_node = SocketAddr::new(town.node().addresses()[n], NEAR_PORT);
        served(&town.outside, at_node, None);
    }
}

/// A firewall with Docker's rules comes and goes. The status names the chain that drops packets, and
/// established connections go on.
fn meet_a_firewall(town: &Town) {
    let nft = |command: &str| {
        let done = town.node().command("nft").arg(command).status();
        assert!(done.expect("to run nft").success(), "{command}");
    };
    if skip::no_nft().is_none() {
        nft("add table ip filter");
        nft("add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }");
        nft("add rule ip filter FORWARD ct state related,established accept");
        town.wait_named("FirewallDrops", "chain ip filter FORWARD");
        nft("delete table ip filter");
        town.wait_no_error();
    }
}

#[test]
fn what_changes_is_served_and_what_does_not_goes_on() {
    harness::require_root!();
    for config in [DEFAULTS, HOOKS_OFF] {
        let mut town = Town::build(config);
        let held = town.hold();
        let mut later = Later::add(&mut town);
        later.assert_served(&town);
        later.lead_out(&town);
        later.rename(&town);
        later.renumber(&town);
        later.shorten(&town);
        meet_a_firewall(&town);
        lose_the_link(&town);
        for flows in held {
            flows.wait_progress(5 * SECOND);
            assert_eq!(flows.stop().interruptions, Vec::<String>::new());
        }
    }
}
