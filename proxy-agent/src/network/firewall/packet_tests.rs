//! Tests of conditions, and of the packets of pods that they hold for.

use std::collections::BTreeMap;

use super::packet::{Comparison, Match, Packet, PodInterfaces, Value, upper_mask};

fn ask(range: &str, from_pods: bool, value: &Value, comparison: Comparison, with: &[u8]) -> Match {
    let names = BTreeMap::from([(1, "lo".to_owned()), (7, "mr0123456789ab".to_owned())]);
    let packet = Packet {
        range: range.parse().unwrap(),
        from_pods,
        interfaces: &PodInterfaces::Own,
        names: &names,
    };
    packet.compare(value, comparison, with)
}

/// Compares packets from 10.244.1.0/24, after a load of `length` bytes.
fn address(length: u32, comparison: Comparison, with: &[u8]) -> Match {
    let names = BTreeMap::new();
    let packet = Packet {
        range: "10.244.1.0/24".parse().unwrap(),
        from_pods: true,
        interfaces: &PodInterfaces::Own,
        names: &names,
    };
    packet.compare(&packet.header(12, length), comparison, with)
}

#[test]
fn an_address_is_of_a_range_that_holds_the_pods() {
    use Comparison::{Above, Below, From, Is, IsNot, UpTo};
    assert_eq!(address(2, Is, &[10, 244]), Match::All);
    assert_eq!(address(3, Is, &[10, 244, 1]), Match::All);
    assert_eq!(address(3, Is, &[10, 244, 2]), Match::No);
    assert_eq!(address(4, Is, &[10, 244, 1, 9]), Match::Part);
    assert_eq!(address(4, Is, &[10, 244, 2, 9]), Match::No);
    assert_eq!(address(2, IsNot, &[10, 244]), Match::No);
    assert_eq!(address(2, IsNot, &[10, 3]), Match::All);
    assert_eq!(address(4, From, &[10, 0, 0, 0]), Match::All);
    assert_eq!(address(4, UpTo, &[10, 244, 1, 255]), Match::All);
    assert_eq!(address(4, UpTo, &[10, 244, 1, 254]), Match::Part);
    assert_eq!(address(4, Below, &[10, 244, 1, 0]), Match::No);
    assert_eq!(address(4, Above, &[10, 244, 1, 255]), Match::No);
    // The comparison has fewer bytes than the load, or none.
    assert_eq!(address(4, Is, &[10]), Match::All);
    assert_eq!(address(4, Is, &[]), Match::All);
    assert_eq!(address(0, Is, &[10]), Match::Part, "no address was loaded");
    assert_eq!(address(20, Is, &[10]), Match::Part);
}

#[test]
fn masks_are_applied() {
    let whole = Value::Address {
        mask: upper_mask(4),
        flip: 0,
    };
    let masked = |value: &Value, mask: &[u8], with: &[u8]| {
        let value = value.clone().masked(mask, &[0; 4]);
        ask("10.244.0.0/16", true, &value, Comparison::Is, with)
    };
    assert_eq!(masked(&whole, &[255, 254, 0, 0], &[10, 244, 0, 0]), Match::All);
    assert_eq!(masked(&whole, &[255, 255, 128, 0], &[10, 244, 0, 0]), Match::Part);
    assert_eq!(masked(&whole, &[255, 254, 0, 0], &[10, 246, 0, 0]), Match::No);
    // A bit outside the mask is never set.
    assert_eq!(masked(&whole, &[255, 254, 0, 0], &[10, 245, 0, 0]), Match::No);
    assert_eq!(masked(&whole, &[0; 4], &[0; 4]), Match::All, "0.0.0.0/0");
    let state = Packet::conntrack(0);
    let bits = |bits: u32| bits.to_ne_bytes();
    let has = |wanted: u32| {
        let value = state.clone().masked(&bits(wanted), &[0; 4]);
        ask("10.244.0.0/16", true, &value, Comparison::IsNot, &[0; 4])
    };
    assert_eq!(has(2 | 4), Match::No, "established, related");
    assert_eq!(has(2 | 4 | 8), Match::All, "and new");
}

#[test]
fn ipv6_lies_elsewhere() {
    let packet = |from_pods| Packet {
        range: "fd00:244:1::/64".parse().unwrap(),
        from_pods,
        interfaces: &PodInterfaces::Own,
        names: const { &BTreeMap::new() },
    };
    assert_eq!(packet(true).header(12, 4), Value::Other);
    let source = packet(true).header(8, 4);
    assert_eq!(
        packet(true).compare(&source, Comparison::Is, &[0xfd, 0, 0x02, 0x44]),
        Match::All
    );
    assert_eq!(packet(false).header(8, 4), Value::Other);
    let target = packet(false).header(24, 16);
    assert_eq!(
        packet(false).compare(&target, Comparison::Is, &[0; 16]),
        Match::No
    );
    assert_eq!(packet(true).meta(15), Value::Known(vec![10]));
}

#[test]
fn interfaces_are_matched_by_name() {
    use Comparison::{Is, IsNot};
    let own = |comparison, with: &[u8]| ask("10.244.0.0/16", true, &Value::Name, comparison, with);
    assert_eq!(own(Is, b"mr"), Match::All);
    assert_eq!(own(Is, b"m"), Match::All);
    assert_eq!(own(Is, b"mr0"), Match::Part);
    assert_eq!(own(Is, b"mr\0"), Match::Part);
    assert_eq!(own(Is, b"docker0\0"), Match::No);
    assert_eq!(own(IsNot, b"docker0\0"), Match::All);
    let index = |comparison, index: u32| {
        ask(
            "10.244.0.0/16",
            true,
            &Value::Index,
            comparison,
            &index.to_ne_bytes(),
        )
    };
    assert_eq!(
        [index(Is, 1), index(IsNot, 1), index(Is, 7), index(IsNot, 99)],
        [Match::No, Match::All, Match::Part, Match::All]
    );
    let named = |names: &[&str], with: &[u8]| {
        let interfaces = PodInterfaces::Named(names.iter().map(ToString::to_string).collect());
        let packet = Packet {
            range: "10.244.0.0/16".parse().unwrap(),
            from_pods: true,
            interfaces: &interfaces,
            names: const { &BTreeMap::new() },
        };
        packet.compare(&Value::Name, Is, with)
    };
    assert_eq!(named(&["cni0"], b"cni0\0"), Match::All);
    assert_eq!(named(&["veth1", "veth2"], b"veth"), Match::All);
    assert_eq!(named(&["veth1", "veth2"], b"veth1\0"), Match::Part);
    assert_eq!(named(&["veth1"], b"docker0\0"), Match::No);
    assert_eq!(named(&[], b"docker0\0"), Match::Unsure);
}

#[test]
fn the_interface_is_known_of_one_side() {
    let packet = |from_pods| Packet {
        range: "10.244.0.0/16".parse().unwrap(),
        from_pods,
        interfaces: &PodInterfaces::Own,
        names: const { &BTreeMap::new() },
    };
    assert_eq!(
        (packet(true).meta(6), packet(true).meta(7)),
        (Value::Name, Value::Other)
    );
    assert_eq!(
        (packet(false).meta(6), packet(false).meta(7)),
        (Value::Other, Value::Name)
    );
}
