//! Frames and packets that may enter, and those that may not.

use super::*;
use crate::Port;
use crate::decide::testing::{Fake, ip, packet};
use crate::maps::{AddressFlags, HostPort, HostPortKey};

#[test]
fn an_uplink_takes_untagged_frames_that_are_addressed_to_it() {
    let frame = |vlan, ether_type, is_for_other| {
        by_uplink(Frame {
            ether_type,
            vlan,
            is_for_other,
        })
    };
    for kind in [ether_type::IPV4, ether_type::IPV6] {
        assert_eq!(frame(Frame::UNTAGGED, kind, false), Ok(()));
        assert_eq!(frame(0, kind, false), Ok(()), "a priority tag");
        assert_eq!(frame(100, kind, false), Err(Reason::Tagged));
        assert_eq!(frame(Frame::UNTAGGED, kind, true), Err(Reason::OtherHost));
    }
    for kind in [ether_type::VLAN, ether_type::SERVICE_VLAN] {
        assert_eq!(frame(0, kind, false), Err(Reason::Retagged));
        assert_eq!(
            frame(5, kind, false),
            Err(Reason::Tagged),
            "that of another device"
        );
    }
    assert!(Reason::Retagged.is_drop() && !Reason::Tagged.is_drop() && !Reason::OtherHost.is_drop());
}

#[test]
fn sources_that_only_this_node_gives_out_come_by_no_uplink() {
    let mut fake = Fake::node();
    fake.config.own_range[0] = ip("10.244.1.0");
    fake.config.own_mask[0] = ip("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ff00");
    fake.config.node_v6 = ip("fd00:50::11");
    fake.config.tunnel_v4 = ip("10.244.1.0");
    fake.config.broadcasts[1] = ip("192.168.50.255").v4_word();
    fake.config.flags |= ConfigFlags::VIPS_OUTSIDE_RANGES | ConfigFlags::MORE_NODE_ADDRESSES;
    for (address, flags) in [
        ("203.0.113.10", AddressFlags::VIRTUAL),
        ("192.168.60.11", AddressFlags::NODE),
        ("192.168.50.12", AddressFlags::PEER),
    ] {
        fake.addresses.insert(ip(address), AddressFlags(flags));
    }
    let forged = |entry, source| {
        let to = if ip(source).is_v4() {
            "203.0.113.10"
        } else {
            "fd00:96::1"
        };
        let ctx = PacketContext::new(packet(protocol::UDP, (source, 5000), (to, 7)));
        is_forged(&fake, &fake.config, &ctx, entry)
    };
    for source in [
        "127.0.0.1",
        "0.0.0.0",
        "0.0.0.7",
        "255.255.255.255",
        "224.0.0.1",
        "240.0.0.1",
        "10.96.3.4",
        "203.0.113.10",
        "192.168.50.11",
        "192.168.60.11",
        "10.244.1.7",
        "10.244.1.0",
        "169.254.1.1",
        "192.168.50.255",
        "::",
        "::1",
        "ff02::1",
        "fd00:50::11",
    ] {
        assert!(forged(Entry::Uplink, source), "{source}");
        assert!(!forged(Entry::Host, source), "{source} of the node itself");
    }
    for source in [
        "192.168.50.12",
        "10.244.2.7",
        "172.31.0.5",
        "169.254.7.7",
        "fe80::7",
        "2001:db8::7",
    ] {
        assert!(!forged(Entry::Uplink, source), "{source}");
    }
    let mut by_route = Fake::node();
    by_route.config.flags |= ConfigFlags::LOCAL_RANGES;
    by_route
        .ranges
        .insert(ip("198.51.100.7"), RangeFlags(RangeFlags::LOCAL));
    for (source, is_refused) in [("198.51.100.7", true), ("198.51.100.8", false)] {
        let mut ctx = PacketContext::new(packet(protocol::UDP, (source, 5000), ("203.0.113.10", 7)));
        assert_eq!(
            is_forged(&by_route, &by_route.config, &ctx, Entry::Uplink),
            is_refused
        );
        ctx.arrived_by = 5;
        assert_eq!(
            is_forged(&by_route, &by_route.config, &ctx, Entry::Host),
            is_refused
        );
    }
    assert!(forged(Entry::Pod, "10.96.3.4") && !forged(Entry::Pod, "10.244.1.7"));
    assert!(forged(Entry::Pod, "203.0.113.10"), "a pod of another plugin");
    // A packet that came by an interface without programs.
    let forwarded = |source| {
        let mut ctx = PacketContext::new(packet(protocol::UDP, (source, 5000), ("203.0.113.10", 7)));
        ctx.arrived_by = 5;
        is_forged(&fake, &fake.config, &ctx, Entry::Host)
    };
    for source in [
        "10.96.3.4",
        "203.0.113.10",
        "192.168.50.11",
        "127.0.0.1",
        "0.0.0.0",
        "10.244.1.7",
    ] {
        assert!(forwarded(source), "{source}");
    }
    assert!(!forwarded("172.31.0.5") && !forwarded("10.244.2.7"));
}

#[test]
fn a_tunnelled_pod_is_a_source_in_the_tunnel_only() {
    const TUNNEL: u32 = 9;
    let mut fake = Fake::node();
    fake.config.tunnel_device = TUNNEL;
    fake.config.around_pods[0] = ip("10.244.0.0");
    fake.config.around_pods_mask[0] = ip("ffff:ffff:ffff:ffff:ffff:ffff:ffff:0");
    fake.ranges.insert(
        ip("10.244.2.2"),
        RangeFlags(RangeFlags::PODS | RangeFlags::TUNNEL),
    );
    fake.ranges.insert(ip("10.244.3.3"), RangeFlags(RangeFlags::PODS));
    let forged = |fake: &Fake, source, interface| {
        let mut ctx = PacketContext::new(packet(protocol::UDP, (source, 5000), ("10.244.1.10", 7)));
        ctx.interface = interface;
        is_forged(fake, &fake.config, &ctx, Entry::Uplink)
    };
    assert!(
        !forged(&fake, "10.244.2.2", 2),
        "nodes may disagree about the way"
    );
    fake.config.flags |= ConfigFlags::TUNNEL_ONLY;
    assert!(forged(&fake, "10.244.2.2", 2) && !forged(&fake, "10.244.2.2", TUNNEL));
    assert!(!forged(&fake, "10.244.3.3", 2) && !forged(&fake, "172.31.0.5", 2));
}

/// A node with two addresses, node ports 30080 and 30081, a balancer on port 5060 of its address, a host port
/// 61500 at the second address, and an NTP service. 192.168.50.12 is another node.
fn between_nodes() -> Fake {
    let mut fake = Fake::node();
    fake.config.on_link_range[0] = ip("192.168.50.0");
    fake.config.on_link_mask[0] = ip("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ff00");
    fake.config.flags |= ConfigFlags::MORE_NODE_ADDRESSES;
    for (address, port, kind) in [
        ("192.168.50.11", 30_080, FrontendKind::NodePort),
        ("192.168.50.211", 30_081, FrontendKind::NodePort),
        ("192.168.50.11", 5060, FrontendKind::LoadBalancer),
        ("192.168.50.12", 500, FrontendKind::ExternalIp),
        ("203.0.113.10", 123, FrontendKind::LoadBalancer),
    ] {
        let key = fake.service(address, port, protocol::UDP, &[("10.244.2.2", 7)]);
        let frontend = fake.frontends.get_mut(&key).unwrap();
        frontend.flags = FrontendFlags::of_kind(kind);
    }
    // A service at a node's address makes it virtual, too.
    let flags = [
        ("192.168.50.11", AddressFlags::NODE),
        ("192.168.50.211", AddressFlags::NODE),
        ("192.168.50.12", AddressFlags::PEER),
    ];
    for (address, flags) in flags {
        fake.addresses
            .insert(ip(address), AddressFlags(flags | AddressFlags::VIRTUAL));
    }
    for port in [7, 61_500] {
        let key = HostPortKey {
            address: ip("192.168.50.211"),
            port: Port::new(port),
            protocol: protocol::UDP,
            reserved: 0,
        };
        let target = HostPort {
            pod: ip("10.244.1.7"),
            port: Port::new(80),
            reserved: [0; 2],
            interface: 7,
            generation: 1,
        };
        fake.host_ports.insert(key, target);
    }
    fake
}

fn loops(fake: &Fake, from: (&str, u16), to: (&str, u16)) -> bool {
    let headers = packet(protocol::UDP, from, to);
    is_loop(fake, &fake.config, &headers, Entry::Uplink)
}

const NODE: &str = "192.168.50.11";
const OTHER_ADDRESS: &str = "192.168.50.211";
const PEER: &str = "192.168.50.12";
const HOST: &str = "192.168.50.212";

#[test]
fn a_datagram_from_a_node_port_of_a_host_on_the_link_begins_no_loop() {
    let fake = between_nodes();
    assert!(loops(&fake, (PEER, 30_080), (NODE, 30_080)));
    assert!(loops(&fake, (HOST, 30_080), (NODE, 30_080)), "of no Node object");
    assert!(loops(&fake, (HOST, 30_081), (OTHER_ADDRESS, 30_080)));
    assert!(loops(&fake, (HOST, 30_080), ("203.0.113.10", 123)));
    assert!(!loops(&fake, (HOST, 40_000), (NODE, 30_080)));
    assert!(
        !loops(&fake, ("172.31.0.5", 30_080), (NODE, 30_080)),
        "behind a router"
    );
}

#[test]
fn a_client_may_ask_from_the_port_of_the_service() {
    let fake = between_nodes();
    for client in [HOST, PEER] {
        assert!(!loops(&fake, (client, 123), ("203.0.113.10", 123)), "{client}");
    }
    // A host that is no node asks a service at the node's own address.
    assert!(!loops(&fake, (HOST, 5060), (NODE, 5060)));
    assert!(!loops(&fake, (HOST, 5060), ("203.0.113.10", 123)));
    assert!(!loops(&fake, (HOST, 7), (OTHER_ADDRESS, 7)));
}

#[test]
fn ports_of_services_at_addresses_of_two_nodes_lead_on() {
    let fake = between_nodes();
    assert!(loops(&fake, (PEER, 5060), (NODE, 5060)));
    assert!(
        loops(&fake, (PEER, 500), (NODE, 5060)),
        "at the other node's address"
    );
}

#[test]
fn host_ports_of_one_number_lead_on_between_two_nodes() {
    let fake = between_nodes();
    assert!(loops(&fake, (PEER, 7), (OTHER_ADDRESS, 30_081)));
    assert!(
        !loops(&fake, (PEER, 7), (NODE, 30_080)),
        "the host port is at another address"
    );
    assert!(loops(&fake, (PEER, 61_500), (OTHER_ADDRESS, 61_500)));
    assert!(
        !loops(&fake, (PEER, 61_500), (OTHER_ADDRESS, 30_081)),
        "masqueraded packets of another node have such source ports"
    );
}

#[test]
fn what_is_not_read_is_held_to_its_source_and_kept_from_the_tunnel() {
    let mut fake = Fake::node();
    fake.config.own_range[0] = ip("10.244.1.0");
    fake.config.own_mask[0] = ip("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ff00");
    let of = |fake: &Fake, protocol, source, to, entry, reason| {
        let mut ctx = PacketContext::new(packet(protocol, (source, 0), (to, 0)));
        ctx.is_for_group = u32::from(!ctx.headers.dst.is_one_host());
        unread(fake, &ctx, entry, reason)
    };
    let (gre, options) = (47, 60);
    let reason = Reason::NotBalanced;
    let by = |fake: &Fake, source| of(fake, gre, source, "10.244.1.3", Entry::Uplink, reason);
    assert_eq!(by(&fake, "10.244.1.2"), Reason::ForgedSource);
    assert_eq!(by(&fake, "172.31.0.5"), reason);
    let igmp = |source| of(&fake, 2, source, "224.0.0.1", Entry::Uplink, reason);
    assert_eq!(igmp("0.0.0.0"), reason);
    assert_eq!(igmp("172.31.0.5"), reason);
    assert_eq!(igmp("10.244.1.2"), Reason::ForgedSource);
    fake.config.node_v6 = ip("fd00:50::11");
    let chain = |fake: &Fake, entry, reason| of(fake, options, "2001:db8::1", "fd00:50::11", entry, reason);
    assert_eq!(chain(&fake, Entry::Uplink, reason), reason);
    fake.config.tunnel_port = crate::Port::new(8472);
    assert_eq!(chain(&fake, Entry::Uplink, reason), Reason::TunnelSource);
    assert_eq!(chain(&fake, Entry::Pod, Reason::Malformed), Reason::TunnelPort);
    let elsewhere = |protocol| of(&fake, protocol, "2001:db8::1", "2001:db8::2", Entry::Pod, reason);
    assert_eq!(
        elsewhere(options),
        Reason::ForgedSource,
        "an ICMP error of others perhaps"
    );
    assert_eq!(elsewhere(gre), reason);
}
