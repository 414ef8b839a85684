//! The objects that ADD makes and DEL removes, with the real binary on nodes of namespaces.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests, which panic with what went wrong"
)]

#[expect(dead_code, reason = "this file needs a part of it")]
mod support;

use std::collections::BTreeSet;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::time::Duration;

use cni_plugin::datapath::Datapath;
use cni_plugin::netlink::{NetlinkSocket, ip, link};
use serde_json::{Value, json};
use support::{NODE_V4, NODE_V6, World, interfaces, names, on_a_node, with};

/// Sends a datagram from the pod to an address of the node and back. Returns the address that the node saw.
fn reach(pod: &Path, node: &str) -> String {
    let server = UdpSocket::bind(SocketAddr::new(node.parse().unwrap(), 0)).unwrap();
    server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let to = server.local_addr().unwrap();
    let from = World::inside(pod, || {
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let client = UdpSocket::bind(any).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        client.send_to(b"ping", to).unwrap();
        let (_, from) = server
            .recv_from(&mut [0; 16])
            .expect("the node gets what the pod sends");
        server.send_to(b"pong", from).unwrap();
        client.recv_from(&mut [0; 16]).expect("the pod gets the reply");
        from
    });
    from.ip().to_string()
}

#[test]
fn a_pod_gets_an_interface_of_both_families() {
    on_a_node(|world| {
        let pod = world.pod("pod");
        let before = world.traces();
        let result = world.add("c1", &pod).done();
        let host = result["interfaces"][0]["name"].as_str().unwrap();
        assert_eq!(
            with(result.clone(), &json!({"interfaces": []})),
            json!({
                "cniVersion": "1.1.0", "interfaces": [], "dns": {},
                "ips": [
                    {"address": "10.244.1.2/32", "gateway": "169.254.1.1", "interface": 1},
                    {"address": "fd00:1::2/128", "gateway": "fe80::1", "interface": 1},
                ],
                "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}, {"dst": "::/0", "gw": "fe80::1"}],
            })
        );
        let inner = &result["interfaces"][1];
        assert_eq!(
            (&inner["name"], &inner["mtu"], &inner["sandbox"]),
            (&json!("eth0"), &json!(1450), &json!(pod))
        );
        for node in [NODE_V4, NODE_V6] {
            let seen = reach(&pod, node);
            assert!(seen == "10.244.1.2" || seen == "fd00:1::2", "{seen}");
        }
        let index = link::find(&mut NetlinkSocket::open().unwrap(), host)
            .unwrap()
            .unwrap()
            .index;
        // Before Linux 5.14 no socket reports the cookie, and the agent finds it otherwise.
        let cookie = World::inside(&pod, || NetlinkSocket::open().unwrap().netns_cookie());
        let entries: Vec<_> = cookie.map(|cookie| (cookie, index)).into_iter().collect();
        assert_eq!(world.namespaces(), entries);
        let missing = Datapath::open(&world.bpf_root).unwrap().missing(index).unwrap();
        assert_eq!(missing, [""; 0]);
        let check = with(world.config(), &json!({"prevResult": result}));
        World::call("CHECK", "c1", Some(&pod), &check).done();
        assert_eq!(world.del("c1", Some(&pod)).done(), Value::Null);
        assert_eq!(world.traces(), before);
        assert_eq!(World::inside(&pod, interfaces), ["lo"]);
        world.del("c1", Some(&pod)).done();
    });
}

#[test]
fn the_gateway_and_the_pod_need_no_neighbour_request() {
    on_a_node(|world| {
        let pod = world.pod("pod");
        let result = world.add("c1", &pod).done();
        let macs = [0, 1].map(|side| result["interfaces"][side]["mac"].as_str().unwrap().to_owned());
        // Flags 0x6: complete and permanent (include/uapi/linux/if_arp.h).
        let arp = |address: &str, mac: &str, table: &str| {
            let entry = table
                .lines()
                .find(|line| line.starts_with(address))
                .expect("an entry");
            assert!(entry.contains("0x6") && entry.contains(mac), "{entry}");
        };
        let table = || std::fs::read_to_string("/proc/thread-self/net/arp").unwrap();
        arp("10.244.1.2", &macs[1], &table());
        arp("169.254.1.1", &macs[0], &World::inside(&pod, table));
    });
}

#[test]
fn del_needs_nothing_and_leaves_nothing() {
    on_a_node(|world| {
        let before = world.traces();
        world.del("never-seen", None).done();
        let pod = world.pod("pod");
        world.add("c1", &pod).done();
        World::end_pod(&pod);
        world.del("c1", Some(&pod)).done();
        assert_eq!(world.traces(), before);
        // A configuration that ADD would refuse, and no data plane.
        let other = world.pod("other");
        world.add("c2", &other).done();
        std::fs::remove_file(world.bpf_root.join("current")).unwrap();
        let broken = with(
            world.config(),
            &json!({"mtu": 1, "runtimeConfig": 5, "ipam": {"dataDir": world.data_dir, "ranges": "x"}}),
        );
        World::call("DEL", "c2", None, &broken).done();
        assert_eq!(names(&world.data_dir.join("millrace")), [""; 0]);
        assert!(!interfaces().iter().any(|name| name.starts_with("mr")));
    });
}

#[test]
fn an_interface_that_exists_is_left_alone() {
    on_a_node(|world| {
        let pod = world.pod("pod");
        world.add("c1", &pod).done();
        let before = world.traces();
        assert_eq!(world.add("c1", &pod).code(), 103, "the same attachment again");
        assert_eq!(
            world.add("c2", &pod).code(),
            103,
            "another container in the same namespace"
        );
        let elsewhere = world.pod("elsewhere");
        assert_eq!(
            world.add("c1", &elsewhere).code(),
            103,
            "the same container in another namespace"
        );
        assert_eq!(world.traces(), before);
        // ADD refuses the attachment even if its leases were lost.
        for address in ["10.244.1.2", "fd00:1::2"] {
            std::fs::remove_file(world.data_dir.join(address)).unwrap();
        }
        let again = world.add("c1", &elsewhere);
        assert_eq!(again.code(), 103, "{again:?}");
        assert_eq!(World::inside(&elsewhere, interfaces), ["lo"]);
        assert!(reach(&pod, NODE_V4) == "10.244.1.2");
    });
}

#[test]
fn an_impossible_add_is_refused_without_a_trace() {
    on_a_node(|world| {
        let pod = world.pod("pod");
        let missing = world.path("missing");
        let before = world.traces();
        let file = world.path("file");
        std::fs::write(&file, "").unwrap();
        let base = world.config();
        let refused = |namespace: &Path, changes: Value| {
            let code = World::call("ADD", "c1", Some(namespace), &with(base.clone(), &changes)).code();
            assert_eq!(world.traces(), before, "{changes}");
            code
        };
        assert_eq!(refused(&missing, json!({})), 3);
        assert_eq!(refused(&file, json!({})), 4);
        assert_eq!(refused(Path::new("/proc/thread-self/ns/net"), json!({})), 4);
        let ports = json!({"runtimeConfig": {"portMappings": [{"hostPort": 80, "containerPort": 0}]}});
        assert_eq!(refused(&pod, ports), 7);
        let one_family = json!({
            "ipam": {"dataDir": world.data_dir, "ranges": [[{"subnet": "10.244.1.0/24"}]]},
            "runtimeConfig": {"portMappings": [{"hostPort": 80, "containerPort": 80, "hostIP": "2001:db8::1"}]},
        });
        assert_eq!(refused(&pod, one_family), 7);
        assert_eq!(
            refused(&pod, json!({"runtimeConfig": {"ips": ["10.9.9.9"]}})),
            102
        );
        assert_eq!(refused(&pod, json!({"runtimeConfig": {"mac": "x"}})), 7);
        assert_eq!(refused(&pod, json!({"bpfRoot": missing})), 11);
        // The kernel refuses the second route, when all other objects exist.
        let ipam = json!({"dataDir": world.data_dir, "ranges": base["ipam"]["ranges"],
                          "routes": [{"dst": "0.0.0.0/0"}, {"dst": "0.0.0.0/0"}]});
        assert_eq!(refused(&pod, json!({"ipam": ipam})), 105);
        assert_eq!(World::inside(&pod, interfaces), ["lo"]);
        world.add("c1", &pod).done();
    });
}

#[test]
fn requested_settings_are_applied() {
    on_a_node(|world| {
        let pod = world.pod("pod");
        let asked = json!({
            "runtimeConfig": {
                "ips": ["10.244.1.77/24"], "mac": "02:00:00:00:00:77", "dns": {"servers": ["192.0.2.53"]},
                "bandwidth": {"ingressRate": 50_000_000, "ingressBurst": 4_294_967_296_u64},
            },
            "args": {"cni": {"ips": ["fd00:1::77"]}},
        });
        let result = World::call("ADD", "c1", Some(&pod), &with(world.config(), &asked)).done();
        assert_eq!(result["ips"][0]["address"], "10.244.1.77/32");
        assert_eq!(result["ips"][1]["address"], "fd00:1::77/128");
        assert_eq!(result["interfaces"][1]["mac"], "02:00:00:00:00:77");
        assert_eq!(result["dns"]["nameservers"], json!(["192.0.2.53"]));
        assert_eq!(reach(&pod, NODE_V6), "fd00:1::77");
        let next = world.pod("next");
        let result = world.add("c2", &next).done();
        assert_eq!(
            result["ips"][0]["address"], "10.244.1.78/32",
            "the turn goes on from there"
        );
    });
}

#[test]
fn a_result_has_the_form_of_its_version_and_passes_on_the_previous_one() {
    on_a_node(|world| {
        let previous = json!({
            "cniVersion": "0.4.0", "interfaces": [{"name": "lo", "sandbox": "/x"}],
            "ips": [{"version": "4", "address": "127.0.0.1/8", "interface": 0}], "dns": {},
        });
        for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
            let pod = world.pod(version);
            let config = with(
                world.config(),
                &json!({"cniVersion": version, "prevResult": previous}),
            );
            let result = World::call("ADD", version, Some(&pod), &config).done();
            let old = version < "1.0.0";
            assert_eq!(result["cniVersion"], version);
            assert_eq!(result["interfaces"].as_array().unwrap().len(), 3);
            for ip in result["ips"].as_array().unwrap() {
                assert_eq!(ip.get("version").is_some(), old, "{version}");
            }
            assert_eq!(result["ips"][2]["interface"], 2);
            assert_eq!(result["interfaces"][2].get("mtu").is_some(), version == "1.1.0");
            let check = with(config, &json!({"prevResult": result}));
            let checked = World::call("CHECK", version, Some(&pod), &check);
            if version < "0.4.0" {
                assert_eq!(checked.code(), 1);
            } else {
                checked.done();
            }
        }
    });
}

#[test]
fn a_reused_address_is_announced() {
    use nix::sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt,
    };
    use std::os::fd::AsRawFd as _;
    on_a_node(|world| {
        let pod = world.pod("pod");
        let raw = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::empty(),
            SockProtocol::EthAll,
        )
        .unwrap();
        let timeout = nix::sys::time::TimeVal::new(5, 0);
        setsockopt(&raw, sockopt::ReceiveTimeout, &timeout).unwrap();
        world.add("c1", &pod).done();
        let (v4, v6) = (
            [10, 244, 1, 2],
            "fd00:1::2".parse::<std::net::Ipv6Addr>().unwrap().octets(),
        );
        let (mut arp, mut advertisement) = (false, false);
        let mut frame = [0; 2048];
        while !(arp && advertisement) {
            let length = recv(raw.as_raw_fd(), &mut frame, MsgFlags::empty()).expect("both announcements");
            let frame = &frame[..length];
            // ARP: ethertype 0806, sender and target protocol address the same.
            arp |= frame[12..14] == [8, 6] && frame[28..32] == v4 && frame[38..42] == v4;
            // ICMPv6 type 136 from the announced address, which is also the target.
            advertisement |= frame[12..14] == [0x86, 0xdd]
                && frame[20] == 58
                && frame[22..38] == v6
                && frame[54] == 136
                && frame[62..78] == v6;
        }
    });
}

#[test]
fn parallel_adds_give_different_addresses() {
    on_a_node(|world| {
        let before = world.traces();
        let ipam = json!({"dataDir": world.data_dir, "ranges": [[{"subnet": "10.9.0.0/26"}]]});
        let config = with(world.config(), &json!({"ipam": ipam}));
        let pods: Vec<_> = (0..64).map(|index| world.pod(&format!("pod{index}"))).collect();
        let children: Vec<_> = pods
            .iter()
            .enumerate()
            .map(|(index, pod)| {
                let mut child = World::command("ADD", &format!("c{index}"), Some(pod))
                    .spawn()
                    .unwrap();
                let input = child.stdin.take().unwrap();
                serde_json::to_writer(input, &config).unwrap();
                child
            })
            .collect();
        let (mut given, mut refused) = (BTreeSet::new(), 0);
        for child in children {
            let output = child.wait_with_output().unwrap();
            let document: Value = serde_json::from_slice(&output.stdout).unwrap();
            if output.status.success() {
                let address = document["ips"][0]["address"].as_str().unwrap().to_owned();
                assert!(given.insert(address.clone()), "{address} was given twice");
            } else {
                assert_eq!(document["code"], 101, "{document}");
                refused += 1;
            }
        }
        assert_eq!((given.len(), refused), (61, 3));
        for index in 0..64 {
            World::call("DEL", &format!("c{index}"), None, &config).done();
        }
        assert_eq!(world.traces(), before);
    });
}

#[test]
fn routes_and_addresses_are_those_of_the_configuration() {
    on_a_node(|world| {
        let pod = world.pod("pod");
        let ipam = json!({
            "dataDir": world.data_dir,
            "ranges": [[{"subnet": "10.7.0.0/24"}], [{"subnet": "10.8.0.0/24", "rangeStart": "10.8.0.50"}]],
            "routes": [{"dst": "192.0.2.0/24", "mtu": 1400, "priority": 7}, {"dst": "::/0"}],
        });
        let result = World::call(
            "ADD",
            "c1",
            Some(&pod),
            &with(world.config(), &json!({"ipam": ipam})),
        )
        .done();
        assert_eq!(result["ips"][1]["address"], "10.8.0.50/32");
        assert_eq!(
            result["routes"],
            json!([{"dst": "192.0.2.0/24", "gw": "169.254.1.1", "mtu": 1400, "priority": 7}])
        );
        let routes = World::inside(&pod, || {
            ip::gateway_routes(&mut NetlinkSocket::open().unwrap()).unwrap()
        });
        assert_eq!(routes.len(), 1);
        assert_eq!(routes[0].0.to_string(), "192.0.2.0/24");
        assert_eq!(reach(&pod, NODE_V4), "10.7.0.2");
    });
}
