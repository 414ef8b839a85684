//! The configuration changes while an agent runs. The agent applies the settings that it can change, and
//! names the others. It rejects a bad file as a whole.

use std::fmt::Debug;
use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use harness::config::DEFAULTS;
use harness::{Agent, Endpoint, Node, Place, Probe, Service, World, address, wait_for};
use proxy_common::maps::Reason;
use serde_json::{Value, json};

const SECOND: Duration = Duration::from_secs(1);

/// The configuration in the agent's status.
fn shown(node: &Node) -> Value {
    let reply = node.http_get(SocketAddr::from(([127, 0, 0, 1], 10249)), "/configz");
    reply.expect("a reply").json()["millrace.dev"].take()
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
fn changeable_settings_are_applied_and_others_are_named() {
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
    assert_eq!(shown(node)["serviceCIDRs"], json!(["10.97.0.0/16"]));
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
    assert_eq!(shown(node)["serviceCIDRs"], json!(["10.98.0.0/16"]));
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

/// Waits until `look` returns this value.
#[track_caller]
fn wait_until<T: PartialEq + Debug>(what: &str, so: &T, look: impl Fn() -> T) {
    wait_for(what, 5 * SECOND, || {
        let found = look();
        if found == *so {
            Ok(())
        } else {
            Err(format!("{found:?}"))
        }
    });
}

/// Settings are changed in the file and back. Clients and the backend show their effect.
#[test]
fn changed_settings_affect_the_traffic() {
    const PORT: u16 = 30_080;
    const EXTERNAL: &str = "198.51.100.7";
    const MORE: [&str; 2] = ["192.168.50.77", "fd00:50::77"];
    harness::require_root!();
    let world = World::with_nodes(1);
    let node = world.node(1);
    for (address, length) in MORE.iter().zip([24, 64]) {
        node.add_address("eth0", format!("{address}/{length}").parse().expect("an address"));
    }
    let [client, web] = ["client", "web"].map(|name| node.add_pod(name));
    let _server = web.serve_tcp(8080);
    let outside = world.add_client("outside");
    for range in [format!("{EXTERNAL}/32"), "10.96.0.0/16".to_owned()] {
        outside.route_via(range.parse().expect("a range"), node);
    }
    let service = Service::new("web")
        .cluster_ip("10.96.0.10")
        .tcp("http", 80, 8080)
        .node_port("http", PORT)
        .set("externalIPs", json!([EXTERNAL]));
    world.apply(&service);
    world.apply_all(service.slices([Endpoint::of(&web)]));
    let file = node.dir().join("agent.yaml");
    let write = |text: &str| fs::write(&file, format!("{DEFAULTS}{text}")).expect("writing the file");
    write("");
    let path = file.display().to_string();
    let mut agent = node.agent().arg("--config").arg(path).start();
    agent.wait_ready(10 * SECOND);

    let (vip, external) = (address("10.96.0.10:80"), SocketAddr::new(ip(EXTERNAL), 80));
    let [first, second] = [IpAddr::from(node.ip()), ip(MORE[0])];
    let ports = [first, second].map(|address| SocketAddr::new(address, PORT));
    let seen = |from: &Place, to: SocketAddr| {
        let reply = from.ask_within(Probe::Tcp, to, SECOND / 2).ok();
        reply.map(|reply| reply.peer.ip().to_canonical())
    };
    // The client addresses that the backend sees by the external address and both node ports.
    let by_all = || [external, ports[0], ports[1]].map(|to| seen(&outside, to));
    let usual = [Some(first), Some(first), None];
    wait_until("the defaults", &usual, by_all);

    write("externalIPs: false\n");
    wait_until("no external address", &[None, Some(first), None], by_all);
    write(&format!("nodePortAddresses: [{second}/32]\n"));
    wait_until("the other node port", &[Some(first), None, Some(first)], by_all);
    write(&format!("nodeAddresses: [{}, \"{}\"]\n", MORE[0], MORE[1]));
    wait_until("the other address", &[Some(second), None, Some(second)], by_all);
    write("");
    wait_until("the defaults again", &usual, by_all);

    // A client outside of the pod ranges is masqueraded with the node's address at a cluster IP.
    let by_cluster_ip = || seen(&outside, vip);
    wait_until("a client that is no pod", &Some(first), by_cluster_ip);
    write(&format!("clusterCIDRs: [{}/32]\n", outside.ip()));
    wait_until("a client that is one", &Some(outside.ip().into()), by_cluster_ip);

    let bind = || node.tcp_listen(PORT).map(drop).map_err(|error| error.kind());
    assert_eq!(bind(), Err(ErrorKind::PermissionDenied));
    write("protectNodePorts: false\n");
    wait_until("the node to bind the port", &Ok(()), bind);
    write("");
    wait_until("the port to be kept", &Err(ErrorKind::PermissionDenied), bind);

    let is_hooked = || {
        let connects = || node.counters()[Reason::SocketConnect as usize];
        let before = connects();
        let peer = seen(&client, vip);
        (peer, connects() > before)
    };
    let [own, nodes] = [client.ip(), node.ip()].map(|ip| Some(IpAddr::from(ip)));
    wait_until("sockets to be translated", &(own, true), is_hooked);
    write("socketLB: \"off\"\n");
    wait_until("packets to be translated", &(own, false), is_hooked);
    write("socketLB: \"off\"\nmasqueradeAll: true\n");
    wait_until("all to be masqueraded", &(nodes, false), is_hooked);
    write("");
    wait_until("the defaults in the end", &(own, true), is_hooked);
    assert_eq!(complaints(&agent), [""; 0]);
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}
