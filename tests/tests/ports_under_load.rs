//! What asks at the ports that listen is answered within a second, however many others hold connections and stay silent.

use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use harness::{Agent, Client, Endpoint, Place, Pod, Service, World};
use serde_json::json;

const SECOND: Duration = Duration::from_secs(1);
const HEALTH: u16 = 10256;
const METRICS: u16 = 10249;
const CHECK: u16 = 31999;
/// Where a balancer, a balancer of one service and a collector of metrics ask.
const ASKED: [(u16, &str); 3] = [(HEALTH, "/healthz"), (CHECK, "/"), (METRICS, "/metrics")];
/// As many as one greedy client holds at each address.
const MANY: usize = 1000;

/// A node with a service that is checked, and those who ask.
struct Town {
    agent: Agent,
    greedy: Pod,
    outsider: Client,
    balancer: Client,
    world: World,
}

impl Town {
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
        let town = Self {
            agent,
            greedy,
            outsider,
            balancer,
            world,
        };
        town.assert_answers("before");
        town
    }

    /// A port at each address of the node.
    fn at(&self, port: u16) -> Vec<SocketAddr> {
        let addresses = self.world.node(1).addresses().iter();
        addresses.map(|address| SocketAddr::new(*address, port)).collect()
    }

    /// Opens as many connections in each family as one client holds, each of which says no more than this.
    fn hold(&self, place: &Place, port: u16, says: &str) -> Vec<TcpStream> {
        let open = |to: SocketAddr| {
            let mut stream = place.tcp_connect(to).ok()?;
            // It may be cut off at once.
            let _ = stream.write_all(says.as_bytes());
            Some(stream)
        };
        let all = self.at(port).into_iter();
        all.flat_map(|to| std::iter::repeat_n(to, MANY))
            .filter_map(open)
            .collect()
    }

    #[track_caller]
    fn assert_answers(&self, when: &str) {
        for (port, path) in ASKED {
            for place in [&self.balancer as &Place, self.world.node(1)] {
                for to in self.at(port) {
                    let asked = Instant::now();
                    let answer = place.http_get(to, path);
                    let took = asked.elapsed();
                    let answer = answer.unwrap_or_else(|error| panic!("{when}, {path} at {to}: {error}"));
                    assert_eq!(answer.status, 200, "{when}: {answer:?}");
                    assert!(took < SECOND, "{when}, {path} at {to}: {took:?}");
                }
            }
        }
    }

    /// Connections that were cut or refused at this kind of port.
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
    let town = Town::open();
    for (place, who) in [
        (&town.greedy as &Place, "a pod"),
        (&town.outsider as &Place, "an outsider"),
    ] {
        for (says, how) in [
            ("", "silent"),
            ("GET /healthz HTTP/1.1\r\nHost:", "slow"),
            // The page of metrics is asked for and never read.
            ("GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n", "not reading"),
        ] {
            let held: Vec<_> = ASKED
                .iter()
                .map(|(port, _)| town.hold(place, *port, says))
                .collect();
            let opened: usize = held.iter().map(Vec::len).sum();
            assert!(opened > 2 * MANY, "{opened} connections of {who} are no load");
            town.assert_answers(&format!("beside {how} connections of {who}"));
        }
    }
    for port in ["health", "service", "metrics"] {
        assert!(town.cut(port) > 0, "{port}");
    }
    let log = town.agent.log();
    let told = format!(
        "{} holds its share of connections to a health port",
        town.greedy.ip()
    );
    assert!(log.contains(&told), "{told} is not in the log");
    assert_eq!(town.agent.cli(&["status"])["ready"], true);
}

#[test]
fn a_client_that_holds_its_share_can_still_ask() {
    harness::require_root!();
    let town = Town::open();
    let _held = town.hold(&town.greedy, HEALTH, "");
    for to in town.at(HEALTH) {
        let asked = Instant::now();
        let answer = town.greedy.http_get(to, "/healthz");
        let took = asked.elapsed();
        assert_eq!(answer.expect("an answer").status, 200, "{to}");
        assert!(took < SECOND, "{to}: {took:?}");
    }
}
