//! Pins that are removed while a pod runs: DEL works without them, and their entries can be restored.

#[expect(dead_code, reason = "this file needs a part of it")]
mod support;

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use cni_plugin::config::HostPort;
use cni_plugin::datapath::{Datapath, Entry};
use cni_plugin::ipam::Store;
use cni_plugin::netlink::{NetlinkSocket, ip, link};
use serde_json::{Value, json};
use support::{World, names, on_a_node, with};

fn add(world: &World, container: &str, pod: &Path) -> Value {
    let mappings = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]);
    let config = with(
        world.config(),
        &json!({"runtimeConfig": {"portMappings": mappings}}),
    );
    World::call("ADD", container, Some(pod), &config).done()
}

#[test]
fn a_pod_ends_without_the_pins_that_it_began_with() {
    on_a_node(|world| {
        let current = world.bpf_root.join("current");
        let maps = fs::canonicalize(&current).unwrap().join("maps");
        for lost in ["PODS", "POD_LINKS", "HOST_PORTS", "IN_USE", "POD_NETNS"] {
            let pod = world.pod(lost);
            add(world, lost, &pod);
            let (pin, aside) = (maps.join(lost), maps.join("aside"));
            fs::rename(&pin, &aside).unwrap();
            world.del(lost, Some(&pod)).done();
            fs::rename(&aside, &pin).unwrap();
            assert_eq!(support::interfaces(), ["lo"], "without {lost}");
            assert!(!names(&world.data_dir).iter().any(|name| name.starts_with("10.")));
        }
        let pod = world.pod("links");
        add(world, "links", &pod);
        fs::remove_dir_all(world.bpf_root.join("links")).unwrap();
        world.del("links", Some(&pod)).done();
        let pod = world.pod("all");
        fs::create_dir(world.bpf_root.join("links")).unwrap();
        add(world, "all", &pod);
        fs::remove_file(&current).unwrap();
        world.del("all", Some(&pod)).done();
        assert_eq!(support::interfaces(), ["lo"]);
    });
}

#[test]
fn entries_are_restored_from_notes() {
    on_a_node(|world| {
        let pod = world.pod("pod");
        let result = add(world, "c1", &pod);
        let host = result["interfaces"][0]["name"].as_str().unwrap();
        let note = Store::existing(&world.data_dir)
            .unwrap()
            .note(host)
            .unwrap()
            .unwrap();
        let mut socket = NetlinkSocket::open().unwrap();
        let index = link::find(&mut socket, host).unwrap().unwrap().index;
        let addresses: Vec<IpAddr> = note.addresses.clone();
        let host_ports: Vec<HostPort> = note.host_ports.clone();
        let mac: Vec<u8> = note
            .mac
            .split(':')
            .map(|octet| u8::from_str_radix(octet, 16).unwrap())
            .collect();
        let entry = Entry {
            interface: index,
            netns_cookie: note.netns_cookie,
            mac: mac.try_into().unwrap(),
            addresses: &addresses,
            is_limited: false,
            limiter: None,
            host_ports: &host_ports,
        };
        let seen = |world: &World| {
            (
                world.pods(),
                world.pod_links(),
                world.host_ports().len(),
                world.in_use(),
            )
        };
        let before = seen(world);
        let datapath = Datapath::open(&world.bpf_root).unwrap();
        assert_eq!(
            datapath.restore(&mut socket, &entry).unwrap(),
            [""; 0],
            "nothing is missing"
        );
        world.pin_programs();
        assert!(
            world.pods().is_empty() && world.pod_links().is_empty(),
            "new tables"
        );
        let datapath = Datapath::open(&world.bpf_root).unwrap();
        let restored = datapath.restore(&mut socket, &entry).unwrap();
        // Two addresses, an interface, the two notes of use, and one port in two families.
        assert_eq!(restored.len(), 6, "{restored:?}");
        assert_eq!(seen(world), before);
        assert_eq!(datapath.restore(&mut socket, &entry).unwrap(), [""; 0]);
        world.del("c1", Some(&pod)).done();
        assert!(world.pods().is_empty() && world.host_ports().is_empty());
    });
}

/// A running pod's leases are lost, and its address is leased again. The second ADD fails, names the pod, and
/// leaves its entries unchanged.
#[test]
fn an_add_that_fails_names_the_running_pod_and_leaves_its_entries() {
    type Lose = fn(&Path);
    let losses: [(Lose, &str); 2] = [
        (
            |dir| {
                for name in names(dir) {
                    if name.starts_with("10.") || name.starts_with("last_reserved") {
                        fs::remove_file(dir.join(name)).unwrap();
                    }
                }
            },
            "container runs",
        ),
        (|dir| fs::remove_dir_all(dir).unwrap(), "another pod"),
    ];
    for (lose, owner) in losses {
        on_a_node(|world| {
            let pod = world.pod("runs");
            let result = add(world, "runs", &pod);
            let host = result["interfaces"][0]["name"].as_str().unwrap();
            let entries = world.pods();
            lose(&world.data_dir);
            let other = world.pod("comes");
            let called = World::call("ADD", "comes", Some(&other), &world.config());
            assert_eq!(called.code(), 11, "{called:?}");
            assert_eq!(called.document["msg"], "address 10.244.1.2 is in use");
            let details = called.document["details"].as_str().unwrap();
            let expected = format!("{owner} has it at interface {host}, and its lease is gone from");
            assert!(details.starts_with(&expected), "{details}");
            assert!(
                details.ends_with("the next ADD tries the next one of its range"),
                "{details}"
            );
            assert_eq!(world.pods(), entries);
            // The next ADD cannot replace a requested address by another one.
            let asked = with(world.config(), &json!({"runtimeConfig": {"ips": ["10.244.1.2"]}}));
            let called = World::call("ADD", "comes", Some(&other), &asked);
            assert_eq!(called.code(), 102, "{called:?}");
            World::call("ADD", "comes", Some(&other), &world.config()).done();
        });
    }
}

#[test]
fn a_foreign_route_to_a_pods_address_is_named() {
    on_a_node(|world| {
        let other = world.pod("comes");
        let mut node = NetlinkSocket::open().unwrap();
        node.ask(link::up(1)).unwrap();
        node.ask(ip::link_route(1, "10.244.1.2".parse().unwrap()))
            .unwrap();
        let called = World::call("ADD", "comes", Some(&other), &world.config());
        assert_eq!(called.code(), 11, "{called:?}");
        let details = called.document["details"].as_str().unwrap();
        let expected = "a route of another leads to it by interface lo, see `ip route show 10.244.1.2`";
        assert!(details.starts_with(expected), "{details}");
    });
}
