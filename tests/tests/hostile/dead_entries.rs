//! Connections whose conntrack entries are gone: evicted, expired, or lost with the pins. Netfilter picks up
//! a connection in its middle (`nf_conntrack_tcp_loose`), and here such a connection goes on as well. In no
//! case does a packet leave with a pod's own address.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use harness::forge::packet::{self, ACK, FIN, RST, SYN};
use harness::{Endpoint, PacketSocket, Place, Service, eventually, wait_for};
use proxy_common::Plain;
use proxy_common::maps::{Flow, FlowKey};

use crate::tags::sender;
use crate::topology::{SOON, Topology, await_collection, came_before, captured, honest, of_family};

const HOUR: Duration = Duration::from_hours(1);

/// Removes every flow of the first node.
fn forget_all(topology: &Topology) -> usize {
    const KEY: usize = size_of::<FlowKey>();
    const VALUE: usize = size_of::<Flow>();
    let forget = |table| topology.node().clear_table::<KEY, VALUE>(table);
    forget("FLOWS") + forget("STREAMS") + forget("NEW_FLOWS")
}

/// Makes every flow of the first node older by this time.
pub fn age_all(topology: &Topology, by: Duration) {
    const KEY: usize = size_of::<FlowKey>();
    const VALUE: usize = size_of::<Flow>();
    const SEEN: usize = std::mem::offset_of!(Flow, seen);
    let ticks = u32::try_from(by.as_nanos() >> 30).expect("few ticks");
    for table in ["FLOWS", "STREAMS", "NEW_FLOWS"] {
        for (key, mut flow) in topology.node().table::<KEY, VALUE>(table) {
            let seen = u32::from_ne_bytes(flow[SEEN..SEEN + 4].try_into().expect("four bytes"));
            flow[SEEN..SEEN + 4].copy_from_slice(&seen.wrapping_sub(ticks).to_ne_bytes());
            topology.node().set_element::<KEY, VALUE>(table, key, flow);
        }
    }
}

/// The flows that are past their handshake.
fn open_flows(topology: &Topology) -> HashSet<[u8; size_of::<FlowKey>()]> {
    let flows = topology
        .node()
        .table::<{ size_of::<FlowKey>() }, { size_of::<Flow>() }>("FLOWS");
    flows.into_keys().collect()
}

fn exchange(from: &mut TcpStream, to: &mut TcpStream) -> std::io::Result<()> {
    from.write_all(b"word")?;
    to.set_read_timeout(Some(SOON))?;
    to.read_exact(&mut [0; 4])
}

/// The sources of packets that came with a pod's address.
fn untranslated(topology: &Topology, capture: &PacketSocket) -> Vec<SocketAddr> {
    let came = capture.so_far().expect("to read");
    let sources = came
        .iter()
        .filter(|frame| !frame.outgoing)
        .filter_map(|frame| sender(&frame.bytes));
    sources
        .filter(|source| topology.pod.addresses().contains(&source.ip()))
        .collect()
}

#[test]
fn a_pods_segment_in_mid_flow_leaves_by_the_same_port_without_an_entry() {
    harness::require_root!();
    let topology = Topology::build();
    let listener = topology.outside.tcp_listen(9100).expect("a listener");
    let capture = captured(&topology.outside);
    for v4 in [true, false] {
        let to = SocketAddr::new(of_family(&topology.outside, v4), 9100);
        for number in 0..5 {
            let mut near = topology.pod.tcp_connect(to).expect("a connection");
            let (mut far, seen) = listener.accept().expect("a connection");
            assert_eq!(
                seen.ip().to_canonical(),
                of_family(topology.node(), v4),
                "masqueraded"
            );
            exchange(&mut near, &mut far)
                .and_then(|()| exchange(&mut far, &mut near))
                .expect("before");
            assert!(forget_all(&topology) > 0, "there was an entry");
            let what = format!("connection {number} to {to}, whose entry is gone");
            exchange(&mut near, &mut far).unwrap_or_else(|error| panic!("{what}: {error}"));
            exchange(&mut far, &mut near).unwrap_or_else(|error| panic!("{what}, back: {error}"));
            // The segments that close the connection must be translated too.
            assert!(forget_all(&topology) > 0, "there is one again");
            drop(near);
            far.set_read_timeout(Some(SOON)).expect("a deadline");
            assert_eq!(far.read(&mut [0; 8]).expect("the end"), 0, "{what}");
            let own = untranslated(&topology, &capture);
            assert!(own.is_empty(), "{what}: {own:?} came out");
        }
    }
}

/// In these services the server sends first. The client's next segment finds the same backend, by the same
/// masquerade port.
#[test]
fn a_clients_segment_in_mid_flow_finds_its_backend_without_an_entry() {
    harness::require_root!();
    let topology = Topology::build();
    for v4 in [true, false] {
        for to in topology.entrances(v4).into_iter().take(4) {
            let mut client = topology.outside.tcp_connect(to).expect("a connection");
            let mut buffer = [0; 256];
            let greeted = client.read(&mut buffer).expect("a greeting");
            assert!(buffer[..greeted].starts_with(b"web "));
            assert!(forget_all(&topology) > 0, "there was an entry");
            client.write_all(b"word\n").expect("to write");
            client.set_read_timeout(Some(SOON)).expect("a deadline");
            let replied = client
                .read(&mut buffer)
                .unwrap_or_else(|error| panic!("{to}: {error}"));
            assert_eq!(&buffer[..replied], b"web word\n", "{to}");
        }
    }
}

/// kube-proxy sets the kernel to keep an idle connection for 24 hours (`conntrack.tcpEstablishedTimeout`).
#[test]
fn connections_go_on_after_a_day_of_silence() {
    harness::require_root!();
    assert_remembered("", [23 * HOUR, 25 * HOUR]);
}

#[test]
fn connections_live_for_the_configured_time() {
    harness::require_root!();
    let config = "conntrack: {tcpEstablishedTimeout: 1h}\n";
    assert_remembered(config, [HOUR * 11 / 12, HOUR * 13 / 12]);
}

/// The node port of a service whose server is the test itself.
const TALK: u16 = 30_090;

/// The entries outlive the first silence and not the second one. After both, the connections go on that
/// netfilter would let go on.
#[track_caller]
fn assert_remembered(config: &str, [shorter, longer]: [Duration; 2]) {
    let topology = Topology::with(harness::NodeSpec::millrace(), config);
    let listener = topology.outside.tcp_listen(9100).expect("a listener");
    let capture = captured(&topology.outside);
    // The topology's own servers would accept the connections.
    let at_web = topology.web.tcp_listen(8181).expect("a listener");
    let talk = Service::new("talk")
        .cluster_ip("10.96.3.10")
        .cluster_ip("fd00:96::3:10")
        .tcp("talk", 90, 8181)
        .node_port("talk", TALK);
    topology
        .world
        .apply_all(talk.slices([Endpoint::of(&topology.web)]));
    topology.world.apply(&talk);
    for (silence, is_remembered) in [(shorter, true), (longer, false)] {
        let others = open_flows(&topology);
        let held = Held::open(&topology, &listener, &at_web);
        let flows: HashSet<_> = open_flows(&topology).difference(&others).copied().collect();
        let connections = held.out.len() + held.inward.len() + held.speaking.len();
        assert!(
            flows.len() >= connections,
            "{} flows of {connections} connections",
            flows.len()
        );
        age_all(&topology, silence);
        if is_remembered {
            await_collection(&topology);
            let left = open_flows(&topology).intersection(&flows).count();
            assert_eq!(
                left,
                flows.len(),
                "flows that a collection leaves after {silence:?}"
            );
        } else {
            eventually("what has expired to be collected", 4 * SOON, || {
                open_flows(&topology).is_empty()
            });
        }
        held.assert_goes_on(silence, is_remembered);
        let own = untranslated(&topology, &capture);
        assert!(own.is_empty(), "after {silence:?}: {own:?} came out");
    }
}

/// Connections that are idle for a while.
struct Held {
    /// Connections of the pod to the host outside, and whether the host sends first after the silence.
    out: Vec<(TcpStream, TcpStream, bool)>,
    /// Connections of the host outside to services.
    inward: Vec<(TcpStream, SocketAddr)>,
    /// Connections of the host outside to a node port, whose server sends first after the silence.
    speaking: Vec<(TcpStream, TcpStream)>,
}

impl Held {
    #[track_caller]
    fn open(topology: &Topology, at_outside: &TcpListener, at_web: &TcpListener) -> Self {
        let (mut out, mut inward, mut speaking) = (Vec::new(), Vec::new(), Vec::new());
        for v4 in [true, false] {
            let to = SocketAddr::new(of_family(&topology.outside, v4), 9100);
            for outside_first in [false, true] {
                let mut near = topology.pod.tcp_connect(to).expect("a connection");
                let (mut far, _) = at_outside.accept().expect("a connection");
                exchange(&mut near, &mut far)
                    .and_then(|()| exchange(&mut far, &mut near))
                    .expect("before");
                out.push((near, far, outside_first));
            }
            for to in topology.entrances(v4).into_iter().take(4) {
                let mut client = topology.outside.tcp_connect(to).expect("a connection");
                let greeted = client.read(&mut [0; 256]).expect("a greeting");
                assert!(greeted > 0);
                inward.push((client, to));
            }
            let to = SocketAddr::new(of_family(topology.node(), v4), TALK);
            for _ in 0..3 {
                let mut client = wait_for("the service", 2 * SOON, || topology.outside.tcp_connect(to));
                let (mut server, _) = at_web.accept().expect("a connection");
                exchange(&mut client, &mut server)
                    .and_then(|()| exchange(&mut server, &mut client))
                    .expect("before");
                speaking.push((client, server));
            }
        }
        Self {
            out,
            inward,
            speaking,
        }
    }

    #[track_caller]
    fn assert_goes_on(self, silence: Duration, is_remembered: bool) {
        for (mut near, mut far, outside_first) in self.out {
            // Without an entry it is unknown which pod a segment from outside belongs to; netfilter cannot
            // tell either.
            if outside_first && !is_remembered {
                continue;
            }
            let what = format!("after {silence:?}, outside first: {outside_first}");
            let (first, second) = if outside_first {
                (&mut far, &mut near)
            } else {
                (&mut near, &mut far)
            };
            exchange(first, second).unwrap_or_else(|error| panic!("{what}: {error}"));
            exchange(second, first).unwrap_or_else(|error| panic!("{what}, back: {error}"));
        }
        for (mut client, mut server) in self.speaking {
            // Without an entry, a segment of the server does not show its client either.
            let what = format!("after {silence:?}, the server of a node port first");
            if is_remembered {
                exchange(&mut server, &mut client).unwrap_or_else(|error| panic!("{what}: {error}"));
            }
            exchange(&mut client, &mut server).unwrap_or_else(|error| panic!("{what}, back: {error}"));
        }
        for (mut client, to) in self.inward {
            client.write_all(b"word\n").expect("to write");
            client.set_read_timeout(Some(SOON)).expect("a deadline");
            let mut buffer = [0; 256];
            let replied = client
                .read(&mut buffer)
                .unwrap_or_else(|error| panic!("{to} after {silence:?}: {error}"));
            assert_eq!(&buffer[..replied], b"web word\n", "{to}");
        }
    }
}

/// A pod replies with its own address to packets that come to it from outside. An earlier exchange of the
/// same ports, begun by the pod, was masqueraded and has expired.
#[test]
fn an_expired_flow_affects_no_packet_from_outside() {
    const PORT: u16 = 7946;
    harness::require_root!();
    let topology = Topology::build();
    for range in topology.node().pod_cidrs() {
        topology.outside.route_via(range, topology.node());
    }
    for v4 in [true, false] {
        let [outside, inside] = [&*topology.outside as &Place, &topology.pod]
            .map(|place| SocketAddr::new(of_family(place, v4), PORT));
        let far = topology.outside.udp_bind(outside).expect("a socket");
        let near = topology.pod.udp_bind(inside).expect("a socket");
        let mut buffer = [0; 16];
        near.send_to(b"first", outside).expect("to send");
        let (_, seen) = far.recv_from(&mut buffer).expect("the first");
        assert_eq!(seen.ip(), of_family(topology.node(), v4), "masqueraded");
        let expired = waiting_flows(&topology, inside);
        assert!(expired > 0, "the exchange has an entry");
        age_all(&topology, HOUR);
        assert_eq!(
            waiting_flows(&topology, inside),
            expired,
            "its entry is still there"
        );
        for round in 0..3 {
            far.send_to(b"hello", inside).expect("to send");
            let (_, from) = near.recv_from(&mut buffer).expect("a hello");
            assert_eq!(from, outside);
            near.send_to(b"reply", outside).expect("to send");
            let (_, seen) = far.recv_from(&mut buffer).expect("a reply");
            assert_eq!(seen, inside, "reply {round}");
        }
    }
}

/// The number of flows from this source that are in the table of new flows.
fn waiting_flows(topology: &Topology, from: SocketAddr) -> usize {
    let flows = topology
        .node()
        .table::<{ size_of::<FlowKey>() }, { size_of::<Flow>() }>("NEW_FLOWS");
    let keys = flows.keys().filter_map(|key| FlowKey::from_bytes(key));
    keys.filter(|key| IpAddr::from(key.src) == from.ip() && key.sport.number() == from.port())
        .count()
}

/// Segments and messages that belong to no flow, as a pod can send them at any time.
#[test]
fn packets_without_a_flow_do_not_leave_with_a_pods_address() {
    harness::require_root!();
    let topology = Topology::build();
    let (capture, forge) = (captured(&topology.outside), topology.pod.forge_out());
    for v4 in [true, false] {
        let [from, to] = [of_family(&topology.pod, v4), of_family(&topology.outside, v4)];
        let (source, target) = (SocketAddr::new(from, 777), SocketAddr::new(to, 9100));
        for (number, flags) in (0..).zip([ACK, FIN, FIN | ACK, RST, RST | ACK, SYN | ACK, SYN | RST, 0, 0xff])
        {
            let source = SocketAddr::new(from, 800 + number);
            forge.send(&packet::tcp(source, target, flags, 7, b"stray"));
        }
        forge.send(&packet::udp(source, target, b"stray"));
        forge.send(&packet::echo(from, to, false, 7, b"stray"));
        forge.send(&packet::echo(from, to, true, 7, b"stray"));
        // An ICMP error about a packet that was not sent.
        let about = packet::udp(target, source, b"stray");
        let head: [u8; 8] = if v4 {
            [3, 3, 0, 0, 0, 0, 0, 0]
        } else {
            [1, 4, 0, 0, 0, 0, 0, 0]
        };
        forge.send(&packet::icmp(from, to, &[head.as_slice(), &about].concat()));
        if v4 {
            let large = packet::udp(SocketAddr::new(from, 778), target, &b"stray".repeat(40));
            for fragment in packet::fragments(&large, 64).iter().rev() {
                forge.send(fragment);
            }
        }
        let what = format!("from {from}");
        let _listener = topology
            .outside
            .udp_bind(SocketAddr::new(to, 9200))
            .expect("a socket");
        let came = came_before(
            &capture,
            &what,
            &mut honest(&topology.pod, SocketAddr::new(to, 9200)),
        );
        let own: Vec<_> = came
            .iter()
            .filter(|frame| sender(&frame.bytes).is_some_and(|source| source.ip() == from))
            .map(|frame| format!("{:02x?}", &frame.bytes[12..frame.bytes.len().min(60)]))
            .collect();
        assert!(own.is_empty(), "{} packets left with {from}: {own:#?}", own.len());
    }
}
