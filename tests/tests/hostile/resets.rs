//! A host that can forge sends segments that both ends of a connection ignore (RFC 5961). They must not make
//! the node remove the connection's flow.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use harness::forge::packet::{self, ACK, FIN, RST, SYN};
use harness::{Endpoint, NodeSpec, PacketSocket, Service, eventually, wait_for};
use proxy_common::maps::Reason;

use crate::dead_entries::age_all;
use crate::tags::sender;
use crate::topology::{SECOND, SOON, Topology, at, await_collection, captured, counted, of_family};

/// Tables so small that the newest flows soon evict all that may be evicted.
const SMALL: &str = "maps: {flows: 2048}\n";
const NODE_PORT: u16 = 30_090;
/// The number of flows that evict all that may be evicted.
const PUSHING: u16 = 5000;
/// Longer than the lifetime of a connection that is over, or that one side has closed.
const OVER: Duration = Duration::from_hours(2);

/// The number of bytes that an end sends at a time.
const WORD: u32 = 4;
/// After this time a receiver has replied to a segment that it ignores, and may reply again
/// (`net.ipv4.tcp_invalid_ratelimit`).
const SETTLES: Duration = Duration::from_millis(700);

/// The sequence number of a forged segment.
#[derive(Clone, Copy, Debug)]
enum Number {
    /// This number, regardless of the connection's state.
    At(u32),
    /// The number that the receiver expects next, plus this value.
    Ahead(u32),
}
use Number::{Ahead, At};

fn exchange(from: &mut TcpStream, to: &mut TcpStream) -> std::io::Result<()> {
    from.write_all(b"word")?;
    to.set_read_timeout(Some(SOON))?;
    to.read_exact(&mut [0; 4])
}

#[track_caller]
fn assert_goes_on(ends: &mut [TcpStream; 2], what: &str) {
    let [one, other] = ends;
    exchange(one, other).unwrap_or_else(|error| panic!("{what}: {error}"));
    exchange(other, one).unwrap_or_else(|error| panic!("{what}, back: {error}"));
}

fn long_service() -> Service {
    Service::new("long")
        .cluster_ip("10.96.3.10")
        .cluster_ip("fd00:96::3:10")
        .tcp("talk", 90, 8181)
        .node_port("talk", NODE_PORT)
}

/// The address without the IPv4-mapped form.
fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Has a pod begin many flows without replies. They evict flows that are over, and none that is established.
fn push(topology: &Topology, v4: bool) {
    let silent = SocketAddr::new(of_family(&topology.outside, v4), 5300);
    let _silent = topology.outside.udp_bind(silent).expect("a socket");
    let (forge, from) = (topology.web.forge_out(), of_family(&topology.web, v4));
    for number in 0..PUSHING {
        forge.send(&packet::udp(SocketAddr::new(from, 10_000 + number), silent, b"?"));
    }
}

/// The sequence numbers that follow the segments of hosts in the capture of their link.
#[track_caller]
fn next_numbers(capture: &PacketSocket, hosts: [SocketAddr; 2]) -> [u32; 2] {
    let came = capture.so_far().expect("to read");
    let after = |bytes: &[u8], from: SocketAddr| -> Option<u32> {
        let half = |at: usize| -> Option<usize> {
            let bytes = bytes.get(at..at + 2)?.try_into().ok()?;
            Some(usize::from(u16::from_be_bytes(bytes)))
        };
        let (tcp, end) = match half(12)? {
            0x0800 => (34, 14 + half(16)?),
            _ => (54, 54 + half(18)?),
        };
        if sender(bytes)? != from {
            return None;
        }
        let number = u32::from_be_bytes(bytes.get(tcp + 4..tcp + 8)?.try_into().ok()?);
        let header = usize::from(bytes.get(tcp + 12)? >> 4) * 4;
        let opens = u32::from(bytes.get(tcp + 13)? & SYN != 0);
        let length = u32::try_from(end - tcp - header).ok()?;
        Some(number.wrapping_add(length).wrapping_add(opens))
    };
    hosts.map(|host| {
        let mut numbers = came.iter().rev().filter_map(|frame| after(&frame.bytes, host));
        numbers
            .next()
            .unwrap_or_else(|| panic!("no segment of {host} was seen"))
    })
}

/// Tests two connections. The first one is masqueraded, and the forged segments are its server's. The second
/// one came in through a service, and the forged segments are its client's.
#[track_caller]
fn assert_outlives(forgeries: &[(u8, Number)]) {
    let topology = Topology::with(NodeSpec::millrace(), SMALL);
    let forge = topology.forge();
    let capture = captured(&topology.outside);
    let at_outside = topology.outside.tcp_listen(9100).expect("a listener");
    let at_web = topology.web.tcp_listen(8181).expect("a listener");
    let service = long_service();
    topology
        .world
        .apply_all(service.slices([Endpoint::of(&topology.web)]));
    topology.world.apply(&service);
    for v4 in [true, false] {
        let to = SocketAddr::new(of_family(&topology.outside, v4), 9100);
        let near = topology.pod.tcp_connect(to).expect("a connection");
        let (far, seen) = at_outside.accept().expect("a connection");
        let seen = plain(seen);
        assert_eq!(seen.ip(), of_family(topology.node(), v4), "masqueraded");
        let mut outgoing = [near, far];
        assert_goes_on(&mut outgoing, "before");
        let node_port = SocketAddr::new(of_family(topology.node(), v4), NODE_PORT);
        let near = wait_for("the service", 2 * SOON, || {
            topology.outside.tcp_connect(node_port)
        });
        let client = plain(near.local_addr().expect("an address"));
        let (far, _) = at_web.accept().expect("a connection");
        let mut incoming = [far, near];
        assert_goes_on(&mut incoming, "before");
        let met = || topology.node().counters().iter().sum::<u64>();
        let forge_all = |[next_of_server, next_of_client]: [u32; 2]| {
            let before = met();
            for (flags, number) in forgeries {
                let number = |next: u32| match number {
                    At(number) => *number,
                    Ahead(by) => next.wrapping_add(*by),
                };
                forge.send(&packet::tcp(to, seen, *flags, number(next_of_server), b""));
                forge.send(&packet::tcp(
                    client,
                    node_port,
                    *flags,
                    number(next_of_client),
                    b"",
                ));
            }
            eventually("forgeries to come in", SOON, || {
                met() >= before + 2 * forgeries.len() as u64
            });
        };
        let mut nexts = next_numbers(&capture, [to, client]);
        forge_all(nexts);
        let what = format!("after flags and numbers {forgeries:x?}");
        assert_goes_on(&mut outgoing, &format!("a masqueraded connection {what}"));
        assert_goes_on(&mut incoming, &format!("a connection to a node port {what}"));
        // The forgeries once more, on an idle connection, while new flows evict those that are over.
        std::thread::sleep(SETTLES);
        nexts = nexts.map(|next| next.wrapping_add(WORD));
        forge_all(nexts);
        push(&topology, v4);
        assert_goes_on(&mut outgoing, &format!("a masqueraded connection, idle {what}"));
        assert_goes_on(
            &mut incoming,
            &format!("a connection to a node port, idle {what}"),
        );
        // The forgeries once more, on a connection that is then idle longer than the lifetime of an ended
        // one. The host outside sends first.
        std::thread::sleep(SETTLES);
        nexts = nexts.map(|next| next.wrapping_add(WORD));
        forge_all(nexts);
        std::thread::sleep(SETTLES);
        age_all(&topology, OVER);
        await_collection(&topology);
        for ends in [&mut outgoing, &mut incoming] {
            ends.reverse();
        }
        assert_goes_on(
            &mut outgoing,
            &format!("a masqueraded connection, long after {what}"),
        );
        assert_goes_on(
            &mut incoming,
            &format!("a connection to a node port, long after {what}"),
        );
    }
}

#[test]
fn a_connection_outlives_a_reset_of_any_number() {
    harness::require_root!();
    assert_outlives(&[(RST, At(0x1234_5678)), (RST | ACK, At(0x8765_4321)), (RST, At(0))]);
}

/// The receiver replies to such a reset by an acknowledgement (RFC 5961 §3.2), which opens the flow again.
/// Linux answers only one in half a second. A flow that a second reset closes has no protection until its
/// ends send.
#[test]
fn a_connection_outlives_a_reset_in_its_window() {
    harness::require_root!();
    assert_outlives(&[(RST, Ahead(1000))]);
}

/// A SYN,ACK after the reset looks like that of another connection of the server.
#[test]
fn a_connection_outlives_a_rst_and_a_syn_ack_that_are_forged() {
    harness::require_root!();
    assert_outlives(&[(RST, Ahead(8 << 20)), (SYN | ACK, At(77_777))]);
}

#[test]
fn a_connection_outlives_blind_rsts_and_a_syn_ack() {
    harness::require_root!();
    assert_outlives(&blind());
}

/// RSTs that are spread over all sequence numbers, one of them near the expected one, and a SYN,ACK after
/// them.
fn blind() -> Vec<(u8, Number)> {
    let mut all: Vec<_> = (0..128)
        .map(|number| (RST, At((number << 25) + 12_345)))
        .collect();
    all.push((SYN | ACK, At(77_777)));
    all
}

/// A host on the nodes' link sends in the name of a pod, which is the backend of another pod's connection.
#[test]
fn a_connection_to_a_cluster_ip_outlives_blind_rsts_and_a_syn_ack() {
    harness::require_root!();
    let topology = Topology::with(NodeSpec::millrace(), "socketLB: \"off\"\n");
    let forge = topology.forge();
    let far = topology.world.node(2).add_pod("far");
    let listener = far.tcp_listen(8181).expect("a listener");
    let service = long_service();
    topology.world.apply_all(service.slices([Endpoint::of(&far)]));
    topology.world.apply(&service);
    for (v4, cluster_ip) in [(true, "10.96.3.10"), (false, "fd00:96::3:10")] {
        let to = at(cluster_ip, 90);
        let near = wait_for("the service", 2 * SOON, || topology.pod.tcp_connect(to));
        let (server, seen) = listener.accept().expect("a connection");
        let seen = plain(seen);
        let backend = SocketAddr::new(of_family(&far, v4), 8181);
        let mut ends = [near, server];
        assert_goes_on(&mut ends, "before");
        let before = counted(topology.node(), &[Reason::Reply]);
        let forgeries = blind();
        for (flags, number) in &forgeries {
            let At(number) = *number else {
                panic!("{number:?} needs a capture")
            };
            forge.send(&packet::tcp(backend, seen, *flags, number, b""));
        }
        eventually("forgeries to be taken for the backend's", SOON, || {
            counted(topology.node(), &[Reason::Reply]) >= before + forgeries.len() as u64
        });
        assert_goes_on(&mut ends, &format!("to {to}, after blind RSTs and a SYN,ACK"));
    }
}

/// Holds connections to a node port while new connections go to other endpoints, and forges a SYN within
/// each.
#[track_caller]
fn assert_outlives_a_handshake(when: &str, endpoints: impl FnOnce(&Topology) -> Vec<Endpoint>) {
    let topology = Topology::build();
    let forge = topology.forge();
    let at_web = topology.web.tcp_listen(8181).expect("a listener");
    let at_pod = topology.pod.tcp_listen(8181).expect("a listener");
    at_pod.set_nonblocking(true).expect("to set");
    let service = long_service();
    topology
        .world
        .apply_all(service.slices([Endpoint::of(&topology.web)]));
    topology.world.apply(&service);
    let node_ports = [true, false].map(|v4| SocketAddr::new(of_family(topology.node(), v4), NODE_PORT));
    let mut held = node_ports.map(|node_port| {
        let near = wait_for("the service", 2 * SOON, || {
            topology.outside.tcp_connect(node_port)
        });
        let (far, _) = at_web.accept().expect("a connection");
        let client = plain(near.local_addr().expect("an address"));
        let mut ends = [near, far];
        assert_goes_on(&mut ends, "before");
        (ends, client)
    });
    topology.world.apply_all(service.slices(endpoints(&topology)));
    let capture = captured(&topology.web);
    for ((ends, client), node_port) in held.iter_mut().zip(node_ports) {
        eventually("new connections to lead elsewhere", 2 * SOON, || {
            let _ = topology.outside.tcp_connect_within(node_port, SECOND);
            at_pod.accept().is_ok()
        });
        let what = format!("a connection to {node_port} when {when}");
        assert_goes_on(ends, &what);
        forge.send(&packet::tcp(*client, node_port, SYN, 77_777, b"forged"));
        let came = capture.find(SOON, |frame| !frame.outgoing && frame.carries(b"forged"));
        assert!(
            came.expect("to read").is_some(),
            "{what}: the SYN is its backend's"
        );
        assert_goes_on(ends, &format!("{what}, after a forged SYN"));
    }
}

#[test]
fn a_connection_to_an_endpoint_that_left_outlives_a_forged_handshake() {
    harness::require_root!();
    assert_outlives_a_handshake("its endpoint has left", |topology| {
        vec![Endpoint::of(&topology.pod)]
    });
}

#[test]
fn a_connection_to_an_endpoint_that_is_not_ready_outlives_a_forged_handshake() {
    harness::require_root!();
    assert_outlives_a_handshake("its endpoint is not ready", |topology| {
        vec![
            Endpoint::of(&topology.web).not_ready(),
            Endpoint::of(&topology.pod),
        ]
    });
}

/// The receiver does not reply to a reset ahead of its window. The SYN after it looks like that of a new
/// connection.
#[test]
fn a_connection_outlives_a_reset_and_a_handshake() {
    harness::require_root!();
    assert_outlives(&[(RST, Ahead(8 << 20)), (SYN, At(77_777))]);
}

#[test]
fn a_connection_outlives_an_end_of_any_number() {
    harness::require_root!();
    assert_outlives(&[(FIN, At(0x1234_5678)), (FIN | ACK, At(0x8765_4321))]);
}

/// One of four sequence numbers is ahead of the last recorded one by less than a tick can carry. The receiver
/// does not acknowledge it.
#[test]
fn a_connection_outlives_an_end_ahead_of_its_window() {
    harness::require_root!();
    assert_outlives(&[(FIN | ACK, Ahead(1 << 28)), (FIN, Ahead(8 << 20))]);
}

#[test]
fn a_connection_outlives_handshakes_of_any_number() {
    harness::require_root!();
    assert_outlives(&[(SYN, At(0x1234_5678)), (SYN | ACK, At(0x8765_4321)), (SYN, At(1))]);
}

#[test]
fn a_connection_outlives_flags_that_contradict_each_other() {
    harness::require_root!();
    assert_outlives(&[
        (SYN | RST, At(1)),
        (SYN | FIN, At(2)),
        (FIN | RST | ACK, At(3)),
        (0, At(4)),
        (0xff, At(5)),
    ]);
}

/// ICMP errors are as easy to forge, and may not end a flow.
#[test]
fn a_connection_outlives_forged_errors() {
    harness::require_root!();
    let topology = Topology::with(NodeSpec::millrace(), SMALL);
    let forge = topology.forge();
    let listener = topology.outside.tcp_listen(9100).expect("a listener");
    for v4 in [true, false] {
        let to = SocketAddr::new(of_family(&topology.outside, v4), 9100);
        let near = topology.pod.tcp_connect(to).expect("a connection");
        let (far, seen) = listener.accept().expect("a connection");
        let seen = plain(seen);
        let mut ends = [near, far];
        assert_goes_on(&mut ends, "before");
        // Port unreachable, about a segment whose sequence number was never sent.
        let about = packet::tcp(seen, to, ACK, 0x1234_5678, b"");
        let head: [u8; 8] = if v4 {
            [3, 3, 0, 0, 0, 0, 0, 0]
        } else {
            [1, 4, 0, 0, 0, 0, 0, 0]
        };
        for _ in 0..3 {
            forge.send(&packet::icmp(
                to.ip(),
                seen.ip(),
                &[head.as_slice(), &about].concat(),
            ));
        }
        push(&topology, v4);
        assert_goes_on(&mut ends, "after errors about it");
    }
}
