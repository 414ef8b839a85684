//! The agent finds the changes of another process to the tables, and undoes them.

use proxy_common::Ip;
use proxy_common::maps::{AddressFlags, Frontend};

use super::fake::Fake;
use super::{OLD, World};

/// Three services with an endpoint each, programmed.
fn world() -> World {
    let mut world = World::new(Fake::new(64), 64);
    for (name, ip) in [("a", "10.96.0.1"), ("b", "10.96.0.2"), ("c", "10.96.0.3")] {
        world.service(name, ip, OLD, 80);
        world.slice(name, &[("10.244.1.1", "")]);
    }
    world.sync();
    world
}

/// Alters the tables, and returns the findings of the next check. The check after it finds no difference.
#[track_caller]
fn found(alter: impl FnOnce(&Fake)) -> Vec<String> {
    let mut world = world();
    let tables = |world: &World| {
        let store = world.programmer.store();
        (store.frontends.borrow().clone(), store.addresses.borrow().clone())
    };
    let before = tables(&world);
    assert_eq!(
        world.programmer.compare(0).unwrap(),
        [""; 0],
        "nothing was altered"
    );
    alter(world.programmer.store());
    let found = world.programmer.compare(1).unwrap();
    assert_eq!(tables(&world), before, "{found:?}");
    assert_eq!(world.programmer.compare(2).unwrap(), [""; 0]);
    found
}

#[test]
fn tables_that_were_emptied_are_filled_again() {
    let found = found(|store| {
        store.frontends.borrow_mut().clear();
        store.addresses.borrow_mut().clear();
    });
    assert_eq!(found.len(), 2, "{found:?}");
    for (found, table) in found.iter().zip(["FRONTENDS", "ADDRESSES"]) {
        let begins = format!("{table}: 3 lost or altered, 10.96.0.");
        assert!(
            found.starts_with(&begins) && found.ends_with("and others"),
            "{found}"
        );
    }
}

#[test]
fn values_that_were_altered_are_put_back() {
    let altered = found(|store| {
        let mut frontends = store.frontends.borrow_mut();
        let value = frontends.values_mut().nth(1).unwrap();
        // Another slot, with the right check.
        *value = Frontend {
            slots: value.slots + 1,
            ..*value
        };
    });
    assert_eq!(altered, ["FRONTENDS: 1 lost or altered, 10.96.0.2 port 80"]);
    let altered = found(|store| {
        store
            .addresses
            .borrow_mut()
            .values_mut()
            .for_each(|flags| *flags |= AddressFlags::NODE);
    });
    assert_eq!(altered.len(), 1, "{altered:?}");
}

#[test]
fn what_another_process_adds_is_removed() {
    let added = found(|store| {
        let mut frontends = store.frontends.borrow_mut();
        let (mut key, value) = frontends
            .iter()
            .next()
            .map(|(key, value)| (*key, *value))
            .unwrap();
        key.address = "192.0.2.9".parse::<std::net::IpAddr>().map(Ip::from).unwrap();
        let value = Frontend {
            check: key.check(),
            ..value
        };
        frontends.insert(key, value);
        store
            .addresses
            .borrow_mut()
            .insert(key.address, AddressFlags::VIRTUAL);
    });
    assert_eq!(
        added,
        [
            "FRONTENDS: 1 of another process, 192.0.2.9 port 80",
            "ADDRESSES: 1 of another process, 192.0.2.9"
        ]
    );
}
