//! `cargo xtask cluster`: a small real Kubernetes cluster on this machine, with Millrace as its proxy, or as
//! proxy and network.
//!
//! Control plane, kubelets and containers are the real ones, built from Go modules. Nodes are namespaces
//! ([`node`]) on a network without an uplink ([`underlay`]). Nothing is installed, and only the cache
//! outlives `cluster down`. There is one cluster at a time.

mod balancer;
mod cgroup;
mod check;
mod control_plane;
mod credentials;
mod images;
pub mod installation;
mod node;
mod place;
mod pod_network;
mod process;
mod proxy;
mod removal;
mod site;
mod status;
mod underlay;
mod wait;

use std::{
    collections::BTreeMap, env, ffi::OsString, fs, os::unix::process::CommandExt as _, path::PathBuf,
    process::ExitCode, time::Duration,
};

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use nix::unistd::geteuid;

use crate::{
    build::{self, MILLRACE_BIN, Profile},
    image,
    kubernetes::{Program, Programs},
    paths, setup,
    setup::unpacked,
    step::Step,
};
pub use images::Images;
pub use place::Toolbox;
use process::Process;
use site::Files;
pub use site::{Network, Node, Proxy, Shape};
use wait::wait_for;

/// The options of `cluster up`.
#[derive(Args, Clone, Copy)]
#[group(id = "cluster")]
pub struct Options {
    /// The proxy for Services
    #[arg(long, value_enum, default_value_t = Proxy::Millrace)]
    pub proxy: Proxy,
    /// The network plugin that gives pods their interfaces
    #[arg(long, value_enum, default_value_t = Network::Bridge)]
    pub network: Network,
    /// The number of nodes
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=i64::from(Node::MAX)))]
    pub nodes: u8,
}

#[derive(Subcommand)]
pub enum Verb {
    /// Start a cluster, and leave it running
    Up(Options),
    /// Remove the cluster, or the rest of one
    Down,
    /// Show the running cluster and its folders
    Status,
    /// Replace the proxies by ones built from the present sources
    Renew,
    /// Check a cluster of network millrace: services, DNS, logs, and a rolling restart under load
    Check(check::Options),
    /// Run a command in a place: a node (n1, n2, …), or `control`, where `kubectl` reaches the API server
    Run {
        place: String,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, default_value = "bash")]
        command: Vec<OsString>,
    },
}

/// Carries out `cargo xtask cluster`.
pub fn run(verb: Verb) -> Result<ExitCode> {
    if !geteuid().is_root() {
        bail!("a cluster is made of namespaces, cgroups and eBPF programs: run it as root");
    }
    match verb {
        Verb::Up(options) => up(options).map(drop)?,
        Verb::Down => down()?,
        Verb::Status => return status::print(&Files::locate()?),
        Verb::Renew => renew()?,
        Verb::Check(options) => check::run(&options)?,
        Verb::Run { place, command } => return Err(enter(&place, &command)?),
    }
    Ok(ExitCode::SUCCESS)
}

/// The shape of the running cluster, if there is one.
pub fn current() -> Result<Option<Shape>> {
    Ok(Files::locate()?.shape().filter(|_| underlay::exists()))
}

/// Starts a cluster.
pub fn up(options: Options) -> Result<(Toolbox, Images)> {
    if underlay::exists() {
        bail!("a cluster or a part of one exists: `cargo xtask cluster down` removes it");
    }
    let shape = Shape {
        nodes: options.nodes,
        proxy: options.proxy,
        network: options.network,
    };
    if shape.network == Network::Millrace && shape.proxy != Proxy::Millrace {
        bail!("with --network millrace, Millrace is the proxy as well: leave out --proxy");
    }
    setup::run()?;
    let toolbox = equip(shape)?;
    let images = Images::ensure(&toolbox.programs)?;
    if toolbox.files.root().exists() {
        fs::remove_dir_all(toolbox.files.root()).context("removing files of an earlier cluster")?;
    }
    fs::create_dir_all(toolbox.files.root()).context("making a folder for the cluster")?;
    if shape.network == Network::Millrace {
        installation::make_image(&toolbox)?;
    }
    toolbox.files.write_shape(shape)?;
    toolbox.files.write_own_programs(&toolbox.own)?;
    raise(&toolbox, &images, shape)
        .context("the cluster did not come up; `cargo xtask cluster down` removes it")?;
    Ok((toolbox, images))
}

/// The programs and images for work in the running cluster.
pub fn join() -> Result<(Toolbox, Images)> {
    let toolbox = equipped(&Files::locate()?)?;
    let images = Images::ensure(&toolbox.programs)?;
    Ok((toolbox, images))
}

/// Builds and fetches the cluster's programs. `MILLRACE_BIN` names an agent that is built already, with the
/// plugin beside it.
fn equip(shape: Shape) -> Result<Toolbox> {
    let programs = Programs::ensure(Program::OF_A_CLUSTER)?;
    let given = env::var_os(MILLRACE_BIN).filter(|path| !path.is_empty());
    // These programs measure nothing, and share their build with tests.
    let mut built = build::binaries(Profile::Dev, &[balancer::PROGRAM, check::LOAD])?;
    let wanted: &[_] = match (shape.proxy, shape.network) {
        (Proxy::Millrace, Network::Millrace) => &[image::MILLRACE, image::PLUGIN],
        (Proxy::Millrace, Network::Bridge) => &[image::MILLRACE],
        _ => &[],
    };
    if let Some(given) = given {
        let given = fs::canonicalize(&given).with_context(|| format!("{MILLRACE_BIN} names no file"))?;
        let beside = given.parent().unwrap_or(&given).to_owned();
        built.extend(wanted.iter().map(|name| ((*name).to_owned(), beside.join(name))));
        built.insert(image::MILLRACE.to_owned(), given);
    } else if !wanted.is_empty() {
        built.extend(build::binaries(Profile::Release, wanted)?);
    }
    toolbox(programs, built)
}

/// The programs of the running cluster, without a build.
fn equipped(files: &Files) -> Result<Toolbox> {
    let own = files.own_programs()?;
    toolbox(Programs::ensure(Program::OF_A_CLUSTER)?, own)
}

fn toolbox(programs: Programs, own: BTreeMap<String, PathBuf>) -> Result<Toolbox> {
    Ok(Toolbox {
        files: Files::locate()?,
        programs,
        tools: unpacked::tools_of_nodes()?,
        own,
    })
}

fn raise(toolbox: &Toolbox, images: &Images, shape: Shape) -> Result<()> {
    let nodes = Node::first(shape.nodes);
    let step = Step::start(format!(
        "bringing up a cluster of {} nodes with {}",
        shape.nodes, shape.proxy
    ));
    underlay::create(&nodes)?;
    credentials::create(&toolbox.files, &nodes)?;
    step.note("control plane");
    control_plane::start(toolbox)?;
    proxy::permit(toolbox, shape.process())?;
    step.note("nodes");
    for &node in &nodes {
        node::start(toolbox, node, images, shape.network)?;
    }
    let mut ranges = Vec::new();
    for &node in &nodes {
        ranges.push((node, node::registered(toolbox, node)?));
    }
    pod_network::set_up(toolbox, shape.network, &ranges)?;
    for &node in &nodes {
        proxy::start(toolbox, shape.process(), node)?;
    }
    if shape.network == Network::Millrace {
        step.note("Millrace");
        installation::apply(toolbox)?;
        installation::wait(toolbox)?;
    }
    step.note("nodes to be ready");
    toolbox.kubectl(&["wait", "--for=condition=Ready", "node", "--all", "--timeout=120s"])?;
    for &node in &nodes {
        proxy::wait_ready(toolbox, shape.process(), node)?;
    }
    balancer::start(toolbox)?;
    step.note("DNS");
    toolbox.apply(&paths::repository()?.join("tests/cluster/manifests/dns.yaml"))?;
    if shape.proxy != Proxy::None {
        let rollout = [
            "rollout",
            "status",
            "deployment/coredns",
            "--namespace=kube-system",
            "--timeout=120s",
        ];
        toolbox.kubectl(&rollout)?;
    }
    step.done();
    eprintln!("  cargo xtask cluster run control kubectl get pods -A");
    Ok(())
}

/// Removes the cluster, or the rest of one.
pub fn down() -> Result<()> {
    let files = Files::locate()?;
    let step = Step::start("removing the cluster");
    let nodes = Node::first(Node::MAX);
    let folders = nodes
        .iter()
        .map(|node| files.node(*node))
        .chain([files.root().to_owned()]);
    let processes: Vec<_> = folders.flat_map(|folder| Process::all(&folder)).collect();
    for process in &processes {
        process.kill()?;
    }
    wait_for("processes to end", Duration::from_secs(20), || {
        match processes.iter().find(|process| process.runs()) {
            Some(process) => bail!("{} still runs", process.name()),
            None => Ok(()),
        }
    })?;
    for &node in &nodes {
        cgroup::remove(node)?;
    }
    underlay::remove()?;
    if files.root().exists() {
        fs::remove_dir_all(files.root()).with_context(|| format!("removing {}", files.root().display()))?;
    }
    step.done();
    Ok(())
}

fn renew() -> Result<()> {
    let shape = current()?.context("no cluster is up")?;
    let toolbox = equip(shape)?;
    toolbox.files.write_own_programs(&toolbox.own)?;
    let nodes = Node::first(shape.nodes);
    if shape.network == Network::Millrace {
        return installation::renew(&toolbox, &nodes);
    }
    for node in nodes {
        proxy::stop(&toolbox, node)?;
        proxy::start(&toolbox, shape.process(), node)?;
        proxy::wait_ready(&toolbox, shape.process(), node)?;
    }
    Ok(())
}

/// Returns only if the command could not be started.
fn enter(place: &str, command: &[OsString]) -> Result<anyhow::Error> {
    let shape = current()?.context("no cluster is up")?;
    let toolbox = equipped(&Files::locate()?)?;
    let mut inside = if place == "control" {
        toolbox.in_control()?
    } else {
        let node = Node::first(shape.nodes)
            .into_iter()
            .find(|node| node.name() == place);
        toolbox
            .in_node(node.with_context(|| format!("there is no place {place}, but control, n1, n2, …"))?)?
    };
    inside.args(command);
    Ok(anyhow::Error::from(inside.exec()).context("entering the place"))
}
