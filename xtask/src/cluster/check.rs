//! `cargo xtask cluster check`: the checks of a new user of Millrace, and the faults that such a user fears.
//!
//! The check reaches twenty pods by every kind of address, reads logs and runs commands. Then it exchanges
//! the agents one after the other. Meanwhile clients outside, in a pod and on a node hold connections and
//! make new ones, of which none may break. `--remove` removes Millrace from the cluster and looks for
//! leftovers.

use std::{
    collections::BTreeSet,
    io::{BufRead as _, BufReader, Read as _},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use serde::Deserialize;

use super::{Network, Node, current, installation, join, place::Toolbox, removal, wait::wait_for};
use crate::{command, paths, step::Step};

/// The client that notices broken connections.
pub const LOAD: &str = "cluster-load";

const PODS: usize = 20;
/// The names of `tests/cluster/manifests/check.yaml`.
const NAMESPACE: &str = "--namespace=check";
const NAME: &str = "web.check.svc.cluster.local";
const NODE_PORT: u16 = 30080;
/// The connections that clients outside and in a pod hold.
const HELD: usize = 100;

#[derive(Args)]
pub struct Options {
    /// Remove Millrace from the cluster in the end, and check that nothing of it is left
    #[arg(long)]
    remove: bool,
}

/// Carries out `cargo xtask cluster check`.
pub fn run(options: &Options) -> Result<()> {
    let shape = current()?.context("no cluster is up: cargo xtask cluster up --network millrace")?;
    if shape.network != Network::Millrace {
        bail!(
            "the check needs a cluster of network millrace, and this cluster has network {}",
            shape.network
        );
    }
    let (toolbox, _) = join()?;
    let nodes = Node::first(shape.nodes);
    let check = Check {
        toolbox: &toolbox,
        nodes: &nodes,
    };
    check.start_pods()?;
    check.addresses()?;
    check.logs()?;
    check.restart()?;
    let step = Step::start("removing the objects of the check");
    toolbox.kubectl(&["delete", "namespace", "check", "--timeout=120s"])?;
    step.done();
    if options.remove {
        removal::run(&toolbox, &nodes)?;
    }
    Ok(())
}

struct Check<'a> {
    toolbox: &'a Toolbox,
    nodes: &'a [Node],
}

/// The report of a client.
#[derive(Deserialize)]
struct Report {
    held: usize,
    answers: u64,
    interrupted: usize,
    opened: u64,
    failed: u64,
    slowest: u64,
    errors: Vec<String>,
}

impl Check<'_> {
    fn start_pods(&self) -> Result<()> {
        let step = Step::start(format!("starting {PODS} pods"));
        self.toolbox
            .apply(&paths::repository()?.join("tests/cluster/manifests/check.yaml"))?;
        let scale = format!("--replicas={PODS}");
        self.kubectl(&["scale", "deployment/web", &scale])?;
        self.kubectl(&["rollout", "status", "deployment/web", "--timeout=300s"])?;
        self.kubectl(&["wait", "--for=condition=Ready", "pod/client", "--timeout=60s"])?;
        step.done();
        Ok(())
    }

    /// Checks that every pod is reached by every kind of address.
    fn addresses(&self) -> Result<()> {
        let address = self.cluster_ip()?;
        reaches_all("a pod, by cluster IP", &address, |script| self.in_client(script))?;
        reaches_all("a pod, by name", NAME, |script| self.in_client(script))?;
        for &node in self.nodes {
            let to = format!("{}:{NODE_PORT}", node.v4());
            reaches_all(
                &format!("outside, by {}'s node port", node.name()),
                &to,
                |script| {
                    let mut control = self.toolbox.in_control()?;
                    command::output(control.args(["sh", "-c", script]))
                },
            )?;
        }
        let node = self.nodes[0];
        reaches_all("a node, by cluster IP", &address, |script| {
            let mut shell = self.toolbox.in_node(node)?;
            command::output(shell.args(["sh", "-c", script]))
        })
    }

    fn logs(&self) -> Result<()> {
        let step = Step::start("reading logs and running commands");
        let log = self.kubectl(&["logs", "deployment/web"])?;
        ensure!(!log.trim().is_empty(), "the log of a pod is empty");
        for pod in self.names("app=web")? {
            let printed = self.kubectl(&["exec", &pod, "--", "hostname"])?;
            ensure!(pod == printed.trim(), "a command in {pod} ran in {printed}");
        }
        step.done();
        Ok(())
    }

    fn restart(&self) -> Result<()> {
        let service = format!("{}:80", self.cluster_ip()?);
        let ports = self.nodes.iter().map(|node| format!("{}:{NODE_PORT}", node.v4()));
        let client = self.kubectl(&[
            "get",
            "pod/client",
            "--output=jsonpath={.spec.nodeName} {.status.podIP}",
        ])?;
        let (home, address) = client.split_once(' ').context("the client pod has no address")?;
        let home = self.nodes.iter().find(|node| node.name() == home);
        let home = *home.context("the client pod is on no node")?;
        let step = Step::start("exchanging the agents under load");
        let loads = [
            ("outside", self.load(self.toolbox.in_control()?, ports, HELD)?),
            (
                "a pod",
                self.load(self.in_namespace(home, address)?, [service.clone()], HELD)?,
            ),
            (
                "a node",
                self.load(self.toolbox.in_node(self.nodes[0])?, [service], 0)?,
            ),
        ];
        let restarted = installation::restart(self.toolbox);
        let reports = loads.map(|(name, load)| (name, load.finish()));
        restarted?;
        step.done();
        let mut good = true;
        for (name, report) in reports {
            let report = report.with_context(|| format!("the client in {name}"))?;
            println!(
                "  from {name}: {} connections held, {} replies on them, {} interrupted; {} new ones, {} failed; slowest reply {} ms",
                report.held, report.answers, report.interrupted, report.opened, report.failed, report.slowest
            );
            for error in &report.errors {
                println!("    {error}");
            }
            let is_answered = report.answers >= report.held as u64;
            good &= report.interrupted == 0 && report.failed == 0 && report.opened > 0 && is_answered;
        }
        ensure!(good, "connections broke while the agents were exchanged");
        Ok(())
    }

    /// Starts a client in a place and waits until it holds its connections.
    fn load(&self, mut place: Command, to: impl IntoIterator<Item = String>, hold: usize) -> Result<Load> {
        place.arg(self.toolbox.own(LOAD)?).arg(format!("--hold={hold}"));
        for address in to {
            place.arg(format!("--address={address}"));
        }
        let spawned = place.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut process = spawned.context("starting a client")?;
        let input = process.stdin.take().context("a client without input")?;
        let output = process.stdout.take().context("a client without output")?;
        let mut output = BufReader::new(output);
        let mut line = String::new();
        output
            .read_line(&mut line)
            .context("reading the output of a client")?;
        ensure!(line.trim() == "ready", "a client could not make its connections");
        Ok(Load {
            process,
            input,
            output,
        })
    }

    /// A command in the network namespace of a pod: the namespace of the pod's node that has the pod's
    /// address.
    fn in_namespace(&self, node: Node, address: &str) -> Result<Command> {
        let script = "for namespace in /run/netns/*; do \
                      if nsenter --net=\"$namespace\" ip -oneline address show | grep --quiet \"inet $0/\"; \
                      then exec nsenter --net=\"$namespace\" \"$@\"; fi; done; \
                      echo \"no pod has $0\" >&2; exit 1";
        let mut shell = self.toolbox.in_node(node)?;
        shell.args(["sh", "-c", script, address]);
        Ok(shell)
    }

    fn in_client(&self, script: &str) -> Result<String> {
        self.kubectl(&["exec", "client", "--", "sh", "-c", script])
    }

    fn cluster_ip(&self) -> Result<String> {
        self.kubectl(&["get", "service/web", "--output=jsonpath={.spec.clusterIP}"])
    }

    fn names(&self, selector: &str) -> Result<Vec<String>> {
        let path = "--output=jsonpath={.items[*].metadata.name}";
        let names = self.kubectl(&["get", "pods", "--selector", selector, path])?;
        Ok(names.split_whitespace().map(str::to_owned).collect())
    }

    fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        // The arguments after -- belong to another command.
        self.toolbox.kubectl(&[&[NAMESPACE], arguments].concat())
    }
}

/// Sends requests until each pod has replied, up to a limit. A random choice among twenty pods may leave one
/// out for long.
fn reaches_all(what: &str, to: &str, shell: impl Fn(&str) -> Result<String>) -> Result<()> {
    let step = Step::start(format!("reaching {PODS} pods from {what}"));
    let script = format!(
        "for i in $(seq 100); do curl --silent --show-error --max-time 5 http://{to}/hostname || exit 1; echo; done"
    );
    let mut seen = BTreeSet::new();
    for _ in 0..5 {
        seen.extend(shell(&script)?.lines().map(str::to_owned));
        if seen.len() >= PODS {
            break;
        }
    }
    ensure!(
        seen.len() == PODS,
        "{} of {PODS} pods replied at {to}",
        seen.len()
    );
    step.done();
    Ok(())
}

/// A running client.
struct Load {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Load {
    fn finish(self) -> Result<Report> {
        let Self {
            mut process,
            input,
            mut output,
        } = self;
        drop(input);
        let mut text = String::new();
        output.read_to_string(&mut text).context("reading its report")?;
        wait_for("a client to end", Duration::from_secs(20), || {
            process.try_wait()?.context("it still runs")
        })?;
        serde_json::from_str(&text).with_context(|| format!("reading its report {text:?}"))
    }
}
