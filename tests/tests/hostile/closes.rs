//! Connections that end, or seem to end: by forged FINs, after transfers that are faster than the programs
//! record sequence numbers, and before their handshake.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use harness::forge::packet::{self, ACK, FIN};
use harness::{Endpoint, Service, eventually, wait_for};
use proxy_common::maps::{Flow, FlowKey};

use crate::dead_entries::age_all;
use crate::topology::{SOON, Topology, await_collection, of_family};

const NODE_PORT: u16 = 30_090;
/// Longer than the lifetime of a connection that one side has closed, and shorter than that of an open one.
const LONG: Duration = Duration::from_hours(2);

/// A connection, its client first.
type Ends = [TcpStream; 2];

fn exchange(from: &mut TcpStream, to: &mut TcpStream) -> std::io::Result<()> {
    from.write_all(b"word")?;
    to.set_read_timeout(Some(SOON))?;
    to.read_exact(&mut [0; 4])
}

#[track_caller]
fn assert_goes_on(ends: &mut Ends, what: &str) {
    let [client, server] = ends;
    exchange(server, client).unwrap_or_else(|error| panic!("{what}, to the client: {error}"));
    exchange(client, server).unwrap_or_else(|error| panic!("{what}, to the server: {error}"));
}

/// Sends data in one direction, as fast as possible.
fn send(from: &mut TcpStream, to: &mut TcpStream, bytes: usize) {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let block = vec![7; 1 << 18];
            for _ in 0..bytes / block.len() {
                from.write_all(&block).expect("to send");
            }
        });
        let mut block = vec![0; 1 << 20];
        let mut left = bytes;
        to.set_read_timeout(Some(SOON)).expect("a deadline");
        while left > 0 {
            let most = left.min(block.len());
            left -= to.read(&mut block[..most]).expect("what was sent");
        }
    });
}

/// A listener in a pod, behind a service with a node port.
fn behind_a_service(topology: &Topology) -> TcpListener {
    let listener = topology.web.tcp_listen(8181).expect("a listener");
    let service = Service::new("long")
        .cluster_ip("10.96.3.10")
        .cluster_ip("fd00:96::3:10")
        .tcp("talk", 90, 8181)
        .node_port("talk", NODE_PORT);
    topology
        .world
        .apply_all(service.slices([Endpoint::of(&topology.web)]));
    topology.world.apply(&service);
    for v4 in [true, false] {
        let to = SocketAddr::new(of_family(topology.node(), v4), NODE_PORT);
        drop(wait_for("the service", 2 * SOON, || {
            topology.outside.tcp_connect(to)
        }));
        drop(listener.accept().expect("a connection"));
    }
    listener
}

/// Two listeners: one outside, whose clients are masqueraded, and one in a pod, behind a node port.
struct Listeners {
    outside: TcpListener,
    web: TcpListener,
}

impl Listeners {
    fn of(topology: &Topology) -> Self {
        Self {
            outside: topology.outside.tcp_listen(9100).expect("a listener"),
            web: behind_a_service(topology),
        }
    }

    /// Opens a connection to each listener. With each comes a source and a destination for forged segments of
    /// a host outside. For the first connection they are the server's packets, for the second the client's.
    fn connect(&self, topology: &Topology, v4: bool) -> [(Ends, [SocketAddr; 2]); 2] {
        let plain = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
        let server = SocketAddr::new(of_family(&topology.outside, v4), 9100);
        let near = topology.pod.tcp_connect(server).expect("a connection");
        let (far, seen) = self.outside.accept().expect("a connection");
        let node_port = SocketAddr::new(of_family(topology.node(), v4), NODE_PORT);
        let client = topology.outside.tcp_connect(node_port).expect("a connection");
        let (backend, _) = self.web.accept().expect("a connection");
        let from = plain(client.local_addr().expect("an address"));
        [
            ([near, far], [server, plain(seen)]),
            ([client, backend], [from, node_port]),
        ]
    }
}

/// The number of TCP entries in the table of open connections.
fn entries(topology: &Topology) -> usize {
    const PROTOCOL: usize = std::mem::offset_of!(FlowKey, protocol);
    let flows = topology
        .node()
        .table::<{ size_of::<FlowKey>() }, { size_of::<Flow>() }>("FLOWS");
    flows.keys().filter(|key| key[PROTOCOL] == 6).count()
}

/// The FINs are spread over all sequence numbers, so data that follows passes many of them.
#[test]
fn data_that_passes_forged_ends_confirms_none() {
    harness::require_root!();
    let topology = Topology::build();
    let forge = topology.forge();
    let listeners = Listeners::of(&topology);
    for (v4, flags) in [(true, FIN | ACK), (false, FIN | ACK), (true, FIN)] {
        let mut held = listeners.connect(&topology, v4);
        for (ends, _) in &mut held {
            assert_goes_on(ends, "before");
        }
        // The sleep is longer than the tick of the handshake.
        std::thread::sleep(Duration::from_millis(1500));
        for (ends, _) in &mut held {
            assert_goes_on(ends, "before");
        }
        for number in (0..8192).rev() {
            for (which, (_, [from, to])) in (0..).zip(&held) {
                let number = (number << 19) ^ (which << 31);
                forge.send(&packet::tcp(*from, *to, flags, number, b""));
            }
        }
        for (index, (ends, _)) in held.iter_mut().enumerate() {
            let [client, server] = ends;
            // The side whose segments were forged goes on sending.
            if index == 0 {
                send(server, client, 1 << 20);
            } else {
                send(client, server, 1 << 20);
            }
            assert_goes_on(ends, "after the data");
        }
        std::thread::sleep(Duration::from_millis(300));
        age_all(&topology, LONG);
        await_collection(&topology);
        for (ends, [from, to]) in &mut held {
            assert_goes_on(
                ends,
                &format!("{from} to {to} after flags {flags:#x} and two hours"),
            );
        }
    }
}

/// A flow that begins with a forged FIN does not change the lifetime of the connection that follows.
#[test]
fn an_end_before_the_handshake_shortens_no_connection() {
    harness::require_root!();
    let topology = Topology::build();
    let forge = topology.forge();
    let listener = behind_a_service(&topology);
    for (v4, flags) in [(true, FIN), (false, FIN | ACK)] {
        let to = SocketAddr::new(of_family(topology.node(), v4), NODE_PORT);
        let from = SocketAddr::new(of_family(&topology.outside, v4), 45_678);
        for _ in 0..3 {
            forge.send(&packet::tcp(from, to, flags, 0x1234_5678, b""));
        }
        let client = topology.outside.tcp_connect_from(from, to).expect("a connection");
        let (backend, _) = listener.accept().expect("a connection");
        let mut ends = [client, backend];
        assert_goes_on(&mut ends, "before");
        std::thread::sleep(Duration::from_millis(1500));
        assert_goes_on(&mut ends, "a tick later");
        age_all(&topology, LONG);
        await_collection(&topology);
        assert_goes_on(&mut ends, "two hours later");
    }
}

/// Fast uploads, and a few that are slow. An ended connection must not keep its entry and source port for as
/// long as an open one.
#[test]
fn connections_that_end_after_fast_transfers_leave_no_entries() {
    const FAST: usize = 256 << 20;
    harness::require_root!();
    let topology = Topology::build();
    let listeners = Listeners::of(&topology);
    eventually("earlier connections to end", 2 * SOON, || entries(&topology) == 0);
    for v4 in [true, false] {
        for (bytes, aborts) in [(FAST, true), (FAST, false), (1 << 18, true), (1 << 18, false)] {
            for _ in 0..2 {
                for (mut ends, _) in listeners.connect(&topology, v4) {
                    let [client, server] = &mut ends;
                    send(client, server, bytes);
                    assert!(entries(&topology) >= 2, "it is open");
                    if aborts {
                        let socket = socket2::SockRef::from(&*client);
                        socket.set_linger(Some(Duration::ZERO)).expect("to linger");
                    }
                }
            }
            let what =
                format!("connections of {bytes} bytes, aborted: {aborts}, IPv4: {v4}, to leave nothing");
            eventually(&what, SOON, || entries(&topology) == 0);
        }
    }
}
