//! Packets between pods of one node, with `hostRouting: redirect`: they pass directly from one pod to the
//! other. A capture at the node's side of the receiver shows it.

use std::net::SocketAddr;
use std::time::Duration;

use harness::cni::PodSpec;
use harness::config::HOOKS_OFF;
use harness::{
    Agent, Endpoint, Frame, NodeSpec, PacketSocket, Pod, Probe, Service, TimeExceeded, World, eventually,
};
use serde_json::json;

const SECOND: Duration = Duration::from_secs(1);
const VIPS: [&str; 2] = ["10.96.0.10", "fd00:96::10"];

/// A node with its agent, which translates packets of pods one by one.
fn topology(host_routing: &str) -> (World, Agent) {
    let world = World::builder().node(NodeSpec::millrace()).build();
    let config = format!("{HOOKS_OFF}hostRouting: {host_routing}\n");
    let mut agent = world.node(1).agent().config(&config).start();
    agent.wait_ready(10 * SECOND);
    (world, agent)
}

/// Asks a pod by its addresses and by a service.
#[track_caller]
fn ask(client: &Pod, server: &Pod) {
    for probe in Probe::ALL {
        for address in server.addresses() {
            let reply = client.ask(probe, SocketAddr::new(*address, 8080));
            let reply = reply.unwrap_or_else(|error| panic!("{probe:?} to {address}: {error}"));
            assert_eq!(reply.backend, server.name());
            assert!(client.addresses().contains(&reply.peer.ip().to_canonical()));
        }
        for vip in VIPS {
            let to = SocketAddr::new(vip.parse().expect("an address"), 80);
            let reply = client.ask(probe, to);
            let reply = reply.unwrap_or_else(|error| panic!("{probe:?} to {to}: {error}"));
            assert_eq!(reply.backend, server.name());
        }
    }
    for address in server.addresses() {
        client.ping(*address, 3 * SECOND).expect("an echo reply");
    }
}

fn service(world: &World, backend: &Pod) {
    let service = Service::web();
    world.apply(&service);
    world.apply_all(service.slices([Endpoint::of(backend)]));
}

#[track_caller]
fn wait_for_service(client: &Pod) {
    for vip in VIPS {
        let to = SocketAddr::new(vip.parse().expect("an address"), 80);
        eventually("the service", 5 * SECOND, || client.ask(Probe::Tcp, to).is_ok());
    }
}

fn is_ip(frame: &Frame) -> bool {
    // Reports of multicast group members go to all pods.
    let is_multicast = frame.bytes.first().is_some_and(|byte| byte & 1 == 1);
    match frame.bytes.get(12..14).filter(|_| !is_multicast) {
        Some([0x08, 0x00]) => true,
        // ICMPv6 neighbour discovery and multicast reports are no IP packets of the test.
        Some([0x86, 0xdd]) => {
            !(frame.bytes.get(20) == Some(&58) && matches!(frame.bytes.get(54), Some(130..=143)))
        }
        _ => false,
    }
}

/// The number of IP packets that the node sent into the pod by the node's end of the pair.
fn sent_by_the_node(capture: &PacketSocket) -> usize {
    let mut count = 0;
    while let Some(frame) = capture.receive(Duration::from_millis(50)).expect("to read") {
        count += usize::from(frame.outgoing && is_ip(&frame));
    }
    count
}

/// The number of IP packets that the pod received, by any path.
fn received_by_the_pod(capture: &PacketSocket) -> usize {
    let came = capture.so_far().expect("to read");
    came.iter()
        .filter(|frame| !frame.outgoing && is_ip(frame))
        .count()
}

#[test]
fn packets_between_pods_of_a_node_pass_by_its_stack() {
    harness::require_root!();
    for (host_routing, through_the_stack) in [("redirect", false), ("stack", true)] {
        let (world, _agent) = topology(host_routing);
        let node = world.node(1);
        let [client, server] = ["client", "server"].map(|name| node.add_pod(name));
        let _servers = server.serve(8080);
        service(&world, &server);
        wait_for_service(&client);
        let captures =
            [&client, &server].map(|pod| node.packet_socket(pod.host_interface()).expect("a capture"));
        ask(&client, &server);
        for capture in &captures {
            let count = sent_by_the_node(capture);
            assert_eq!(count > 0, through_the_stack, "{host_routing}: {count} packets");
        }
        // Packets between the node itself and its pods always go through the stack.
        for address in server.addresses() {
            for probe in Probe::ALL {
                let reply = node.ask(probe, SocketAddr::new(*address, 8080)).expect("a reply");
                assert_eq!(reply.backend, "server");
            }
        }
    }
}

#[test]
fn a_pod_with_a_limit_keeps_to_the_stack_both_ways() {
    harness::require_root!();
    let (world, _agent) = topology("redirect");
    let node = world.node(1);
    let limit = json!({"ingressRate": 50_000_000, "ingressBurst": 1_000_000});
    let limited = node.add_pod_by_plugin(&PodSpec::new("limited").asking("bandwidth", limit));
    let other = node.add_pod("other");
    let _servers = [limited.serve(8080), other.serve(8080)];
    service(&world, &other);
    wait_for_service(&limited);
    let captures = [&limited, &other].map(|pod| node.packet_socket(pod.host_interface()).expect("a capture"));
    let in_pods = [&limited, &other].map(|pod| pod.packet_socket("eth0").expect("a capture"));
    ask(&limited, &other);
    // The pods' captures are read first, so that the node has already sent each of these packets.
    let received = in_pods.iter().map(received_by_the_pod).sum::<usize>();
    let by_the_node = captures.iter().map(sent_by_the_node).sum::<usize>();
    assert!(received > 0, "the pods have received something");
    assert!(
        by_the_node >= received,
        "{by_the_node} of {received} packets came by the node's stack"
    );
}

#[test]
fn a_hop_is_counted_and_the_last_one_answers_time_exceeded() {
    harness::require_root!();
    let (world, _agent) = topology("redirect");
    let node = world.node(1);
    let [client, server] = ["client", "server"].map(|name| node.add_pod(name));
    for to in server.addresses() {
        client.ping(*to, 3 * SECOND).expect("an echo reply");
        let capture = server.packet_socket("eth0").expect("a capture");
        let errors = client.packet_socket("eth0").expect("a capture");
        let socket = client.udp_socket_for(SocketAddr::new(*to, 9)).expect("a socket");
        let port = socket.local_addr().expect("an address").port().to_be_bytes();
        let send = |hops: u32| {
            if to.is_ipv4() {
                socket2::SockRef::from(&socket).set_ttl_v4(hops).expect("to set");
            } else {
                socket2::SockRef::from(&socket)
                    .set_unicast_hops_v6(hops)
                    .expect("to set");
            }
            socket.send_to(b"?", SocketAddr::new(*to, 9)).expect("to send");
        };
        let offset = if to.is_ipv4() { 22 } else { 21 };
        let is_ours = |frame: &Frame| !frame.outgoing && is_ip(frame) && frame.bytes.ends_with(b"?");
        send(17);
        let frame = capture
            .find(SECOND, is_ours)
            .expect("to read")
            .expect("the datagram");
        assert_eq!(frame.bytes[offset], 16, "one hop less");
        send(1);
        let is_about_it =
            |frame: &Frame| TimeExceeded::read(frame).is_some_and(|error| error.ports[..2] == port);
        let frame = errors.find(SECOND, is_about_it).expect("to read");
        let error = frame.and_then(|frame| TimeExceeded::read(&frame));
        let error = error.unwrap_or_else(|| panic!("no error about the datagram to {to}"));
        assert_eq!(error.to, *to, "the datagram's destination");
        assert_eq!(error.ports[2..], 9_u16.to_be_bytes());
        assert_eq!(error.from, node.address_like(*to), "the node is the hop");
        let late = capture.find(SECOND / 5, is_ours).expect("to read");
        assert!(late.is_none(), "its time to live was over");
    }
}

/// Replies of the endpoint carry the service's address as long as the socket asks the service, and the
/// endpoint's own address afterwards.
#[test]
fn a_socket_that_asks_a_service_may_ask_its_endpoint_next() {
    harness::require_root!();
    for host_routing in ["stack", "redirect"] {
        let (world, _agent) = topology(host_routing);
        let [client, server] = ["client", "server"].map(|name| world.node(1).add_pod(name));
        let _server = server.serve(8080);
        service(&world, &server);
        wait_for_service(&client);
        for (vip, endpoint) in VIPS.iter().zip([server.ip().into(), server.ip6().into()]) {
            let vip = SocketAddr::new(vip.parse().expect("an address"), 80);
            let endpoint = SocketAddr::new(endpoint, 8080);
            let socket = client.udp_socket_for(vip).expect("a socket");
            // Three questions make the flow a stream.
            for to in [vip, vip, vip, endpoint, vip, endpoint] {
                socket.send_to(b"?", to).expect("to send");
                let (_, from) = socket.recv_from(&mut [0; 64]).expect("a reply");
                assert_eq!(from, to, "{host_routing}");
            }
        }
    }
}
