//! Full tables: the elements that fit stay. The others are reported, and get the space that others free.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::*;

#[test]
fn a_full_table_leaves_services_as_they_were_and_says_so() {
    let mut world = World::new(Fake::new(4), 4);
    two_services(&mut world);
    world.sync();
    let before = world.programmer.store().dump();
    world.slice("b", &[("10.244.1.1", ""), ("10.244.1.2", ""), ("10.244.1.3", "")]);
    world.update();
    assert_eq!(world.programmer.store().dump(), before);
    let messages: Vec<_> = world
        .programmer
        .problems()
        .flat_map(|(_, messages)| messages)
        .collect();
    assert!(messages[0].message.contains("no room left"), "{messages:?}");
}

#[test]
fn tables_grow_up_to_their_limit() {
    let mut world = World::new(Fake::new(2), 1024);
    two_services(&mut world);
    let all: Vec<String> = (0..100).map(|n| format!("10.244.9.{n}")).collect();
    let endpoints: Vec<(&str, &str)> = all.iter().map(|address| (address.as_str(), "")).collect();
    world.slice("b", &endpoints);
    world.sync();
    assert_eq!(world.backends_of("10.96.0.2").len(), 100);
    assert_eq!(world.backends_of("10.96.0.1").len(), 2);
    assert_eq!(world.programmer.problems().count(), 0);
}

#[test]
fn tables_that_fill_together_grow_together() {
    // Each service has one address, and so many frontends, slots and backends.
    for endpoints in [1, 2, 3] {
        let mut world = World::new(Fake::new(64), 1 << 20);
        world.sync();
        for number in 0..4_500_u32 {
            let name = format!("s{number}");
            let [.., high, low] = number.to_be_bytes();
            world.service(&name, &format!("10.96.{high}.{low}"), OLD, 80);
            let addresses: Vec<_> = (0..endpoints).map(|n| format!("10.{n}.{high}.{low}")).collect();
            let addresses: Vec<_> = addresses.iter().map(|address| (address.as_str(), "")).collect();
            world.slice(&name, &addresses);
            world.update();
        }
        assert_eq!(world.programmer.problems().count(), 0);
        let largest: u32 = 4_500 * endpoints;
        let doublings = largest.div_ceil(64).next_power_of_two().ilog2();
        let grown = world.programmer.store().grown;
        assert_eq!(grown, doublings, "{endpoints} endpoints each");
    }
}

#[test]
fn tables_grow_at_once_as_far_as_a_large_service_needs() {
    let mut world = World::new(Fake::new(64), 1 << 20);
    world.sync();
    two_services(&mut world);
    let all: Vec<String> = (0..5_000)
        .map(|n| format!("10.244.{}.{}", n / 250, n % 250))
        .collect();
    let endpoints: Vec<(&str, &str)> = all.iter().map(|address| (address.as_str(), "")).collect();
    world.slice("b", &endpoints);
    world.update();
    assert_eq!(world.backends_of("10.96.0.2").len(), 5_000);
    assert_eq!(world.programmer.store().grown, 1);
}

#[test]
fn a_service_gets_its_room_once_the_kernel_grants_larger_tables() {
    let mut world = World::new(Fake::new(2), 1024);
    two_services(&mut world);
    world.sync();
    world.programmer.store_mut().refuses_growth = 1;
    world.slice("b", &[("10.244.1.1", ""), ("10.244.1.2", ""), ("10.244.1.3", "")]);
    world.update();
    assert_eq!(world.programmer.problems().count(), 1);
    assert!(
        world.programmer.due_again(Instant::now()).is_empty(),
        "in the pause"
    );
    let due = world
        .programmer
        .due_again(Instant::now() + Duration::from_secs(10));
    assert_eq!(due.len(), 1);
    world.changes.services.extend(due);
    world.update();
    assert_eq!(world.backends_of("10.96.0.2").len(), 3);
    assert_eq!(world.programmer.problems().count(), 0);
}

#[test]
fn what_did_not_fit_gets_the_room_that_others_leave() {
    // Three groups of one slot each, and space for two.
    for full in ["frontends", "slots", "backends", "addresses"] {
        let mut fake = Fake::new(64);
        let table = match full {
            "frontends" => &mut fake.sizes.frontends,
            "slots" => &mut fake.sizes.slots,
            "backends" => &mut fake.sizes.backends,
            _ => &mut fake.sizes.addresses,
        };
        *table = 2;
        let max = fake.sizes;
        let mut world = World::new(fake, 64);
        world.restart(max);
        for (name, ip) in [("a", "10.96.0.1"), ("b", "10.96.0.2")] {
            world.service(name, ip, OLD, 80);
            world.slice(name, &[("10.244.1.1", "")]);
        }
        world.sync();
        assert_eq!(world.programmer.problems().count(), 0, "{full}");
        world.service("c", "10.96.0.3", OLD, 80);
        world.slice("c", &[("10.244.1.3", "")]);
        world.update();
        let reported: Vec<_> = world
            .programmer
            .problems()
            .flat_map(|(_, reported)| reported.to_vec())
            .collect();
        assert!(
            reported.len() == 1 && reported[0].message.contains(full),
            "{full}: {reported:?}"
        );
        assert_eq!(world.backends_of("10.96.0.3"), [""; 0], "{full}");

        // A restarted agent has the same limits, and programs the rest later.
        world.restart(max);
        world.changes.clear();
        assert_eq!(world.sync(), 0, "{full}");
        assert_eq!(world.programmer.problems().count(), 1, "{full}");

        world.delete("a");
        world.update();
        assert_eq!(world.backends_of("10.96.0.3"), ["10.244.1.3"], "{full}");
        assert_eq!(world.backends_of("10.96.0.2"), ["10.244.1.1"], "{full}");
        assert_eq!(world.programmer.problems().count(), 0, "{full}");
        assert_eq!(world.programmer.store().frontends.borrow().len(), 2, "{full}");
    }
}

#[test]
fn a_service_that_does_not_fit_after_a_restart_keeps_what_the_tables_hold() {
    let mut world = World::new(Fake::new(4), 4);
    two_services(&mut world);
    world.sync();
    let before = world.programmer.store().dump();
    world.restart(sizes(4));
    world.slice("b", &[("10.244.1.1", ""), ("10.244.1.2", ""), ("10.244.1.3", "")]);
    world.changes.clear();
    world.sync();
    assert_eq!(world.programmer.store().dump(), before);
    assert_eq!(world.programmer.problems().count(), 1);
    world.delete("b");
    world.update();
    assert_eq!(world.backends_of("10.96.0.2"), [""; 0], "it was known to be ours");
    assert_eq!(world.programmer.problems().count(), 0);
}

#[test]
fn the_nodes_own_addresses_take_room_too() {
    let node = ["192.0.2.1", "2001:db8::1"].map(|text| text.parse::<std::net::IpAddr>().expect("one").into());
    let max = MapSizes {
        addresses: 3,
        ..sizes(64)
    };
    let mut store = Fake::new(64);
    store.sizes.addresses = 1;
    let mut world = World::new(store, 64);
    world.restart(max);
    world.programmer.set_node_addresses(&node, HashMap::new());
    two_services(&mut world);
    world.sync();
    assert_eq!(world.programmer.store().sizes().addresses, 3);
    assert_eq!(world.programmer.store().addresses.borrow().len(), 3);
    let reported: Vec<_> = world
        .programmer
        .problems()
        .flat_map(|(_, reported)| reported.to_vec())
        .collect();
    assert!(
        reported.len() == 1 && reported[0].message.contains("addresses"),
        "{reported:?}"
    );
    world.programmer.set_node_addresses(&node[..1], HashMap::new());
    world.service("c", "10.96.0.9", OLD, 80);
    world.update();
    assert_eq!(world.programmer.address_count(), 3);
    assert_eq!(
        world.programmer.problems().count(),
        1,
        "one of b and c fits, the one that comes first"
    );
}
