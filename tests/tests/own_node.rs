//! Node objects that contradict the node where the agent runs, or that lack something. `millrace status`
//! reports it until it is mended.

use std::net::SocketAddr;
use std::time::Duration;

use harness::{Agent, Endpoint, Node, NodeSpec, Probe, Service, World, eventually, wait_for};
use proxy_common::maps::Reason;
use serde_json::{Value, json};

const SECOND: Duration = Duration::from_secs(1);
/// The time limit until the status names a change.
const NAMED: Duration = Duration::from_secs(3);
/// The time limit after a start of the agent.
const STARTED: Duration = Duration::from_secs(10);

/// Waits after a change until `waitingFor` and the errors in the status are exactly these. An error is a pair
/// of an object and a part of the message.
#[track_caller]
fn wait_reported(node: &Node, waiting_for: &[&str], errors: &[(&str, &str)]) {
    wait_told_within(NAMED, node, waiting_for, errors);
}

#[track_caller]
fn wait_told_within(limit: Duration, node: &Node, waiting_for: &[&str], errors: &[(&str, &str)]) {
    let what = format!("{waiting_for:?} and {errors:?}");
    wait_for(&what, limit, || {
        let status = node
            .cli(&["status"])
            .map_err(|error| json!(format!("{error:#}")))?;
        let listed = status["errors"].as_array().cloned().unwrap_or_default();
        let fits = |(error, (object, part)): (&Value, &(&str, &str))| {
            let message = error["message"].as_str().unwrap_or_default();
            error["object"] == *object && message.contains(part)
        };
        let is_it = listed.len() == errors.len()
            && listed.iter().zip(errors).all(fits)
            && status["waitingFor"] == json!(waiting_for)
            && status["ready"] == waiting_for.is_empty();
        if is_it { Ok(()) } else { Err(status) }
    });
}

/// Starts an agent and waits until it has received all objects.
fn start(node: &Node) -> Agent {
    let agent = node.agent().start();
    wait_for("the first lists", STARTED, || {
        let status = node.cli(&["status"]).map_err(|error| format!("{error:#}"))?;
        if status["sync"].is_null() {
            Err(status.to_string())
        } else {
            Ok(())
        }
    });
    agent
}

/// The Node object under another name.
fn called(object: &Value, name: &str) -> Value {
    let mut object = object.clone();
    object["metadata"]["name"] = json!(name);
    object
}

#[test]
fn a_name_that_no_node_has_is_reported_until_a_node_has_it() {
    harness::require_root!();
    let world = World::with_nodes(1);
    let node = world.node(1);
    let own = node.object();
    let full = called(&own, "n1.example.internal");
    world.apply(&full);
    world.delete(&own);
    let agent = start(node);
    let address = own["status"]["addresses"][0]["address"]
        .as_str()
        .expect("an address");
    let expected = format!(
        "Node n1.example.internal has this node's address {address}: start with --node-name n1.example.internal"
    );
    let waiting_for = ["a Node called n1 (see errors)"];
    wait_told_within(STARTED, node, &waiting_for, &[("Node n1", &expected)]);
    assert!(agent.log().contains(&expected), "{}", agent.log());
    // Both Node objects exist: one of them claims addresses that are not its own.
    world.apply(&own);
    let addresses = own["status"]["addresses"].as_array().expect("a list");
    let duplicates: Vec<_> = addresses
        .iter()
        .map(|entry| format!("it has the address {},", entry["address"].as_str().expect("text")))
        .collect();
    let mut duplicates: Vec<_> = duplicates
        .iter()
        .map(|duplicate| ("Node n1.example.internal", duplicate.as_str()))
        .collect();
    // IPv4 addresses come first.
    duplicates.sort_by_key(|(_, duplicate)| duplicate.contains("::"));
    wait_reported(node, &[], &duplicates);
    world.delete(&full);
    wait_reported(node, &[], &[]);
}

#[test]
fn an_address_of_two_nodes_is_reported_on_both() {
    harness::require_root!();
    let world = World::with_nodes(2);
    let [one, other] = [world.node(1), world.node(2)];
    let _agents = world.start_agents();
    let mut object = other.object();
    let duplicate = one.object()["status"]["addresses"][0].clone();
    let expected = format!(
        "it has the address {}, ",
        duplicate["address"].as_str().expect("text")
    );
    object["status"]["addresses"]
        .as_array_mut()
        .expect("a list")
        .push(duplicate);
    world.apply(&object);
    wait_reported(one, &[], &[("Node n2", &expected)]);
    wait_reported(other, &[], &[("Node n1", &expected)]);
    world.apply(&other.object());
    wait_reported(one, &[], &[]);
    wait_reported(other, &[], &[]);
}

#[test]
fn a_node_that_comes_late_is_waited_for_without_an_alarm() {
    harness::require_root!();
    let world = World::with_nodes(2);
    let node = world.node(1);
    world.delete(&node.object());
    let agent = start(node);
    let waiting_for = ["the Node n1, which its kubelet registers"];
    wait_told_within(STARTED, node, &waiting_for, &[]);
    world.apply(&node.object());
    wait_reported(node, &[], &[]);
    assert!(!agent.log().contains("no Node has this name"), "{}", agent.log());
}

#[test]
fn a_family_without_a_node_address_is_reported_until_it_has_one() {
    harness::require_root!();
    let world = World::builder().node(NodeSpec::millrace()).build();
    let node = world.node(1);
    let _agents = world.start_agents();
    wait_told_within(STARTED, node, &[], &[]);
    let own = node.object();
    for (family, flag, place) in [("IPv4", "-4", 0), ("IPv6", "-6", 1)] {
        let address = node.addresses()[place];
        assert_eq!(address.is_ipv4(), family == "IPv4");
        let mut without = own.clone();
        let listed = without["status"]["addresses"].as_array_mut().expect("a list");
        listed.retain(|entry| entry["address"] != json!(address));
        world.apply(&without);
        let length = if address.is_ipv4() { 24 } else { 64 };
        node.run_ip(&format!("{flag} addr flush dev eth0 scope global"));
        let object = format!("{family} address of this node");
        let advice = format!("Give eth0 a global {family} address");
        wait_reported(node, &[], &[(&object, &advice)]);
        node.run_ip(&format!("{flag} addr add {address}/{length} dev eth0"));
        wait_reported(node, &[], &[]);
        world.apply(&own);
    }
}

/// The pods have both families. The agent knows at its start that the node has no IPv6 address.
#[test]
fn a_family_that_is_missing_at_the_start_is_named_with_what_fails() {
    harness::require_root!();
    let world = World::builder().node(NodeSpec::millrace()).build();
    let node = world.node(1);
    let (own, address) = (node.object(), node.ip6());
    let mut without = own.clone();
    let listed = without["status"]["addresses"].as_array_mut().expect("a list");
    listed.retain(|entry| entry["address"] != json!(address));
    world.apply(&without);
    node.run_ip("-6 addr flush dev eth0 scope global");
    let agent = start(node);
    let lacking = ("IPv6 address of this node", "no pod reaches itself by a service");
    wait_reported(node, &[], &[lacking]);
    let status = agent.cli(&["status"]);
    assert_eq!(status["errors"][0]["code"], "AddressFamilyMissing");

    let [web, client] = ["web", "client"].map(|name| node.add_pod(name));
    let _servers = web.serve(8080);
    let service = Service::new("web")
        .cluster_ip("fd00:96::30")
        .tcp("http", 53, 8080)
        .udp("dns", 53, 8080);
    world.apply_all(service.slices([Endpoint::of(&web)]));
    world.apply(&service);
    let to: SocketAddr = "[fd00:96::30]:53".parse().expect("an address");
    eventually("the service from another pod", 5 * SECOND, || {
        client.ask_within(Probe::Udp, to, SECOND).is_ok()
    });
    let dropped = || node.counters()[Reason::NoNodeAddress as usize];
    let before = dropped();
    let reply = web.ask_within(Probe::Udp, to, SECOND);
    assert!(reply.is_err(), "the status says that this fails: {reply:?}");
    assert!(dropped() > before, "for this reason and no other");

    // The advice of the message.
    node.run_ip(&format!("-6 addr add {address}/64 dev eth0"));
    world.apply(&own);
    wait_reported(node, &[], &[]);
    for (place, probe) in [(&*web, Probe::Udp), (&**node, Probe::UdpConnected)] {
        eventually(&format!("the service from {}", place.name()), 5 * SECOND, || {
            place.ask_within(probe, to, SECOND).is_ok()
        });
    }
}
