//! The limits of a pod hold on every path to it and from it, whether the stack or a program of Millrace
//! forwards the packets.
//!
//! The measure is that of a token bucket: the size of full segments. A busy machine may make a flow slower,
//! so a slow flow gets another try; no flow may be faster than its limit.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use harness::cni::PodSpec;
use harness::config::{DEFAULTS, HOOKS_OFF};
use harness::{
    Agent, Client, Endpoint, NodeSpec, PATIENCE, Place, Pod, Service, World, eventually, wait_for,
};
use nix::sys::socket::{getsockopt, sockopt};
use serde_json::{Value, json};

const SECOND: Duration = Duration::from_secs(1);
const RATE: u32 = 5_000_000;
const TOLERANCE: f64 = 0.15;
const ATTEMPTS: usize = 5;
/// Full buffers and buckets would distort the rate at first.
const WARM_UP: Duration = Duration::from_millis(700);
const WINDOW: Duration = Duration::from_millis(1500);

const BALANCER: [&str; 2] = ["203.0.113.7", "2001:db8:7::7"];
const CLUSTER: [&str; 2] = ["10.96.0.10", "fd00:96::10"];
const NODE_PORT: u16 = 30_080;
const LOCAL_NODE_PORT: u16 = 30_081;
const HOST_PORT: u16 = 8081;
const PORT: u16 = 8080;

/// A node with a limited pod that is served by services and a host port, another pod, and a client outside.
struct Topology {
    world: World,
    _agent: Agent,
    outside: Client,
    limited: Pod,
    other: Pod,
    rate: u32,
}

impl Topology {
    fn build(config: &str) -> Self {
        Self::with_rate(config, RATE)
    }

    fn with_rate(config: &str, rate: u32) -> Self {
        let world = World::builder()
            .node(NodeSpec::millrace().strict_rp_filter())
            .build();
        let node = world.node(1);
        let outside = world.add_remote_client("outside");
        for range in node.pod_cidrs() {
            outside.route_via(range, node);
        }
        for (address, length) in [(BALANCER[0], 32), (BALANCER[1], 128)] {
            outside.route_via(format!("{address}/{length}").parse().expect("a prefix"), node);
        }
        let mut agent = node.agent().config(config).start();
        agent.wait_ready(10 * SECOND);
        let limit = json!({"ingressRate": rate, "egressRate": rate});
        let ports = json!([{"hostPort": HOST_PORT, "containerPort": PORT, "protocol": "tcp"}]);
        let spec = PodSpec::new("limited")
            .asking("bandwidth", limit)
            .asking("portMappings", ports);
        let limited = node.add_pod_by_plugin(&spec);
        let other = node.add_pod("other");
        let open = Service::web()
            .node_port("http", NODE_PORT)
            .load_balancer_ip(BALANCER[0])
            .load_balancer_ip(BALANCER[1]);
        let local = Service::new("local")
            .cluster_ip("10.96.0.20")
            .cluster_ip("fd00:96::20")
            .tcp("http", 80, PORT)
            .node_port("http", LOCAL_NODE_PORT)
            .set("externalTrafficPolicy", json!("Local"));
        for service in [open, local] {
            world.apply(&service);
            world.apply_all(service.slices([Endpoint::of(&limited)]));
        }
        Self {
            world,
            _agent: agent,
            outside,
            limited,
            other,
            rate,
        }
    }

    /// The paths of clients on other machines, in a family.
    fn paths_from_outside(&self, family: usize) -> Vec<FlowPath<'_>> {
        let node = self.world.node(1).addresses()[family];
        let balancer: IpAddr = BALANCER[family].parse().expect("an address");
        [
            ("the pod's address", self.limited.addresses()[family], PORT),
            ("a node port", node, NODE_PORT),
            ("a node port with policy Local", node, LOCAL_NODE_PORT),
            ("a balancer's address", balancer, 80),
            ("a host port", node, HOST_PORT),
        ]
        .map(|(what, address, port)| FlowPath {
            what,
            client: &self.outside,
            to: SocketAddr::new(address, port),
            limit: self.rate,
        })
        .into()
    }

    /// The paths of pods of the same node, the limited one included.
    fn paths_from_pods(&self, family: usize) -> Vec<FlowPath<'_>> {
        let cluster: IpAddr = CLUSTER[family].parse().expect("an address");
        let node = self.world.node(1).addresses()[family];
        let own = self.limited.addresses()[family];
        let balancer: IpAddr = BALANCER[family].parse().expect("an address");
        [
            ("the pod's address, from a pod", &self.other, own, PORT),
            ("a cluster IP, from a pod", &self.other, cluster, 80),
            ("a host port, from a pod", &self.other, node, HOST_PORT),
            ("a node port, from a pod", &self.other, node, NODE_PORT),
            ("a balancer's address, from a pod", &self.other, balancer, 80),
            ("its own cluster IP", &self.limited, cluster, 80),
        ]
        .map(|(what, client, address, port)| FlowPath {
            what,
            client,
            to: SocketAddr::new(address, port),
            limit: self.rate,
        })
        .into()
    }

    /// Writes annotations with limits to the limited pod.
    fn annotate(&self, annotations: &Value) {
        self.world.apply(&json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "limited", "namespace": "default", "annotations": annotations},
            "spec": {"nodeName": "n1"},
            "status": {"phase": "Running"},
        }));
    }

    fn measure(&self, paths: &[FlowPath<'_>], directions: &[Direction]) {
        let listener = self.limited.tcp_listen(PORT).expect("to listen");
        for path in paths {
            for direction in directions {
                path.holds(&listener, *direction);
            }
        }
    }

    /// Measures each path once, alternately from the pod and to it. `first` is the first direction.
    fn measure_alternately(&self, paths: &[FlowPath<'_>], first: Direction) {
        let listener = self.limited.tcp_listen(PORT).expect("to listen");
        let directions = BOTH
            .into_iter()
            .cycle()
            .skip_while(|direction| *direction != first);
        for (path, direction) in paths.iter().zip(directions) {
            path.holds(&listener, direction);
        }
    }

    /// Measures datagrams to the pod on a path. The sender sends at twice the limit.
    fn measure_datagrams(&self, path: &FlowPath<'_>) {
        let own = self.limited.addresses()[usize::from(path.to.is_ipv6())];
        let receiver = self.limited.udp_bind(SocketAddr::new(own, PORT));
        let receiver = receiver.expect("a socket");
        let sender = path.client.udp_socket_for(path.to).expect("a socket");
        sender.connect(path.to).expect("a peer");
        receiver.set_read_timeout(Some(SECOND / 10)).expect("a time-out");
        eventually(&format!("a datagram to {}", path.to), 10 * SECOND, || {
            // An error is about an earlier datagram.
            let _ = sender.send(b"?");
            receiver.recv(&mut [0; 1]).is_ok()
        });
        receiver.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        let what = format!("datagrams to the pod by {} {}", path.what, path.to);
        hold(&what, path.limit, || datagrams(&sender, &receiver, path.limit));
    }
}

/// The direction of the limited traffic.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Direction {
    FromPod,
    ToPod,
}

/// A path to the limited pod.
struct FlowPath<'a> {
    what: &'static str,
    client: &'a Place,
    to: SocketAddr,
    limit: u32,
}

impl FlowPath<'_> {
    fn holds(&self, listener: &TcpListener, direction: Direction) {
        let what = format!("{direction:?} by {} {}", self.what, self.to);
        hold(&what, self.limit, || self.rate(listener, direction));
    }

    /// Bits per second of one flow.
    fn rate(&self, listener: &TcpListener, direction: Direction) -> f64 {
        let inner = wait_for(&format!("a connection to {}", self.to), 10 * SECOND, || {
            self.client.tcp_connect_within(self.to, SECOND)
        });
        let (outer, _) = listener.accept().expect("a connection");
        outer.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        let (sender, receiver) = match direction {
            Direction::FromPod => (outer, inner),
            Direction::ToPod => (inner, outer),
        };
        // With a small limit, the contents of buffers are a larger part of the traffic.
        let window = if self.limit < RATE { 2 * WINDOW } else { WINDOW };
        flow(&sender, receiver, window)
    }
}

/// Measures until a flow comes close to its limit. It may never be faster.
fn hold(what: &str, limit: u32, measure: impl Fn() -> f64) {
    let mut ratios = Vec::new();
    for _ in 0..ATTEMPTS {
        let ratio = measure() / f64::from(limit);
        println!("{what}: {ratio:.3} of the limit");
        ratios.push(ratio);
        assert!(ratio < 1.0 + TOLERANCE, "{what}: {ratios:?}");
        if ratio > 1.0 - TOLERANCE {
            return;
        }
    }
    panic!("{what} stays behind: {ratios:?}");
}

/// Bits per second of received datagrams. They are sent without regard to the limit.
fn datagrams(sender: &UdpSocket, receiver: &UdpSocket, limit: u32) -> f64 {
    const PAYLOAD: u16 = 1000;
    const ETHERNET_AND_UDP: u16 = 14 + 8;
    let is_ipv6 = receiver.local_addr().is_ok_and(|own| own.is_ipv6());
    let bits = 8.0 * f64::from(PAYLOAD + ETHERNET_AND_UDP + if is_ipv6 { 40 } else { 20 });
    let done = AtomicBool::new(false);
    let per_second = thread::scope(|scope| {
        scope.spawn(|| {
            let datagram = vec![0; PAYLOAD.into()];
            // The sender sends in bursts, since a sleeping thread wakes late.
            let (begin, mut sent) = (Instant::now(), 0.0);
            while !done.load(Ordering::Relaxed) {
                let due = begin.elapsed().as_secs_f64() * 2.0 * f64::from(limit) / bits;
                while sent < due {
                    // A full queue causes ENOBUFS.
                    let _ = sender.send(&datagram);
                    sent += 1.0;
                }
                thread::sleep(Duration::from_millis(1));
            }
        });
        let per_second = received(receiver);
        done.store(true, Ordering::Relaxed);
        per_second
    });
    per_second.expect("datagrams") * bits
}

/// Received datagrams per second.
fn received(receiver: &UdpSocket) -> io::Result<f64> {
    let mut buffer = [0; 2048];
    let begin = Instant::now();
    while begin.elapsed() < WARM_UP {
        receiver.recv(&mut buffer)?;
    }
    let (from, mut count) = (Instant::now(), 0.0);
    while from.elapsed() < WINDOW {
        receiver.recv(&mut buffer)?;
        count += 1.0;
    }
    Ok(count / from.elapsed().as_secs_f64())
}

fn flow(sender: &TcpStream, mut receiver: TcpStream, window: Duration) -> f64 {
    const HEADERS: f64 = 14.0 + 20.0 + 20.0 + 12.0;
    const IPV6: f64 = 20.0;
    let segment = f64::from(getsockopt(sender, sockopt::TcpMaxSeg).expect("a size"));
    let is_ipv6 = receiver
        .peer_addr()
        .is_ok_and(|peer| !peer.ip().to_canonical().is_ipv4());
    let on_the_wire = segment + HEADERS + if is_ipv6 { IPV6 } else { 0.0 };
    thread::scope(|scope| {
        scope.spawn(move || {
            let full = vec![0; 65_536];
            // The loop ends when the receiver closes the connection.
            while { sender }.write_all(&full).is_ok() {}
        });
        let mut buffer = vec![0; 65_536];
        let mut read = || {
            let got = receiver.read(&mut buffer).expect("to read");
            assert!(got > 0, "the flow ended");
            u32::try_from(got).expect("less than a buffer")
        };
        let begin = Instant::now();
        while begin.elapsed() < WARM_UP {
            read();
        }
        let (from, mut bytes) = (Instant::now(), 0);
        while from.elapsed() < window {
            bytes += read();
        }
        let rate = f64::from(bytes) * 8.0 / from.elapsed().as_secs_f64();
        let _ = receiver.shutdown(Shutdown::Both);
        let _ = sender.shutdown(Shutdown::Both);
        rate * on_the_wire / segment
    })
}

const BOTH: [Direction; 2] = [Direction::FromPod, Direction::ToPod];

#[test]
fn a_limit_holds_for_clients_outside() {
    harness::require_root!();
    let topology = Topology::build(DEFAULTS);
    topology.measure(&topology.paths_from_outside(0), &BOTH);
    topology.measure(&topology.paths_from_outside(1), &BOTH);
}

#[test]
fn a_limit_holds_between_pods_of_a_node() {
    harness::require_root!();
    let topology = Topology::build(HOOKS_OFF);
    topology.measure(&topology.paths_from_pods(0), &BOTH);
    topology.measure(&topology.paths_from_pods(1), &BOTH);
}

#[test]
fn a_limit_holds_where_packets_between_pods_pass_by_the_stack() {
    harness::require_root!();
    let topology = Topology::build(&format!("{HOOKS_OFF}hostRouting: redirect\n"));
    topology.measure(&topology.paths_from_pods(0), &BOTH);
    // Each measurement takes seconds, so each path of IPv6 is measured once. The node port and the balancer's
    // address are left out, as they share the path of the cluster IP.
    let mut paths = topology.paths_from_pods(1);
    paths.retain(|path| path.to.port() != NODE_PORT && path.to.ip().to_string() != BALANCER[1]);
    topology.measure_alternately(&paths, Direction::FromPod);
}

#[test]
fn a_limit_holds_for_clients_outside_where_packets_between_pods_pass_by_the_stack() {
    harness::require_root!();
    let topology = Topology::build(&format!("{HOOKS_OFF}hostRouting: redirect\n"));
    // Each path is measured in one direction with IPv4, and in the other with IPv6.
    topology.measure_alternately(&topology.paths_from_outside(0), Direction::FromPod);
    topology.measure_alternately(&topology.paths_from_outside(1), Direction::ToPod);
    let paths = topology.paths_from_outside(1);
    let balancer = paths.iter().find(|path| path.to.port() == 80);
    topology.measure_datagrams(balancer.expect("the balancer's address"));
}

#[test]
fn a_limiter_that_an_administrator_removed_is_made_again() {
    harness::require_root!();
    let topology = Topology::build(DEFAULTS);
    let node = topology.world.node(1);
    // The agent restores limits from the pods' annotations.
    topology.annotate(&json!({"kubernetes.io/egress-bandwidth": "5M"}));
    let limiter = topology.limited.host_interface().replacen("mr", "ml", 1);
    let paths = topology.paths_from_outside(0);
    for _ in 0..2 {
        node.run_ip(&format!("link del {limiter}"));
        // A connection shows that the limiter is back: without it no packet of the pod is forwarded.
        topology.measure(&paths[1..2], &BOTH[..1]);
    }
}

#[test]
fn an_annotation_does_not_exceed_the_limit_of_the_runtime() {
    const GIVEN: u32 = 1_000_000;
    harness::require_root!();
    let topology = Topology::with_rate(DEFAULTS, GIVEN);
    let node = topology.world.node(1);
    // The narrower limit comes first, so that the test sees when the wider one is in force.
    for (rate, effective) in [("500k", 500_000), ("900M", GIVEN)] {
        topology.annotate(&json!({
            "kubernetes.io/ingress-bandwidth": rate,
            "kubernetes.io/egress-bandwidth": rate,
        }));
        wait_for("the annotations to count", 20 * SECOND, || {
            let pods = node.cli(&["pod", "list"]).expect("a list");
            let pods = pods.as_array().expect("a list");
            let limited = pods.iter().find(|pod| pod["name"] == "limited");
            let limited = limited.ok_or_else(|| format!("not among {pods:?}"))?;
            let limits = ["ingressBandwidth", "egressBandwidth"].map(|key| limited[key].as_u64());
            if limits == [Some(u64::from(effective)); 2] {
                Ok(())
            } else {
                Err(format!("{limited}"))
            }
        });
    }
    topology.measure(&topology.paths_from_outside(0)[..2], &BOTH);
    topology.measure(&topology.paths_from_pods(0)[..1], &BOTH);
}
