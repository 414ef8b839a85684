//! The agent's ports answer within a second, even if other clients hold many silent connections.

use std::collections::VecDeque;
use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use harness::{Agent, Client, Endpoint, Place, Pod, Service, World, eventually, wait_for};
use serde_json::json;

const SECOND: Duration = Duration::from_secs(1);
const HEALTH: u16 = 10256;
const METRICS: u16 = 10249;
const CHECK: u16 = 31999;
/// The ports that a balancer, one service's balancer and a metrics collector ask, each with the path and the
/// port's name in metrics.
const ASKED: [(u16, &str, &str); 3] = [
    (HEALTH, "/healthz", "health"),
    (CHECK, "/", "service"),
    (METRICS, "/metrics", "metrics"),
];
/// The number of connections that one greedy client holds at each address.
const MANY: usize = 1000;
/// The number of connections at each address that counts as load.
const LOAD: usize = 900;
/// The pause between two connections of a client that holds that many. The agent cuts a silent connection
/// within a second.
const PAUSE: Duration = Duration::from_millis(2);

/// A client that opens connections to a port at each address of the node until it is dropped.
struct Opener {
    port: u16,
    stop: Arc<AtomicBool>,
    opened: Arc<[AtomicUsize; 2]>,
    thread: Option<JoinHandle<()>>,
}

impl Opener {
    /// Each connection sends one of these texts in turn, and nothing more.
    fn start(place: &Place, port: u16, addresses: Vec<SocketAddr>, payloads: [&'static str; 2]) -> Self {
        let (stop, opened) = (
            Arc::new(AtomicBool::new(false)),
            Arc::<[AtomicUsize; 2]>::default(),
        );
        let (place, is_over, counts) = (place.clone(), Arc::clone(&stop), Arc::clone(&opened));
        let thread = std::thread::spawn(move || open_many(&place, &addresses, payloads, &counts, &is_over));
        Self {
            port,
            stop,
            opened,
            thread: Some(thread),
        }
    }

    /// The number of connections that were opened at each address.
    fn opened(&self) -> [usize; 2] {
        self.opened.each_ref().map(|count| count.load(Ordering::Relaxed))
    }

    /// Waits until each address has its load.
    #[track_caller]
    fn wait_loaded(&self, who: &str) {
        let what = format!(
            "{LOAD} connections of {who} to each address of port {}",
            self.port
        );
        wait_for(&what, 20 * SECOND, || {
            let opened = self.opened();
            if opened.iter().all(|count| *count >= LOAD) {
                Ok(())
            } else {
                Err(format!("{opened:?} came about"))
            }
        });
    }
}

impl Drop for Opener {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // The panic of the thread has been printed.
            let _ = thread.join();
        }
    }
}

/// Opens connections until `is_over` is set, more slowly once it has opened [`MANY`] at an address.
fn open_many(
    place: &Place,
    addresses: &[SocketAddr],
    payloads: [&str; 2],
    counts: &[AtomicUsize; 2],
    is_over: &AtomicBool,
) {
    let mut held = VecDeque::<TcpStream>::new();
    let mut number = 0;
    while !is_over.load(Ordering::Relaxed) {
        let family = number % counts.len();
        let text = payloads[number / counts.len() % payloads.len()];
        number += 1;
        let Ok(mut stream) = place.tcp_connect(addresses[family]) else {
            continue;
        };
        // The agent may have cut the connection already.
        let _ = stream.write_all(text.as_bytes());
        held.push_back(stream);
        if held.len() > MANY * counts.len() {
            held.pop_front();
        }
        if counts[family].fetch_add(1, Ordering::Relaxed) >= MANY {
            std::thread::sleep(PAUSE);
        }
    }
}

/// A node with a service that has health checks, and the clients.
struct Topology {
    agent: Agent,
    greedy: Pod,
    outsider: Client,
    balancer: Client,
    world: World,
}

impl Topology {
    fn open() -> Self {
        let world = World::with_nodes(1);
        let node = world.node(1);
        let [greedy, backend] = ["greedy", "backend"].map(|name| node.add_pod(name));
        let [outsider, balancer] = ["outsider", "balancer"].map(|name| world.add_client(name));
        let service = Service::new("web")
            .cluster_ip("10.96.0.10")
            .tcp("http", 80, 8080)
            .set("type", json!("LoadBalancer"))
            .set("externalTrafficPolicy", json!("Local"))
            .set("externalIPs", json!(["203.0.113.7"]))
            .set("healthCheckNodePort", json!(CHECK));
        world.apply(&service);
        world.apply_all(service.slices([Endpoint::of(&backend)]));
        let mut agent = node
            .agent()
            .arg("--metrics-address")
            .arg(format!("0.0.0.0:{METRICS}"))
            .start();
        agent.wait_ready(10 * SECOND);
        let topology = Self {
            agent,
            greedy,
            outsider,
            balancer,
            world,
        };
        topology.assert_replies("before");
        topology
    }

    /// A port at each address of the node.
    fn at(&self, port: u16) -> Vec<SocketAddr> {
        let addresses = self.world.node(1).addresses().iter();
        addresses.map(|address| SocketAddr::new(*address, port)).collect()
    }

    /// Has a client open connections to a port, and renew them.
    fn open_at(&self, place: &Place, port: u16, payloads: [&'static str; 2]) -> Opener {
        Opener::start(place, port, self.at(port), payloads)
    }

    /// Has a client load every port. Each port answers while connections to it are opened and cut.
    #[track_caller]
    fn assert_undelayed(&self, place: &Place, who: &str, payloads: &'static str, how: &str) {
        // The agent does not cut a connection that has sent its request and gets its response at once. So
        // half of the connections are silent.
        let openers = ASKED.map(|(port, ..)| self.open_at(place, port, [payloads, ""]));
        for opener in &openers {
            opener.wait_loaded(who);
        }
        let opened = openers.each_ref().map(Opener::opened);
        let cut = ASKED.map(|(.., kind)| self.cut(kind));
        self.assert_replies(&format!("beside {how} connections of {who}"));
        for (number, (.., kind)) in ASKED.into_iter().enumerate() {
            let what = format!("{how} connections of {who} to {kind} ports");
            eventually(&format!("{what} to be cut"), 5 * SECOND, || {
                self.cut(kind) > cut[number]
            });
            eventually(&format!("{what} to be renewed"), 5 * SECOND, || {
                let now = openers[number].opened();
                now.iter().zip(opened[number]).all(|(now, before)| *now > before)
            });
        }
    }

    #[track_caller]
    fn assert_replies(&self, when: &str) {
        for (port, path, _) in ASKED {
            for place in [&self.balancer as &Place, self.world.node(1)] {
                for to in self.at(port) {
                    let asked = Instant::now();
                    let reply = place.http_get(to, path);
                    let took = asked.elapsed();
                    let reply = reply.unwrap_or_else(|error| panic!("{when}, {path} at {to}: {error}"));
                    assert_eq!(reply.status, 200, "{when}: {reply:?}");
                    assert!(took < SECOND, "{when}, {path} at {to}: {took:?}");
                }
            }
        }
    }

    /// The number of connections that were cut or refused at this kind of port.
    fn cut(&self, port: &str) -> u64 {
        let page = self
            .balancer
            .http_get(self.at(METRICS)[0], "/metrics")
            .expect("metrics");
        let series = format!("millrace_http_connections_cut_total{{port=\"{port}\"");
        let lines = page.body.lines().filter(|line| line.starts_with(&series));
        let counts = lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok());
        counts.sum()
    }
}

#[test]
fn a_thousand_silent_or_slow_connections_delay_no_probe() {
    harness::require_root!();
    let topology = Topology::open();
    for (place, who) in [
        (&topology.greedy as &Place, "a pod"),
        (&topology.outsider as &Place, "an outsider"),
    ] {
        for (payloads, how) in [
            ("", "silent"),
            ("GET /healthz HTTP/1.1\r\nHost:", "slow"),
            // The client requests the metrics page and never reads it.
            ("GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n", "not reading"),
        ] {
            topology.assert_undelayed(place, who, payloads, how);
        }
    }
    let log = topology.agent.log();
    // The log names each address once, for the port where it reaches its share first.
    let problem = format!("{} holds its share of connections to a ", topology.greedy.ip());
    let is_reported = ASKED
        .iter()
        .any(|(.., kind)| log.contains(&format!("{problem}{kind} port")));
    assert!(is_reported, "{problem} is not in the log");
    assert_eq!(topology.agent.cli(&["status"])["ready"], true);
}

#[test]
fn a_client_that_holds_its_share_can_still_ask() {
    harness::require_root!();
    let topology = Topology::open();
    let opener = topology.open_at(&topology.greedy, HEALTH, [""; 2]);
    opener.wait_loaded("a pod");
    let cut = topology.cut("health");
    for to in topology.at(HEALTH) {
        let asked = Instant::now();
        let reply = topology.greedy.http_get(to, "/healthz");
        let took = asked.elapsed();
        assert_eq!(reply.expect("a reply").status, 200, "{to}");
        assert!(took < SECOND, "{to}: {took:?}");
    }
    eventually("connections beyond the share to be cut", 5 * SECOND, || {
        topology.cut("health") > cut
    });
}
