//! Two nodes whose pod network is Millrace's, a pod with a host port, and a client outside. Another pod sends
//! with foreign sources all the time.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use harness::cni::PodSpec;
use harness::config::DEFAULTS;
use harness::{
    Agent, Client, Endpoint, Node, NodeSpec, Place, Pod, Probe, Server, Service, World, eventually, slowness,
    wait_for,
};
use serde_json::{Value, json};

use crate::forger::{Forger, GOAL};

pub const SECOND: Duration = Duration::from_secs(1);
/// The agent's time limit for a repair. A single repair may be late on a busy machine.
pub const PROMISED: Duration = Duration::from_secs(3);
/// The longest time of a single repair.
pub const SOON: Duration = Duration::from_secs(6);
/// The agent looks every sixteen seconds for losses that the kernel does not notify.
pub const CHECK_INTERVAL: Duration = Duration::from_secs(25);
/// Kinds with a longer time limit than [`PROMISED`] in docs/internals/survival.md.
const LATER: [(&str, Duration); 1] = [
    // Plugin and description for container runtimes: every 16 s.
    ("file", Duration::from_secs(18)),
];
const METRICS: u16 = 10249;
/// The host port of the pod `web`. Its service has a port as well.
pub const HOST_PORT: u16 = 8081;
/// A pod that the operator allows to send from any address, if agents have [`ANY_SOURCE`].
pub const FREE: &str = "free";
/// The setting that allows it.
pub const ANY_SOURCE: &str = "podsWithAnySource: [{namespace: default, names: [free]}]\n";
pub const CLUSTER_IP: &str = "10.96.0.10";

pub struct Topology {
    pub world: World,
    pub agents: Vec<Agent>,
    pub web: Pod,
    pub near: Pod,
    pub far: Pod,
    pub outside: Client,
    _servers: Vec<Server>,
    /// The duration of each repair, by kind.
    took: RefCell<BTreeMap<String, Vec<Duration>>>,
}

/// A loss that is about to happen.
pub struct Loss<'a> {
    topology: &'a Topology,
    kind: String,
    what: &'static str,
    before: u64,
    begun: Instant,
}

impl Loss<'_> {
    /// Waits until the agent has repaired the loss and reports no error; records the time since the loss.
    #[track_caller]
    pub fn wait_restored(self) -> Duration {
        let Self { topology, what, .. } = self;
        let is_later = LATER.iter().any(|(later, _)| *later == what);
        let within = if is_later { CHECK_INTERVAL } else { SOON };
        wait_for(&format!("{} to be restored", self.kind), within, || {
            let (count, status) = (topology.restored(what), topology.status());
            if count > self.before && status["ready"] == true && status["errors"] == json!([]) {
                Ok(())
            } else {
                Err(format!("{count} times, {status}"))
            }
        });
        let took = self.begun.elapsed();
        topology
            .took
            .borrow_mut()
            .entry(self.kind)
            .or_default()
            .push(took);
        took
    }
}

/// The agent's time limit for a repair of this kind.
fn time_limit(what: &str) -> Duration {
    let later = LATER.iter().find(|(kind, _)| *kind == what);
    later.map_or(PROMISED, |(_, within)| *within) * slowness()
}

impl Topology {
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
        let topology = Self {
            world,
            agents,
            web,
            near,
            far,
            outside,
            _servers: servers,
            took: RefCell::default(),
        };
        topology.assert_whole("at first");
        topology
    }

    pub fn node(&self) -> &Node {
        self.world.node(1)
    }

    pub fn status(&self) -> Value {
        self.node().cli(&["status"]).expect("a status")
    }

    /// The number of repairs of a kind in the metric; 0 if the agent does not count the kind.
    pub fn restored(&self, what: &str) -> u64 {
        let reply = self
            .node()
            .http_get(SocketAddr::from(([127, 0, 0, 1], METRICS)), "/metrics");
        let Ok(reply) = reply else { return 0 };
        let series = format!("millrace_restored_total{{what=\"{what}\"}} ");
        let line = reply.body.lines().find_map(|line| line.strip_prefix(&series));
        line.map_or(0, |count| count.parse().expect("a number"))
    }

    /// Begins the measurement of a loss. The metric counts its repair as `what`.
    pub fn before_loss(&self, what: &'static str) -> Loss<'_> {
        self.before_loss_of(what, what)
    }

    /// The same for a loss with a median of its own, `kind`, within one kind of the metric.
    pub fn before_loss_of(&self, kind: &str, what: &'static str) -> Loss<'_> {
        Loss {
            topology: self,
            kind: kind.to_owned(),
            what,
            before: self.restored(what),
            begun: Instant::now(),
        }
    }

    /// Causes a loss, and asserts that the agent repairs it in time.
    #[track_caller]
    pub fn lose(&self, what: &'static str, loss: impl Fn(&Self)) {
        self.lose_one_of(what, what, loss);
    }

    /// The same for a loss with a median of its own, `kind`, within one kind of the metric.
    #[track_caller]
    pub fn lose_one_of(&self, kind: &str, what: &'static str, loss: impl Fn(&Self)) {
        let time = || {
            let before = self.before_loss_of(kind, what);
            loss(self);
            before.wait_restored()
        };
        let (took, time_limit) = (time(), time_limit(what));
        // A single repair may be late on a busy machine.
        if took > time_limit {
            let again = time();
            assert!(
                again <= time_limit,
                "{kind}: made again after {took:?} and {again:?}, not {time_limit:?}"
            );
        }
    }

    /// Asserts that the agent repaired the losses in time: the median of each kind, of two the shorter time.
    #[track_caller]
    pub fn assert_in_time(&self) {
        let all = self.took.borrow();
        assert!(!all.is_empty(), "something was lost");
        for (kind, took) in &*all {
            let mut took = took.clone();
            took.sort_unstable();
            println!("{kind}: made again after {took:?}");
            let median = took[(took.len() - 1) / 2];
            let time_limit = time_limit(kind);
            assert!(
                median <= time_limit,
                "{kind}: made again after {took:?}, not {time_limit:?}"
            );
        }
    }

    /// Waits until the agent is not ready and an error contains this text.
    #[track_caller]
    pub fn wait_named(&self, part: &str) -> Value {
        wait_for(&format!("{part:?} to be named"), SOON, || {
            let status = self.status();
            let is_named = status["errors"].to_string().contains(part);
            if is_named && status["ready"] == false && status["waitingFor"] != json!([]) {
                Ok(status)
            } else {
                Err(format!("{status}"))
            }
        })
    }

    /// Waits until an error contains this text, and asserts that the agent is ready all the same.
    #[track_caller]
    pub fn wait_reported(&self, part: &str) -> Value {
        let status = wait_for(&format!("{part:?} to be reported"), CHECK_INTERVAL, || {
            let status = self.status();
            if status["errors"].to_string().contains(part) {
                Ok(status)
            } else {
                Err(format!("{status}"))
            }
        });
        assert_eq!(status["ready"], true, "{status}");
        status
    }

    /// Waits until the agent has checked everything this number of times. Each time the test removes a pin
    /// and waits until it is restored.
    #[track_caller]
    pub fn await_checks(&self, looks: u32) {
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

    /// Asserts that pods reach the outside with the node's address, each other and services. Also that they
    /// are reached by the host port.
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
                            let reply = from.ask_within(probe, SocketAddr::new(to, port), SECOND);
                            reply.map(|reply| (reply.backend, reply.peer.ip().to_canonical()))
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

    /// The same, and asserts that `ipam check` finds no problem.
    #[track_caller]
    pub fn assert_in_order(&self, when: &str) {
        self.assert_whole(when);
        eventually("nothing to be wrong with pods", SOON, || {
            let checked = self.node().cli(&["ipam", "check"]).expect("to check");
            checked["problems"] == json!([])
        });
    }

    /// Starts to send datagrams with foreign sources.
    pub fn forge(&self) -> Forger {
        Forger::start(&self.near, &self.web)
    }

    /// Asserts that only the check of sources stops a forger's datagrams: the same ones arrive from a pod
    /// that may send them. The agents have [`ANY_SOURCE`].
    #[track_caller]
    pub fn assert_forgeries_arrive_if_allowed(&self) {
        let free = self.node().add_pod(FREE);
        let object = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": FREE, "namespace": "default"},
            "spec": {"nodeName": self.node().name()},
            "status": {"phase": "Running"},
        });
        self.world.apply(&object);
        let allowed = Forger::start(&free, &self.web);
        eventually("datagrams of a pod that may send them", 10 * SECOND, || {
            allowed.arrived().iter().all(|arrived| *arrived >= GOAL)
        });
        drop(allowed);
        self.world.delete(&object);
        free.delete();
        self.wait_ready();
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
