//! The scene of all steps: three nodes, a client, five backends on all nodes, and the Service `shop` that
//! leads to them.
//!
//! In a cluster, Kubernetes starts and stops pods and writes that to EndpointSlices. Here the demo does both,
//! as two separate steps: the state of a backend and its state in the slices can differ for a while. The
//! steps show that interval.

use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use harness::server::ServerApart;
use harness::{Agent, Endpoint, Node, Place, Pod, Service, World};

/// The Service as agents read it. The constants below repeat its addresses.
pub const SERVICE: &str = "\
apiVersion: v1
kind: Service
metadata: {name: shop, namespace: default}
spec:
  clusterIPs: [10.96.0.10, 'fd00:96::10']
  ports:
  - {name: http, protocol: TCP, port: 80, targetPort: 8080}
  - {name: dns, protocol: UDP, port: 53, targetPort: 8080}
";
/// The file that holds the Service.
pub const SERVICE_FILE: &str = "shop.yaml";

pub const HTTP: &str = "10.96.0.10:80";
pub const HTTP6: &str = "[fd00:96::10]:80";
pub const DNS: &str = "10.96.0.10:53";

/// Two addresses with two ports each. Each frontend leads to all backends.
pub const FRONTENDS: usize = 4;

/// The port that backends listen on.
const TARGET: u16 = 8080;

const A_SECOND: Duration = Duration::from_secs(1);

/// How many lines of an agent's log a failure shows.
const LOG_TAIL: usize = 15;

/// The state of a backend in the slices.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Listed {
    Ready,
    Terminating,
    No,
}

/// A pod that serves the Service.
pub struct Backend {
    pub pod: Pod,
    server: Option<ServerApart>,
    listed: Listed,
}

pub struct Topology {
    // The agents are dropped before the world that they run in.
    pub agents: Vec<Agent>,
    pub client: Pod,
    pub backends: Vec<Backend>,
    /// A service with the same names as [`SERVICE`], to make slices of.
    service: Service,
    pub world: World,
}

impl Topology {
    /// Creates nodes and pods. No agent runs yet and no object is written.
    pub fn build() -> Self {
        let world = World::with_nodes(3);
        let client = world.node(1).add_pod("client");
        let backends = (1..)
            .zip([1, 2, 2, 3, 3])
            .map(|(number, node)| Backend::start(world.node(node), number))
            .collect();
        let service = Service::new("shop")
            .cluster_ip("10.96.0.10")
            .cluster_ip("fd00:96::10")
            .tcp("http", 80, TARGET)
            .udp("dns", 53, TARGET);
        Self {
            agents: Vec::new(),
            client,
            backends,
            service,
            world,
        }
    }

    /// Writes the Service and its slices to every node's directory.
    pub fn publish(&self) {
        self.write_slices();
        for node in self.world.nodes() {
            node.source().write_text(SERVICE_FILE, SERVICE);
        }
    }

    /// Changes the state of a backend in the slices.
    pub fn list(&mut self, name: &str, listed: Listed) -> Result<()> {
        self.backend(name)?.listed = listed;
        self.write_slices();
        Ok(())
    }

    fn write_slices(&self) {
        let endpoints = self.backends.iter().filter_map(Backend::endpoint);
        self.world.apply_all(self.service.slices(endpoints));
    }

    /// Ends a backend's program, as a crash would.
    pub fn kill(&mut self, name: &str) -> Result<()> {
        let server = self.backend(name)?.server.take();
        server.with_context(|| format!("{name} runs no server"))?.kill();
        Ok(())
    }

    /// Starts a dead backend's program again and adds its endpoint to the slices. Returns when all nodes lead
    /// to it.
    pub fn revive(&mut self, name: &str) -> Result<()> {
        let backend = self.backend(name)?;
        backend.server = Some(backend.pod.serve_apart(TARGET));
        self.list(name, Listed::Ready)?;
        self.wait_programmed(name)
    }

    /// Waits until every agent has programmed a backend's state in the slices, ready or gone.
    pub fn wait_programmed(&mut self, name: &str) -> Result<()> {
        let backend = self.backend(name)?;
        let (listed, addresses) = (backend.listed, backend.pod.addresses().to_vec());
        for node in self.world.nodes() {
            let since = Instant::now();
            loop {
                let states = programmed_states(node, &addresses)?;
                let done = match listed {
                    Listed::Ready => {
                        states.len() == FRONTENDS && states.iter().all(|state| state == "active")
                    }
                    _ => states.is_empty(),
                };
                if done {
                    break;
                }
                if since.elapsed() > A_SECOND {
                    bail!(
                        "a second after {name} changed, {} has it as {states:?}",
                        node.name()
                    );
                }
            }
        }
        Ok(())
    }

    fn backend(&mut self, name: &str) -> Result<&mut Backend> {
        match self
            .backends
            .iter_mut()
            .find(|backend| backend.pod.name() == name)
        {
            Some(backend) => Ok(backend),
            None => bail!("there is no backend {name}"),
        }
    }

    /// The backends that take new requests.
    pub fn open(&self) -> Vec<&str> {
        let open = self
            .backends
            .iter()
            .filter(|backend| backend.listed == Listed::Ready);
        open.map(|backend| backend.pod.name()).collect()
    }

    /// The backend of an address.
    pub fn at(&self, address: SocketAddr) -> Option<&Pod> {
        let pods = self.backends.iter().map(|backend| &backend.pod);
        pods.into_iter()
            .find(|pod| pod.addresses().contains(&address.ip()))
    }

    /// The client, and the second node: the places that requests come from.
    pub fn clients(&self) -> [(&Place, &'static str); 2] {
        [(&self.client, "a pod"), (self.world.node(2), "a node")]
    }

    /// The last lines that each agent has logged, under a title.
    pub fn logs(&self) -> Vec<String> {
        let tail = |agent: &Agent| {
            let (node, log) = (agent.node().name(), agent.log());
            let lines: Vec<_> = log.lines().collect();
            match lines[lines.len().saturating_sub(LOG_TAIL)..].join("\n") {
                last if last.is_empty() => format!("The agent on {node} has logged nothing."),
                last => format!("The agent on {node} logged last:\n{last}"),
            }
        };
        self.agents.iter().map(tail).collect()
    }
}

impl Backend {
    /// The reason why the backend takes no new requests, or an empty text.
    pub fn state(&self) -> &'static str {
        match (&self.server, self.listed) {
            (None, _) => "dead",
            (_, Listed::Terminating) => "terminating",
            _ => "",
        }
    }

    fn start(node: &Node, number: u8) -> Self {
        let pod = node.add_pod(&format!("shop-{number}"));
        // The server has a process of its own, so that the demo can kill it and a kept world keeps it.
        let server = Some(pod.serve_apart(TARGET));
        Self {
            pod,
            server,
            listed: Listed::Ready,
        }
    }

    fn endpoint(&self) -> Option<Endpoint> {
        let endpoint = Endpoint::of(&self.pod);
        match self.listed {
            Listed::Ready => Some(endpoint),
            Listed::Terminating => Some(endpoint.terminating()),
            Listed::No => None,
        }
    }
}

/// The states in which a node's frontends have a backend.
fn programmed_states(node: &Node, addresses: &[IpAddr]) -> Result<Vec<String>> {
    let listed = node.cli(&["service", "list"])?;
    let frontends = listed.as_array().into_iter().flatten();
    let backends = frontends.flat_map(|frontend| frontend["backends"].as_array().into_iter().flatten());
    let found = backends.filter(|backend| {
        let address = backend["address"]
            .as_str()
            .and_then(|text| text.parse::<SocketAddr>().ok());
        address.is_some_and(|address| addresses.contains(&address.ip()))
    });
    Ok(found
        .map(|backend| backend["state"].as_str().unwrap_or_default().to_owned())
        .collect())
}

/// Parses an address that is written in this program.
pub fn address(text: &str) -> Result<SocketAddr> {
    text.parse().with_context(|| format!("`{text}` is no address"))
}

/// The text that a verb of the command line prints for a person, run against a node's agent.
pub fn millrace(node: &Node, verb: &[&str]) -> Result<String> {
    let mut command = Command::new(harness::millrace());
    command.args(verb).arg("--run-dir").arg(node.dir().join("run"));
    command.arg("--bpf-root").arg(node.bpf_root());
    // The demo's own output drops the colours where it is no terminal.
    let output = command.env("CLICOLOR_FORCE", "1").output();
    let Output {
        status,
        stdout,
        stderr,
    } = output.context("running millrace")?;
    if !status.success() {
        bail!(
            "millrace {} ({status}): {}",
            verb.join(" "),
            String::from_utf8_lossy(&stderr).trim()
        );
    }
    String::from_utf8(stdout).context("what millrace prints is no text")
}
