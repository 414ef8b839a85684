//! The pods' network: the bridge plugin on each node, and routes from every node to every other's pods.

use std::fs;

use anyhow::{Context as _, Result};
use serde_json::json;

use super::{
    place::Toolbox,
    site::{Network, Node},
    underlay,
};
use crate::command;

/// Gives each node its range; a node is ready once it has a configuration.
pub fn set_up(toolbox: &Toolbox, network: Network, ranges: &[(Node, Vec<String>)]) -> Result<()> {
    let Network::Bridge = network;
    let nodes: Vec<_> = ranges.iter().map(|(node, _)| *node).collect();
    for (node, ranges) in ranges {
        for range in ranges {
            underlay::route(range, *node, &nodes)?;
        }
        configure(toolbox, *node, ranges).with_context(|| format!("configuring pods of {}", node.name()))?;
    }
    Ok(())
}

fn configure(toolbox: &Toolbox, node: Node, ranges: &[String]) -> Result<()> {
    let subnets: Vec<_> = ranges.iter().map(|range| json!([{"subnet": range}])).collect();
    let conflist = json!({
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": true,
                "hairpinMode": true,
                "mtu": 1500,
                "ipam": {
                    "type": "host-local",
                    "ranges": subnets,
                    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    });
    let file = toolbox.files.node(node).join("pods.conflist");
    fs::write(&file, conflist.to_string()).with_context(|| format!("writing {}", file.display()))?;
    let mut copy = toolbox.in_node(node)?;
    copy.arg("cp").arg(&file).arg("/etc/cni/net.d/10-pods.conflist");
    command::output(&mut copy).map(drop)
}
