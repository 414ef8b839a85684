//! A firewall of the node's that drops what pods send or are sent is in the status, with the commands that mend it: by the
//! chains that Docker, ufw and operators make, and packets of pods as witnesses.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use harness::{Agent, Client, Node, NodeSpec, Place, Pod, Probe, Server, World, skip, skip_if, wait_for};
use serde_json::{Value, json};

const SECOND: Duration = Duration::from_secs(1);
/// The agent owes three seconds; this machine may be busy with other tests.
const SOON: Duration = Duration::from_secs(6);

/// Two nodes whose pod network is Millrace's, two pods on the first one and one on the other, and a client outside.
struct Town {
    world: World,
    agents: Vec<Agent>,
    near: Pod,
    web: Pod,
    far: Pod,
    outside: Client,
    _servers: Vec<Server>,
}

impl Town {
    fn build() -> Self {
        let spec = NodeSpec::millrace;
        let world = World::builder().node(spec()).node(spec()).build();
        let outside = world.add_remote_client("outside");
        let agents = world.start_agents();
        let near = world.node(1).add_pod("near");
        let web = world.node(1).add_pod("web");
        let far = world.node(2).add_pod("far");
        let places: [&Place; 3] = [&web, &far, &outside];
        let servers = places.into_iter().flat_map(|place| place.serve(8080));
        let servers = servers.collect();
        let town = Self {
            world,
            agents,
            near,
            web,
            far,
            outside,
            _servers: servers,
        };
        for v4 in [true, false] {
            town.assert_passes(v4, "at first");
        }
        assert_eq!(town.errors(), json!([]));
        town
    }

    fn node(&self) -> &Node {
        self.world.node(1)
    }

    /// Runs `nft` on the node.
    #[track_caller]
    fn nft(&self, line: &str) {
        run(self.node(), "nft", &[line]);
    }

    fn errors(&self) -> Value {
        self.node().cli(&["status"]).expect("a status")["errors"].take()
    }

    /// Waits until just these chains are named, and gives the first message.
    #[track_caller]
    fn wait_named(&self, chains: &[&str]) -> String {
        let started = Instant::now();
        let errors = wait_for(&format!("{chains:?} to be named"), SOON, || {
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

    /// Sees that the agent has looked at what is there now: a chain that it names comes and goes.
    #[track_caller]
    fn assert_not_named(&self) {
        self.nft("add table ip probe");
        self.nft("add chain ip probe entry { type filter hook forward priority 100; policy drop; }");
        self.wait_named(&["ip probe entry"]);
        self.nft("delete table ip probe");
        self.wait_named(&[]);
    }

    /// What pods send outside, to a pod of the node and to another node's.
    fn ways(&self, v4: bool) -> Vec<(&Place, SocketAddr)> {
        let to = |place: &Place| SocketAddr::new(of_family(place.addresses(), v4), 8080);
        vec![
            (&self.near, to(&self.outside)),
            (&self.near, to(&self.web)),
            (&self.near, to(&self.far)),
            (&self.far, to(&self.web)),
        ]
    }

    #[track_caller]
    fn assert_passes(&self, v4: bool, when: &str) {
        for (from, to) in self.ways(v4) {
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
    fn assert_dropped(&self, v4: bool) {
        for (from, to) in self.ways(v4) {
            let answer = from.ask_within(Probe::Udp, to, SECOND / 2);
            assert!(answer.is_err(), "{} to {to}: {answer:?}", from.name());
        }
    }

    /// Runs the commands of a message.
    #[track_caller]
    fn mend(&self, message: &str) {
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
    fn restart(&mut self) {
        self.agents[0].restart();
        self.agents[0].wait_ready(10 * SECOND);
    }
}

fn of_family(addresses: &[IpAddr], v4: bool) -> IpAddr {
    let found = addresses.iter().find(|address| address.is_ipv4() == v4);
    *found.expect("an address of that family")
}

#[track_caller]
fn run(node: &Node, program: &str, arguments: &[&str]) {
    let output = node
        .command(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("running {program}: {error}"));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {error}");
}

/// Whether a program of iptables is there and writes where `nft` does.
fn keeps_rules_in_nftables(program: &str) -> bool {
    let output = std::process::Command::new(program).arg("-V").output();
    output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("nf_tables"))
}

/// What `-I FORWARD -s RANGE -j ACCEPT` is to `nft`.
fn translated(program: &str, words: &[&str]) -> String {
    let ["-I", chain, side, range, "-j", "ACCEPT"] = words else {
        panic!("{program} {words:?}");
    };
    let ip = if program == "iptables" { "ip" } else { "ip6" };
    let side = if *side == "-s" { "saddr" } else { "daddr" };
    format!("insert rule {ip} filter {chain} {ip} {side} {range} accept")
}

#[test]
fn a_forward_chain_that_drops_is_named_until_its_commands_are_run() {
    harness::require_root!();
    skip_if!(skip::no_nft());
    let mut town = Town::build();
    // As Docker leaves it.
    town.nft("add table ip filter");
    town.nft("add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }");
    town.nft("add rule ip filter FORWARD ct state related,established accept");
    town.nft("add rule ip filter FORWARD iifname docker0 counter accept");
    let chain = "ip filter FORWARD";
    let message = town.wait_named(&[chain]);
    let expected = "`iptables -I FORWARD -s 10.244.0.0/22 -j ACCEPT` and `iptables -I FORWARD -d 10.244.0.0/22 -j ACCEPT`";
    assert!(message.contains(expected), "{message}");
    assert!(town.agents[0].log().contains(&message), "it is logged too");
    town.assert_dropped(true);
    town.assert_passes(false, "the other family");
    assert_eq!(town.node().cli(&["status"]).expect("a status")["ready"], true);
    assert_eq!(town.agents[1].cli(&["status"])["errors"], json!([]));

    town.restart();
    assert_eq!(town.wait_named(&[chain]), message);
    town.mend(&message);
    town.wait_named(&[]);
    town.assert_passes(true, "mended");
    town.restart();
    town.assert_not_named();

    // One direction is not enough.
    town.nft("flush chain ip filter FORWARD");
    town.nft("add rule ip filter FORWARD ip saddr 10.244.0.0/16 accept");
    let message = town.wait_named(&[chain]);
    assert!(!message.contains(" -s ") && message.contains(" -d "), "{message}");
    town.nft("add rule ip filter FORWARD oifname \"mr*\" accept");
    town.wait_named(&[]);
    town.assert_passes(true, "by the interface");
    town.nft("flush chain ip filter FORWARD");
    town.wait_named(&[chain]);
    town.nft("delete table ip filter");
    town.wait_named(&[]);
}

/// Its tables are apart from those of nftables.
#[test]
fn a_chain_of_the_legacy_iptables_is_named_until_its_commands_are_run() {
    harness::require_root!();
    skip_if!(skip::no_legacy_iptables());
    let mut town = Town::build();
    for (program, chain, range, v4) in [
        (
            "iptables-legacy",
            "ip filter FORWARD (legacy iptables)",
            "10.244.0.0/16",
            true,
        ),
        (
            "ip6tables-legacy",
            "ip6 filter FORWARD (legacy iptables)",
            "fd00:244::/32",
            false,
        ),
    ] {
        let rules = |town: &Town, rules: &[&str]| {
            for words in rules {
                run(town.node(), program, &words.split(' ').collect::<Vec<_>>());
            }
        };
        // As Docker leaves it.
        rules(
            &town,
            &[
                "-N DOCKER-USER",
                "-A DOCKER-USER -j RETURN",
                "-A FORWARD -j DOCKER-USER",
                "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
                "-A FORWARD -i docker0 ! -o docker0 -j ACCEPT",
                "-A FORWARD -p udp --dport 53 -j ACCEPT",
                "-P FORWARD DROP",
            ],
        );
        let message = town.wait_named(&[chain]);
        assert!(
            message.contains(&format!("`{program} -t filter -I FORWARD -s ")),
            "{message}"
        );
        town.assert_dropped(v4);
        town.restart();
        assert_eq!(town.wait_named(&[chain]), message);
        town.mend(&message);
        town.wait_named(&[]);
        town.assert_passes(v4, "mended");
        // Each way in which rules let pods through, and one that is not enough.
        let (from, to) = (
            format!("-I DOCKER-USER -s {range} -j ACCEPT"),
            format!("-I DOCKER-USER -d {range} -j ACCEPT"),
        );
        let (not_from, not_to) = (
            format!("-I FORWARD ! -s {range} ! -d {range} -j DROP"),
            "-P FORWARD ACCEPT".to_owned(),
        );
        for (more, is_open) in [
            (&[from.as_str()][..], false),
            (&[&from, &to], true),
            (
                &[
                    "-N PODS",
                    "-A PODS -j ACCEPT",
                    "-A FORWARD -i mr+ -g PODS",
                    "-A FORWARD -o mr+ -g PODS",
                ],
                true,
            ),
            (&["-I FORWARD -j REJECT"], false),
            (
                &["-I FORWARD -m conntrack --ctstate NEW,ESTABLISHED -j ACCEPT"],
                true,
            ),
            (
                &["-I FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT"],
                false,
            ),
            (&[&not_from, &not_to], true),
        ] {
            rules(
                &town,
                &[
                    "-F",
                    "-X",
                    "-N DOCKER-USER",
                    "-A FORWARD -j DOCKER-USER",
                    "-P FORWARD DROP",
                ],
            );
            town.wait_named(&[chain]);
            rules(&town, more);
            if is_open {
                town.wait_named(&[]);
                town.assert_passes(v4, &format!("{more:?}"));
            } else {
                std::thread::sleep(2 * SECOND);
                town.wait_named(&[chain]);
            }
        }
        rules(&town, &["-F", "-P FORWARD ACCEPT"]);
        town.wait_named(&[]);
    }
}

#[test]
fn chains_of_ipv6_and_of_both_families_are_named() {
    harness::require_root!();
    skip_if!(skip::no_nft());
    let mut town = Town::build();
    town.nft("add table ip6 filter");
    town.nft("add chain ip6 filter FORWARD { type filter hook forward priority 0; policy drop; }");
    let message = town.wait_named(&["ip6 filter FORWARD"]);
    assert!(
        message.contains("`ip6tables -I FORWARD -s fd00:244::/46 -j ACCEPT`"),
        "{message}"
    );
    town.assert_dropped(false);
    town.assert_passes(true, "the other family");
    town.mend(&message);
    town.wait_named(&[]);
    town.assert_passes(false, "mended");

    // As firewalld has it: a policy that accepts, and a last rule that does not.
    town.nft("add table inet guard");
    town.nft("add chain inet guard forward { type filter hook forward priority 10; policy accept; }");
    town.nft("add rule inet guard forward ct state { established, related } accept");
    town.nft("add rule inet guard forward reject with icmpx type admin-prohibited");
    let message = town.wait_named(&["inet guard forward"]);
    for rule in [
        "ip saddr 10.244.0.0/22",
        "ip daddr 10.244.0.0/22",
        "ip6 saddr fd00:244::/46",
        "ip6 daddr fd00:244::/46",
    ] {
        let command = format!("`nft insert rule inet guard forward {rule} accept`");
        assert!(message.contains(&command), "{message}");
    }
    town.assert_dropped(true);
    town.assert_dropped(false);
    town.restart();
    assert_eq!(town.wait_named(&["inet guard forward"]), message);
    town.mend(&message);
    town.wait_named(&[]);
    for v4 in [true, false] {
        town.assert_passes(v4, "mended");
    }
}

#[test]
fn a_firewall_that_lets_pods_through_is_not_named() {
    harness::require_root!();
    skip_if!(skip::no_nft());
    let mut town = Town::build();
    // As ufw has it: a policy that drops, and chains of the operator's.
    for line in [
        "add table inet firewall",
        "add chain inet firewall user-forward",
        "add chain inet firewall before",
        "add rule inet firewall user-forward ip saddr 10.244.0.0/16 counter accept",
        "add rule inet firewall user-forward ip daddr 10.244.0.0/16 counter accept",
        "add rule inet firewall user-forward ip6 saddr fd00:244::/32 accept",
        "add rule inet firewall user-forward ip6 daddr fd00:244::/32 accept",
        "add rule inet firewall before ct state vmap { established : accept, related : accept, invalid : drop }",
        "add rule inet firewall before counter jump user-forward",
        "add chain inet firewall forward { type filter hook forward priority 0; policy drop; }",
        "add rule inet firewall forward jump before",
        "add rule inet firewall forward log prefix \"blocked\"",
        "add table ip filter",
        "add chain ip filter FORWARD { type filter hook forward priority 5; policy accept; }",
        "add rule ip filter FORWARD tcp dport 25 drop",
        "add set ip filter allowed { type ipv4_addr; flags interval; }",
        "add element ip filter allowed { 10.244.0.0/16 }",
        "add chain ip filter by-set { type filter hook forward priority 6; policy drop; }",
        "add rule ip filter by-set ip saddr @allowed accept",
        "add rule ip filter by-set ip daddr @allowed accept",
        "add chain ip filter entry { type filter hook input priority 0; policy accept; }",
        "add rule ip filter entry ip saddr 203.0.113.1 drop",
    ] {
        town.nft(line);
    }
    town.assert_not_named();
    for v4 in [true, false] {
        town.assert_passes(v4, "beside it");
    }
    town.restart();
    town.assert_not_named();
    // Without the operator's chain it is another matter.
    town.nft("flush chain inet firewall user-forward");
    town.wait_named(&["inet firewall forward"]);
    town.assert_dropped(true);
}

#[test]
fn chains_at_interfaces_of_pods_and_uplinks_are_named() {
    harness::require_root!();
    skip_if!(skip::no_nft());
    let town = Town::build();
    let (pod, chain) = (town.near.host_interface().to_owned(), "netdev guard entry");
    let hook = |device: &str| format!("type filter hook ingress device {device} priority 0;");
    town.nft("add table netdev guard");
    town.nft(&format!(
        "add chain netdev guard entry {{ {} policy drop; }}",
        hook(&pod)
    ));
    let message = town.wait_named(&[chain]);
    assert!(
        message.contains(&format!("what pods send at interface {pod}")),
        "{message}"
    );
    let to = SocketAddr::new(of_family(town.far.addresses(), true), 8080);
    town.near
        .ask_within(Probe::Udp, to, SECOND / 2)
        .expect_err("it is dropped");
    town.mend(&message);
    town.wait_named(&[]);
    town.assert_passes(true, "mended");
    town.nft("delete table netdev guard");

    town.nft("add table netdev guard");
    town.nft(&format!(
        "add chain netdev guard entry {{ {} policy accept; }}",
        hook("eth0")
    ));
    town.nft("add rule netdev guard entry ip saddr 203.0.113.0/24 drop");
    town.nft("add rule netdev guard entry udp dport 9 drop");
    town.assert_not_named();
    town.nft("add rule netdev guard entry ip daddr 10.244.0.0/16 drop");
    let message = town.wait_named(&[chain]);
    assert!(
        message.contains("what pods are sent at interface eth0"),
        "{message}"
    );
    town.mend(&message);
    town.wait_named(&[]);
    town.assert_passes(true, "mended at the uplink");
    // What leads nowhere that pods are is another's business.
    town.nft("delete table netdev guard");
    town.nft("add table netdev guard");
    town.nft(&format!(
        "add chain netdev guard entry {{ {} policy drop; }}",
        hook("lo")
    ));
    town.assert_not_named();
}

#[test]
fn beside_another_pod_network_its_interfaces_count() {
    harness::require_root!();
    skip_if!(skip::no_nft());
    for (spec, interfaces) in [(NodeSpec::routed(), "veth*"), (NodeSpec::bridged(), "cni0")] {
        let world = World::builder().node(spec).build();
        let node = world.node(1);
        let agents = world.start_agents();
        let _pods = ["one", "two"].map(|name| node.add_pod(name));
        let wait_named = |is_named: bool| {
            wait_for(&format!("it to be named: {is_named}"), SOON, || {
                let errors = agents[0].cli(&["status"])["errors"].take();
                let found = errors.to_string().contains("chain ip filter FORWARD");
                if found == is_named { Ok(()) } else { Err(errors) }
            });
        };
        let nft = |line: &str| run(node, "nft", &[line]);
        nft("add table ip filter");
        nft("add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }");
        wait_named(true);
        nft(&format!("add rule ip filter FORWARD iifname {interfaces} accept"));
        nft(&format!("add rule ip filter FORWARD oifname {interfaces} accept"));
        wait_named(false);
        nft("flush chain ip filter FORWARD");
        wait_named(true);
    }
}
