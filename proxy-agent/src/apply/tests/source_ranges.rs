//! Source ranges: the most that a service may have, and the treatment of those that do not fit.

use super::*;

const BALANCER: &str = "198.51.100.";

/// A service of a load balancer with so many ports, and one endpoint.
pub(super) fn balanced(world: &mut World, number: u8, ports: u16, ranges: &[String]) {
    let ports: Vec<_> = (0..ports)
        .map(|port| format!(r#"{{"name":"p{port}","port":{}}}"#, 80 + port))
        .collect();
    let json = format!(
        r#"{{"metadata":{{"namespace":"t","name":"s{number}","creationTimestamp":"{OLD}"}},
        "spec":{{"clusterIP":"10.96.0.{number}","ports":[{}],"type":"LoadBalancer",
            "loadBalancerSourceRanges":{}}},
        "status":{{"loadBalancer":{{"ingress":[{{"ip":"{BALANCER}{number}"}}]}}}}}}"#,
        ports.join(","),
        serde_json::to_string(ranges).unwrap()
    );
    world.event(Change::Apply(Box::new(Object::Service(
        serde_json::from_str(&json).unwrap(),
    ))));
    let json = format!(
        r#"{{"metadata":{{"namespace":"t","name":"s{number}-1","labels":{{"kubernetes.io/service-name":"s{number}"}}}},
        "addressType":"IPv4","ports":[{}],"endpoints":[{{"addresses":["10.244.1.{number}"]}}]}}"#,
        ports.join(",")
    );
    world.event(Change::Apply(Box::new(Object::EndpointSlice(
        serde_json::from_str(&json).unwrap(),
    ))));
}

/// So many ranges that cannot be joined.
pub(super) fn ranges(from: u32, count: u32) -> Vec<String> {
    let range = |number: u32| {
        let [a, b, c, d] = (number * 2).to_be_bytes();
        format!("{}.{b}.{c}.{d}/32", a + 11)
    };
    (from..from + count).map(range).collect()
}

fn is_served(world: &World, ip: &str) -> bool {
    !world.backends_of(ip).is_empty()
}

fn reported(world: &World) -> Vec<String> {
    let problems = world.programmer.problems();
    let remarks = problems.flat_map(|(_, reported)| reported);
    remarks.map(|remark| remark.message.clone()).collect()
}

fn set(world: &World) -> usize {
    world.programmer.store().ranges.borrow().len()
}

#[test]
fn ranges_of_the_other_family_take_no_room_and_open_nothing() {
    let mut world = World::new(Fake::new(64), 64);
    world.sync();
    balanced(&mut world, 1, 1, &["::/0".to_owned(), "fd00::/8".to_owned()]);
    world.update();
    assert!(is_served(&world, "198.51.100.1"));
    assert_eq!(set(&world), 0, "::/0 stands for IPv4 too, in the table");
}

#[test]
fn a_change_of_many_ranges_writes_what_it_changes() {
    let mut world = World::new(Fake::new(64), 64);
    world.sync();
    let mut listed = ranges(0, 16_000);
    balanced(&mut world, 1, 4, &listed);
    world.update();
    assert_eq!((set(&world), reported(&world)), (64_000, Vec::new()));
    listed.pop();
    listed.push("192.0.2.0/24".to_owned());
    balanced(&mut world, 1, 4, &listed);
    assert_eq!(
        world.update(),
        8,
        "four ports with one that comes and one that goes"
    );
    assert_eq!(set(&world), 64_000);
    world.restart(sizes(64));
    world.changes.clear();
    assert_eq!(world.sync(), 0);
}

#[test]
fn a_service_beyond_its_share_is_served_without_its_load_balancer() {
    let mut world = World::new(Fake::new(64), 64);
    world.sync();
    balanced(&mut world, 1, 4, &ranges(0, 10));
    balanced(&mut world, 2, 4, &ranges(0, 10));
    world.update();
    assert_eq!((set(&world), reported(&world)), (80, Vec::new()));
    balanced(&mut world, 1, 4, &ranges(0, 30_000));
    world.update();
    assert!(!is_served(&world, "198.51.100.1"));
    assert!(is_served(&world, "10.96.0.1"));
    assert!(is_served(&world, "198.51.100.2"));
    assert_eq!((set(&world), world.programmer.pending()), (40, 0));
    let all = reported(&world);
    assert_eq!(all.len(), 1, "{all:?}");
    assert_eq!(
        all[0],
        "spec.loadBalancerSourceRanges: 120000 entries for all ports together, where a service has 65536 at the most; \
         the load balancer's addresses are left out"
    );
    // With fewer ports the ranges fit.
    balanced(&mut world, 1, 2, &ranges(0, 30_000));
    world.update();
    assert!(is_served(&world, "198.51.100.1"));
    assert_eq!((set(&world), reported(&world)), (60_040, Vec::new()));
}

#[test]
fn a_full_table_closes_the_service_that_does_not_fit_and_no_other() {
    let mut store = Fake::new(64);
    store.max_ranges = 100;
    let mut world = World::new(store, 64);
    world.sync();
    balanced(&mut world, 1, 1, &ranges(0, 60));
    balanced(&mut world, 2, 1, &ranges(0, 40));
    world.update();
    balanced(&mut world, 3, 1, &ranges(0, 1));
    world.update();
    let assert_closed = |world: &World| {
        for ip in [
            "198.51.100.1",
            "198.51.100.2",
            "10.96.0.1",
            "10.96.0.2",
            "10.96.0.3",
        ] {
            assert!(is_served(world, ip), "{ip}");
        }
        assert!(!is_served(world, "198.51.100.3"));
        assert_eq!((set(world), world.programmer.pending()), (100, 0));
        let all = reported(world);
        assert_eq!(all.len(), 1, "{all:?}");
        assert!(
            all[0].contains("no room left: the table of source ranges holds 100 at the most"),
            "{all:?}"
        );
    };
    assert_closed(&world);
    world.restart(sizes(64));
    world.changes.clear();
    assert_eq!(world.sync(), 0);
    assert_closed(&world);

    // Other ranges in place of the present ones fit.
    balanced(&mut world, 1, 1, &ranges(1000, 60));
    world.update();
    assert_closed(&world);

    // The space that others free is used, whether they are removed or have fewer ranges.
    balanced(&mut world, 1, 1, &ranges(1000, 59));
    world.update();
    assert!(is_served(&world, "198.51.100.3"));
    assert_eq!((set(&world), reported(&world)), (100, Vec::new()));
    balanced(&mut world, 3, 1, &ranges(0, 2));
    world.update();
    assert!(
        !is_served(&world, "198.51.100.3"),
        "it is closed, since nothing says which of the ranges count"
    );
    assert_eq!(set(&world), 99);
    world.delete("s2");
    world.update();
    assert!(is_served(&world, "198.51.100.3"));
    assert_eq!((set(&world), reported(&world)), (61, Vec::new()));
}
