//! A client's share of the tables and source ports that all clients share.

use super::*;
use crate::maps::{FlowKey, RecentCount, Share};

/// Completes the handshake of a connection of this client.
fn open(fake: &Fake, client: &str, sport: u16) -> FlowKey {
    let request = packet(protocol::TCP, (client, sport), (VIP, 80));
    let (flow, _) = translated(entering(fake, &with_flags(request, TCP_SYN), Entry::Pod));
    let reply = reply_of(&flow, protocol::TCP);
    let _ = translated(leaving(fake, &with_flags(reply, TCP_SYN | TCP_ACK)));
    let _ = translated(entering(fake, &with_flags(request, TCP_ACK), Entry::Pod));
    request.flow_key()
}

fn is_protected(fake: &Fake, key: &FlowKey) -> bool {
    fake.flows.borrow().contains_key(key)
}

#[test]
fn a_client_that_has_used_up_its_share_leaves_room_for_others_and_goes_on() {
    let mut fake = Fake::node();
    fake.service(VIP, 80, protocol::TCP, &[("10.244.2.2", 8080)]);
    fake.config.connection_share = 2;
    let keys: Vec<_> = (0..3).map(|n| open(&fake, POD, 40_000 + n)).collect();
    let protected: Vec<_> = keys.iter().map(|key| is_protected(&fake, key)).collect();
    assert_eq!(protected, [true, true, false]);
    assert!(
        is_protected(&fake, &open(&fake, "10.244.1.11", 40_000)),
        "another client"
    );
    // The third flow stays in its table, and moves when a share becomes free.
    let third = with_flags(packet(protocol::TCP, (POD, 40_002), (VIP, 80)), TCP_ACK);
    assert_eq!(
        translated(entering(&fake, &third, Entry::Pod)).1,
        Reason::Established
    );
    let first = packet(protocol::TCP, (POD, 40_000), (VIP, 80));
    let reply = reply_of(&fake.known_flow(&first.flow_key()).unwrap(), protocol::TCP);
    let _ = entering(&fake, &with_flags(first, TCP_FIN | TCP_ACK), Entry::Pod);
    let _ = leaving(&fake, &acknowledging_fin(reply));
    let _ = leaving(&fake, &with_flags(reply, TCP_FIN | TCP_ACK));
    let _ = entering(&fake, &acknowledging_fin(first), Entry::Pod);
    assert!(!is_protected(&fake, &keys[0]), "it is over");
    fake.advance_clock(1);
    let _ = translated(entering(&fake, &third, Entry::Pod));
    assert!(is_protected(&fake, &keys[2]));
    let used = fake.shares.borrow()[&ip(POD)].connections;
    assert_eq!(used, 2 | Share::REFUSED, "the refusal stays noted");
}

#[test]
fn a_full_table_leaves_new_connections_where_they_work_without_protection() {
    let mut fake = Fake::node();
    fake.service(VIP, 80, protocol::TCP, &[("10.244.2.2", 8080)]);
    fake.room = 3;
    let (first, second) = (open(&fake, POD, 40_000), open(&fake, "10.244.1.11", 40_001));
    assert!(is_protected(&fake, &first) && !is_protected(&fake, &second));
    assert_eq!(fake.flows.borrow().len(), 2, "no half of a flow is left");
    let request = with_flags(packet(protocol::TCP, ("10.244.1.11", 40_001), (VIP, 80)), TCP_ACK);
    assert_eq!(
        translated(entering(&fake, &request, Entry::Pod)).1,
        Reason::Established
    );
    assert_eq!(fake.shares.borrow()[&ip("10.244.1.11")].connections, 0);
}

#[test]
fn addresses_of_one_ipv6_network_outside_are_one_client() {
    let mut fake = Fake::node();
    fake.config.node_v6 = ip("fd00:50::11");
    let key = fake.service("fd00:50::11", 80, protocol::TCP, &[("fd00:244:1::2", 8080)]);
    fake.frontends.get_mut(&key).unwrap().flags |= FrontendFlags::KEEP_SOURCE;
    fake.config.pods_reply_outside = 1;
    for host in ["2001:db8::1", "2001:db8::2"] {
        let request = packet(protocol::TCP, (host, 40_000), ("fd00:50::11", 80));
        let (flow, _) = translated(entering(&fake, &with_flags(request, TCP_SYN), Entry::Uplink));
        let reply = reply_of(&flow, protocol::TCP);
        let _ = translated(entering(&fake, &with_flags(reply, TCP_SYN | TCP_ACK), Entry::Pod));
        let _ = translated(entering(&fake, &with_flags(request, TCP_ACK), Entry::Uplink));
    }
    assert_eq!(fake.shares.borrow()[&ip("2001:db8::")].connections, 2);
}

#[test]
fn flows_without_a_reply_have_a_share_of_source_ports_that_comes_back_with_time() {
    let mut fake = Fake::node();
    fake.config.unreplied_share = 10;
    node_port(&mut fake, protocol::TCP, &[("10.244.2.2", 8080)]);
    let connect = |client, sport| {
        let request = packet(protocol::TCP, (client, sport), (NODE, 30_080));
        entering(&fake, &with_flags(request, TCP_SYN), Entry::Uplink).0
    };
    let begins = |client| {
        let begun = (0..30).filter(|n| connect(client, 40_000 + n) == Decision::Translate(Reason::NewFlow));
        begun.count()
    };
    assert_eq!(begins(OUTSIDE), 10);
    assert_eq!(connect(OUTSIDE, 50_000), Decision::Drop(Reason::SourcePortShare));
    assert_eq!(begins("172.31.0.6"), 10, "another client");
    fake.advance_clock(1);
    assert_eq!(connect(OUTSIDE, 50_000), Decision::Translate(Reason::NewFlow));
    let recent = RecentCount {
        updated: 5,
        count: 8,
        refused: 0,
    };
    assert_eq!([5, 6, 7, 8].map(|now| recent.at(now)), [8, 4, 2, 0]);
}

#[test]
fn a_refusal_is_known_after_its_count_has_gone() {
    let fill = |now| {
        let mut recent = RecentCount::first(now);
        assert!(!recent.was_refused(now, 10));
        assert!(recent.another(now, 2) && !recent.another(now, 2));
        recent
    };
    for now in [5, 0x1_0000, 0x7fff_ffff, u32::MAX] {
        let recent = fill(now);
        assert_eq!((recent.at(now), recent.at(now.wrapping_add(3))), (2, 0));
        let was_refused = [0, 1, 9, 12].map(|later| recent.was_refused(now.wrapping_add(later), 10));
        assert_eq!(was_refused, [true, true, true, false], "tick {now}");
        assert!(
            !recent.was_refused(now.wrapping_add(1 << 16), 10),
            "half a number ago"
        );
    }
    // The count continues as soon as there is capacity again.
    let mut recent = fill(5);
    assert!(recent.another(9, 2) && recent.was_refused(9, 10) && !recent.was_refused(19, 10));
    // A count never exceeds the range of its type.
    let mut recent = RecentCount {
        updated: 5,
        count: u16::MAX,
        refused: 0,
    };
    assert!(!recent.another(5, u32::MAX));
}

/// This is the state after one client has sent 30 000 SYN without a further packet.
#[test]
fn a_handshake_that_does_not_end_gives_its_port_to_the_next_after_two_ticks() {
    let mut fake = Fake::node();
    fake.config.masquerade_count = 1;
    node_port(&mut fake, protocol::TCP, &[("10.244.2.2", 8080)]);
    let connect = |sport, flags| {
        let request = packet(protocol::TCP, (OUTSIDE, sport), (NODE, 30_080));
        entering(&fake, &with_flags(request, flags), Entry::Uplink)
    };
    let (first, _) = translated(connect(40_000, TCP_SYN));
    // The server has replied, but the flow is still not proven. The server repeats its reply.
    let reply = with_flags(reply_of(&first, protocol::TCP), TCP_SYN | TCP_ACK);
    let _ = translated(entering(&fake, &reply, Entry::Uplink));
    fake.advance_clock(1);
    let _ = translated(entering(&fake, &reply, Entry::Uplink));
    assert_eq!(connect(40_001, TCP_SYN).0, Decision::Drop(Reason::NoSourcePort));
    fake.advance_clock(1);
    let (second, _) = translated(connect(40_001, TCP_SYN));
    assert_eq!(second.sport, first.sport);
    // A proven flow keeps its port.
    let reply = reply_of(&second, protocol::TCP);
    let _ = translated(entering(
        &fake,
        &with_flags(reply, TCP_SYN | TCP_ACK),
        Entry::Uplink,
    ));
    let _ = translated(connect(40_001, TCP_ACK));
    fake.advance_clock(100);
    assert_eq!(connect(40_002, TCP_SYN).0, Decision::Drop(Reason::NoSourcePort));
}

#[test]
fn a_client_has_half_of_the_source_ports_towards_a_backend() {
    let mut fake = Fake::node();
    node_port(&mut fake, protocol::UDP, &[("10.244.2.2", 8080)]);
    fake.config.masquerade_count = 100;
    fake.config.unreplied_share = u32::MAX;
    let ports = |client| -> std::collections::BTreeSet<u16> {
        let begun = (0..2000).filter_map(|n| {
            let request = packet(protocol::UDP, (client, 20_000 + n), (NODE, 30_080));
            match entering(&fake, &request, Entry::Uplink) {
                (Decision::Translate(_), flow) => Some(flow.sport.number()),
                _ => None,
            }
        });
        begun.collect()
    };
    let first = ports(OUTSIDE);
    assert!(first.len() > 45 && first.len() <= 50, "{} ports", first.len());
    let second = ports("172.31.0.6");
    assert!(second.len() > 15, "{} ports for another client", second.len());
    assert!(first.is_disjoint(&second), "none is given twice");
}

#[test]
fn clients_that_want_all_leave_room_for_others() {
    let mut fake = Fake::node();
    fake.own_pods.insert(ip(POD), Pod::default());
    fake.service(VIP, 80, protocol::TCP, &[("10.244.2.2", 8080)]);
    fake.config.connection_share = 25;
    let protected = |client: &str, count: u16| {
        let opened = (0..count).map(|n| open(&fake, client, 40_000 + n));
        let keys: Vec<_> = opened.collect();
        keys.iter().filter(|key| is_protected(&fake, key)).count()
    };
    let all: Vec<_> = (1..=9).map(|n| protected(&format!("172.31.0.{n}"), 40)).collect();
    assert_eq!(all[..2], [25, 25], "{all:?}");
    let taken: usize = all.iter().sum();
    assert!(taken <= 75, "{all:?}: the last quarter is for pods of this node");
    assert_eq!(protected(POD, 12), 12);
}
