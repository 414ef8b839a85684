//! The pods' network, where it is not Millrace's: the bridge plugin on each node, and routes from every node
//! to the pods of all others.
//!
//! Packets from pods out of the cluster are masqueraded, as with most network plugins. Here they reach no
//! host. But masquerading makes the kernel of a node track connections, and a proxy and some specs have to
//! work with that.

use std::fs;

use anyhow::{Context as _, Result};
use serde_json::json;

use super::{
    place::Toolbox,
    site::{NODE_RANGES, Network, Node, POD_RANGES, SERVICE_RANGES},
    underlay,
};
use crate::command;

/// Gives each node its ranges; a node is ready once it has a configuration.
pub fn set_up(toolbox: &Toolbox, network: Network, ranges: &[(Node, Vec<String>)]) -> Result<()> {
    for (node, ranges) in ranges {
        for range in ranges {
            underlay::route_from_control(range, *node)?;
        }
    }
    if network == Network::Millrace {
        return Ok(());
    }
    let nodes: Vec<_> = ranges.iter().map(|(node, _)| *node).collect();
    for (node, ranges) in ranges {
        for range in ranges {
            underlay::route_from_nodes(range, *node, &nodes)?;
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
    command::output(&mut copy)?;

    let rules = toolbox.files.node(node).join("masquerade.nft");
    fs::write(&rules, masquerade()).with_context(|| format!("writing {}", rules.display()))?;
    command::output(toolbox.in_node(node)?.args(["nft", "--file"]).arg(&rules)).map(drop)
}

/// Packets from pods to pods, services and nodes keep their source address.
fn masquerade() -> String {
    let rule = |family: &str, pods: &str, services: &str, nodes: &str| {
        format!("    {family} saddr {pods} {family} daddr != {{ {pods}, {services}, {nodes} }} masquerade\n")
    };
    let (pods, services) = (POD_RANGES, SERVICE_RANGES);
    format!(
        "table inet pods {{\n  chain leaving {{\n    type nat hook postrouting priority srcnat\n{}{}  }}\n}}\n",
        rule("ip", pods.0, services.0, NODE_RANGES.0),
        rule("ip6", pods.1, services.1, NODE_RANGES.1),
    )
}
