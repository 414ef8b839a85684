//! A node in a world of its own, and the agent that is measured there.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use harness::{Agent, AgentBuilder, Node, World};
use millrace::bpf::pins;
use millrace::control::{Client, Status};

use super::tables::Tables;
use crate::cpu;

/// The time that an agent has to become ready.
const PATIENCE: Duration = Duration::from_mins(2);

/// The interval between questions to a starting agent.
const INTERVAL: Duration = Duration::from_millis(5);

/// A world with one node.
pub struct Site {
    pub world: World,
}

/// An agent that is ready.
pub struct Running {
    /// The agent ends when it is dropped.
    pub agent: Agent,
    client: Client,
    /// The time from before its process was created until its status said ready.
    pub ready_after: Duration,
}

impl Site {
    /// Creates the world.
    pub fn new() -> Self {
        Self {
            world: World::with_nodes(1),
        }
    }

    /// The only node of the world.
    pub fn node(&self) -> &Node {
        self.world.node(1)
    }

    /// Starts an agent that follows the node's directory.
    pub fn start(&self) -> Result<Running> {
        self.start_as(self.node().agent())
    }

    /// Starts an agent and waits until it is ready.
    pub fn start_as(&self, agent: AgentBuilder) -> Result<Running> {
        let client = Client::new(&self.node().dir().join("run"));
        let started = Instant::now();
        let mut agent = agent.start();
        cpu::bind(agent.pid(), cpu::AGENT)?;
        loop {
            match client.status() {
                Ok(status) if status.ready => break,
                Ok(status) if started.elapsed() > PATIENCE => {
                    bail!("the agent is not ready after {PATIENCE:?}: {status:?}")
                }
                Err(error) if started.elapsed() > PATIENCE => return Err(error.into()),
                _ if !agent.is_running() => bail!("the agent has ended; it logged:\n{}", agent.log()),
                _ => thread::sleep(INTERVAL),
            }
        }
        Ok(Running {
            agent,
            client,
            ready_after: started.elapsed(),
        })
    }

    /// Removes everything that agents have pinned: the next agent starts cold.
    pub fn forget(&self) -> Result<()> {
        pins::remove_all(self.node().bpf_root()).context("removing the pins of the last run")?;
        Ok(())
    }

    /// The kernel's tables as the last agent left them.
    pub fn tables(&self) -> Result<Tables> {
        Tables::open(self.node().bpf_root())
    }
}

impl Running {
    /// The agent's own status.
    pub fn status(&self) -> Result<Status> {
        self.client.status().context("asking the agent")
    }

    /// The number of map writes since the agent was started.
    pub fn writes(&self) -> Result<u64> {
        Ok(self.status()?.writes.since_start)
    }

    /// Waits until the agent has nothing to do, and returns the CPU time that it has used so far.
    pub fn settle(&self) -> Result<Duration> {
        let mut used = self.cpu_time()?;
        loop {
            thread::sleep(Duration::from_millis(200));
            let now = self.cpu_time()?;
            // One clock tick more or less is the agent's housekeeping.
            if now.saturating_sub(used) <= Duration::from_millis(10) {
                return Ok(now);
            }
            used = now;
        }
    }

    fn cpu_time(&self) -> Result<Duration> {
        let path = format!("/proc/{}/schedstat", self.agent.pid());
        let tasks = format!("/proc/{}/task", self.agent.pid());
        let mut nanoseconds = 0;
        for entry in fs::read_dir(&tasks).with_context(|| format!("reading {tasks}"))? {
            let entry = entry.with_context(|| format!("reading {tasks}"))?;
            nanoseconds +=
                on_cpu(&entry.path().join("schedstat")).with_context(|| format!("reading {path}"))?;
        }
        Ok(Duration::from_nanos(nanoseconds))
    }
}

/// The first number of `schedstat`: nanoseconds spent on a CPU (Documentation/scheduler/sched-stats.rst).
fn on_cpu(path: &Path) -> Result<u64> {
    let text = fs::read_to_string(path)?;
    let first = text.split(' ').next().unwrap_or_default();
    first
        .parse()
        .with_context(|| format!("{first:?} is not a number"))
}
