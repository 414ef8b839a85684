//! Two nodes whose pod network is Millrace's, a pod with a host port, one that sends in another's name without end, and a
//! client outside.

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use harness::cni::PodSpec;
use harness::config::DEFAULTS;
use harness::{
    Agent, Client, Endpoint, Node, NodeSpec, Place, Pod, Probe, Server, Service, World, eventually, slowness,
    wait_for,
};
use serde_json::{Value, json};

pub const SECOND: Duration = Duration::from_secs(1);
/// What the agent owes. One time or the other may be late where the machine has much else to do.
pub const PROMISED: Duration = Duration::from_secs(3);
/// How long one of them may take at the most.
pub const SOON: Duration = Duration::from_secs(6);
/// What the kernel does not tell is looked for every sixteen seconds.
pub const LOOKS: Duration = Duration::from_secs(25);
const METRICS: u16 = 10249;
/// Of the pod `web`, as is the port of its service.
pub const HOST_PORT: u16 = 8081;
/// Only the one who forges sends there.
const FORGED: u16 = 9099;
const FOREIGN: &str = "10.9.9.9";
pub const CLUSTER_IP: &str = "10.96.0.10";

pub struct Town {
    pub world: World,
    pub agents: Vec<Agent>,
    pub web: Pod,
    pub near: Pod,
    pub far: Pod,
    pub outside: Client,
    _servers: Vec<Server>,
    /// How long it took each time to make again what was lost.
    took: RefCell<Vec<Duration>>,
}

impl Town {
    pub fn build() -> Self {
        Self::with("")
    }

    pub fn with(config: &str) -> Self {
        let spec = NodeSpec::millrace;
        let world = World::builder().node(spec()).node(spec()).build();
        let outside = world.add_remote_client("outside");
        let agents = world.start_agents_with(&format!("{DEFAULTS}{config}"));
        let node = world.node(1);
        let ports = json!([
            {"hostPort": HOST_PORT, "containerPort": 80, "protocol": "tcp"},
            {"hostPort": HOST_PORT, "containerPort": 80, "protocol": "udp"},
        ]);
        let web = node.add_pod_by_plugin(&PodSpec::new("web").asking("portMappings", ports));
        let near = node.add_pod("near");
        let far = world.node(2).add_pod("far");
        let mut servers: Vec<Server> = web.serve(80).into();
        servers.extend(outside.serve(8080));
        servers.extend(far.serve(8080));
        let service = Service::new("web").cluster_ip(CLUSTER_IP).tcp("http", 80, 80);
        world.apply(&service);
        world.apply_all(service.slices([Endpoint::of(&web)]));
        let town = Self {
            world,
            agents,
            web,
            near,
            far,
            outside,
            _servers: servers,
            took: RefCell::default(),
        };
        town.assert_whole("at first");
        town
    }

    pub fn node(&self) -> &Node {
        self.world.node(1)
    }

    pub fn status(&self) -> Value {
        self.node().cli(&["status"]).expect("a status")
    }

    /// How often something of a kind was made again, as the metric says; 0 if the agent does not count it.
    pub fn restored(&self, what: &str) -> u64 {
        let answer = self
            .node()
            .http_get(SocketAddr::from(([127, 0, 0, 1], METRICS)), "/metrics");
        let Ok(answer) = answer else { return 0 };
        let series = format!("millrace_restored_total{{what=\"{what}\"}} ");
        let line = answer.body.lines().find_map(|line| line.strip_prefix(&series));
        line.map_or(0, |count| count.parse().expect("a number"))
    }

    /// Waits until the agent has made something of a kind again and is content, and gives how long that took.
    #[track_caller]
    pub fn wait_restored(&self, what: &str, before: u64) -> Duration {
        let begun = Instant::now();
        wait_for(&format!("{what} to be restored"), SOON, || {
            let (count, status) = (self.restored(what), self.status());
            if count > before && status["ready"] == true && status["errors"] == json!([]) {
                Ok(())
            } else {
                Err(format!("{count} times, {status}"))
            }
        });
        begun.elapsed()
    }

    /// Takes something of a kind away, and sees that it is made again.
    #[track_caller]
    pub fn lose(&self, what: &str, loss: impl FnOnce(&Self)) {
        let before = self.restored(what);
        loss(self);
        let took = self.wait_restored(what, before);
        self.took.borrow_mut().push(took);
    }

    /// Asserts that what was lost was made again in time, by the median of all losses.
    #[track_caller]
    pub fn assert_in_time(&self) {
        let mut took = self.took.borrow().clone();
        took.sort_unstable();
        println!("made again after {took:?}");
        let median = *took.get(took.len() / 2).expect("a loss");
        assert!(median <= PROMISED * slowness(), "made again after {took:?}");
    }

    /// Waits until the agent is not ready, and an error says something.
    #[track_caller]
    pub fn wait_named(&self, says: &str) -> Value {
        wait_for(&format!("{says:?} to be named"), SOON, || {
            let status = self.status();
            let is_named = status["errors"].to_string().contains(says);
            if is_named && status["ready"] == false && status["waitingFor"] != json!([]) {
                Ok(status)
            } else {
                Err(format!("{status}"))
            }
        })
    }

    /// Waits until an error says something, and sees that the agent is ready all the same.
    #[track_caller]
    pub fn wait_told(&self, says: &str) -> Value {
        let status = wait_for(&format!("{says:?} to be told"), LOOKS, || {
            let status = self.status();
            if status["errors"].to_string().contains(says) {
                Ok(status)
            } else {
                Err(format!("{status}"))
            }
        });
        assert_eq!(status["ready"], true, "{status}");
        status
    }

    /// Waits until the agent has looked at everything some times, as pins that come back show.
    #[track_caller]
    pub fn await_looks(&self, looks: u32) {
        let pin = self.node().bpf_root().join("current/maps/PODS");
        for _ in 0..looks {
            let before = self.restored("pins");
            std::fs::remove_file(&pin).expect("to remove");
            wait_for("a look", SOON, || match self.restored("pins") {
                count if count > before => Ok(()),
                count => Err(count),
            });
        }
    }

    #[track_caller]
    pub fn wait_ready(&self) {
        wait_for("the agent to be ready", SOON, || {
            let status = self.status();
            if status["ready"] == true && status["errors"] == json!([]) {
                Ok(())
            } else {
                Err(format!("{status}"))
            }
        });
    }

    /// Pods reach the world outside by the node's address, each other and services, and are reached by the host port.
    #[track_caller]
    pub fn assert_whole(&self, when: &str) {
        let (node, web, near) = (self.node(), &self.web, &self.near);
        for v4 in [true, false] {
            let like = |place: &Place| of_family(place.addresses(), v4);
            for probe in [Probe::Tcp, Probe::Udp] {
                let seen = |from: &Place, to: IpAddr, port: u16| -> (String, IpAddr) {
                    wait_for(
                        &format!("{when}: {} to {to}:{port} by {probe:?}", from.name()),
                        SOON,
                        || {
                            let answer = from.ask_within(probe, SocketAddr::new(to, port), SECOND);
                            answer.map(|answer| (answer.backend, answer.peer.ip().to_canonical()))
                        },
                    )
                };
                let outside: &Place = &self.outside;
                for pod in [web, near] {
                    let name = outside.name().to_owned();
                    assert_eq!(seen(pod, like(outside), 8080), (name, like(node)), "{when}");
                }
                let asks = |from: &Place| ("web".to_owned(), like(from));
                assert_eq!(seen(outside, like(node), HOST_PORT), asks(outside), "{when}");
                assert_eq!(seen(near, like(web), 80), asks(near), "{when}");
                assert_eq!(seen(&self.far, like(web), 80), asks(&self.far), "{when}");
                assert_eq!(
                    seen(near, like(&self.far), 8080),
                    ("far".to_owned(), like(near)),
                    "{when}"
                );
            }
        }
        let service = SocketAddr::new(CLUSTER_IP.parse().expect("an address"), 80);
        for client in [near as &Place, node] {
            wait_for(&format!("{when}: the service"), SOON, || {
                client.ask_within(Probe::Tcp, service, SECOND)
            });
        }
    }

    /// The same, and nothing is to be found wrong.
    #[track_caller]
    pub fn assert_in_order(&self, when: &str) {
        self.assert_whole(when);
        eventually("nothing to be wrong with pods", SOON, || {
            let checked = self.node().cli(&["ipam", "check"]).expect("to check");
            checked["problems"] == json!([])
        });
    }

    /// Starts to send in another's name.
    pub fn forge(&self) -> Forger {
        Forger::start(&self.near, &self.web)
    }

    /// Runs a program on the node.
    #[track_caller]
    pub fn run(&self, program: &str, arguments: &str) {
        let output = self
            .node()
            .command(program)
            .args(arguments.split(' '))
            .output()
            .expect("to run it");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {arguments}: {error}");
    }
}

pub fn of_family(addresses: &[IpAddr], v4: bool) -> IpAddr {
    let found = addresses.iter().find(|address| address.is_ipv4() == v4);
    *found.expect("an address of that family")
}

/// A pod that sends datagrams from an address that is not its own, and how many came through.
pub struct Forger {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
    server: Server,
}

impl Forger {
    fn start(pod: &Pod, target: &Pod) -> Self {
        let server = target.serve_udp(FORGED);
        pod.run_ip(&format!("addr add {FOREIGN}/32 dev eth0"));
        let from = SocketAddr::new(FOREIGN.parse().expect("an address"), 0);
        let to = SocketAddr::new(of_family(target.addresses(), true), FORGED);
        let socket = pod.udp_bind(from).expect("a socket");
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&sent));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                // It may have no way for a moment.
                if socket.send_to(b"forged", to).is_ok() {
                    count.fetch_add(1, Ordering::Relaxed);
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        Self {
            stop,
            sent,
            thread: Some(thread),
            server,
        }
    }

    /// Waits until some more were sent, of which none has come through.
    #[track_caller]
    pub fn assert_held(&self, when: &str) {
        let goal = self.sent.load(Ordering::Relaxed) + 50;
        eventually("forged datagrams to be sent", 10 * SECOND, || {
            self.sent.load(Ordering::Relaxed) >= goal
        });
        assert_eq!(self.server.served(), 0, "{when}: a forged datagram came through");
    }
}

impl Drop for Forger {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
