//! The entries that ADD makes in the tables of the programs, and their complete removal.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests, which panic with what went wrong"
)]

#[expect(dead_code, reason = "this file needs a part of it")]
mod support;

use std::collections::BTreeMap;
use std::net::IpAddr;

use cni_plugin::netlink::{NetlinkSocket, link};
use proxy_common::maps::PodFlags;
use serde_json::{Value, json};
use support::{Called, PODS_CAPACITY, World, on_a_node, with};

fn asking(world: &World, mappings: &Value) -> Value {
    with(
        world.config(),
        &json!({"runtimeConfig": {"portMappings": mappings}}),
    )
}

/// ADD with host ports, for a pod with the Kubernetes name `default/NAME`.
fn add(world: &World, name: &str, mappings: &Value) -> Called {
    let path = world.path(name);
    let pod = if path.exists() { path } else { world.pod(name) };
    let mut command = World::command("ADD", name, Some(&pod));
    command.env(
        "CNI_ARGS",
        format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={name}"),
    );
    support::run(&mut command, asking(world, mappings).to_string().as_bytes())
}

fn index(result: &Value) -> u32 {
    let host = result["interfaces"][0]["name"].as_str().unwrap();
    let found = link::find(&mut NetlinkSocket::open().unwrap(), host).unwrap();
    found.unwrap().index
}

#[test]
fn a_pod_is_entered_by_address_and_by_interface() {
    on_a_node(|world| {
        let before = world.traces();
        assert_eq!(world.in_use(), [0, 0]);
        let pod = world.pod("pod");
        let limited = json!({"runtimeConfig": {"bandwidth": {"ingressRate": 50_000_000}}});
        let result = World::call("ADD", "c1", Some(&pod), &with(world.config(), &limited)).done();
        let index = index(&result);
        let cookie = World::inside(&pod, || NetlinkSocket::open().unwrap().netns_cookie());
        let mac = result["interfaces"][1]["mac"].as_str().unwrap();
        let octets: Vec<u8> = mac
            .split(':')
            .map(|byte| u8::from_str_radix(byte, 16).unwrap())
            .collect();
        let pods = world.pods();
        let addresses: Vec<_> = pods.iter().map(|(ip, _)| ip.to_string()).collect();
        assert_eq!(addresses, ["10.244.1.2", "fd00:1::2"]);
        for (_, entry) in pods {
            assert_eq!((entry.interface, entry.mac.to_vec()), (index, octets.clone()));
            assert_eq!(entry.netns, cookie.unwrap_or_default());
            assert_eq!(entry.flags, PodFlags::LIMITED_INGRESS);
        }
        let links = world.pod_links();
        assert_eq!(links.len(), 1);
        let (at, link) = links[0];
        assert_eq!((at, link.mac.to_vec()), (index, octets));
        assert_eq!((link.flags, link.limiter), (0, 0));
        assert_eq!(world.in_use(), [1, 0]);
        world.del("c1", Some(&pod)).done();
        assert_eq!(world.traces(), before);
    });
}

#[test]
fn host_ports_are_entered_for_the_families_of_the_pod() {
    on_a_node(|world| {
        let before = world.traces();
        let mappings = json!([
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
            {"hostPort": 53, "containerPort": 5353, "protocol": "udp", "hostIP": "192.0.2.1"},
            {"hostPort": 9, "containerPort": 9, "protocol": "sctp", "hostIP": "::"},
            {"hostPort": 0, "containerPort": 7},
        ]);
        let result = add(world, "web", &mappings).done();
        let index = index(&result);
        let entered: BTreeMap<_, _> = world
            .host_ports()
            .into_iter()
            .map(|(key, port)| {
                assert!(port.interface == index && port.generation != 0, "{port:?}");
                let key = format!("{:?} {:?} {}", key.address, key.port, key.protocol);
                (key, format!("{:?} {:?}", port.pod, port.port))
            })
            .collect();
        let expected = [
            ("0.0.0.0 8080 6", "10.244.1.2 80"),
            (":: 8080 6", "fd00:1::2 80"),
            ("192.0.2.1 53 17", "10.244.1.2 5353"),
            (":: 9 132", "fd00:1::2 9"),
        ];
        assert_eq!(
            entered,
            expected.map(|(key, port)| (key.into(), port.into())).into()
        );
        assert_eq!(world.in_use(), [1, 1]);
        let check = with(asking(world, &mappings), &json!({"prevResult": result}));
        World::call("CHECK", "web", Some(&world.path("web")), &check).done();
        // DEL gets neither the result nor the mappings.
        world.del("web", None).done();
        assert_eq!(world.traces(), before);
    });
}

#[test]
fn a_host_port_is_one_pods() {
    on_a_node(|world| {
        support::give_node("192.0.2.2");
        let port = |host_ip: &str, protocol: &str| json!([{"hostPort": 80, "containerPort": 80, "protocol": protocol, "hostIP": host_ip}]);
        add(world, "first", &port("192.0.2.1", "tcp")).done();
        let generations = || -> Vec<u32> {
            let ports = world.host_ports();
            ports.iter().map(|(_, port)| port.generation).collect()
        };
        let first = generations();
        for same in ["192.0.2.1", "", "0.0.0.0"] {
            let before = world.traces();
            let refused = add(world, "second", &port(same, "tcp"));
            assert_eq!(refused.code(), 109, "{same:?}");
            let failure = refused.document["details"].as_str().unwrap();
            assert!(failure.contains("default/first"), "{failure}");
            assert_eq!(world.traces(), before, "{same:?}");
        }
        // Entries with another address, protocol or family do not clash.
        add(world, "third", &port("192.0.2.2", "tcp")).done();
        add(world, "fourth", &port("192.0.2.1", "udp")).done();
        add(world, "fifth", &port("::", "tcp")).done();
        world.del("first", None).done();
        add(world, "second", &port("192.0.2.1", "tcp")).done();
        assert!(
            !generations().contains(&first[0]),
            "another entry has another number"
        );
        // A pod that ended without DEL does not block its ports for other pods.
        World::end_pod(&world.path("second"));
        let gone = || {
            let index = world
                .host_ports()
                .iter()
                .map(|(_, port)| port.interface)
                .collect::<Vec<_>>();
            let mut node = NetlinkSocket::open().unwrap();
            index
                .into_iter()
                .any(|index| !link::exists(&mut node, index).unwrap())
        };
        support::wait_until("the kernel has ended the namespace", gone);
        world.del("third", None).done();
        add(world, "sixth", &port("0.0.0.0", "tcp")).done();
        let ports = world.host_ports();
        let tcp: Vec<_> = ports.iter().filter(|(key, _)| key.protocol == 6).collect();
        assert_eq!(tcp.len(), 2, "those of the sixth and the fifth: {tcp:?}");
        // A late DEL of the ended pod removes no entry of another pod.
        world.del("second", None).done();
        assert_eq!(world.host_ports(), ports);
        for container in ["fourth", "fifth", "sixth"] {
            world.del(container, None).done();
        }
        assert_eq!(
            world.host_ports().len() + world.pods().len() + world.pod_links().len(),
            0
        );
    });
}

#[test]
fn of_parallel_adds_one_wins_a_host_port() {
    on_a_node(|world| {
        let before = world.traces();
        let names: Vec<_> = (0..16).map(|number| format!("c{number}")).collect();
        let children: Vec<_> = names
            .iter()
            .map(|name| {
                // Half of the pods ask for the port at one address, which clashes with the port at all
                // addresses.
                let host_ip = ["", "192.0.2.1"][name.len() % 2];
                let mapping = json!([{"hostPort": 80, "containerPort": 80, "hostIP": host_ip}]);
                let pod = world.pod(name);
                let mut child = World::command("ADD", name, Some(&pod)).spawn().unwrap();
                serde_json::to_writer(child.stdin.take().unwrap(), &asking(world, &mapping)).unwrap();
                child
            })
            .collect();
        let mut won = 0;
        for child in children {
            let output = child.wait_with_output().unwrap();
            let document: Value = serde_json::from_slice(&output.stdout).unwrap();
            if output.status.success() {
                won += 1;
            } else {
                assert_eq!(document["code"], 109, "{document}");
            }
        }
        assert_eq!(won, 1);
        for name in &names {
            world.del(name, None).done();
        }
        assert_eq!(world.traces(), before);
    });
}

#[test]
fn a_full_table_is_reported_and_leaves_nothing() {
    on_a_node(|world| {
        let foreign: Vec<IpAddr> = (0..PODS_CAPACITY)
            .map(|number| IpAddr::from([10, 9, (number >> 8) as u8, number as u8]))
            .collect();
        world.enter_pods(&foreign);
        let before = world.traces();
        let pod = world.pod("pod");
        let failure = world.add("c1", &pod);
        assert_eq!(failure.code(), 106);
        let details = failure.document["details"].as_str().unwrap();
        assert!(details.contains("PODS is full"), "{details}");
        assert_eq!(world.traces(), before);
    });
}

#[test]
fn check_and_del_find_entries_by_their_owner() {
    on_a_node(|world| {
        let mapping = json!([{"hostPort": 80, "containerPort": 80}]);
        let result = add(world, "c1", &mapping).done();
        let pod = world.path("c1");
        let config = with(asking(world, &mapping), &json!({"prevResult": result}));
        let check = || World::call("CHECK", "c1", Some(&pod), &config);
        check().done();
        // Another pod has taken over the entry.
        world.enter_pods(&["10.244.1.2".parse().unwrap()]);
        let failure = check();
        assert_eq!(failure.code(), 107);
        let details = failure.document["details"].as_str().unwrap();
        assert!(details.contains("10.244.1.2"), "{details}");
        // The address is leased to this container, so DEL removes the entry as well.
        world.del("c1", None).done();
        assert_eq!(world.pods().len(), 0);
        // DEL leaves the entry of an address that is leased to another container.
        add(world, "c2", &json!([])).done();
        let lease = world.data_dir.join("10.244.1.3");
        std::fs::write(&lease, "other\r\neth0").unwrap();
        world.enter_pods(&["10.244.1.3".parse().unwrap()]);
        world.del("c2", None).done();
        assert!(lease.exists());
        let left: Vec<_> = world.pods().iter().map(|(ip, _)| ip.to_string()).collect();
        assert_eq!(left, ["10.244.1.3"]);
    });
}
