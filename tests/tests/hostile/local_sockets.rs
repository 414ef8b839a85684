//! Sockets of the node that use the port of a masqueraded flow to the same peer. Both go on, as with
//! netfilter.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};

use harness::{Answer, Endpoint, Place, Service};
use proxy_common::maps::{Config, ConfigFlags};
use serde_json::json;

use crate::town::{NODE_PORT, SOON, Town, of_family, wait_served};

/// The node port of a service whose backend is on the second node.
const REMOTE_NODE_PORT: u16 = 30_090;

fn town() -> Town {
    let town = Town::build();
    town.node().sysctl("net/ipv4/ip_local_port_range", "1024 65535");
    harness::eventually("the agent to follow", 2 * SOON, || {
        let config = town.node().element::<{ size_of::<Config>() }>("CONFIG");
        let flags = u32::from_ne_bytes(config[8..12].try_into().expect("four bytes"));
        flags & ConfigFlags::LOCAL_PORTS_OVERLAP != 0
    });
    town
}

/// Reads an answer of a test server.
fn read_answer(mut from: &TcpStream) -> Answer {
    let mut buffer = [0; 256];
    from.set_read_timeout(Some(SOON)).expect("a deadline");
    let length = from.read(&mut buffer).expect("an answer");
    let text = String::from_utf8_lossy(&buffer[..length]);
    Answer::parse(&text).expect("an answer of a test server")
}

/// Opens a connection of a client through the service. Then opens one of the node, from the port that the
/// first connection has at the backend. Both must go on.
fn assert_both_connect(client: &Place, to: SocketAddr, node: &Place, source: IpAddr, backend: SocketAddr) {
    let held = client.tcp_connect(to).expect("a connection");
    let seen = read_answer(&held).peer;
    assert_eq!(seen.ip().to_canonical(), source, "masqueraded");
    let from = SocketAddr::new(source, seen.port());
    for again in 0..3 {
        let what = format!("connection {again} from {from} to {backend}");
        // A child process of another test may hold a copy of the last connection's socket until its exec.
        let mut own = harness::wait_for(&what, SOON, || node.tcp_connect_from(from, backend));
        assert_ne!(read_answer(&own).peer.port(), from.port(), "{what}");
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
    let town = town();
    for v4 in [true, false] {
        let source = of_family(town.node(), v4);
        let pod = SocketAddr::new(of_family(&town.web, v4), 8080);
        assert_both_connect(
            &town.outside,
            SocketAddr::new(source, NODE_PORT),
            town.node(),
            source,
            pod,
        );
    }
}

/// The packets leave by the uplink, to a pod of another node.
#[test]
fn a_socket_of_the_node_connects_to_a_remote_pod_by_such_a_port() {
    harness::require_root!();
    let town = town();
    let remote = town.world.node(2).add_pod("remote");
    let _servers = remote.serve(8080);
    let service = Service::new("remote")
        .tcp("http", 80, 8080)
        .udp("dns", 80, 8080)
        .node_port("http", REMOTE_NODE_PORT)
        .node_port("dns", REMOTE_NODE_PORT)
        .cluster_ip("10.96.0.20")
        .cluster_ip("fd00:96::20")
        .set("externalTrafficPolicy", json!("Cluster"));
    town.world.apply_all(service.slices([Endpoint::of(&remote)]));
    town.world.apply(&service);
    for v4 in [true, false] {
        let source = of_family(town.node(), v4);
        let to = SocketAddr::new(source, REMOTE_NODE_PORT);
        wait_served(&town.outside, to);
        let pod = SocketAddr::new(of_family(&remote, v4), 8080);
        assert_both_connect(&town.outside, to, town.node(), source, pod);
    }
}

/// A pod and the node connect to the same server outside.
#[test]
fn a_socket_of_the_node_connects_outside_by_the_port_of_a_pods_flow() {
    harness::require_root!();
    let town = town();
    let _servers = town.outside.serve(9100);
    for v4 in [true, false] {
        let source = of_family(town.node(), v4);
        let to = SocketAddr::new(of_family(&town.outside, v4), 9100);
        assert_both_connect(&town.pod, to, town.node(), source, to);
    }
}

/// Datagrams have no handshake that shows which flow is the later one.
#[test]
fn datagrams_of_the_node_find_their_way_by_such_a_port() {
    harness::require_root!();
    let town = town();
    for v4 in [true, false] {
        let source = of_family(town.node(), v4);
        let to = SocketAddr::new(source, NODE_PORT);
        let client = town.outside.udp_socket_for(to).expect("a socket");
        let pod = SocketAddr::new(of_family(&town.web, v4), 8080);
        let seen = ask(&client, to).peer;
        assert_eq!(seen.ip().to_canonical(), source, "masqueraded");
        let own = town
            .node()
            .udp_bind(SocketAddr::new(source, seen.port()))
            .expect("a socket");
        for _ in 0..3 {
            assert_ne!(ask(&own, pod).peer.port(), seen.port());
            assert_eq!(ask(&client, to).peer, seen, "the client's flow is as it was");
        }
    }
}

fn ask(socket: &std::net::UdpSocket, to: SocketAddr) -> Answer {
    let mut buffer = [0; 256];
    socket.set_read_timeout(Some(SOON)).expect("a deadline");
    socket.send_to(b"word", to).expect("to send");
    let (length, from) = socket.recv_from(&mut buffer).expect("an answer");
    assert_eq!(from.ip().to_canonical(), to.ip(), "from whom was asked");
    let text = String::from_utf8_lossy(&buffer[..length]);
    Answer::parse(&text).expect("an answer of a test server")
}
