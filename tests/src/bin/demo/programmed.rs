//! Act: the programmed entries, as the command line shows them.

use anyhow::{Result, ensure};

use crate::shop::{self, FRONTENDS, Shop};
use crate::stage::Stage;

pub fn play(stage: &mut Stage, shop: &mut Shop) -> Result<()> {
    stage.act(
        "What is programmed",
        "The agent on each node tells what it serves and how full the kernel's tables are.",
    );
    let (node, wanted) = (shop.world.node(1), shop.backends.len());
    for verb in [["service", "list"].as_slice(), &["status"]] {
        let line = format!("millrace {}", verb.join(" "));
        stage.doing(format!("running {line} on {}", node.name()));
        stage.command(&line, &shop::millrace(node, verb)?);
    }
    for node in shop.world.nodes() {
        stage.doing(format!(
            "comparing what is programmed on {} with what was asked for",
            node.name()
        ));
        let status = node.cli(&["status"])?;
        ensure!(
            status["ready"] == true && status["errors"] == serde_json::json!([]),
            "status says {status}"
        );
        let services = node.cli(&["service", "list"])?;
        let frontends = services.as_array().map_or(&[] as &[_], Vec::as_slice);
        ensure!(
            frontends.len() == FRONTENDS,
            "{FRONTENDS} frontends were asked for, these are programmed: {services}"
        );
        for frontend in frontends {
            let backends = frontend["backends"].as_array().map_or(0, Vec::len);
            ensure!(backends == wanted, "{wanted} backends were asked for: {frontend}");
        }
    }
    stage.result(&format!(
        "all nodes: ready, no errors, {FRONTENDS} frontends with {wanted} backends each, as the YAML says"
    ));
    Ok(())
}
