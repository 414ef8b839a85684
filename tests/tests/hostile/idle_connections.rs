//! Connections that say nothing for a while, and pods that ask a resolver meanwhile. The newest flows of
//! others cost an established one nothing, whichever side made it and whichever speaks first afterwards.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use harness::forge::packet;
use harness::{Endpoint, Forge, PacketSocket, Place, Server, Service};

use crate::town::{SECOND, SOON, Town, at, of_family, wait_served};

/// Connections of each kind.
const EACH: usize = 10;
/// How many source ports the questions come from.
const PORTS: u32 = 50_000;
/// Questions that may be under way, which the server's socket has room for.
const WINDOW: usize = 256;

/// Who speaks first after the silence.
#[derive(Clone, Copy, Debug)]
enum First {
    Client,
    Server,
}

/// One connection, both ends.
struct Idle {
    what: String,
    ends: [TcpStream; 2],
}

/// Opens connections of a kind; a word goes each way, so that both ends know of it.
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
        let [speaker, hearer] = &mut ends;
        exchange(speaker, hearer, SOON)
            .and_then(|()| exchange(hearer, speaker, SOON))
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

/// Has one side of each connection speak, then the other; gives what became of those that did not answer.
fn dead(idle: &mut [Idle]) -> Vec<String> {
    // All at once, so that time runs for them together.
    for connection in idle.iter_mut() {
        let _ = connection.ends[0].write_all(b"word");
    }
    let deadline = Instant::now() + SOON;
    let mut dead = Vec::new();
    for Idle {
        what,
        ends: [speaker, hearer],
    } in idle
    {
        let left = deadline
            .saturating_duration_since(Instant::now())
            .max(Duration::from_millis(1));
        hearer.set_read_timeout(Some(left)).expect("a deadline");
        let heard = hearer.read_exact(&mut [0; 4]);
        let answered = heard.and_then(|()| exchange(hearer, speaker, left.max(SECOND)));
        if let Err(error) = answered {
            dead.push(format!("{what}: {error}"));
        }
    }
    dead
}

/// Questions of a pod to services, from ever other ports, each answered.
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
    fn ask(&self, count: u32, mut meanwhile: impl FnMut(u32)) {
        let (start, mut lost) = (self.served(), 0);
        for number in 0..count {
            let to = self.services[(number / PORTS) as usize % self.services.len()];
            let port = u16::try_from(10_000 + number % PORTS).expect("a port");
            self.forge
                .send(&packet::udp(SocketAddr::new(self.from, port), to, b"?"));
            meanwhile(number);
            let asked = number as usize + 1;
            if asked.is_multiple_of(WINDOW) {
                // A few may be lost where the machine has much else to do.
                let deadline = Instant::now() + SECOND / 10;
                while self.served() - start + lost < asked && Instant::now() < deadline {
                    std::thread::yield_now();
                }
                lost = asked.saturating_sub(self.served() - start);
            }
        }
        let answered = self.served() - start;
        assert!(
            answered * 100 >= count as usize * 99,
            "{answered} of {count} questions were answered"
        );
    }
}

/// How many questions are asked.
fn questions() -> u32 {
    let given = std::env::var("MILLRACE_FLOOD_QUESTIONS").ok();
    given.and_then(|text| text.parse().ok()).unwrap_or(150_000)
}

/// Packets that left with an address of the pod range.
fn untranslated(capture: &PacketSocket) -> usize {
    let came = capture.so_far().expect("to read");
    let is_pods = |bytes: &[u8]| match bytes.get(12..14) {
        Some([0x08, 0x00]) => bytes.get(26..28) == Some(&[10, 244]),
        Some([0x86, 0xdd]) => bytes.get(22..26) == Some(&[0xfd, 0, 2, 0x44]),
        _ => false,
    };
    came.iter().filter(|frame| is_pods(&frame.bytes)).count()
}

/// The metrics of the tables of flows are right within 1 %.
#[track_caller]
fn assert_gauges_are_right(town: &Town) {
    const TABLES: [(&str, &str); 3] = [
        ("FLOWS", "flows"),
        ("STREAMS", "streams"),
        ("NEW_FLOWS", "newFlows"),
    ];
    let count = || TABLES.map(|(table, _)| town.node().table::<40, 64>(table).len());
    let before = count();
    let metrics = town
        .node()
        .http_get(SocketAddr::from(([127, 0, 0, 1], 10249)), "/metrics")
        .expect("metrics")
        .body;
    let after = count();
    for (number, (table, label)) in TABLES.iter().enumerate() {
        let name = format!("millrace_map_entries{{map=\"{label}\"}} ");
        let line = metrics.lines().find_map(|line| line.strip_prefix(&name));
        let gauge: usize = line.expect(&name).parse().expect("a number");
        let (least, most) = (
            before[number].min(after[number]),
            before[number].max(after[number]),
        );
        assert!(
            gauge * 100 >= least * 99 && gauge * 100 <= most * 101,
            "{table}: {gauge} are told, {least} to {most} are there"
        );
    }
    assert!(
        before[0] > 0 && before[2] > 1000,
        "there are flows to count: {before:?}"
    );
}

#[test]
fn idle_connections_live_through_others_questions_and_a_flood_of_handshakes() {
    harness::require_root!();
    let town = Town::build();
    // Three services with a server each, so that a source port makes three flows.
    let resolver = town.node().add_pod("resolver");
    let servers: Vec<Server> = (0..3).map(|number| resolver.serve_udp(5353 + number)).collect();
    let services: Vec<SocketAddr> = (0..3)
        .map(|number| {
            let ip = format!("10.96.3.{number}");
            let service =
                Service::new(&format!("dns-{number}"))
                    .cluster_ip(&ip)
                    .udp("dns", 53, 5353 + number);
            town.world.apply_all(service.slices([Endpoint::of(&resolver)]));
            town.world.apply(&service);
            at(&ip, 53)
        })
        .collect();
    let (outside, web) = (&town.outside, &town.web);
    // By ports of its own, since servers of the town's would take the connections.
    let long = Service::new("long")
        .cluster_ip("10.96.3.10")
        .cluster_ip("fd00:96::3:10")
        .tcp("talk", 90, 9000)
        .node_port("talk", 30_090);
    let near = Service::new("long-near")
        .cluster_ip("10.96.3.11")
        .cluster_ip("fd00:96::3:11")
        .tcp("talk", 90, 9000)
        .load_balancer_ip("203.0.113.90")
        .load_balancer_ip("2001:db8:7::90")
        .set("externalTrafficPolicy", serde_json::json!("Local"));
    for service in [&long, &near] {
        town.world.apply_all(service.slices([Endpoint::of(web)]));
        town.world.apply(service);
    }
    for prefix in ["203.0.113.90/32", "2001:db8:7::90/128"] {
        outside.route_via(prefix.parse().expect("a prefix"), town.node());
    }
    {
        let _talking = web.serve_tcp(9000);
        for to in ["203.0.113.90", "2001:db8:7::90"] {
            harness::eventually("the service", 2 * SOON, || {
                outside
                    .ask_within(harness::Probe::Tcp, at(to, 90), SECOND)
                    .is_ok()
            });
        }
    }
    harness::eventually("the resolver", 2 * SOON, || {
        town.pod
            .ask_within(harness::Probe::Udp, services[2], SECOND)
            .is_ok()
    });
    let at_outside = outside.tcp_listen(9100).expect("a listener");
    let at_web = web.tcp_listen(9000).expect("a listener");
    let mut idle = Vec::new();
    for v4 in [true, false] {
        let n = usize::from(!v4);
        let to_outside = SocketAddr::new(of_family(outside, v4), 9100);
        idle.extend(open(&town.pod, to_outside, &at_outside, "pod to outside"));
        let node_port = SocketAddr::new(of_family(town.node(), v4), 30_090);
        idle.extend(open(outside, node_port, &at_web, "outside to a node port"));
        let balancer = at(["203.0.113.90", "2001:db8:7::90"][n], 90);
        idle.extend(open(
            outside,
            balancer,
            &at_web,
            "outside to a balancer's address, Local",
        ));
        let cluster_ip = at(["10.96.3.10", "fd00:96::3:10"][n], 90);
        idle.extend(open(&town.pod, cluster_ip, &at_web, "pod to a cluster IP"));
        idle.extend(open(&town.pod, node_port, &at_web, "pod to a node port"));
    }
    let asking = Questions {
        forge: town.pod.forge_out(),
        from: town.pod.ip().into(),
        services,
        servers: &servers,
    };
    // One silent client's handshakes meanwhile, one for each three questions.
    let (flood, node_port) = (town.forge(), SocketAddr::new(town.node().ip().into(), 30_080));
    asking.ask(questions(), |number| {
        if number % 3 == 0 {
            let port = u16::try_from(1024 + number / 3 % 60_000).expect("a port");
            let from = SocketAddr::new("192.168.50.222".parse().expect("an address"), port);
            flood.send(&packet::tcp(from, node_port, packet::SYN, number, b""));
        }
    });
    assert_gauges_are_right(&town);
    let capture = outside.packet_socket("eth0").expect("a capture");
    let dead = dead(&mut idle);
    let left = untranslated(&capture);
    assert!(
        dead.is_empty(),
        "{} of {} connections are dead, {left} packets left with a pod's address: {dead:#?}",
        dead.len(),
        idle.len()
    );
    assert_eq!(left, 0, "packets that left with a pod's address");
    wait_served(outside, node_port);
}
