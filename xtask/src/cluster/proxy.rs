//! The proxy under test, one on each node, in the node's namespaces and cgroup.

use std::{fs, process::Command, time::Duration};

use anyhow::{Context as _, Result, bail};
use serde_json::json;

use super::{
    cgroup,
    place::Toolbox,
    process::Process,
    site::{Node, POD_RANGES, Proxy, both},
    wait::wait_for,
};
use crate::{command, image, kubernetes::Program, paths};

/// The name of the proxy's log and of the file for its process.
const PROCESS: &str = "proxy";

const START: Duration = Duration::from_mins(1);

/// Gives the proxy's user its permissions.
pub fn permit(toolbox: &Toolbox, proxy: Proxy) -> Result<()> {
    if proxy == Proxy::Millrace {
        toolbox.apply(&paths::repository()?.join("tests/cluster/manifests/millrace.yaml"))?;
    }
    Ok(())
}

/// Starts the proxy of a node.
pub fn start(toolbox: &Toolbox, proxy: Proxy, node: Node) -> Result<()> {
    let mut command = toolbox.in_node(node)?;
    match proxy {
        Proxy::Millrace => millrace(toolbox, node, &mut command)?,
        Proxy::KubeProxy => kube_proxy(toolbox, node, &mut command)?,
        Proxy::None => return Ok(()),
    }
    Process::start(&mut command, &toolbox.files.node(node), PROCESS)?;
    Ok(())
}

fn millrace(toolbox: &Toolbox, node: Node, command: &mut Command) -> Result<()> {
    command
        .arg(toolbox.own(image::MILLRACE)?)
        .args(["agent", "--source=kubernetes", "--node-name"])
        .arg(node.name())
        .arg("--kubeconfig")
        .arg(toolbox.files.kubeconfig("millrace"))
        .arg("--cgroup")
        .arg(cgroup::subtree(node)?);
    Ok(())
}

fn kube_proxy(toolbox: &Toolbox, node: Node, command: &mut Command) -> Result<()> {
    let config = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": toolbox.files.kubeconfig("kube-proxy")},
        "mode": "nftables",
        "clusterCIDR": both(POD_RANGES),
        "hostnameOverride": node.name(),
        "oomScoreAdj": 0,
        // A node leaves the limits of the machine's conntrack table alone.
        "conntrack": {"maxPerCore": 0, "min": 0},
        "metricsBindAddress": "0.0.0.0:10249",
    });
    let file = toolbox.files.node(node).join("proxy.json");
    fs::write(&file, config.to_string()).with_context(|| format!("writing {}", file.display()))?;
    command
        .arg(toolbox.programs.path(Program::KubeProxy)?)
        .arg("--v=2")
        .arg("--config")
        .arg(&file);
    Ok(())
}

/// Waits until the proxy of a node is ready.
pub fn wait_ready(toolbox: &Toolbox, proxy: Proxy, node: Node) -> Result<()> {
    let folder = toolbox.files.node(node);
    wait_for("the proxy to serve", START, || {
        if !is_as_asked(toolbox, proxy, node) {
            bail!("it has ended: see {}", folder.join("proxy.log").display());
        }
        if proxy == Proxy::Millrace {
            command::output(
                toolbox
                    .in_node(node)?
                    .arg(toolbox.own(image::MILLRACE)?)
                    .arg("status"),
            )?;
        }
        Ok(())
    })
}

/// Ends the proxy of a node; its entries in the kernel stay.
pub fn stop(toolbox: &Toolbox, node: Node) -> Result<()> {
    let Some(process) = Process::find(&toolbox.files.node(node), PROCESS) else {
        return Ok(());
    };
    process.end_child()?;
    wait_for("the proxy to end", START, || {
        if process.runs() {
            bail!("it still runs");
        }
        Ok(())
    })
}

/// Whether a node has the proxy of the cluster's options.
pub fn is_as_asked(toolbox: &Toolbox, proxy: Proxy, node: Node) -> bool {
    proxy == Proxy::None || runs(toolbox, node)
}

fn runs(toolbox: &Toolbox, node: Node) -> bool {
    Process::find(&toolbox.files.node(node), PROCESS).is_some_and(|process| process.runs())
}
