//! Two nodes, their pods and a client outside, with rules of a firewall on the first node.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use harness::config::DEFAULTS;
use harness::{Agent, Client, Node, NodeSpec, Place, Pod, Probe, Server, World, wait_for};
use serde_json::{Value, json};

pub const SECOND: Duration = Duration::from_secs(1);
/// The time limit until the status names a change.
pub const NAMED: Duration = Duration::from_secs(3);
/// The time limit after a start of the agent, and until packets pass.
pub const SOON: Duration = Duration::from_secs(6);

/// Two nodes whose pod network is Millrace's, two pods on the first one and one on the other, and a client
/// outside.
pub struct Topology {
    pub world: World,
    pub agents: Vec<Agent>,
    pub near: Pod,
    pub web: Pod,
    pub far: Pod,
    pub outside: Client,
    _servers: Vec<Server>,
}

impl Topology {
    pub fn build() -> Self {
        Self::build_with(DEFAULTS)
    }

    /// The same with agents that read a configuration file of this content.
    pub fn build_with(config: &str) -> Self {
        let spec = NodeSpec::millrace;
        let world = World::builder().node(spec()).node(spec()).build();
        let outside = world.add_remote_client("outside");
        let agents = world.start_agents_with(config);
        let near = world.node(1).add_pod("near");
        let web = world.node(1).add_pod("web");
        let far = world.node(2).add_pod("far");
        let places: [&Place; 3] = [&web, &far, &outside];
        let servers = places.into_iter().flat_map(|place| place.serve(8080));
        let servers = servers.collect();
        let topology = Self {
            world,
            agents,
            near,
            web,
            far,
            outside,
            _servers: servers,
        };
        for v4 in [true, false] {
            topology.assert_passes(v4, "at first");
        }
        assert_eq!(topology.errors(), json!([]));
        topology
    }

    pub fn node(&self) -> &Node {
        self.world.node(1)
    }

    /// Runs `nft` on the node.
    #[track_caller]
    pub fn nft(&self, line: &str) {
        run(self.node(), "nft", &[line]);
    }

    pub fn errors(&self) -> Value {
        self.node().cli(&["status"]).expect("a status")["errors"].take()
    }

    /// Waits after a change until the status names exactly these chains, and returns the first message.
    #[track_caller]
    pub fn wait_named(&self, chains: &[&str]) -> String {
        self.wait_named_within(NAMED, chains)
    }

    /// Starts the agent again, and waits until the status names exactly these chains. Returns the first
    /// message.
    #[track_caller]
    pub fn restart_named(&mut self, chains: &[&str]) -> String {
        self.restart();
        self.wait_named_within(SOON, chains)
    }

    #[track_caller]
    fn wait_named_within(&self, limit: Duration, chains: &[&str]) -> String {
        let started = Instant::now();
        let errors = wait_for(&format!("{chains:?} to be named"), limit, || {
            let errors = self.errors();
            let named = errors
                .as_array()
                .into_iter()
                .flatten()
                .map(|error| &error["object"]);
            let expected: Vec<_> = chains
                .iter()
                .map(|chain| json!(format!("chain {chain}")))
                .collect();
            if named.eq(&expected) {
                Ok(errors)
            } else {
                Err(errors)
            }
        });
        println!("{chains:?} after {:?}", started.elapsed());
        errors[0]["message"].as_str().unwrap_or_default().to_owned()
    }

    /// Makes sure that the agent has checked the current rules: another chain is named when it is added and
    /// not after its removal.
    #[track_caller]
    pub fn assert_not_named(&self) {
        self.nft("add table ip probe");
        self.nft("add chain ip probe entry { type filter hook forward priority 100; policy drop; }");
        self.wait_named(&["ip probe entry"]);
        self.nft("delete table ip probe");
        self.wait_named(&[]);
    }

    /// The connections of pods: to the outside, to a pod of the node and to a pod of another node.
    pub fn paths(&self, v4: bool) -> Vec<(&Place, SocketAddr)> {
        let to = |place: &Place| SocketAddr::new(of_family(place.addresses(), v4), 8080);
        vec![
            (&self.near, to(&self.outside)),
            (&self.near, to(&self.web)),
            (&self.near, to(&self.far)),
            (&self.far, to(&self.web)),
        ]
    }

    #[track_caller]
    pub fn assert_passes(&self, v4: bool, when: &str) {
        for (from, to) in self.paths(v4) {
            for probe in [Probe::Tcp, Probe::Udp] {
                wait_for(
                    &format!("{when}: {} to {to} by {probe:?}", from.name()),
                    SOON,
                    || from.ask_within(probe, to, SECOND),
                );
            }
        }
    }

    #[track_caller]
    pub fn assert_dropped(&self, v4: bool) {
        for (from, to) in self.paths(v4) {
            let reply = from.ask_within(Probe::Udp, to, SECOND / 2);
            assert!(reply.is_err(), "{} to {to}: {reply:?}", from.name());
        }
    }

    /// Runs the commands of a message.
    #[track_caller]
    pub fn run_commands_of(&self, message: &str) {
        let commands: Vec<_> = message.split('`').skip(1).step_by(2).collect();
        assert!(!commands.is_empty(), "{message}");
        for command in commands {
            let mut words: Vec<_> = command.split(' ').collect();
            let program = words.remove(0);
            if program == "nft" || program.ends_with("-legacy") || keeps_rules_in_nftables(program) {
                run(self.node(), program, &words);
            } else {
                self.nft(&translated(program, &words));
            }
        }
    }

    #[track_caller]
    pub fn restart(&mut self) {
        self.agents[0].restart();
        self.agents[0].wait_ready(10 * SECOND);
    }
}

pub fn of_family(addresses: &[IpAddr], v4: bool) -> IpAddr {
    let found = addresses.iter().find(|address| address.is_ipv4() == v4);
    *found.expect("an address of that family")
}

#[track_caller]
pub fn run(node: &Node, program: &str, arguments: &[&str]) {
    let output = node
        .command(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("running {program}: {error}"));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {error}");
}

/// Whether a program of iptables exists and writes to nftables.
pub fn keeps_rules_in_nftables(program: &str) -> bool {
    let output = std::process::Command::new(program).arg("-V").output();
    output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("nf_tables"))
}

/// The `nft` command for `-I FORWARD -s RANGE -j ACCEPT`.
pub fn translated(program: &str, words: &[&str]) -> String {
    let ["-I", chain, side, range, "-j", "ACCEPT"] = words else {
        panic!("{program} {words:?}");
    };
    let ip = if program == "iptables" { "ip" } else { "ip6" };
    let side = if *side == "-s" { "saddr" } else { "daddr" };
    format!("insert rule {ip} filter {chain} {ip} {side} {range} accept")
}
