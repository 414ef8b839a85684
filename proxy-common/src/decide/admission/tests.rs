//! Frames and packets that may enter, and those that may not.

use super::*;
use crate::decide::testing::{Fake, ip, packet};
use crate::maps::AddressFlags;

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
    fake.config.flags |= ConfigFlags::STRAY_ADDRESSES | ConfigFlags::MORE_NODE_ADDRESSES;
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
        let work = Work::new(packet(protocol::UDP, (source, 5000), (to, 7)));
        is_forged(&fake, &fake.config, &work, entry)
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
        let mut work = Work::new(packet(protocol::UDP, (source, 5000), ("203.0.113.10", 7)));
        assert_eq!(
            is_forged(&by_route, &by_route.config, &work, Entry::Uplink),
            is_refused
        );
        work.arrived_by = 5;
        assert_eq!(
            is_forged(&by_route, &by_route.config, &work, Entry::Host),
            is_refused
        );
    }
    assert!(forged(Entry::Pod, "10.96.3.4") && !forged(Entry::Pod, "10.244.1.7"));
    assert!(forged(Entry::Pod, "203.0.113.10"), "a pod of another plugin");
    // A packet that came by an interface without programs.
    let forwarded = |source| {
        let mut work = Work::new(packet(protocol::UDP, (source, 5000), ("203.0.113.10", 7)));
        work.arrived_by = 5;
        is_forged(&fake, &fake.config, &work, Entry::Host)
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
        let mut work = Work::new(packet(protocol::UDP, (source, 5000), ("10.244.1.10", 7)));
        work.interface = interface;
        is_forged(fake, &fake.config, &work, Entry::Uplink)
    };
    assert!(
        !forged(&fake, "10.244.2.2", 2),
        "nodes may disagree about the way"
    );
    fake.config.flags |= ConfigFlags::TUNNEL_ONLY;
    assert!(forged(&fake, "10.244.2.2", 2) && !forged(&fake, "10.244.2.2", TUNNEL));
    assert!(!forged(&fake, "10.244.3.3", 2) && !forged(&fake, "172.31.0.5", 2));
}

#[test]
fn a_datagram_from_a_node_port_of_a_host_on_the_link_begins_no_loop() {
    let mut fake = Fake::node();
    fake.config.on_link_range[0] = ip("192.168.50.0");
    fake.config.on_link_mask[0] = ip("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ff00");
    fake.service("192.168.50.11", 30_080, protocol::UDP, &[("10.244.2.2", 7)]);
    fake.service("192.168.50.211", 30_081, protocol::UDP, &[("10.244.2.2", 7)]);
    fake.addresses
        .insert(ip("192.168.50.211"), AddressFlags(AddressFlags::NODE));
    fake.service("203.0.113.10", 123, protocol::UDP, &[("10.244.2.2", 123)]);
    let loops = |source, sport, to| {
        let headers = packet(protocol::UDP, (source, sport), (to, 30_080));
        is_loop(&fake, &fake.config, &headers, Entry::Uplink)
    };
    assert!(loops("192.168.50.12", 30_080, "192.168.50.11"));
    assert!(
        loops("192.168.50.212", 30_080, "192.168.50.11"),
        "of no Node object"
    );
    assert!(
        loops("192.168.50.212", 30_081, "192.168.50.211"),
        "at another address"
    );
    assert!(!loops("192.168.50.212", 40_000, "192.168.50.11"));
    let headers = packet(protocol::UDP, ("192.168.50.212", 123), ("203.0.113.10", 123));
    assert!(
        !is_loop(&fake, &fake.config, &headers, Entry::Uplink),
        "an NTP server asks from the port that it serves"
    );
    assert!(
        !loops("172.31.0.5", 30_080, "192.168.50.11"),
        "a client behind a router"
    );
}

#[test]
fn what_is_not_read_is_held_to_its_source_and_kept_from_the_tunnel() {
    let mut fake = Fake::node();
    fake.config.own_range[0] = ip("10.244.1.0");
    fake.config.own_mask[0] = ip("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ff00");
    let of = |fake: &Fake, protocol, source, to, entry, reason| {
        let mut work = Work::new(packet(protocol, (source, 0), (to, 0)));
        work.is_for_group = u32::from(!work.headers.dst.is_one_host());
        unread(fake, &work, entry, reason)
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
