//! Source ports of the node become free again when their flows are out of use. The flows are streams of
//! clients that do not exist, streams of a tenant's pods, and associations that are over.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use harness::forge::packet;
use harness::{Forge, NodeSpec, PacketSocket, Place, Probe, wait_for};
use proxy_common::Plain;
use proxy_common::maps::{Flow, FlowKey, Reason};

use crate::tags::sender;
use crate::topology::{NODE_PORT, SECOND, SOON, Topology, captured, counted, of_family};

/// So few ports that a flood takes them all.
const FEW_PORTS: &str = "masqueradePorts: 10000-11999\n";
const PORTS: usize = 2000;
/// Longer than a tick of the programs. A second datagram within the same tick begins no stream.
const TICK: Duration = Duration::from_millis(1200);
/// A stream that is silent for 32 ticks gives up its port.
const SILENT: Duration = Duration::from_secs(36);
/// The number of questions; all but one must be answered.
const TRIES: usize = 20;
const SCTP: u8 = 132;

/// The number of streams of a family that use masquerade ports.
fn streams(topology: &Topology, v4: bool) -> usize {
    let flows = topology
        .node()
        .table::<{ size_of::<FlowKey>() }, { size_of::<Flow>() }>("STREAMS");
    let keys = flows.keys().filter_map(|key| FlowKey::from_bytes(key));
    keys.filter(|key| key.src.is_v4() == v4 && (10_000..12_000).contains(&key.dport.number()))
        .count()
}

/// Sends datagrams of both families twice, so that each becomes a stream. Repeats that until streams have
/// nearly all ports and more are refused.
#[track_caller]
fn take_all_ports(topology: &Topology, what: &str, mut send: impl FnMut(bool, u8)) -> Instant {
    let refused = || counted(topology.node(), &[Reason::NoSourcePort]);
    let before = refused();
    let mut wave = 0;
    wait_for(&format!("{what} to take all ports"), 6 * SOON, || {
        for _ in 0..2 {
            send(true, wave);
            send(false, wave);
            std::thread::sleep(TICK);
        }
        wave += 1;
        let taken = [true, false].map(|v4| streams(topology, v4));
        let refused = refused() - before;
        if refused > 0 && taken.iter().all(|taken| taken * 100 >= PORTS * 95) {
            Ok(())
        } else {
            Err(format!("{taken:?} of {PORTS} are taken, {refused} were refused"))
        }
    });
    Instant::now()
}

/// Asserts that other clients are served at once when the streams have been silent for long enough.
#[track_caller]
fn assert_others_are_served(client: &Place, to: SocketAddr, since: Instant) {
    std::thread::sleep(SILENT.saturating_sub(since.elapsed()));
    let tries = 0..TRIES;
    let served = tries.filter(|_| client.ask_within(Probe::Udp, to, SECOND / 2).is_ok());
    let (served, after) = (served.count(), since.elapsed());
    assert!(
        served + 1 >= TRIES,
        "{served} of {TRIES} were served at {to}, {after:?} after the last forged datagram"
    );
}

/// Two datagrams and their replies make a stream. In IPv6 each client has a network of its own.
#[test]
fn streams_of_clients_that_do_not_exist_close_no_node_port() {
    const CLIENTS: u16 = 4000;
    harness::require_root!();
    let topology = Topology::with(NodeSpec::millrace(), FEW_PORTS);
    let forge = topology.forge();
    let node_port = |v4| SocketAddr::new(of_family(topology.node(), v4), NODE_PORT);
    let since = take_all_ports(&topology, "clients that do not exist", |v4, wave| {
        for number in 0..CLIENTS {
            let [high, low] = number.to_be_bytes();
            let from: SocketAddr = if v4 {
                ([172, 20 + wave, high, low], 40_000).into()
            } else {
                (
                    [0x2001, 0xdb8, 0x100 + u16::from(wave), number, 0, 0, 0, 7],
                    40_000,
                )
                    .into()
            };
            forge.send(&packet::udp(from, node_port(v4), b"?"));
            pause(number);
        }
    });
    for v4 in [true, false] {
        assert_others_are_served(&topology.outside, node_port(v4), since);
    }
}

/// A short pause, so that a server which answers all datagrams keeps up.
fn pause(number: u16) {
    if number % 100 == 99 {
        std::thread::sleep(SECOND / 200);
    }
}

/// Each of the pods stays within its share.
#[test]
fn streams_of_a_tenants_pods_close_no_destination_to_others() {
    const EACH: u16 = 1000;
    harness::require_root!();
    let topology = Topology::with(NodeSpec::millrace(), FEW_PORTS);
    let _server = topology.outside.serve_udp(5300);
    let to = |v4| SocketAddr::new(of_family(&topology.outside, v4), 5300);
    let pods = (0..8).map(|number| topology.node().add_pod(&format!("tenant-{number}")));
    let pods: Vec<_> = pods.collect();
    let senders: Vec<_> = pods.iter().map(|pod| (pod, pod.forge_out())).collect();
    let since = take_all_ports(&topology, "a tenant's pods", |v4, _| {
        for (pod, forge) in &senders {
            let from = of_family(pod, v4);
            for number in 0..EACH {
                let source = SocketAddr::new(from, 10_000 + number);
                forge.send(&packet::udp(source, to(v4), b"?"));
                pause(number);
            }
        }
    });
    for v4 in [true, false] {
        assert_others_are_served(&topology.pod, to(v4), since);
    }
}

/// The chunks of an association (RFC 9260 §3.2).
mod chunk {
    pub const INIT: u8 = 1;
    pub const INIT_ACK: u8 = 2;
    pub const ABORT: u8 = 6;
    pub const SHUTDOWN: u8 = 7;
    pub const SHUTDOWN_ACK: u8 = 8;
    pub const COOKIE_ECHO: u8 = 10;
    pub const COOKIE_ACK: u8 = 11;
    pub const SHUTDOWN_COMPLETE: u8 = 14;
}

#[derive(Clone, Copy)]
enum End {
    Abort,
    AbortOfPeer,
    Shutdown,
}

/// A pod and a host outside, and the packets that they send as the ends of associations.
struct Associations<'a> {
    topology: &'a Topology,
    capture: PacketSocket,
    out: Forge,
    back: Forge,
}

impl<'a> Associations<'a> {
    fn of(topology: &'a Topology) -> Self {
        Self {
            topology,
            capture: captured(&topology.outside),
            out: topology.pod.forge_out(),
            back: topology.forge(),
        }
    }

    /// Begins an association from a port of the pod to a port of the host outside, and ends it if `end` is
    /// given. Returns false if it got no source port.
    fn open(&self, v4: bool, (from, to): (u16, u16), end: Option<End>) -> bool {
        use chunk::{
            ABORT, COOKIE_ACK, COOKIE_ECHO, INIT, INIT_ACK, SHUTDOWN, SHUTDOWN_ACK, SHUTDOWN_COMPLETE,
        };
        let own = SocketAddr::new(of_family(&self.topology.pod, v4), from);
        let peer = SocketAddr::new(of_family(&self.topology.outside, v4), to);
        let mark = format!("cookie {:016x}", fastrand::u64(..));
        let packet = |from: SocketAddr, to: SocketAddr, kind: u8| {
            let mut content = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
            // The verification tag and the checksum, then the chunk.
            content.extend([0, 0, 0, 1, 0, 0, 0, 0, kind, 0, 0]);
            content.push(4 + u8::try_from(mark.len()).expect("a short mark"));
            content.extend(mark.as_bytes());
            packet::ip(from.ip(), to.ip(), SCTP, &content)
        };
        self.out.send(&packet(own, peer, INIT));
        let comes = |frame: &harness::Frame| !frame.outgoing && frame.carries(mark.as_bytes());
        let Some(frame) = self.capture.find(SECOND / 2, comes).expect("to read") else {
            return false;
        };
        let seen = sender(&frame.bytes).expect("a sender");
        assert_eq!(seen.ip(), of_family(self.topology.node(), v4), "masqueraded");
        let out = |kind| self.out.send(&packet(own, peer, kind));
        let back = |kind| self.back.send(&packet(peer, seen, kind));
        back(INIT_ACK);
        out(COOKIE_ECHO);
        back(COOKIE_ACK);
        match end {
            None => {}
            Some(End::Abort) => out(ABORT),
            Some(End::AbortOfPeer) => back(ABORT),
            Some(End::Shutdown) => {
                out(SHUTDOWN);
                back(SHUTDOWN_ACK);
                out(SHUTDOWN_COMPLETE);
            }
        }
        true
    }
}

/// More associations than there are ports, one after the other.
#[test]
fn associations_that_are_over_give_up_their_ports() {
    /// Less than half of the ports that one client may have. A client may have half of all ports.
    const ROUND: u16 = 50;
    const MANY: u16 = 300;
    harness::require_root!();
    let topology = Topology::with(NodeSpec::millrace(), "masqueradePorts: 10000-10255\n");
    let associations = Associations::of(&topology);
    for first in (0..MANY).step_by(ROUND.into()) {
        for v4 in [true, false] {
            for number in first..first + ROUND {
                let end = match number % 3 {
                    0 => End::Abort,
                    1 => End::AbortOfPeer,
                    _ => End::Shutdown,
                };
                let opens = associations.open(v4, (20_000 + number, 3868), Some(end));
                assert!(opens, "IPv4: {v4}, behind {number} that are over: no source port");
            }
        }
        // Within the tick of its end, an association keeps its port.
        std::thread::sleep(2 * TICK);
    }
    // Associations that go on keep their ports, so there are too few ports for all of these.
    for v4 in [true, false] {
        let mut numbers = 0..MANY;
        let all = numbers.all(|number| associations.open(v4, (20_000 + number, 3869), None));
        assert!(!all, "IPv4: {v4}, all of {MANY} go on");
    }
}
