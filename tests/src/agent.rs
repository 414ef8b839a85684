//! Real `millrace agent` processes on nodes, and the command line against them. An agent that a test started
//! ends with the test. Its log is printed when the test panics.

use std::fs::{self, File, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::failure::OrPanic;
use crate::node::{Node, PodNetwork, UPLINK};
use crate::wait;
use crate::{binary, cni};

/// How many lines of a log a panic shows.
const LOG_TAIL: usize = 60;

/// The source of an agent's objects.
#[derive(Clone, Debug)]
pub enum Source {
    /// The node's directory of manifests.
    Directory,
    /// An API server.
    Kubernetes {
        /// The kubeconfig file.
        kubeconfig: PathBuf,
    },
}

/// The settings of an agent that is to be started.
#[derive(Clone)]
pub struct AgentBuilder {
    node: Node,
    program: PathBuf,
    source: Source,
    finds_uplinks: bool,
    cgroup: Option<PathBuf>,
    bpf_root: PathBuf,
    wrapper: Vec<String>,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
}

impl AgentBuilder {
    pub(crate) fn new(node: Node) -> Self {
        Self {
            cgroup: Some(node.cgroup().to_owned()),
            bpf_root: node.bpf_root().to_owned(),
            node,
            program: binary::millrace(),
            source: Source::Directory,
            finds_uplinks: false,
            wrapper: Vec::new(),
            arguments: Vec::new(),
            environment: Vec::new(),
        }
    }

    /// Runs another build of the agent than [`crate::millrace`].
    #[must_use]
    pub fn program(self, path: impl Into<PathBuf>) -> Self {
        Self {
            program: path.into(),
            ..self
        }
    }

    /// Follows another source than the node's directory.
    #[must_use]
    pub fn source(self, source: Source) -> Self {
        Self { source, ..self }
    }

    /// Leaves the choice of the uplinks to the agent.
    #[must_use]
    pub fn find_uplinks(self) -> Self {
        Self {
            finds_uplinks: true,
            ..self
        }
    }

    /// Attaches its socket hooks to another cgroup than the node's; `None` leaves the choice to the agent.
    #[must_use]
    pub fn cgroup(self, cgroup: Option<&Path>) -> Self {
        let cgroup = cgroup.map(Path::to_owned);
        Self { cgroup, ..self }
    }

    /// Pins under another directory than the node's.
    #[must_use]
    pub fn bpf_root(self, path: impl Into<PathBuf>) -> Self {
        Self {
            bpf_root: path.into(),
            ..self
        }
    }

    /// Starts the agent by another program, such as `["setpriv", "--bounding-set=-bpf"]`.
    #[must_use]
    pub fn under(self, wrapper: &[&str]) -> Self {
        let wrapper = wrapper.iter().map(ToString::to_string).collect();
        Self { wrapper, ..self }
    }

    /// Adds a command line argument.
    #[must_use]
    pub fn arg(mut self, argument: impl Into<String>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Gives the agent a configuration document, as `--config` with a file of the node.
    #[must_use]
    #[track_caller]
    pub fn config(self, yaml: &str) -> Self {
        let path = self
            .node
            .dir()
            .join(format!("config-{}.yaml", self.arguments.len()));
        fs::write(&path, yaml)
            .with_context(|| format!("writing {}", path.display()))
            .or_panic();
        self.arg("--config").arg(path.display().to_string())
    }

    /// Sets a variable of the agent's environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts the agent, without waiting for anything.
    #[track_caller]
    pub fn start(self) -> Agent {
        let process = self.spawn().or_panic();
        Agent {
            builder: self,
            process,
        }
    }

    /// Starts the agent's process. It gets no proxy variables: an agent in a world cannot reach the proxies
    /// that they name.
    fn spawn(&self) -> Result<Child> {
        let node = &self.node;
        let log = log_file(node)?;
        let mut command = match self.wrapper.split_first() {
            None => node.command(&self.program),
            Some((wrapper, arguments)) => {
                let mut command = node.command(wrapper);
                command.args(arguments).arg(&self.program);
                command
            }
        };
        command.arg("agent").args(["--node-name", node.name()]);
        if !self.finds_uplinks {
            command.args(["--uplink", UPLINK]);
        }
        if let Some(cgroup) = &self.cgroup {
            command.arg("--cgroup").arg(cgroup);
        }
        command.arg("--state-dir").arg(node.dir().join("state"));
        if node.network() == PodNetwork::Millrace {
            command.arg("--cni-conf-dir").arg(cni::conf_dir(node));
            command.arg("--cni-bin-dir").arg(cni::bin_dir(node));
        }
        roots(&mut command, node, &self.bpf_root);
        match &self.source {
            Source::Directory => {
                command
                    .arg("--source")
                    .arg(format!("dir:{}", node.source().path().display()));
            }
            Source::Kubernetes { kubeconfig } => {
                command
                    .args(["--source", "kubernetes", "--kubeconfig"])
                    .arg(kubeconfig);
            }
        }
        for variable in ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"] {
            command.env_remove(variable);
        }
        command
            .args(&self.arguments)
            .envs(self.environment.iter().cloned());
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("duplicating the log")?)
            .stderr(log);
        // Ctrl-C is meant for the test only. The guard ends the agents; a kept world goes on needing them.
        command.process_group(0);
        command
            .spawn()
            .with_context(|| format!("starting an agent on {}", node.name()))
    }
}

/// A running agent; dropping it kills it, unless its world is kept.
pub struct Agent {
    builder: AgentBuilder,
    process: Child,
}

impl Agent {
    /// The node that the agent runs on.
    pub fn node(&self) -> &Node {
        &self.builder.node
    }

    /// The process id of the agent.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Waits until `millrace status` says ready.
    ///
    /// # Panics
    ///
    /// If `within` has passed or the agent has ended. The output of the test then has the reason and the log.
    #[track_caller]
    pub fn wait_ready(&mut self, within: Duration) {
        let node = self.node().clone();
        wait::wait_for(
            &format!("the agent on {} to be ready", node.name()),
            within,
            || {
                if let Ok(Some(status)) = self.process.try_wait() {
                    panic!("the agent on {} has ended: {status}", node.name());
                }
                let status = cli(&node, &["status"])?;
                if status["ready"] == true {
                    Ok(())
                } else {
                    Err(anyhow!("the status is {status}"))
                }
            },
        );
    }

    /// Runs a verb of the command line against this agent; see [`Node::cli`].
    #[track_caller]
    pub fn cli(&self, verb: &[&str]) -> Value {
        cli(self.node(), verb).or_panic()
    }

    /// Kills the agent by SIGKILL.
    #[track_caller]
    pub fn kill(&mut self) {
        self.process.kill().context("killing an agent").or_panic();
        self.process
            .wait()
            .context("waiting for a killed agent")
            .or_panic();
    }

    /// Sends SIGTERM to the agent and waits until it has ended.
    #[track_caller]
    pub fn stop(&mut self, within: Duration) -> ExitStatus {
        let pid = Pid::from_raw(self.process.id().cast_signed());
        kill(pid, Signal::SIGTERM).context("stopping an agent").or_panic();
        self.wait_ended(within)
    }

    /// Waits until the agent has ended by itself.
    #[track_caller]
    pub fn wait_ended(&mut self, within: Duration) -> ExitStatus {
        wait::wait_for("the agent to end", within, || match self.process.try_wait() {
            Ok(Some(status)) => Ok(status),
            Ok(None) => Err("it runs".to_owned()),
            Err(error) => Err(error.to_string()),
        })
    }

    /// Starts the agent again with the same settings. Its process must have ended.
    #[track_caller]
    pub fn start_again(&mut self) {
        self.process = self.builder.spawn().or_panic();
    }

    /// Kills the agent and starts it again.
    #[track_caller]
    pub fn restart(&mut self) {
        self.kill();
        self.start_again();
    }

    /// Whether the agent's process still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.process.try_wait(), Ok(None))
    }

    /// The log of this agent and of its predecessors on this node.
    pub fn log(&self) -> String {
        fs::read_to_string(log_path(self.node())).unwrap_or_default()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(LOG_TAIL)..].join("\n");
            eprintln!(
                "--- the agent on {} logged last:\n{tail}\n---",
                self.node().name()
            );
        }
        if !self.node().is_kept() {
            // The process may have ended by itself.
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }
}

/// Runs a verb on a node and parses what it prints.
pub(crate) fn cli(node: &Node, verb: &[&str]) -> Result<Value> {
    let Output {
        status,
        stdout,
        stderr,
    } = run(node, verb).with_context(|| format!("running millrace {verb:?}"))?;
    serde_json::from_slice(&stdout).with_context(|| {
        let (out, err) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
        format!(
            "millrace {verb:?} on {} ({status}) printed no JSON: {out}{err}",
            node.name()
        )
    })
}

/// Runs a verb on a node with `-o json`.
pub(crate) fn run(node: &Node, verb: &[&str]) -> Result<Output> {
    let mut command = node.command(binary::millrace());
    command.args(verb);
    roots(&mut command, node, node.bpf_root());
    command.args(["-o", "json"]);
    command.output().context("running the command line")
}

fn roots(command: &mut Command, node: &Node, bpf_root: &Path) {
    command.arg("--run-dir").arg(node.dir().join("run"));
    command.arg("--bpf-root").arg(bpf_root);
}

fn log_path(node: &Node) -> PathBuf {
    node.dir().join("agent.log")
}

fn log_file(node: &Node) -> Result<File> {
    let path = log_path(node);
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| format!("opening {}", path.display()))
}
