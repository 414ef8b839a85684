//! Tests with the plans of small clusters.

use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn net(text: &str) -> IpNet {
    text.parse().expect("a range")
}

fn peer(name: &str, addresses: &[&str], pod_cidrs: &[&str]) -> Peer {
    Peer {
        name: name.into(),
        addresses: addresses.iter().map(|text| ip(text)).collect(),
        pod_cidrs: pod_cidrs.iter().map(|text| net(text)).collect(),
        tunnel_mac: None,
    }
}

/// `a` is this node, `b` is on its link, and `c` is behind a router.
fn situation(mode: RoutingMode) -> Situation {
    Situation {
        mode,
        own: peer(
            "a",
            &["192.0.2.1", "2001:db8::1"],
            &["10.1.0.0/24", "fd00:1::/64"],
        ),
        peers: vec![
            peer(
                "b",
                &["192.0.2.2", "2001:db8::2"],
                &["10.2.0.0/24", "fd00:2::/64"],
            ),
            peer(
                "c",
                &["198.51.100.3", "2001:db8:c::3"],
                &["10.3.0.0/24", "fd00:3::/64"],
            ),
        ],
        subnets: vec![(2, net("192.0.2.1/24")), (2, net("2001:db8::1/64"))],
        underlay_mtu: 1500,
        ..Situation::default()
    }
}

fn direct(via: &str) -> Hop {
    let (via, interface) = (ip(via), 2);
    Hop::Direct { via, interface }
}

fn tunnel(via: &str) -> Hop {
    Hop::Tunnel { via: ip(via) }
}

fn routes<const N: usize>(routes: [(&str, Hop); N]) -> BTreeMap<IpNet, Hop> {
    routes.map(|(range, hop)| (net(range), hop)).into()
}

#[test]
fn neighbours_are_reached_directly_and_others_by_the_tunnel() {
    let plan = plan(&situation(RoutingMode::Auto));
    assert_eq!(
        plan.routes,
        routes([
            ("10.1.0.0/24", Hop::Nowhere),
            ("fd00:1::/64", Hop::Nowhere),
            ("10.2.0.0/24", direct("192.0.2.2")),
            ("fd00:2::/64", direct("2001:db8::2")),
            ("10.3.0.0/24", tunnel("10.3.0.0")),
            ("fd00:3::/64", tunnel("fd00:3::")),
        ])
    );
    assert_eq!(
        plan.modes,
        [
            ("b".into(), DeliveryMode::Direct),
            ("c".into(), DeliveryMode::Vxlan)
        ]
        .into()
    );
    let ends = vec![ip("10.3.0.0"), ip("fd00:3::")];
    assert_eq!(
        plan.tunnel,
        Some(TunnelPlan {
            vxlan: Vxlan::default(),
            local: ip("192.0.2.1"),
            mac: [0x0a, 0x6d, 192, 0, 2, 1],
            mtu: 1450,
            addresses: vec![ip("10.1.0.0"), ip("fd00:1::")],
            ends: [([0x0a, 0x6d, 198, 51, 100, 3], (ip("198.51.100.3"), ends))].into(),
        })
    );
    assert_eq!((plan.pod_mtu, plan.problems), (1450, vec![]));
}

#[test]
fn a_configured_mode_applies_to_all_peers() {
    let plan_of = |mode| plan(&situation(mode));
    let vxlan = plan_of(RoutingMode::Vxlan);
    assert!(vxlan.modes.values().all(|mode| *mode == DeliveryMode::Vxlan));
    assert_eq!(vxlan.tunnel.map(|tunnel| tunnel.ends.len()), Some(2));
    let straight = plan_of(RoutingMode::Direct);
    assert!(straight.modes.values().all(|mode| *mode == DeliveryMode::Direct));
    assert_eq!((straight.tunnel, straight.pod_mtu), (None, 1500));
    assert!(
        !straight.routes.contains_key(&net("10.3.0.0/24")),
        "left to the network"
    );
    assert_eq!(straight.problems, []);
}

#[test]
fn a_family_without_an_address_on_a_link_is_reached_by_the_tunnel_alone() {
    let mut theirs = situation(RoutingMode::Auto);
    theirs.peers[0].addresses.pop();
    let mut ours = situation(RoutingMode::Auto);
    ours.subnets.pop();
    for situation in [theirs, ours] {
        let plan = plan(&situation);
        assert_eq!(plan.modes["b"], DeliveryMode::Vxlan);
        assert_eq!(plan.routes[&net("10.2.0.0/24")], direct("192.0.2.2"));
        assert_eq!(plan.routes[&net("fd00:2::/64")], tunnel("fd00:2::"));
        assert_eq!(plan.tunnelled().filter(|range| range.addr().is_ipv4()).count(), 1);
        assert_eq!(plan.problems, []);
    }
}

#[test]
fn a_node_that_reaches_all_others_directly_can_be_sent_to_through_the_tunnel() {
    let mut situation = situation(RoutingMode::Auto);
    situation.peers.pop();
    let plan_of = |situation: &Situation| plan(situation).tunnel.map(|tunnel| tunnel.ends.len());
    assert_eq!(
        plan(&situation).modes,
        [("b".into(), DeliveryMode::Direct)].into()
    );
    assert_eq!(plan_of(&situation), Some(0));
    situation.mode = RoutingMode::Direct;
    assert_eq!(plan_of(&situation), None);
    situation.mode = RoutingMode::Auto;
    situation.peers.clear();
    assert_eq!(plan_of(&situation), None, "no other node");
}

#[test]
fn without_ipv4_the_tunnel_goes_over_ipv6() {
    let mut situation = situation(RoutingMode::Vxlan);
    for peer in situation.peers.iter_mut().chain([&mut situation.own]) {
        peer.addresses.remove(0);
        peer.pod_cidrs.remove(0);
    }
    let plan = plan(&situation);
    let tunnel = plan.tunnel.expect("a tunnel");
    assert_eq!((tunnel.local, tunnel.mtu), (ip("2001:db8::1"), 1430));
    assert_eq!(tunnel.addresses, [ip("fd00:1::")]);
    assert_eq!(tunnel.mac, tunnel_mac(ip("2001:db8::1")));
    assert_eq!(tunnel.mac[0] & 3, 2, "locally administered, one station");
    assert_eq!(tunnel.ends.len(), 2);
}

#[test]
fn an_annotation_has_the_mac_address() {
    let mut situation = situation(RoutingMode::Auto);
    situation.peers[1].tunnel_mac = Some([2, 0, 0, 0, 0, 3]);
    situation.own.tunnel_mac = Some([2, 0, 0, 0, 0, 1]);
    let tunnel = plan(&situation).tunnel.expect("a tunnel");
    assert_eq!(tunnel.mac, [2, 0, 0, 0, 0, 1]);
    assert!(tunnel.ends.contains_key(&[2, 0, 0, 0, 0, 3]));
}

#[test]
fn what_cannot_be_reached_is_reported_and_the_rest_is() {
    let mut situation = situation(RoutingMode::Auto);
    situation.peers.extend([
        peer("d", &["2001:db8:d::4"], &["10.4.0.0/24"]),
        peer("e", &["192.0.2.5"], &["10.2.0.0/24"]),
        peer("f", &["198.51.100.6"], &[]),
        peer("g", &["198.51.100.3"], &["10.7.0.0/24"]),
    ]);
    let plan = plan(&situation);
    let problems: Vec<_> = plan
        .problems
        .iter()
        .map(|problem| format!("{}: {}", problem.object, problem.message))
        .collect();
    assert_eq!(
        problems,
        [
            "node d: its pods are not reached: the tunnel goes over IPv4, and it has no such address",
            "node e: its pod range 10.2.0.0/24 is another node's too, which keeps it",
            "node g: its pods are not reached: another node's end of the tunnel has its MAC address 0a:6d:c6:33:64:03",
        ]
    );
    assert_eq!(plan.modes.len(), 3, "{:?}", plan.modes);
    assert_eq!(plan.routes[&net("10.2.0.0/24")], direct("192.0.2.2"));

    situation.own.pod_cidrs.clear();
    let plan = super::plan(&situation);
    assert_eq!(plan.tunnel, None, "it would have no address");
    assert_eq!(
        plan.routes.len(),
        2,
        "neighbours are reached all the same: {plan:?}"
    );
}
