//! The configuration changes while an agent runs: what can change does, the rest is named, and a bad file changes nothing.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use harness::config::DEFAULTS;
use harness::{Agent, Node, World, wait_for};
use serde_json::Value;

const SECOND: Duration = Duration::from_secs(1);

/// What the agent shows of its configuration.
fn shown(node: &Node) -> Value {
    let answer = node.http_get(SocketAddr::from(([127, 0, 0, 1], 10249)), "/configz");
    answer.expect("an answer").json()["millrace.dev"].take()
}

fn complaints(agent: &Agent) -> Vec<String> {
    let status = agent.cli(&["status"]);
    let errors = status["errors"].as_array().expect("errors");
    let about = errors.iter().filter(|error| error["object"] == "configuration");
    about
        .map(|error| error["message"].as_str().expect("text").to_owned())
        .collect()
}

#[test]
fn what_can_change_does_and_the_rest_is_named() {
    harness::require_root!();
    let world = World::with_nodes(1);
    let node = world.node(1);
    let file = node.dir().join("agent.yaml");
    let write = |text: &str| fs::write(&file, format!("{DEFAULTS}{text}")).expect("writing the file");
    write("serviceCIDRs: [10.97.0.0/16]\n");
    let mut agent = node
        .agent()
        .arg("--config")
        .arg(file.display().to_string())
        .start();
    agent.wait_ready(10 * SECOND);
    assert_eq!(shown(node)["serviceCIDRs"], serde_json::json!(["10.97.0.0/16"]));
    let route = |range: &str| {
        let output = node
            .command("ip")
            .args(["route", "show", range])
            .output()
            .expect("ip");
        String::from_utf8_lossy(&output.stdout).contains("millrace0")
    };
    assert!(route("10.97.0.0/16") && !route("10.98.0.0/16"));

    write("serviceCIDRs: [10.98.0.0/16]\nmaps: {flows: 1000}\n");
    wait_for("the new range to be routed", 5 * SECOND, || {
        if route("10.98.0.0/16") && !route("10.97.0.0/16") {
            Ok(())
        } else {
            Err("it is not")
        }
    });
    assert_eq!(shown(node)["serviceCIDRs"], serde_json::json!(["10.98.0.0/16"]));
    assert_ne!(shown(node)["maps"]["flows"], 1000);
    let found = complaints(&agent);
    assert!(
        found.len() == 1 && found[0].starts_with("maps has changed"),
        "{found:?}"
    );

    write("serviceCIDRs: [10.99.0.0\n");
    wait_for("the bad file to be reported", 5 * SECOND, || {
        let found = complaints(&agent);
        if found.len() == 1 && found[0].contains("agent.yaml:3") {
            Ok(())
        } else {
            Err(format!("{found:?}"))
        }
    });
    assert!(route("10.98.0.0/16"), "the last good one stays");
    assert_eq!(agent.cli(&["status"])["ready"], true);

    write("");
    wait_for("the good file to be taken", 5 * SECOND, || {
        let found = complaints(&agent);
        if found.is_empty() && !route("10.98.0.0/16") {
            Ok(())
        } else {
            Err(format!("{found:?}"))
        }
    });
}
