//! The paths that are measured, and the world that has them.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use aya::programs::loaded_programs;
use aya::sys::{Stats, enable_stats};
use harness::{Agent, Client, Endpoint, NodeSpec, Place, Pod, Service, World};
use nix::sys::socket::{setsockopt, sockopt};

use crate::cpu;
use crate::quantiles::quantile;

const CLUSTER_IP: &str = "10.96.0.10";
const PORT: u16 = 7000;
const NODE_PORT: u16 = 30_080;
const PATIENCE: Duration = Duration::from_secs(10);

/// The two ends of a path.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Scenario {
    /// A pod to a pod of its node, without a Service.
    PodToPod,
    /// A pod to a cluster IP, whose endpoint is on its node.
    ClusterIp,
    /// A pod to a host on the link, masqueraded.
    Masqueraded,
    /// A host on the link to the node port of the endpoint's node.
    NodePort,
    /// A host on the link to the node port of another node, which masquerades it.
    NodePortElsewhere,
}

impl Scenario {
    pub const ALL: [Self; 5] = [
        Self::PodToPod,
        Self::ClusterIp,
        Self::Masqueraded,
        Self::NodePort,
        Self::NodePortElsewhere,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::PodToPod => "pod-to-pod",
            Self::ClusterIp => "cluster-ip",
            Self::Masqueraded => "masqueraded",
            Self::NodePort => "node-port",
            Self::NodePortElsewhere => "node-port-elsewhere",
        }
    }
}

/// The quantity that is measured on a path.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One byte in each direction on one connection: the median.
    RoundTrip,
    /// A connection made, and closed by a reset: the median.
    Connect,
    /// A datagram of a new UDP socket, and the reply: the median.
    Question,
    /// Time in all eBPF programs of the two nodes for one byte in each direction: the mean.
    Programs,
    /// The same for one datagram of a new UDP socket.
    ProgramsNew,
}

impl Kind {
    pub const ALL: [Self; 5] = [
        Self::RoundTrip,
        Self::Connect,
        Self::Question,
        Self::Programs,
        Self::ProgramsNew,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::RoundTrip => "round-trip",
            Self::Connect => "connect",
            Self::Question => "question",
            Self::Programs => "programs",
            Self::ProgramsNew => "programs-new-flow",
        }
    }

    pub fn unit(self) -> &'static str {
        match self {
            Self::Programs | Self::ProgramsNew => "ns",
            _ => "µs",
        }
    }
}

/// Two nodes with agents, a pod that asks, and a pod and an outside host that reply.
pub struct Site {
    world: World,
    outside: Client,
    pods: [Pod; 2],
    /// Ids of the agents' programs.
    programs: Vec<u32>,
    _agents: Vec<Agent>,
}

impl Site {
    pub fn new() -> Result<Self> {
        let world = World::builder()
            .node(NodeSpec::millrace())
            .node(NodeSpec::millrace())
            .build();
        let before = program_ids()?;
        let agents = world.start_agents();
        let outside = world.add_client("outside");
        let pods = ["asks", "replies"].map(|name| world.node(1).add_pod(name));
        let service = Service::new("web")
            .cluster_ip(CLUSTER_IP)
            .tcp("tcp", PORT, PORT)
            .udp("udp", PORT, PORT)
            .node_port("tcp", NODE_PORT)
            .node_port("udp", NODE_PORT);
        world.apply(&service);
        world.apply_all(service.slices([Endpoint::of(&pods[1])]));
        let programs = program_ids()?;
        let programs = programs.into_iter().filter(|id| !before.contains(id)).collect();
        Ok(Self {
            world,
            outside,
            pods,
            programs,
            _agents: agents,
        })
    }

    pub fn measure(&self, scenario: Scenario, kind: Kind, count: usize) -> Result<f64> {
        match kind {
            Kind::RoundTrip => self.round_trip(scenario, count),
            Kind::Connect => self.connect(scenario, count),
            Kind::Question => self.question(scenario, count),
            Kind::Programs => self.in_programs(count, || self.round_trip(scenario, count)),
            Kind::ProgramsNew => self.in_programs(count, || self.question(scenario, count)),
        }
    }

    /// The place that asks, the place that replies, and the address that is asked.
    fn ends(&self, scenario: Scenario) -> (&Place, &Place, SocketAddr) {
        let [asks, replies] = &self.pods;
        let outside: &Place = &self.outside;
        let node = |number: usize| SocketAddr::new(self.world.node(number).ip().into(), NODE_PORT);
        let cluster_ip = SocketAddr::new(IpAddr::V4([10, 96, 0, 10].into()), PORT);
        match scenario {
            Scenario::PodToPod => (asks, replies, SocketAddr::new(replies.ip().into(), PORT)),
            Scenario::ClusterIp => (asks, replies, cluster_ip),
            Scenario::Masqueraded => (asks, outside, SocketAddr::new(outside.ip().into(), PORT)),
            Scenario::NodePort => (outside, replies, node(1)),
            Scenario::NodePortElsewhere => (outside, replies, node(2)),
        }
    }

    fn round_trip(&self, scenario: Scenario, count: usize) -> Result<f64> {
        let (asks, replies, to) = self.ends(scenario);
        let listener = replies.enter(|| TcpListener::bind(("0.0.0.0", PORT)))?;
        let client = asks.enter(|| TcpStream::connect_timeout(&to, PATIENCE))?;
        let (server, _) = listener.accept()?;
        for end in [&client, &server] {
            end.set_nodelay(true)?;
            end.set_read_timeout(Some(PATIENCE))?;
        }
        let reply = || -> Result<()> {
            let mut byte = [0];
            for _ in 0..count {
                (&server).read_exact(&mut byte)?;
                (&server).write_all(&byte)?;
            }
            Ok(())
        };
        let ask = || -> Result<()> {
            let mut byte = [1];
            (&client).write_all(&byte)?;
            Ok((&client).read_exact(&mut byte)?)
        };
        both(reply, || median(count, ask))
    }

    fn connect(&self, scenario: Scenario, count: usize) -> Result<f64> {
        let (asks, replies, to) = self.ends(scenario);
        let listener = replies.enter(|| TcpListener::bind(("0.0.0.0", PORT)))?;
        let accept = || -> Result<()> {
            for _ in 0..count {
                drop(listener.accept()?);
            }
            Ok(())
        };
        let ask = || -> Result<()> {
            let client = TcpStream::connect_timeout(&to, PATIENCE)?;
            let linger = nix::libc::linger {
                l_onoff: 1,
                l_linger: 0,
            };
            setsockopt(&client, sockopt::Linger, &linger)?;
            Ok(())
        };
        both(accept, || asks.enter(|| on_cpu(|| median(count, ask))))
    }

    fn question(&self, scenario: Scenario, count: usize) -> Result<f64> {
        let (asks, replies, to) = self.ends(scenario);
        let server = replies.enter(|| UdpSocket::bind(("0.0.0.0", PORT)))?;
        server.set_read_timeout(Some(Duration::from_millis(200)))?;
        let done = AtomicBool::new(false);
        let reply = || -> Result<()> {
            let mut byte = [0];
            while !done.load(Ordering::Relaxed) {
                match server.recv_from(&mut byte) {
                    Ok((_, from)) => {
                        server.send_to(&byte, from)?;
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(())
        };
        let ask = || -> Result<()> {
            let client = UdpSocket::bind(("0.0.0.0", 0))?;
            client.set_read_timeout(Some(PATIENCE))?;
            client.connect(to)?;
            client.send(&[1])?;
            client.recv(&mut [0])?;
            Ok(())
        };
        both(reply, || {
            let median = asks.enter(|| on_cpu(|| median(count, ask)));
            done.store(true, Ordering::Relaxed);
            median
        })
    }

    /// Nanoseconds in the agents' programs for each of `count` operations, by the kernel's run time
    /// statistics (`BPF_ENABLE_STATS`). The figure includes a part of the time that these statistics take.
    fn in_programs(&self, count: usize, work: impl FnOnce() -> Result<f64>) -> Result<f64> {
        let _counted = enable_stats(Stats::RunTime).context("enabling run time statistics")?;
        let before = self.run_time()?;
        work()?;
        let spent = self.run_time()?.saturating_sub(before);
        #[expect(clippy::cast_precision_loss, reason = "some milliseconds")]
        Ok(spent.as_nanos() as f64 / count as f64)
    }

    fn run_time(&self) -> Result<Duration> {
        let mut total = Duration::ZERO;
        for program in loaded_programs() {
            let program = program.context("listing programs")?;
            if self.programs.contains(&program.id()) {
                total += program.run_time();
            }
        }
        Ok(total)
    }
}

/// Ids of all programs of the machine.
fn program_ids() -> Result<Vec<u32>> {
    loaded_programs()
        .map(|program| Ok(program.context("listing programs")?.id()))
        .collect()
}

fn median(count: usize, mut once: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut samples = Vec::with_capacity(count);
    for _ in 0..count {
        let begin = Instant::now();
        once()?;
        samples.push(begin.elapsed().as_secs_f64() * 1e6);
    }
    Ok(quantile(&samples, 0.5))
}

/// Runs both ends, on one CPU.
fn both(reply: impl FnOnce() -> Result<()> + Send, ask: impl FnOnce() -> Result<f64> + Send) -> Result<f64> {
    thread::scope(|scope| {
        let server = scope.spawn(|| on_cpu(reply));
        let value = cpu::beside(ask)?;
        match server.join() {
            Ok(ended) => ended?,
            Err(_) => bail!("the replying thread panicked"),
        }
        Ok(value)
    })
}

fn on_cpu<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    cpu::bind_this_thread().map_err(|error| anyhow!("{error:#}"))?;
    work()
}
