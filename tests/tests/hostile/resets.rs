//! A host that can forge sends segments that a connection's ends take no notice of (RFC 5961). What it may
//! not do is make the node forget the connection.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use harness::forge::packet::{self, ACK, FIN, RST, SYN};

use crate::town::{SOON, Town, of_family};

/// Tables so small that what may be forgotten is forgotten soon: it is the newest flows that push out.
const SMALL: &str = "maps: {flows: 2048}\n";
/// Flows that push out all that may be.
const PUSHING: u16 = 5000;

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

/// Has a pod begin many flows, none of which is answered: they push out what is over, and nothing that is
/// established.
fn push(town: &Town, v4: bool) {
    let silent = SocketAddr::new(of_family(&town.outside, v4), 5300);
    let _silent = town.outside.udp_bind(silent).expect("a socket");
    let (forge, from) = (town.web.forge_out(), of_family(&town.web, v4));
    for number in 0..PUSHING {
        forge.send(&packet::udp(SocketAddr::new(from, 10_000 + number), silent, b"?"));
    }
}

/// A connection that is masqueraded, by forgeries of what its server would send, and one that came in by a
/// service, by forgeries of its client's.
#[track_caller]
fn assert_outlives(forgeries: &[(u8, u32)]) {
    let town = Town::with(harness::NodeSpec::millrace(), SMALL);
    let forge = town.forge();
    let at_outside = town.outside.tcp_listen(9100).expect("a listener");
    let at_web = town.web.tcp_listen(8181).expect("a listener");
    let service = harness::Service::new("long")
        .cluster_ip("10.96.3.10")
        .cluster_ip("fd00:96::3:10")
        .tcp("talk", 90, 8181)
        .node_port("talk", 30_090);
    town.world
        .apply_all(service.slices([harness::Endpoint::of(&town.web)]));
    town.world.apply(&service);
    for v4 in [true, false] {
        let to = SocketAddr::new(of_family(&town.outside, v4), 9100);
        let near = town.pod.tcp_connect(to).expect("a connection");
        let (far, seen) = at_outside.accept().expect("a connection");
        let seen = SocketAddr::new(seen.ip().to_canonical(), seen.port());
        assert_eq!(seen.ip(), of_family(town.node(), v4), "masqueraded");
        let mut outgoing = [near, far];
        assert_goes_on(&mut outgoing, "before");
        let node_port = SocketAddr::new(of_family(town.node(), v4), 30_090);
        let near = harness::wait_for("the service", 2 * SOON, || town.outside.tcp_connect(node_port));
        let client = near.local_addr().expect("an address");
        let (far, _) = at_web.accept().expect("a connection");
        let mut incoming = [far, near];
        assert_goes_on(&mut incoming, "before");
        for (flags, sequence) in forgeries {
            forge.send(&packet::tcp(to, seen, *flags, *sequence, b""));
            forge.send(&packet::tcp(client, node_port, *flags, *sequence, b""));
        }
        let what = format!("after flags and numbers {forgeries:x?}");
        assert_goes_on(&mut outgoing, &format!("a masqueraded connection {what}"));
        assert_goes_on(&mut incoming, &format!("a connection to a node port {what}"));
        // Once more, idle while the newest push out what is over.
        for (flags, sequence) in forgeries {
            forge.send(&packet::tcp(to, seen, *flags, *sequence, b""));
            forge.send(&packet::tcp(client, node_port, *flags, *sequence, b""));
        }
        push(&town, v4);
        assert_goes_on(&mut outgoing, &format!("a masqueraded connection, idle {what}"));
        assert_goes_on(
            &mut incoming,
            &format!("a connection to a node port, idle {what}"),
        );
    }
}

#[test]
fn a_connection_outlives_a_reset_of_any_number() {
    harness::require_root!();
    assert_outlives(&[(RST, 0x1234_5678), (RST | ACK, 0x8765_4321), (RST, 0)]);
}

#[test]
fn a_connection_outlives_an_end_of_any_number() {
    harness::require_root!();
    assert_outlives(&[(FIN, 0x1234_5678), (FIN | ACK, 0x8765_4321)]);
}

#[test]
fn a_connection_outlives_handshakes_of_any_number() {
    harness::require_root!();
    assert_outlives(&[(SYN, 0x1234_5678), (SYN | ACK, 0x8765_4321), (SYN, 1)]);
}

#[test]
fn a_connection_outlives_flags_that_contradict_each_other() {
    harness::require_root!();
    assert_outlives(&[
        (SYN | RST, 1),
        (SYN | FIN, 2),
        (FIN | RST | ACK, 3),
        (0, 4),
        (0xff, 5),
    ]);
}

/// Errors are as easy to forge. A flow may not end by one.
#[test]
fn a_connection_outlives_forged_errors() {
    harness::require_root!();
    let town = Town::with(harness::NodeSpec::millrace(), SMALL);
    let forge = town.forge();
    let listener = town.outside.tcp_listen(9100).expect("a listener");
    for v4 in [true, false] {
        let to = SocketAddr::new(of_family(&town.outside, v4), 9100);
        let near = town.pod.tcp_connect(to).expect("a connection");
        let (far, seen) = listener.accept().expect("a connection");
        let seen = SocketAddr::new(seen.ip().to_canonical(), seen.port());
        let mut ends = [near, far];
        assert_goes_on(&mut ends, "before");
        // Port unreachable, about a segment of a number that was never sent.
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
        push(&town, v4);
        assert_goes_on(&mut ends, "after errors about it");
    }
}
