//! The network below the cluster: namespaces, a bridge between them, and no uplink.
//!
//! The bridge is in the control plane's namespace, which is also every node's default gateway. A packet from
//! a node to an address outside the cluster ends there.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result};

use super::{
    place::in_netns,
    site::{CONTROL, CONTROL_V4, CONTROL_V6, NETNS, Node},
};
use crate::command;

const BRIDGE: &str = "underlay";

/// Makes the namespaces, the bridge and the veth pairs.
pub fn create(nodes: &[Node]) -> Result<()> {
    ip(&format!("netns add {CONTROL}"))?;
    in_control("link set lo up")?;
    in_control(&format!("link add {BRIDGE} type bridge"))?;
    in_control(&format!("link set {BRIDGE} up"))?;
    in_control(&format!("address add {CONTROL_V4}/24 dev {BRIDGE}"))?;
    in_control(&format!("address add {CONTROL_V6}/64 dev {BRIDGE} nodad"))?;
    for &node in nodes {
        plug_in(node).with_context(|| format!("connecting node {}", node.name()))?;
    }
    Ok(())
}

fn plug_in(node: Node) -> Result<()> {
    let (tag, cable) = (node.tag(), node.cable());
    ip(&format!("netns add {tag}"))?;
    in_control(&format!("link add {cable} type veth peer name eth0 netns {tag}"))?;
    in_control(&format!("link set {cable} master {BRIDGE} up"))?;
    for arguments in [
        "link set lo up".to_owned(),
        format!("address add {}/24 dev eth0", node.v4()),
        format!("address add {}/64 dev eth0 nodad", node.v6()),
        "link set eth0 up".to_owned(),
        format!("route add default via {CONTROL_V4}"),
        format!("-6 route add default via {CONTROL_V6}"),
    ] {
        in_namespace(&tag, &arguments)?;
    }
    sysctl(&tag, "net/ipv4/ip_forward", "1")?;
    sysctl(&tag, "net/ipv6/conf/all/forwarding", "1")
}

/// Adds a route from the control plane to a node for a range of pods. The control plane reaches pods without
/// being a node.
pub fn route_from_control(range: &str, to: Node) -> Result<()> {
    in_control(&route(range, to))
}

/// Adds the routes from the other nodes to a node for a range of pods.
pub fn route_from_nodes(range: &str, to: Node, nodes: &[Node]) -> Result<()> {
    for node in nodes.iter().filter(|node| **node != to) {
        in_namespace(&node.tag(), &route(range, to))?;
    }
    Ok(())
}

fn route(range: &str, to: Node) -> String {
    let (family, via) = if range.contains(':') {
        ("-6", to.v6())
    } else {
        ("-4", to.v4())
    };
    format!("{family} route replace {range} via {via}")
}

/// Removes all existing namespaces of the network.
pub fn remove() -> Result<()> {
    let mut names = vec![CONTROL.to_owned()];
    names.extend(Node::first(Node::MAX).into_iter().map(Node::tag));
    for name in names.iter().filter(|name| Path::new(NETNS).join(name).exists()) {
        ip(&format!("netns delete {name}"))?;
    }
    Ok(())
}

/// Whether a part of the network exists.
pub fn exists() -> bool {
    fs::exists(Path::new(NETNS).join(CONTROL)).unwrap_or(true)
}

fn in_control(arguments: &str) -> Result<()> {
    in_namespace(CONTROL, arguments)
}

fn in_namespace(name: &str, arguments: &str) -> Result<()> {
    ip(&format!("-netns {name} {arguments}"))
}

/// No argument here contains a blank.
fn ip(arguments: &str) -> Result<()> {
    command::output(Command::new("ip").args(arguments.split_whitespace())).map(drop)
}

/// Settings below /proc/sys/net are those of the namespace of the process that opens them.
fn sysctl(namespace: &str, key: &str, value: &str) -> Result<()> {
    let mut shell = in_netns(namespace);
    shell.args(["sh", "-c", "echo \"$1\" > \"/proc/sys/$0\"", key, value]);
    command::output(&mut shell).map(drop)
}
