//! Sockets of the node that use the port of a masqueraded flow to the same peer. Both go on, as with
//! netfilter.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};

use harness::{Endpoint, Place, Reply, Service};
use proxy_common::maps::{Config, ConfigFlags};
use serde_json::json;

use crate::topology::{NODE_PORT, SOON, Topology, of_family, wait_served};

/// The node port of a service whose backend is on the second node.
const REMOTE_NODE_PORT: u16 = 30_090;

fn topology() -> Topology {
    let topology = Topology::build();
    topology
        .node()
        .sysctl("net/ipv4/ip_local_port_range", "1024 65535");
    harness::eventually("the agent to follow", 2 * SOON, || {
        let config = topology.node().element::<{ size_of::<Config>() }>("CONFIG");
        let flags = u32::from_ne_bytes(config[8..12].try_into().expect("four bytes"));
        flags & ConfigFlags::LOCAL_PORTS_OVERLAP != 0
    });
    topology
}

/// Reads a reply of a test server.
fn read_reply(mut from: &TcpStream) -> Reply {
    let mut buffer = [0; 256];
    from.set_read_timeout(Some(SOON)).expect("a deadline");
    let length = from.read(&mut buffer).expect("a reply");
    let text = String::from_utf8_lossy(&buffer[..length]);
    Reply::parse(&text).expect("a reply of a test server")
}

/// Opens a connection of a client through the service. Then opens one of the node, from the port that the
/// first connection has at the backend. Both must go on.
fn assert_both_connect(client: &Place, to: SocketAddr, node: &Place, source: IpAddr, backend: SocketAddr) {
    let held = client.tcp_connect(to).expect("a connection");
    let seen = read_reply(&held).peer;
    assert_eq!(seen.ip().to_canonical(), source, "masqueraded");
    let from = SocketAddr::new(source, seen.port());
    for again in 0..3 {
        let what = format!("connection {again} from {from} to {backend}");
        // A child process of another test may hold a copy of the last connection's socket until its exec.
        let mut own = harness::wait_for(&what, SOON, || node.tcp_connect_from(from, backend));
        assert_ne!(read_reply(&own).peer.port(), from.port(), "{what}");
        own.write_all(b"own\n").expect("to write");
        assert_echoed(&own, b"own\n", &what);
        (&held).write_all(b"still there\n").expect("to write");
        assert_echoed(&held, b"still there\n", &format!("the client's beside {what}"));
        // The RST frees the port at once.
        socket2::SockRef::from(&own)
            .set_linger(Some(std::time::Duration::ZERO))
            .expect("to linger");
    }
}

fn assert_echoed(mut from: &TcpStream, word: &[u8], what: &str) {
    let mut buffer = [0; 256];
    from.set_read_timeout(Some(SOON)).expect("a deadline");
    let length = from
        .read(&mut buffer)
        .unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(
        buffer[..length].ends_with(word),
        "{what}: {:?}",
        String::from_utf8_lossy(&buffer[..length])
    );
}

#[test]
fn a_socket_of_the_node_connects_to_a_pod_by_the_port_of_a_masqueraded_flow() {
    harness::require_root!();
    let topology = topology();
    for v4 in [true, false] {
        let source = of_family(topology.node(), v4);
        let pod = SocketAddr::new(of_family(&topology.web, v4), 8080);
        assert_both_connect(
            &topology.outside,
            SocketAddr::new(source, NODE_PORT),
            topology.node(),
            source,
            pod,
        );
    }
}

/// The packets leave by the uplink, to a pod of another node.
#[test]
fn a_socket_of_the_node_connects_to_a_remote_pod_by_such_a_port() {
    harness::require_root!();
    let topology = topology();
    let remote = topology.world.node(2).add_pod("remote");
    let _servers = remote.serve(8080);
    let service = Service::new("remote")
        .tcp("http", 80, 8080)
        .udp("dns", 80, 8080)
        .node_port("http", REMOTE_NODE_PORT)
        .node_port("dns", REMOTE_NODE_PORT)
        .cluster_ip("10.96.0.20")
        .cluster_ip("fd00:96::20")
        .set("externalTrafficPolicy", json!("Cluster"));
    topology.world.apply_all(service.slices([Endpoint::of(&remote)]));
    topology.world.apply(&service);
    for v4 in [true, false] {
        let source = of_family(topology.node(), v4);
        let to = SocketAddr::new(source, REMOTE_NODE_PORT);
        wait_served(&topology.outside, to);
        let pod = SocketAddr::new(of_family(&remote, v4), 8080);
        assert_both_connect(&topology.outside, to, topology.node(), source, pod);
    }
}

/// A pod and the node connect to the same server outside.
#[test]
fn a_socket_of_the_node_connects_outside_by_the_port_of_a_pods_flow() {
    harness::require_root!();
    let topology = topology();
    let _servers = topology.outside.serve(9100);
    for v4 in [true, false] {
        let source = of_family(topology.node(), v4);
        let to = SocketAddr::new(of_family(&topology.outside, v4), 9100);
        assert_both_connect(&topology.pod, to, topology.node(), source, to);
    }
}

/// Datagrams have no handshake that shows which flow is the later one.
#[test]
fn datagrams_of_the_node_by_such_a_port_reach_their_destination() {
    harness::require_root!();
    let topology = topology();
    for v4 in [true, false] {
        let source = of_family(topology.node(), v4);
        let to = SocketAddr::new(source, NODE_PORT);
        let client = topology.outside.udp_socket_for(to).expect("a socket");
        let pod = SocketAddr::new(of_family(&topology.web, v4), 8080);
        let seen = ask(&client, to).peer;
        assert_eq!(seen.ip().to_canonical(), source, "masqueraded");
        let own = topology
            .node()
            .udp_bind(SocketAddr::new(source, seen.port()))
            .expect("a socket");
        for _ in 0..3 {
            assert_ne!(ask(&own, pod).peer.port(), seen.port());
            assert_eq!(ask(&client, to).peer, seen, "the client's flow is as it was");
        }
    }
}

fn ask(socket: &std::net::UdpSocket, to: SocketAddr) -> Reply {
    let mut buffer = [0; 256];
    socket.set_read_timeout(Some(SOON)).expect("a deadline");
    socket.send_to(b"word", to).expect("to send");
    let (length, from) = socket.recv_from(&mut buffer).expect("a reply");
    assert_eq!(from.ip().to_canonical(), to.ip(), "from the asked address");
    let text = String::from_utf8_lossy(&buffer[..length]);
    Reply::parse(&text).expect("a reply of a test server")
}
