//! Step: the programmed entries, as the command line shows them.

use anyhow::{Result, ensure};

use crate::console::Console;
use crate::topology::{self, FRONTENDS, Topology};

pub fn run(console: &mut Console, topology: &mut Topology) -> Result<()> {
    console.step(
        "The programmed entries",
        "The agent on each node lists its Services and the use of the kernel's tables.",
    );
    let (node, wanted) = (topology.world.node(1), topology.backends.len());
    for verb in [["service", "list"].as_slice(), &["status"]] {
        let line = format!("millrace {}", verb.join(" "));
        console.doing(format!("running {line} on {}", node.name()));
        console.command(&line, &topology::millrace(node, verb)?);
    }
    for node in topology.world.nodes() {
        console.doing(format!(
            "comparing the entries on {} with the YAML files",
            node.name()
        ));
        let status = node.cli(&["status"])?;
        ensure!(
            status["ready"] == true && status["errors"] == serde_json::json!([]),
            "the status is {status}"
        );
        let services = node.cli(&["service", "list"])?;
        let frontends = services.as_array().map_or(&[] as &[_], Vec::as_slice);
        ensure!(
            frontends.len() == FRONTENDS,
            "the Service has {FRONTENDS} frontends, the node has these: {services}"
        );
        for frontend in frontends {
            let backends = frontend["backends"].as_array().map_or(0, Vec::len);
            ensure!(
                backends == wanted,
                "the Service has {wanted} backends, the node has: {frontend}"
            );
        }
    }
    console.result(&format!(
        "all nodes: ready, no errors, {FRONTENDS} frontends with {wanted} backends each, as in the YAML files"
    ));
    Ok(())
}
