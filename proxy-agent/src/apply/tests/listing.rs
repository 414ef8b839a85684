//! The list of a service shows the maps, and marks the frontends that differ from the plan.

use super::*;
use crate::apply::Difference;

/// The backends and the difference of each frontend of a service.
fn list(world: &World, name: &str) -> Vec<(Vec<String>, Option<Difference>)> {
    let id = ObjectId::new(Kind::Service, "t", name);
    let listed = world.programmer.list(id, &world.cluster, &NodeContext::default());
    listed
        .iter()
        .map(|listed| {
            let backends = listed.backends.iter();
            let mut backends: Vec<_> = backends
                .map(|backend| format!("{} {}", std::net::IpAddr::from(backend.address), backend.state))
                .collect();
            backends.sort();
            (backends, listed.difference)
        })
        .collect()
}

fn texts(backends: &[&str]) -> Vec<String> {
    backends.iter().map(|&backend| backend.to_owned()).collect()
}

#[test]
fn a_programmed_service_is_listed_without_a_mark() {
    let mut world = World::new(Fake::new(64), 64);
    world.service("a", "10.96.0.1", OLD, 80);
    world.slice(
        "a",
        &[
            ("10.244.1.1", ""),
            ("10.244.1.2", r#""ready":false,"serving":true,"terminating":true"#),
        ],
    );
    world.sync();
    assert_eq!(
        list(&world, "a"),
        [(texts(&["10.244.1.1 1", "10.244.1.2 2"]), None)]
    );
}

#[test]
fn backends_come_from_the_maps_before_an_update_and_after_it() {
    let mut world = World::new(Fake::new(64), 64);
    two_services(&mut world);
    world.sync();
    let before = list(&world, "b");
    world.slice("b", &[("10.244.1.9", "")]);
    let [(backends, difference)] = list(&world, "b").try_into().unwrap();
    assert_eq!([(backends, None)], *before, "the maps are as before");
    assert_eq!(difference, Some(Difference::Waiting));
    world.update();
    assert_eq!(list(&world, "b"), [(texts(&["10.244.1.9 1"]), None)]);
}

#[test]
fn a_frontend_that_is_planned_no_longer_is_listed_until_its_map_entry_goes() {
    let mut world = World::new(Fake::new(64), 64);
    two_services(&mut world);
    world.sync();
    world.service("b", "10.96.0.9", OLD, 80);
    let listed = list(&world, "b");
    let differences: Vec<_> = listed.iter().map(|(_, difference)| *difference).collect();
    assert_eq!(differences, [Some(Difference::Waiting); 2], "{listed:?}");
    assert!(listed[0].0.is_empty() && !listed[1].0.is_empty(), "{listed:?}");
    world.update();
    let listed = list(&world, "b");
    assert_eq!(listed.len(), 1, "{listed:?}");
    assert_eq!(listed[0].1, None);
}

#[test]
fn a_service_without_room_shows_what_is_in_force() {
    let mut world = World::new(Fake::new(4), 4);
    two_services(&mut world);
    world.sync();
    let before = list(&world, "b");
    world.slice("b", &[("10.244.1.1", ""), ("10.244.1.2", ""), ("10.244.1.3", "")]);
    world.update();
    let [(backends, difference)] = list(&world, "b").try_into().unwrap();
    assert_eq!([(backends, None)], *before);
    assert_eq!(difference, Some(Difference::NoRoom));
    assert_eq!(list(&world, "a")[0].1, None, "the other service has its room");
}

#[test]
fn a_frontend_that_another_process_changed_is_marked() {
    let mut world = World::new(Fake::new(64), 64);
    two_services(&mut world);
    world.sync();
    for value in world.programmer.store().frontends.borrow_mut().values_mut() {
        value.slots = 0;
        value.flags &= u32::from(u16::MAX);
    }
    assert_eq!(list(&world, "a"), [(vec![], Some(Difference::Waiting))]);
}

#[test]
fn an_address_of_two_services_is_listed_for_its_holder() {
    let mut world = World::new(Fake::new(64), 64);
    world.service("old", "10.96.0.1", OLD, 80);
    world.service("new", "10.96.0.1", NEW, 80);
    world.sync();
    assert_eq!(list(&world, "old").len(), 1);
    assert_eq!(list(&world, "new"), []);
}
