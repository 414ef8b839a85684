//! Packets that are dropped, and the errors that their senders get.

use super::*;

#[test]
fn verdicts_without_a_backend() {
    let mut fake = Fake::node();
    fake.service(VIP, 80, protocol::TCP, &[]);
    let decide =
        |dst, port, protocol, entry| entering(&fake, &packet(protocol, (POD, 40_000), (dst, port)), entry).0;
    assert_eq!(
        decide(VIP, 80, protocol::TCP, Entry::Pod),
        Decision::Drop(Reason::NoEndpoints)
    );
    assert_eq!(
        decide(VIP, 81, protocol::TCP, Entry::Pod),
        Decision::Drop(Reason::NoSuchPort)
    );
    assert_eq!(
        decide(VIP, 80, protocol::UDP, Entry::Pod),
        Decision::Drop(Reason::NoSuchPort)
    );
    assert_eq!(
        decide("10.96.7.7", 80, protocol::TCP, Entry::Pod),
        Decision::Drop(Reason::NoSuchService)
    );
    assert_eq!(
        decide("10.96.7.7", 80, protocol::TCP, Entry::Host),
        Decision::Drop(Reason::NoSuchService)
    );
    assert_eq!(
        decide("10.244.2.2", 80, protocol::TCP, Entry::Pod),
        Decision::Pass(Reason::NotOurs)
    );
    assert_eq!(
        decide(NODE, 80, protocol::TCP, Entry::Uplink),
        Decision::Pass(Reason::NotOurs)
    );
}

#[test]
fn echo_to_a_virtual_address_gets_a_reply_unless_the_node_has_it() {
    let mut fake = Fake::node();
    fake.service(VIP, 80, protocol::TCP, &[]);
    let mut ping = packet(protocol::ICMP, (POD, 0), (VIP, 0));
    ping.detail = 8;
    assert_eq!(entering(&fake, &ping, Entry::Pod).0, Decision::Echo);
    fake.addresses
        .insert(ip(VIP), AddressFlags(AddressFlags::VIRTUAL | AddressFlags::NODE));
    assert_eq!(
        entering(&fake, &ping, Entry::Pod).0,
        Decision::Pass(Reason::NotOurs)
    );
    ping.dst = ip("10.96.7.7");
    assert_eq!(
        entering(&fake, &ping, Entry::Pod).0,
        Decision::Drop(Reason::NoSuchService)
    );
    ping.dst = ip("10.244.2.2");
    assert_eq!(
        entering(&fake, &ping, Entry::Pod).0,
        Decision::Pass(Reason::NotOurs)
    );
}

#[test]
fn masquerading_without_an_address_is_a_named_drop() {
    let mut fake = Fake::node();
    fake.config.node_v4 = crate::Ip::UNSPECIFIED;
    fake.service(VIP, 80, protocol::TCP, &[(POD, 8080)]);
    let request = packet(protocol::TCP, (POD, 40_000), (VIP, 80));
    assert_eq!(
        entering(&fake, &request, Entry::Pod).0,
        Decision::Drop(Reason::NoNodeAddress)
    );
}

#[test]
fn exhausted_source_ports_are_a_named_drop() {
    let mut fake = Fake::node();
    fake.config.masquerade_count = 1;
    fake.service(VIP, 80, protocol::TCP, &[("10.244.2.2", 8080)]);
    let request = |port| packet(protocol::TCP, ("172.31.0.5", port), (VIP, 80));
    let _ = translated(entering(&fake, &request(40_000), Entry::Uplink));
    assert_eq!(
        entering(&fake, &request(40_001), Entry::Uplink).0,
        Decision::Drop(Reason::NoSourcePort)
    );
}

#[test]
fn undefined_ports_of_addresses_outside_of_all_service_ranges_are_refused() {
    let mut fake = Fake::node();
    fake.service("203.0.113.7", 80, protocol::UDP, &[("10.244.2.2", 8080)]);
    fake.config.flags |= ConfigFlags::VIPS_OUTSIDE_RANGES;
    let to = |address| packet(protocol::UDP, (OUTSIDE, 40_000), (address, 81));
    assert_eq!(
        entering(&fake, &to("203.0.113.7"), Entry::Uplink).0,
        Decision::Drop(Reason::NoSuchPort)
    );
    for other in ["203.0.113.8", NODE] {
        assert_eq!(
            entering(&fake, &to(other), Entry::Uplink).0,
            Decision::Pass(Reason::NotOurs)
        );
    }
}
