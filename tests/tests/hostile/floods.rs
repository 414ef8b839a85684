//! Packets without a reply disturb other clients for a moment at most. They are half-open handshakes of a
//! silent client, and datagrams of a pod to a destination that other pods ask. First fragments without later
//! ones do not disturb other clients at all.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use harness::cni::PodSpec;
use harness::forge::packet;
use harness::{Client, Forge, NodeSpec, Place, Probe, eventually, slowness};
use proxy_common::maps::Reason;
use serde_json::json;

use crate::topology::{
    BALANCER, LOCAL_BALANCER, NODE_PORT, SECOND, SOON, Topology, at, counted, metric, of_family,
};

const HANDSHAKES: u16 = 30_000;
const DATAGRAMS: u16 = 60_000;
/// So few ports that a flood uses up its share of them, even on a slow machine.
const FEW_PORTS: &str = "masqueradePorts: 10000-11999\n";
/// The default range, which is no larger than a flood.
const ALL_PORTS: &str = "";
/// The number of other clients.
const OTHERS: usize = 100;
/// The time within which the agent reports a share that was reached.
const REPORT_TIMEOUT: Duration = Duration::from_secs(10);
/// The reasons that are counted for a packet that begins a flow.
const BEGINS: [Reason; 3] = [Reason::NewFlow, Reason::SourcePortShare, Reason::NoSourcePort];

/// The record of a flood that is over.
struct Flood<'a> {
    topology: &'a Topology,
    what: &'a str,
    sent: u64,
    begun: u64,
    refused: u64,
    took: Duration,
    ended: Instant,
}

impl<'a> Flood<'a> {
    /// Sends packets as fast as possible.
    fn send(
        topology: &'a Topology,
        forge: &Forge,
        what: &'a str,
        packets: impl Iterator<Item = Vec<u8>>,
    ) -> Self {
        let begun = counted(topology.node(), &BEGINS);
        let refused = counted(topology.node(), &[Reason::SourcePortShare]);
        let (start, mut sent) = (Instant::now(), 0);
        for packet in packets {
            forge.send(&packet);
            sent += 1;
        }
        Self {
            topology,
            what,
            sent,
            begun,
            refused,
            took: start.elapsed(),
            ended: Instant::now(),
        }
    }

    /// A hundred other clients ask at once when the flood ends. Within five seconds, 99 of them have an
    /// answer.
    #[track_caller]
    fn assert_others_are_served(&self, client: &Place, probe: Probe, to: SocketAddr) {
        let deadline = Instant::now() + SOON;
        let served = of_others(|| {
            while let Some(left) = deadline.checked_duration_since(Instant::now()) {
                if client.ask_within(probe, to, left.min(SECOND)).is_ok() {
                    return true;
                }
            }
            false
        });
        let what = self.what;
        assert!(
            served * 100 >= OTHERS * 99,
            "after {what}: {served} of {OTHERS} were served at {to} by {probe:?} within {SOON:?}"
        );
    }

    /// From five seconds after the flood on, 99 of a hundred other clients have a reply at the first try.
    #[track_caller]
    fn assert_others_are_served_at_once(&self, client: &Place, probe: Probe, to: SocketAddr) {
        std::thread::sleep(SOON.saturating_sub(self.ended.elapsed()));
        // The time limit is shorter than the retransmission of a SYN on a normal machine.
        let served = of_others(|| client.ask_within(probe, to, SECOND * slowness()).is_ok());
        let what = self.what;
        assert!(
            served * 100 >= OTHERS * 99,
            "{SOON:?} after {what}: {served} of {OTHERS} were served at {to} by {probe:?} at the first try"
        );
    }

    /// Asserts that other clients are served, and that the share of the client is reported if there were few
    /// ports.
    #[track_caller]
    fn assert_harmless(&self, others: &Place, probe: Probe, to: SocketAddr, share: Option<&str>) {
        self.assert_others_are_served(others, probe, to);
        self.assert_arrived();
        if let Some(client) = share {
            self.assert_share_is_reported(client);
        }
        self.assert_others_are_served_at_once(others, probe, to);
    }

    /// Asserts that the programs handled the packets of the flood.
    #[track_caller]
    fn assert_arrived(&self) {
        let (sent, what) = (self.sent, self.what);
        let begun = counted(self.topology.node(), &BEGINS) - self.begun;
        assert!(
            begun * 100 >= sent * 95,
            "{what}: {begun} flows of {sent} packets began or were refused"
        );
    }

    /// Asserts that the share was reached, and that the gauge and `status` report it in time.
    #[track_caller]
    fn assert_share_is_reported(&self, client: &str) {
        let refused = counted(self.topology.node(), &[Reason::SourcePortShare]) - self.refused;
        let (what, sent, took) = (self.what, self.sent, self.took);
        assert!(
            refused > 0,
            "{what}: none of {sent} packets within {took:?} was refused"
        );
        self.topology.assert_share_is_reported(
            "source_ports",
            client,
            REPORT_TIMEOUT.saturating_sub(self.ended.elapsed()),
        );
    }
}

/// The number of other clients that succeed, of a hundred at once.
fn of_others(succeeds: impl Fn() -> bool + Sync) -> usize {
    let served = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..OTHERS {
            scope.spawn(|| {
                if succeeds() {
                    served.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    served.into_inner()
}

/// The client whose share is reported, if there are so few ports that it certainly reaches its share.
fn at_share<'a>(ports: &str, client: &'a str) -> Option<&'a str> {
    (ports == FEW_PORTS).then_some(client)
}

/// A silent client, the name of its share, and other clients. Other IPv6 clients are in another network,
/// since all addresses of one network share one quota.
fn silent_and_others<'a>(
    topology: &'a Topology,
    remote: &'a Client,
) -> [(IpAddr, &'static str, &'a Place); 2] {
    remote.route_via(
        format!("{}/128", BALANCER[1]).parse().expect("a prefix"),
        topology.node(),
    );
    let address = |text: &str| -> IpAddr { text.parse().expect("an address") };
    [
        (address("192.168.50.222"), "192.168.50.222", &topology.outside),
        (address("fd00:50::222"), "fd00:50::", remote),
    ]
}

#[test]
fn handshakes_of_a_silent_client_do_not_close_a_service() {
    harness::require_root!();
    assert_handshakes_close_nothing(FEW_PORTS, true);
}

#[test]
fn handshakes_of_a_silent_client_do_not_close_a_service_with_all_ports() {
    harness::require_root!();
    assert_handshakes_close_nothing(ALL_PORTS, false);
}

#[track_caller]
fn assert_handshakes_close_nothing(ports: &str, also_balancer: bool) {
    let topology = Topology::with(NodeSpec::millrace(), ports);
    let (forge, remote) = (topology.forge(), topology.world.add_remote_client("remote"));
    for (silent, named, others) in silent_and_others(&topology, &remote) {
        let v4 = silent.is_ipv4();
        let node_port = SocketAddr::new(of_family(topology.node(), v4), NODE_PORT);
        let balancer = also_balancer.then(|| at(BALANCER[usize::from(!v4)], 80));
        for to in std::iter::once(node_port).chain(balancer) {
            let handshakes = (0..HANDSHAKES).map(|number| {
                let from = SocketAddr::new(silent, 1024 + number);
                packet::tcp(from, to, packet::SYN, 1, b"")
            });
            let flood = Flood::send(&topology, &forge, "a silent client's handshakes", handshakes);
            flood.assert_harmless(others, Probe::Tcp, to, at_share(ports, named));
        }
    }
}

/// Many silent clients, with one address each.
#[test]
fn handshakes_of_many_silent_clients_do_not_close_a_service() {
    harness::require_root!();
    let topology = Topology::build();
    let (forge, to) = (
        topology.forge(),
        SocketAddr::new(topology.node().ip().into(), NODE_PORT),
    );
    let handshakes = (0..HANDSHAKES).map(|number| {
        let [high, low] = number.to_be_bytes();
        let from = SocketAddr::from(([172, 31, high, low], 40_000));
        packet::tcp(from, to, packet::SYN, 1, b"")
    });
    let flood = Flood::send(&topology, &forge, "handshakes of many", handshakes);
    flood.assert_others_are_served(&topology.outside, Probe::Tcp, to);
    flood.assert_arrived();
    let local = at(LOCAL_BALANCER[0], 80);
    flood.assert_others_are_served(&topology.outside, Probe::Tcp, local);
    flood.assert_others_are_served_at_once(&topology.outside, Probe::Tcp, to);
}

/// Datagrams that get an error or no reply do not close a service either.
#[test]
fn datagrams_of_a_silent_client_do_not_close_a_service() {
    harness::require_root!();
    assert_datagrams_close_nothing(FEW_PORTS);
}

#[test]
fn datagrams_of_a_silent_client_do_not_close_a_service_with_all_ports() {
    harness::require_root!();
    assert_datagrams_close_nothing(ALL_PORTS);
}

#[track_caller]
fn assert_datagrams_close_nothing(ports: &str) {
    let topology = Topology::with(NodeSpec::millrace(), ports);
    let (forge, remote) = (topology.forge(), topology.world.add_remote_client("remote"));
    for (silent, named, others) in silent_and_others(&topology, &remote) {
        let to = SocketAddr::new(of_family(topology.node(), silent.is_ipv4()), NODE_PORT);
        let datagrams =
            (0..DATAGRAMS).map(|number| packet::udp(SocketAddr::new(silent, 1024 + number), to, b"?"));
        let flood = Flood::send(&topology, &forge, "a silent client's datagrams", datagrams);
        flood.assert_harmless(others, Probe::Udp, to, at_share(ports, named));
    }
}

#[test]
fn handshakes_to_a_host_port_do_not_close_it() {
    harness::require_root!();
    let topology = Topology::build();
    let ports = json!([{"hostPort": 8081, "containerPort": 8080, "protocol": "tcp"}]);
    let pod = topology
        .node()
        .add_pod_by_plugin(&PodSpec::new("host-port").asking("portMappings", ports));
    let _server = pod.serve_tcp(8080);
    let (forge, to) = (
        topology.forge(),
        SocketAddr::new(topology.node().ip().into(), 8081),
    );
    let handshakes = (0..HANDSHAKES).map(|number| {
        let from = SocketAddr::from(([192, 168, 50, 222], 1024 + number));
        packet::tcp(from, to, packet::SYN, 1, b"")
    });
    let flood = Flood::send(&topology, &forge, "a silent client's handshakes", handshakes);
    flood.assert_others_are_served(&topology.outside, Probe::Tcp, to);
    flood.assert_arrived();
}

/// The share is reported even if its connections are over when the agent looks.
#[test]
fn a_full_share_of_connections_is_reported_when_they_end() {
    /// More than a quarter of the flows that such a small table holds.
    const CONNECTIONS: usize = 600;
    harness::require_root!();
    let topology = Topology::with(NodeSpec::millrace(), "maps: {flows: 2048}\n");
    let _server = topology.outside.serve_tcp(8080);
    let to = SocketAddr::new(topology.outside.ip().into(), 8080);
    let open: Vec<_> = (0..CONNECTIONS)
        .map(|_| topology.pod.tcp_connect(to).expect("a connection"))
        .collect();
    drop(open);
    topology.assert_share_is_reported("connections", &topology.pod.ip().to_string(), REPORT_TIMEOUT);
    // The report ends after the agent has looked twice.
    eventually("the share to come back", 3 * REPORT_TIMEOUT, || {
        metric(
            topology.node(),
            "millrace_clients_at_share{share=\"connections\"}",
        ) == 0
    });
}

/// A resolver outside that answers questions and ignores all other datagrams.
struct Resolver {
    end: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Resolver {
    fn start(place: &Place, port: u16) -> Self {
        let end = Arc::new(AtomicBool::new(false));
        let threads = place.addresses().iter().map(|address| {
            let socket = place.udp_bind(SocketAddr::new(*address, port)).expect("a socket");
            socket.set_read_timeout(Some(SOON / 50)).expect("a deadline");
            let end = Arc::clone(&end);
            std::thread::spawn(move || {
                let mut buffer = [0; 64];
                while !end.load(Ordering::Relaxed) {
                    if let Ok((1, from)) = socket.recv_from(&mut buffer)
                        && buffer[0] == b'?'
                    {
                        let _ = socket.send_to(format!("resolver {from}\n").as_bytes(), from);
                    }
                }
            })
        });
        let threads = threads.collect();
        Self { end, threads }
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // The panic of the thread has been printed.
            let _ = thread.join();
        }
    }
}

#[test]
fn datagrams_of_one_pod_do_not_close_a_destination_to_others() {
    harness::require_root!();
    assert_datagrams_of_a_pod_close_nothing(FEW_PORTS);
}

#[test]
fn datagrams_of_one_pod_do_not_close_a_destination_to_others_with_all_ports() {
    harness::require_root!();
    assert_datagrams_of_a_pod_close_nothing(ALL_PORTS);
}

#[track_caller]
fn assert_datagrams_of_a_pod_close_nothing(ports: &str) {
    let topology = Topology::with(NodeSpec::millrace(), ports);
    let _resolver = Resolver::start(&topology.outside, 5300);
    let forge = topology.pod.forge_out();
    for v4 in [true, false] {
        let to = SocketAddr::new(of_family(&topology.outside, v4), 5300);
        let from = of_family(&topology.pod, v4);
        let datagrams = (0..DATAGRAMS)
            .map(|number| packet::udp(SocketAddr::new(from, 1024 + number), to, b"not a question"));
        let flood = Flood::send(&topology, &forge, "another pod's datagrams", datagrams);
        let named = from.to_string();
        flood.assert_harmless(&topology.web, Probe::Udp, to, at_share(ports, &named));
        flood.assert_others_are_served(&topology.web, Probe::UdpConnected, to);
    }
}

/// The same with handshakes, which the pod abandons after the SYN,ACK, and with echo requests.
#[test]
fn other_packets_of_one_pod_do_not_close_a_destination_to_others() {
    harness::require_root!();
    let topology = Topology::with(NodeSpec::millrace(), FEW_PORTS);
    let _server = topology.outside.serve_tcp(8080);
    let (forge, from, to) = (
        topology.pod.forge_out(),
        topology.pod.ip().into(),
        SocketAddr::new(topology.outside.ip().into(), 8080),
    );
    let packets = (0..DATAGRAMS).flat_map(|number| {
        let source = SocketAddr::new(from, 1024 + number);
        [
            packet::tcp(source, to, packet::SYN, 1, b""),
            packet::echo(from, to.ip(), true, 1024 + number, b"?"),
        ]
    });
    let flood = Flood::send(
        &topology,
        &forge,
        "another pod's handshakes and echo requests",
        packets,
    );
    let named = from.to_string();
    flood.assert_harmless(&topology.web, Probe::Tcp, to, Some(&named));
    topology
        .web
        .ping(to.ip(), SOON)
        .expect("an echo reply, after another pod's echo requests");
}
