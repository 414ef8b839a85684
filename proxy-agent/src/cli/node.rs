//! `millrace node list`: the route from this node to the pods of each node.

use clap::Subcommand;

use super::output::{self, OutputFormat};
use super::table::{Align, Cell, Table};
use super::text::{self, FAINT};
use crate::control::{Client, NodeEntry, NodeMode};

/// `millrace node`
#[derive(Debug, Subcommand)]
pub enum NodeVerb {
    /// List every node with the route to its pods
    List,
}

/// Prints the nodes.
pub fn run(format: OutputFormat, client: &Client, verb: &NodeVerb) -> anyhow::Result<bool> {
    let NodeVerb::List = verb;
    let nodes = client.nodes()?;
    output::print(format, &nodes, || render(&nodes))?;
    Ok(true)
}

/// The list as a table.
pub fn render(nodes: &[NodeEntry]) -> String {
    if nodes.is_empty() {
        return "No nodes are known.\n".into();
    }
    let mut table = Table::new(&[
        ("NODE", Align::Left),
        ("MODE", Align::Left),
        ("ADDRESSES", Align::Left),
        ("POD RANGES", Align::Left),
        ("LAST CHANGE", Align::Left),
    ]);
    for node in nodes {
        let mode = match node.mode {
            Some(NodeMode::Own) => "self".into(),
            Some(NodeMode::Direct) => "direct".into(),
            Some(NodeMode::Vxlan) => "vxlan".into(),
            None => Cell::styled(FAINT, "-"),
        };
        table.row([
            node.name.as_str().into(),
            mode,
            text::few(&node.addresses, 2).into(),
            text::few(&node.pod_cidrs, 2).into(),
            node.last_change.to_string().into(),
        ]);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_for_each_node() {
        let node = |name: &str, mode, addresses: &[&str], ranges: &[&str]| NodeEntry {
            name: name.into(),
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
            pod_cidrs: ranges.iter().map(|text| text.parse().unwrap()).collect(),
            mode,
            last_change: "2026-11-26T20:00:00Z".parse().unwrap(),
        };
        let nodes = [
            node(
                "n1",
                Some(NodeMode::Own),
                &["192.0.2.1", "2001:db8::1"],
                &["10.244.1.0/24", "fd00:1::/64"],
            ),
            node("n2", Some(NodeMode::Vxlan), &["198.51.100.2"], &["10.244.2.0/24"]),
            node("n3", None, &["192.0.2.3"], &[]),
        ];
        assert_eq!(
            anstream::adapter::strip_str(&render(&nodes)).to_string(),
            "\
NODE  MODE   ADDRESSES               POD RANGES                  LAST CHANGE
n1    self   192.0.2.1, 2001:db8::1  10.244.1.0/24, fd00:1::/64  2026-11-26T20:00:00Z
n2    vxlan  198.51.100.2            10.244.2.0/24               2026-11-26T20:00:00Z
n3    -      192.0.2.3                                           2026-11-26T20:00:00Z
"
        );
        assert_eq!(render(&[]), "No nodes are known.\n");
        assert_eq!(
            serde_json::to_value(&nodes[1]).unwrap(),
            serde_json::json!({
                "name": "n2",
                "addresses": ["198.51.100.2"],
                "podCIDRs": ["10.244.2.0/24"],
                "mode": "vxlan",
                "lastChange": "2026-11-26T20:00:00Z",
            })
        );
    }
}
