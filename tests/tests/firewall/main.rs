//! A firewall of the node may drop packets from or to pods. The status then names the chain, with the
//! commands that mend it. The tests use the chains that Docker, ufw and operators make, and check the effect
//! with packets of pods.

mod topology;

use std::net::SocketAddr;

use harness::config::DEFAULTS;
use harness::{Endpoint, NodeSpec, Probe, Service, World, address, skip, skip_if, wait_for};
use serde_json::json;

use topology::{NAMED, SECOND, SOON, Topology, of_family, run};

#[test]
fn a_forward_chain_that_drops_is_named_until_its_commands_are_run() {
    harness::require_root!();
    skip_if!(skip::no_nft());
    let mut topology = Topology::build();
    // The chain of Docker.
    topology.nft("add table ip filter");
    topology.nft("add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }");
    topology.nft("add rule ip filter FORWARD ct state related,established accept");
    topology.nft("add rule ip filter FORWARD iifname docker0 counter accept");
    let chain = "ip filter FORWARD";
    let message = topology.wait_named(&[chain]);
    let expected = "`iptables -I FORWARD -s 10.244.0.0/22 -j ACCEPT` and `iptables -I FORWARD -d 10.244.0.0/22 -j ACCEPT`";
    assert!(message.contains(expected), "{message}");
    assert!(topology.agents[0].log().contains(&message), "it is logged too");
    topology.assert_dropped(true);
    topology.assert_passes(false, "the other family");
    assert_eq!(topology.node().cli(&["status"]).expect("a status")["ready"], true);
    assert_eq!(topology.agents[1].cli(&["status"])["errors"], json!([]));

    assert_eq!(topology.restart_named(&[chain]), message);
    topology.run_commands_of(&message);
    topology.wait_named(&[]);
    topology.assert_passes(true, "after the commands");
    topology.restart();
    topology.assert_not_named();

    // One direction is not enough.
    topology.nft("flush chain ip filter FORWARD");
    topology.nft("add rule ip filter FORWARD ip saddr 10.244.0.0/16 accept");
    let message = topology.wait_named(&[chain]);
    assert!(!message.contains(" -s ") && message.contains(" -d "), "{message}");
    topology.nft("add rule ip filter FORWARD oifname \"mr*\" accept");
    topology.wait_named(&[]);
    topology.assert_passes(true, "by the interface");
    topology.nft("flush chain ip filter FORWARD");
    topology.wait_named(&[chain]);
    topology.nft("delete table ip filter");
    topology.wait_named(&[]);
}

/// With `hostRouting: redirect`, packets between pods of the node bypass the chain. All other packets of pods
/// pass it.
#[test]
fn a_forward_chain_that_pods_of_the_node_bypass_is_named_too() {
    harness::require_root!();
    skip_if!(skip::no_nft());
    let mut topology = Topology::build_with(&format!("{DEFAULTS}hostRouting: redirect\n"));
    let service = Service::web();
    topology.world.apply(&service);
    topology
        .world
        .apply_all(service.slices([Endpoint::of(&topology.web)]));
    let cluster_ip = address("10.96.0.10:80");
    let direct = SocketAddr::new(of_family(topology.web.addresses(), true), 8080);
    let assert_within_node = |topology: &Topology, when: &str| {
        for to in [direct, cluster_ip] {
            for probe in Probe::ALL {
                let what = format!("{when}: pod to {to} by {probe:?}");
                wait_for(&what, SOON, || topology.near.ask_within(probe, to, SECOND));
            }
        }
    };
    assert_within_node(&topology, "at first");

    topology.nft("add table ip filter");
    topology.nft("add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }");
    let chain = "ip filter FORWARD";
    let message = topology.wait_named(&[chain]);
    assert_within_node(&topology, "past the chain");
    for (from, to) in topology.paths(true) {
        if from.name() == topology.near.name() && to == direct {
            continue;
        }
        for probe in [Probe::Tcp, Probe::Udp] {
            let reply = from.ask_within(probe, to, SECOND / 2);
            assert!(reply.is_err(), "{} to {to} by {probe:?}: {reply:?}", from.name());
        }
    }
    topology.assert_passes(false, "the other family");
    topology.restart();
    assert_eq!(topology.wait_named(&[chain]), message);
    topology.run_commands_of(&message);
    topology.wait_named(&[]);
    topology.assert_passes(true, "after the commands");
}

/// The tables of the legacy iptables are separate from those of nftables.
#[test]
fn a_chain_of_the_legacy_iptables_is_named_until_its_commands_are_run() {
    harness::require_root!();
    skip_if!(skip::no_legacy_iptables());
    let mut topology = Topology::build();
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
        let rules = |topology: &Topology, rules: &[&str]| {
            for words in rules {
                run(topology.node(), program, &words.split(' ').collect::<Vec<_>>());
            }
        };
        // The rules of Docker.
        rules(
            &topology,
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
        let message = topology.wait_named(&[chain]);
        assert!(
            message.contains(&format!("`{program} -t filter -I FORWARD -s ")),
            "{message}"
        );
        topology.assert_dropped(v4);
        assert_eq!(topology.restart_named(&[chain]), message);
        topology.run_commands_of(&message);
        topology.wait_named(&[]);
        topology.assert_passes(v4, "after the commands");
        // Each set of rules that lets packets of pods pass, and one set that is not enough.
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
                &topology,
                &[
                    "-F",
                    "-X",
                    "-N DOCKER-USER",
                    "-A FORWARD -j DOCKER-USER",
                    "-P FORWARD DROP",
                ],
            );
            topology.wait_named(&[chain]);
            rules(&topology, more);
            if is_open {
                topology.wait_named(&[]);
                topology.assert_passes(v4, &format!("{more:?}"));
            } else {
                std::thread::sleep(2 * SECOND);
                topology.wait_named(&[chain]);
            }
        }
        rules(&topology, &["-F", "-P FORWARD ACCEPT"]);
        topology.wait_named(&[]);
    }
}

#[test]
fn chains_of_ipv6_and_of_both_families_are_named() {
    harness::require_root!();
    skip_if!(skip::no_nft());
    let mut topology = Topology::build();
    topology.nft("add table ip6 filter");
    topology.nft("add chain ip6 filter FORWARD { type filter hook forward priority 0; policy drop; }");
    let message = topology.wait_named(&["ip6 filter FORWARD"]);
    assert!(
        message.contains("`ip6tables -I FORWARD -s fd00:244::/46 -j ACCEPT`"),
        "{message}"
    );
    topology.assert_dropped(false);
    topology.assert_passes(true, "the other family");
    topology.run_commands_of(&message);
    topology.wait_named(&[]);
    topology.assert_passes(false, "after the commands");

    // The chain of firewalld: a policy that accepts, and a last rule that does not.
    topology.nft("add table inet guard");
    topology.nft("add chain inet guard forward { type filter hook forward priority 10; policy accept; }");
    topology.nft("add rule inet guard forward ct state { established, related } accept");
    topology.nft("add rule inet guard forward reject with icmpx type admin-prohibited");
    let message = topology.wait_named(&["inet guard forward"]);
    for rule in [
        "ip saddr 10.244.0.0/22",
        "ip daddr 10.244.0.0/22",
        "ip6 saddr fd00:244::/46",
        "ip6 daddr fd00:244::/46",
    ] {
        let command = format!("`nft insert rule inet guard forward {rule} accept`");
        assert!(message.contains(&command), "{message}");
    }
    topology.assert_dropped(true);
    topology.assert_dropped(false);
    assert_eq!(topology.restart_named(&["inet guard forward"]), message);
    topology.run_commands_of(&message);
    topology.wait_named(&[]);
    for v4 in [true, false] {
        topology.assert_passes(v4, "after the commands");
    }
}

#[test]
fn a_firewall_that_lets_pods_through_is_not_named() {
    harness::require_root!();
    skip_if!(skip::no_nft());
    let mut topology = Topology::build();
    // The chain of ufw: a policy that drops, and chains of the operator.
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
        topology.nft(line);
    }
    topology.assert_not_named();
    for v4 in [true, false] {
        topology.assert_passes(v4, "beside it");
    }
    topology.restart();
    topology.assert_not_named();
    // Without the rules of the operator's chain the packets of pods are dropped.
    topology.nft("flush chain inet firewall user-forward");
    topology.wait_named(&["inet firewall forward"]);
    topology.assert_dropped(true);
}

#[test]
fn chains_at_interfaces_of_pods_and_uplinks_are_named() {
    harness::require_root!();
    skip_if!(skip::no_nft());
    let topology = Topology::build();
    let (pod, chain) = (topology.near.host_interface().to_owned(), "netdev guard entry");
    let hook = |device: &str| format!("type filter hook ingress device {device} priority 0;");
    topology.nft("add table netdev guard");
    topology.nft(&format!(
        "add chain netdev guard entry {{ {} policy drop; }}",
        hook(&pod)
    ));
    let message = topology.wait_named(&[chain]);
    assert!(
        message.contains(&format!("what pods send at interface {pod}")),
        "{message}"
    );
    let to = SocketAddr::new(of_family(topology.far.addresses(), true), 8080);
    topology
        .near
        .ask_within(Probe::Udp, to, SECOND / 2)
        .expect_err("it is dropped");
    topology.run_commands_of(&message);
    topology.wait_named(&[]);
    topology.assert_passes(true, "after the commands");
    topology.nft("delete table netdev guard");

    topology.nft("add table netdev guard");
    topology.nft(&format!(
        "add chain netdev guard entry {{ {} policy accept; }}",
        hook("eth0")
    ));
    topology.nft("add rule netdev guard entry ip saddr 203.0.113.0/24 drop");
    topology.nft("add rule netdev guard entry udp dport 9 drop");
    topology.assert_not_named();
    topology.nft("add rule netdev guard entry ip daddr 10.244.0.0/16 drop");
    let message = topology.wait_named(&[chain]);
    assert!(
        message.contains("what pods are sent at interface eth0"),
        "{message}"
    );
    topology.run_commands_of(&message);
    topology.wait_named(&[]);
    topology.assert_passes(true, "after the commands at the uplink");
    // A chain on an interface that leads to no pods is not reported.
    topology.nft("delete table netdev guard");
    topology.nft("add table netdev guard");
    topology.nft(&format!(
        "add chain netdev guard entry {{ {} policy drop; }}",
        hook("lo")
    ));
    topology.assert_not_named();
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
            wait_for(&format!("it to be named: {is_named}"), NAMED, || {
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
