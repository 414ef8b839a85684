//! A DNS cache on the node, such as `NodeLocal DNSCache`. It has an interface of its own, with an address of
//! its own and the cluster IP of the DNS service. The annotation `millrace.dev/leave-to-node` leaves that
//! cluster IP to the cache.

use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::Duration;

use harness::config::DEFAULTS;
use harness::{Endpoint, NodeSpec, Place, Pod, Probe, Service, World, wait_for};
use serde_json::json;

const SECOND: Duration = Duration::from_secs(1);
/// The cluster IPs of the DNS service that the cache replaces.
const DNS: [&str; 2] = ["10.96.0.10", "fd00:96::10"];
/// The cluster IPs that the cache sends its own queries to.
const UPSTREAM: [&str; 2] = ["10.96.0.11", "fd00:96::11"];
/// The cache's own address, the one in its manifest.
const OWN: &str = "169.254.20.10";
const NODE_PORT: u16 = 30_053;

struct Topology {
    world: World,
    client: Pod,
}

impl Topology {
    #[track_caller]
    fn wait_replies(&self, addresses: &[&str], backend: &str) {
        for place in [&self.client as &Place, self.world.node(1)] {
            for address in addresses {
                let to = SocketAddr::new(address.parse().expect("an address"), 53);
                for probe in Probe::ALL {
                    let what = format!(
                        "{} to get a reply of {backend} at {to} by {probe:?}",
                        place.name()
                    );
                    wait_for(&what, 5 * SECOND, || match place.ask_within(probe, to, SECOND) {
                        Ok(reply) if reply.backend == backend => Ok(()),
                        other => Err(format!("{other:?}")),
                    });
                }
            }
        }
    }

    #[track_caller]
    fn wait_errors(&self, expected: &[&str]) {
        wait_for(&format!("the errors {expected:?}"), 5 * SECOND, || {
            let status = self
                .world
                .node(1)
                .cli(&["status"])
                .map_err(|error| format!("{error:#}"))?;
            let messages = status["errors"].as_array().into_iter().flatten();
            let messages: Vec<_> = messages
                .map(|error| error["message"].as_str().unwrap_or_default())
                .collect();
            let fits = messages.len() == expected.len()
                && messages
                    .iter()
                    .zip(expected)
                    .all(|(message, part)| message.contains(part));
            if fits {
                Ok(())
            } else {
                Err(format!("{messages:#?}"))
            }
        });
    }
}

/// Replies to datagrams at one address of the node, under the node's name.
fn reply_at(node: &Place, address: IpAddr) {
    let socket = node.udp_bind(SocketAddr::new(address, 53)).expect("a socket");
    let name = node.name().to_owned();
    thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((_, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(format!("{name} {from}\n").as_bytes(), from);
        }
    });
}

fn assert_cache_replies_in_place_of_the_service(config: &str) {
    let world = World::builder().node(NodeSpec::millrace()).build();
    let _agents = world.start_agents_with(&format!("{DEFAULTS}{config}"));
    let [client, dns] = ["client", "dns"].map(|name| world.node(1).add_pod(name));
    let _pods = dns.serve(8053);
    let service = |name: &str, [v4, v6]: [&str; 2]| {
        let service = Service::new(name).namespace("kube-system");
        let service = service.cluster_ip(v4).cluster_ip(v6);
        service.udp("dns", 53, 8053).tcp("dns-tcp", 53, 8053)
    };
    for service in [service("kube-dns", DNS), service("kube-dns-upstream", UPSTREAM)] {
        world.apply_all(service.slices([Endpoint::of(&dns)]));
        world.apply(&service);
    }
    let topology = Topology { world, client };
    let (world, node) = (&topology.world, topology.world.node(1));
    topology.wait_replies(&DNS, "dns");

    // Any interface without a link will do. The dummy module does not exist on every kernel.
    node.run_ip("link add nodelocaldns type bridge");
    node.run_ip("link set nodelocaldns up");
    for address in [OWN, DNS[0], DNS[1]] {
        let address: IpAddr = address.parse().expect("an address");
        node.add_address("nodelocaldns", address.into());
        reply_at(node, address);
    }
    let _cache = node.serve_tcp(53);
    topology.wait_replies(&[OWN], "n1");
    // Without the annotation the service keeps its address, even if another program holds it.
    topology.wait_replies(&DNS, "dns");

    let left = service("kube-dns", DNS).annotation("millrace.dev/leave-to-node", "true");
    let left = left.node_port("dns", NODE_PORT);
    world.apply(&left);
    topology.wait_replies(&DNS, "n1");
    topology.wait_replies(&[OWN], "n1");
    topology.wait_replies(&UPSTREAM, "dns");
    // The service's other addresses are still served.
    let node_port = SocketAddr::from((node.ip(), NODE_PORT));
    let reply = topology.client.ask(Probe::Udp, node_port).expect("a reply");
    assert_eq!(reply.backend, "dns");
    topology.wait_errors(&[]);
    let listed = node.cli(&["service", "list"]).expect("a list");
    assert!(!listed.to_string().contains(DNS[0]), "{listed}");

    node.run_ip("link del nodelocaldns");
    topology.wait_errors(&["leaves 10.96.0.10 and fd00:96::10 to the node, which has no such address"]);
    let to = SocketAddr::new(DNS[0].parse().expect("an address"), 53);
    let reply = topology.client.ask_within(Probe::Udp, to, SECOND);
    assert!(reply.is_err(), "{reply:?}");
    world.apply(&service("kube-dns", DNS));
    topology.wait_replies(&DNS, "dns");
    topology.wait_errors(&[]);
    assert_eq!(node.cli(&["status"]).expect("a status")["ready"], json!(true));
}

#[test]
fn a_dns_cache_replies_in_place_of_the_service() {
    harness::require_root!();
    assert_cache_replies_in_place_of_the_service("");
}

#[test]
fn a_dns_cache_replies_in_place_of_the_service_without_socket_hooks() {
    harness::require_root!();
    assert_cache_replies_in_place_of_the_service("socketLB: \"off\"\n");
}
