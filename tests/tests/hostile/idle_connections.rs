//! Connections that are idle for a while, and pods that ask a resolver meanwhile. The newest flows of other
//! pods do not disturb an established flow. It does not matter which side opened the connection, and which
//! one sends first after the silence.

mod exchanges;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use harness::cni::PodSpec;
use harness::forge::packet;
use harness::{Endpoint, Forge, PacketSocket, Place, Pod, Probe, Server, Service, eventually, wait_for};
use proxy_common::maps::Reason;
use serde_json::json;

use exchanges::Exchanges;

use crate::topology::{SECOND, SOON, Topology, at, counted, metric, of_family, wait_served};

/// Connections of each kind.
const EACH: usize = 10;
/// The number of source ports of the questions.
const PORTS: u32 = 50_000;
/// Questions that may be unanswered at a time; the server's socket buffer holds so many.
const WINDOW: usize = 256;
/// The number of services that are asked.
const SERVICES: u16 = 3;
/// The reasons that are counted for a packet that begins a flow.
const BEGINS: [Reason; 3] = [Reason::NewFlow, Reason::SourcePortShare, Reason::NoSourcePort];
/// The addresses that the connections go to.
const BALANCER: [&str; 2] = ["203.0.113.91", "2001:db8:7::91"];
const LOCAL_BALANCER: [&str; 2] = ["203.0.113.90", "2001:db8:7::90"];
const PORT: u16 = 30_090;
const LOCAL_PORT: u16 = 30_091;
const HOST_PORT: u16 = 8091;
/// The interval at which entries of maps are counted for metrics, and half a second more.
const COUNTED: Duration = Duration::from_millis(10_500);

/// The side that sends first after the silence.
#[derive(Clone, Copy, Debug)]
enum First {
    Client,
    Server,
}

/// Both ends of one connection.
struct Idle {
    what: String,
    ends: [TcpStream; 2],
}

/// Opens connections of a kind. One word goes in each direction, so that both ends have sent and received.
#[track_caller]
fn open(client: &Place, to: SocketAddr, listener: &TcpListener, what: &str) -> Vec<Idle> {
    let one = |first: First| -> Idle {
        let near = client
            .tcp_connect(to)
            .unwrap_or_else(|error| panic!("{what} to {to}: {error}"));
        let (far, _) = listener.accept().expect("a connection");
        far.set_nodelay(true).expect("to set");
        let what = format!("{what}, {first:?} first");
        let mut ends = match first {
            First::Client => [near, far],
            First::Server => [far, near],
        };
        let [sender, receiver] = &mut ends;
        exchange(sender, receiver, SOON)
            .and_then(|()| exchange(receiver, sender, SOON))
            .expect(&what);
        Idle { what, ends }
    };
    let firsts = [First::Client, First::Server].into_iter();
    firsts
        .flat_map(|first| (0..EACH).map(move |_| first))
        .map(one)
        .collect()
}

fn exchange(from: &mut TcpStream, to: &mut TcpStream, within: Duration) -> std::io::Result<()> {
    from.write_all(b"word")?;
    to.set_read_timeout(Some(within.max(Duration::from_millis(1))))?;
    to.read_exact(&mut [0; 4])
}

/// Has one side of each connection send, then the other; returns the errors of connections that did not work.
fn dead(idle: &mut [Idle]) -> Vec<String> {
    // All connections send at once, so that they share one waiting time.
    for connection in idle.iter_mut() {
        let _ = connection.ends[0].write_all(b"word");
    }
    let deadline = Instant::now() + SOON;
    let mut dead = Vec::new();
    for Idle {
        what,
        ends: [sender, receiver],
    } in idle
    {
        let left = deadline
            .saturating_duration_since(Instant::now())
            .max(Duration::from_millis(1));
        receiver.set_read_timeout(Some(left)).expect("a deadline");
        let received = receiver.read_exact(&mut [0; 4]);
        let replied = received.and_then(|()| exchange(receiver, sender, left.max(SECOND)));
        if let Err(error) = replied {
            dead.push(format!("{what}: {error}"));
        }
    }
    dead
}

/// Questions of a pod to services, from ever new ports, each with a reply.
struct Questions<'a> {
    forge: Forge,
    from: IpAddr,
    services: Vec<SocketAddr>,
    servers: &'a [Server],
}

impl Questions<'_> {
    fn served(&self) -> usize {
        self.servers.iter().map(Server::served).sum()
    }

    /// Asks `count` times, not faster than the server answers.
    #[track_caller]
    fn ask(&self, count: u32) {
        let (start, mut lost) = (self.served(), 0);
        for number in 0..count {
            let to = self.services[(number / PORTS) as usize % self.services.len()];
            let port = u16::try_from(10_000 + number % PORTS).expect("a port");
            self.forge
                .send(&packet::udp(SocketAddr::new(self.from, port), to, b"?"));
            let asked = number as usize + 1;
            if asked.is_multiple_of(WINDOW) {
                // A few may be lost when the machine is busy.
                let deadline = Instant::now() + SECOND / 10;
                while self.served() - start + lost < asked && Instant::now() < deadline {
                    std::thread::yield_now();
                }
                lost = asked.saturating_sub(self.served() - start);
            }
        }
        let replied = self.served() - start;
        assert!(
            replied * 100 >= count as usize * 99,
            "{replied} of {count} requests got replies"
        );
    }
}

/// The number of questions.
fn questions() -> u32 {
    let given = std::env::var("MILLRACE_FLOOD_QUESTIONS").ok();
    given.and_then(|text| text.parse().ok()).unwrap_or(150_000)
}

/// Packets that left with an address of the pod range, to the host outside and to the router.
struct Leaks([PacketSocket; 2]);

impl Leaks {
    /// Counts from now on. Each capture has seen a packet of a pod that may leave with its own address, so it
    /// works.
    #[track_caller]
    fn watch(topology: &Topology) -> Self {
        let remote = topology.world.add_remote_client("remote");
        let captures = [
            (&topology.outside as &Place, "eth0"),
            (topology.world.fabric(), "br0"),
        ]
        .map(|(place, link)| place.pod_sources_socket(link).expect("a capture"));
        let leaks = Self(captures);
        let _server = topology.pod.serve_udp(9300);
        for (number, client) in [&topology.outside, &remote].into_iter().enumerate() {
            for v4 in [true, false] {
                // A pod that is asked at its own address replies from that address.
                client.route_via(topology.node().pod_cidrs()[usize::from(!v4)], topology.node());
                let to = SocketAddr::new(of_family(&topology.pod, v4), 9300);
                let what = format!("a reply of {to} to {}", client.name());
                wait_for(&what, SOON, || client.ask_within(Probe::Udp, to, SECOND));
                assert!(leaks.counts()[number] > 0, "{what} was not captured");
            }
        }
        leaks
    }

    /// The number of packets in each capture since the last call.
    fn counts(&self) -> [usize; 2] {
        self.0
            .each_ref()
            .map(|capture| capture.so_far().expect("to read").len())
    }
}

/// Waits until the gauge shows at least this number of streams; returns the time of the next count.
#[track_caller]
fn wait_gauge_of_streams(topology: &Topology, least: usize) -> Instant {
    let series = "millrace_map_entries{map=\"streams\"}";
    wait_for("the gauge of streams", 3 * SOON, || {
        match metric(topology.node(), series) {
            streams if streams >= least as u64 => Ok(()),
            streams => Err(streams),
        }
    });
    Instant::now() + COUNTED
}

/// The metrics of the tables of flows are right within 1 %.
#[track_caller]
fn assert_gauges_are_right(topology: &Topology) {
    const TABLES: [(&str, &str); 3] = [
        ("FLOWS", "flows"),
        ("STREAMS", "streams"),
        ("NEW_FLOWS", "newFlows"),
    ];
    let count = || TABLES.map(|(table, _)| topology.node().table::<40, 64>(table).len());
    let before = count();
    let gauges = TABLES.map(|(_, label)| {
        metric(
            topology.node(),
            &format!("millrace_map_entries{{map=\"{label}\"}}"),
        )
    });
    let after = count();
    for (number, (table, _)) in TABLES.iter().enumerate() {
        let gauge = usize::try_from(gauges[number]).expect("a number");
        let (least, most) = (
            before[number].min(after[number]),
            before[number].max(after[number]),
        );
        assert!(
            gauge * 100 >= least * 99 && gauge * 100 <= most * 101,
            "{table}: the gauge has {gauge}, and {least} to {most} exist"
        );
    }
    assert!(
        before[0] > 0 && before[1] > 0 && before[2] > 1000,
        "there are flows to count: {before:?}"
    );
}

/// Sends handshakes of ever new hosts, as fast as possible, until `is_over` is set; returns their number.
fn flood(forge: &Forge, to: SocketAddr, is_over: &AtomicBool) -> u64 {
    let mut sent = 0_u32;
    while !is_over.load(Ordering::Relaxed) {
        let [round, site, high, low] = sent.to_be_bytes();
        let from = SocketAddr::from(([172, 16 + site % 16, high, low], 1024 + u16::from(round)));
        forge.send(&packet::tcp(from, to, packet::SYN, sent, b""));
        sent += 1;
    }
    sent.into()
}

/// Makes services whose only backend is a pod. They use ports of their own, since the topology's servers
/// would accept the connections.
fn serve(topology: &Topology, backend: &Pod) {
    let long = Service::new("long")
        .cluster_ip("10.96.3.10")
        .cluster_ip("fd00:96::3:10")
        .tcp("talk", 90, 9000)
        .node_port("talk", PORT)
        .load_balancer_ip(BALANCER[0])
        .load_balancer_ip(BALANCER[1]);
    let near = Service::new("long-near")
        .cluster_ip("10.96.3.11")
        .cluster_ip("fd00:96::3:11")
        .tcp("talk", 90, 9000)
        .node_port("talk", LOCAL_PORT)
        .load_balancer_ip(LOCAL_BALANCER[0])
        .load_balancer_ip(LOCAL_BALANCER[1])
        .set("externalTrafficPolicy", json!("Local"));
    for service in [&long, &near] {
        topology.world.apply_all(service.slices([Endpoint::of(backend)]));
        topology.world.apply(service);
    }
    for address in [BALANCER, LOCAL_BALANCER].concat() {
        let length = if address.contains(':') { 128 } else { 32 };
        let prefix = format!("{address}/{length}");
        topology
            .outside
            .route_via(prefix.parse().expect("a prefix"), topology.node());
    }
    let _talking = backend.serve_tcp(9000);
    for address in [BALANCER, LOCAL_BALANCER].concat() {
        eventually("the service", 2 * SOON, || {
            let reply = topology.outside.ask_within(Probe::Tcp, at(address, 90), SECOND);
            reply.is_ok()
        });
    }
}

/// Opens connections of every kind.
fn open_all(topology: &Topology) -> Vec<Idle> {
    let (outside, web, pod) = (&topology.outside, &topology.web, &topology.pod);
    serve(topology, web);
    let ports = json!([{"hostPort": HOST_PORT, "containerPort": 9000, "protocol": "tcp"}]);
    let mapped = topology
        .node()
        .add_pod_by_plugin(&PodSpec::new("mapped").asking("portMappings", ports));
    let far = topology.world.node(2).add_pod("far");
    let listen = |place: &Place, port: u16| place.tcp_listen(port).expect("a listener");
    let (at_web, at_mapped) = (listen(web, 9000), listen(&mapped, 9000));
    let (at_outside, at_far) = (listen(outside, 9100), listen(&far, 9000));
    let mut idle = Vec::new();
    for v4 in [true, false] {
        let n = usize::from(!v4);
        let own = |port: u16| SocketAddr::new(of_family(topology.node(), v4), port);
        let cluster_ip = at(["10.96.3.10", "fd00:96::3:10"][n], 90);
        let to_outside = SocketAddr::new(of_family(outside, v4), 9100);
        let to_far = SocketAddr::new(of_family(&far, v4), 9000);
        let kinds: [(&Place, SocketAddr, &TcpListener, &str); 10] = [
            (pod, to_outside, &at_outside, "pod to outside"),
            (pod, to_far, &at_far, "pod to a pod of another node"),
            (pod, cluster_ip, &at_web, "pod to a cluster IP"),
            (pod, own(PORT), &at_web, "pod to a node port"),
            (outside, own(PORT), &at_web, "outside to a node port"),
            (outside, own(LOCAL_PORT), &at_web, "outside to a node port, Local"),
            (outside, at(BALANCER[n], 90), &at_web, "outside to a balancer"),
            (
                outside,
                at(LOCAL_BALANCER[n], 90),
                &at_web,
                "outside to a balancer, Local",
            ),
            (outside, own(HOST_PORT), &at_mapped, "outside to a host port"),
            (pod, own(HOST_PORT), &at_mapped, "pod to a host port"),
        ];
        for (client, to, listener, what) in kinds {
            idle.extend(open(client, to, listener, what));
        }
    }
    idle
}

/// A resolver with several services, and a pod that asks them.
fn open_resolver(topology: &Topology) -> (Pod, Vec<Server>, Vec<SocketAddr>) {
    let resolver = topology.node().add_pod("resolver");
    // A server for each service, so that one source port makes as many flows as there are services.
    let servers = (0..SERVICES)
        .map(|number| resolver.serve_udp(5353 + number))
        .collect();
    let services: Vec<SocketAddr> = (0..SERVICES)
        .map(|number| {
            let ip = format!("10.96.3.{number}");
            let service =
                Service::new(&format!("dns-{number}"))
                    .cluster_ip(&ip)
                    .udp("dns", 53, 5353 + number);
            topology
                .world
                .apply_all(service.slices([Endpoint::of(&resolver)]));
            topology.world.apply(&service);
            at(&ip, 53)
        })
        .collect();
    // The asker is a pod without any of the held connections.
    let asker = topology.node().add_pod("asker");
    eventually("the resolver", 2 * SOON, || {
        asker.ask_within(Probe::Udp, services[2], SECOND).is_ok()
    });
    (asker, servers, services)
}

#[test]
fn idle_connections_survive_requests_of_others_and_a_syn_flood() {
    harness::require_root!();
    let topology = Topology::build();
    let (asker, servers, services) = open_resolver(&topology);
    let mut idle = open_all(&topology);
    let exchanges = Exchanges::hold(&topology);
    let counted_anew = wait_gauge_of_streams(&topology, exchanges.all.len());
    let asking = Questions {
        forge: asker.forge_out(),
        from: asker.ip().into(),
        services,
        servers: &servers,
    };
    let node_port = SocketAddr::new(topology.node().ip().into(), 30_080);
    let leaks = Leaks::watch(&topology);
    assert_floods_begin(&topology, &asking, node_port, &exchanges);
    thread::sleep(counted_anew.saturating_duration_since(Instant::now()));
    assert_gauges_are_right(&topology);
    let dead = dead(&mut idle);
    let left = leaks.counts();
    assert!(
        dead.is_empty(),
        "{} of {} connections are dead, {left:?} packets left with a pod's address: {dead:#?}",
        dead.len(),
        idle.len()
    );
    exchanges.assert_kept(&topology);
    assert_eq!(left, [0, 0], "packets that left with a pod's address");
    assert_eq!(leaks.counts(), [0, 0], "packets of streams that did");
    wait_served(&topology.outside, node_port);
}

/// A pod asks during a flood of handshakes, and the programs handle both. The exchanges go on meanwhile.
#[track_caller]
fn assert_floods_begin(
    topology: &Topology,
    asking: &Questions<'_>,
    node_port: SocketAddr,
    exchanges: &Exchanges,
) {
    let (handshakes, is_over) = (topology.forge(), AtomicBool::new(false));
    let (count, begun) = (questions(), counted(topology.node(), &BEGINS));
    let (start, sent) = (Instant::now(), AtomicU64::new(0));
    thread::scope(|scope| {
        let _ends = Ends(&is_over);
        scope.spawn(|| sent.store(flood(&handshakes, node_port, &is_over), Ordering::Relaxed));
        scope.spawn(|| exchanges.keep_in_use(&is_over));
        asking.ask(count);
    });
    let (sent, took) = (sent.into_inner(), start.elapsed());
    let rate = |count: u64| count * 1000 / u64::try_from(took.as_millis()).expect("some days").max(1);
    println!(
        "{count} questions, {} each second, beside {sent} handshakes, {} each second",
        rate(count.into()),
        rate(sent)
    );
    // No more than these questions are certainly new flows.
    let new = u64::from(count.min(PORTS * u32::from(SERVICES)));
    let begun = counted(topology.node(), &BEGINS) - begun;
    assert!(
        sent > 0 && begun * 100 >= (sent + new) * 95,
        "{begun} flows began or were refused, of {sent} handshakes and {new} questions"
    );
}

/// Ends the threads that run beside the test, even after a failure.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
