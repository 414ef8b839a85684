//! A node: containerd and kubelet in namespaces of their own.
//!
//! A node is a network namespace. Below it are mount, process id, host name and IPC namespaces, whose first
//! process is `tests/cluster/node.sh`. When that process ends, the kernel ends all processes of the node. The
//! script makes these namespaces and the mounts, which only a process inside can make. This module makes the
//! configurations of containerd and kubelet.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, bail};
use serde_json::json;

use super::{
    cgroup,
    images::{self, Images},
    installation,
    place::{Toolbox, in_netns},
    process::Process,
    site::{DNS_SERVICE, Network, Node},
    wait::wait_for,
};
use crate::{kubernetes::Program, paths};

/// The process that holds the node, parent of its first one.
pub const PROCESS: &str = "node";

/// The limit for the start. The import of the images takes most of it.
const START: Duration = Duration::from_mins(2);

/// Starts a node; it registers itself with the API server.
pub fn start(toolbox: &Toolbox, node: Node, images: &Images, network: Network) -> Result<()> {
    let folder = toolbox.files.node(node);
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    cgroup::create(node)?;
    let write = |name: &str, text: String| {
        fs::write(folder.join(name), text).with_context(|| format!("writing {name} of {}", node.name()))
    };
    write("containerd.toml", containerd(toolbox, node))?;
    write("kubelet.json", kubelet(toolbox, node))?;

    let mut command = in_netns(&node.tag());
    command
        .arg("bash")
        .arg(paths::repository()?.join("tests/cluster/node.sh"))
        .arg(toolbox.programs.path(Program::Kubelet)?)
        .args(kubelet_flags(toolbox, node));
    toolbox.equip(&mut command)?;
    command
        .env("NODE", node.name())
        .env("ADDRESS", node.v4())
        .env("FOLDER", &folder)
        .env("IMAGES", images.folder())
        .env(
            "PLUGINS",
            toolbox.tools.join("usr/lib/cni").join(plugins(network)),
        )
        .env("CGROUP", cgroup::of(node)?);
    if network == Network::Millrace {
        command.env("IMAGE", installation::image(toolbox));
    }
    Process::start(&mut command, &folder, PROCESS)?;
    Ok(())
}

/// The distribution's plugins that a node has: all of them, or the one that containerd calls for every pod.
fn plugins(network: Network) -> &'static str {
    match network {
        Network::Bridge => ".",
        Network::Millrace => "loopback",
    }
}

/// Waits until the API server knows the node and the ranges of its pods. Returns the ranges.
pub fn registered(toolbox: &Toolbox, node: Node) -> Result<Vec<String>> {
    let log = toolbox.files.node(node).join("node.log");
    wait_for("a node to register", START, || {
        let holder = Process::find(&toolbox.files.node(node), PROCESS);
        if !holder.is_some_and(|holder| holder.runs()) {
            bail!("node {} has ended: see {}", node.name(), log.display());
        }
        let path = "jsonpath={.spec.podCIDRs[*]}";
        let ranges = toolbox.kubectl(&["get", "node", &node.name(), "--output", path])?;
        let ranges: Vec<_> = ranges.split_whitespace().map(str::to_owned).collect();
        if ranges.is_empty() {
            bail!("node {} has no range for its pods yet", node.name());
        }
        Ok(ranges)
    })
}

fn containerd(toolbox: &Toolbox, node: Node) -> String {
    let path = |path: PathBuf| path.display().to_string();
    let mut text = include_str!("../../../tests/cluster/containerd.toml").to_owned();
    for (name, value) in [
        ("ROOT", path(toolbox.files.node(node).join("containerd"))),
        ("SOCKET", "/run/containerd/containerd.sock".to_owned()),
        ("PAUSE", images::PAUSE.to_owned()),
        ("RUNC", path(toolbox.tools.join("usr/sbin/runc"))),
        ("CNI_BIN", "/opt/cni/bin".to_owned()),
        ("CNI_CONF", "/etc/cni/net.d".to_owned()),
        ("CNI_LOOPBACK", "false".to_owned()),
    ] {
        text = text.replace(&format!("@{name}@"), &value);
    }
    text
}

fn kubelet(toolbox: &Toolbox, node: Node) -> String {
    let config = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": toolbox.files.file("ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "clusterDNS": [DNS_SERVICE],
        "clusterDomain": "cluster.local",
        "resolvConf": "/etc/resolv.conf",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{}", node.tag()),
        // Properties of development machines: cgroup v1, swap, no CAP_SYS_RESOURCE, full disks.
        "failCgroupV1": false,
        "failSwapOn": false,
        "oomScoreAdj": 0,
        "protectKernelDefaults": false,
        "evictionHard": {
            "memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%", "nodefs.inodesFree": "1%",
        },
        // A deleted image cannot be pulled again.
        "imageGCHighThresholdPercent": 100,
        "makeIPTablesUtilChains": false,
        "nodeStatusUpdateFrequency": "5s",
        "serializeImagePulls": false,
        "volumePluginDir": "/var/lib/kubelet/volume-plugins",
    });
    config.to_string()
}

fn kubelet_flags(toolbox: &Toolbox, node: Node) -> Vec<String> {
    let name = node.name();
    vec![
        format!(
            "--config={}",
            toolbox.files.node(node).join("kubelet.json").display()
        ),
        format!("--kubeconfig={}", toolbox.files.kubeconfig(&name).display()),
        format!("--hostname-override={name}"),
        format!("--node-ip={},{}", node.v4(), node.v6()),
        format!("--node-labels=topology.kubernetes.io/zone={}", node.zone()),
    ]
}
