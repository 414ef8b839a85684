//! Addresses of pods, and how the agent and the command line manage them.

use std::fs;
use std::path::PathBuf;
use std::process::Output;
use std::time::Duration;

use harness::cni::{self, Attachment, PodSpec};
use harness::{Agent, Node, NodeSpec, World, eventually, wait_for};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(20);

fn world() -> World {
    World::builder().node(NodeSpec::millrace()).build()
}

fn started(node: &Node) -> Agent {
    let mut agent = node.agent().start();
    agent.wait_ready(SOON * 3);
    agent
}

fn lease_dir(node: &Node) -> PathBuf {
    node.dir().join("state/networks/millrace")
}

/// The addresses and their holders, from `ipam list`.
fn leases(agent: &Agent) -> Vec<(String, String, String)> {
    let listed = agent.cli(&["ipam", "list"]);
    let text = |entry: &Value, key: &str| entry[key].as_str().unwrap_or_default().to_owned();
    let entry = |entry: &Value| {
        (
            text(entry, "address"),
            text(entry, "containerID"),
            text(entry, "state"),
        )
    };
    listed.as_array().expect("a list").iter().map(entry).collect()
}

fn lease(address: &str, container: &str, state: &str) -> (String, String, String) {
    (address.to_owned(), container.to_owned(), state.to_owned())
}

#[track_caller]
fn fails_with(output: &Output, what: &str) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && error.contains(what),
        "{what}: {error}"
    );
}

/// Makes the note of a pod look two minutes older.
fn age_note(node: &Node, host_interface: &str) {
    let path = lease_dir(node).join("millrace").join(host_interface);
    let mut document: Value = serde_json::from_slice(&fs::read(&path).expect("a note")).expect("a note");
    let made = document["sinceBootMs"].as_u64().expect("when it was made");
    document["sinceBootMs"] = json!(made.saturating_sub(120_000));
    fs::write(&path, document.to_string()).expect("writing a note");
}

/// A container with an address from host-local, as a runtime remembers it.
fn former(container: &str) -> Attachment {
    Attachment {
        spec: PodSpec::new(container.trim_end_matches("-container")),
        netns: "/run/netns/gone with the other plugin".into(),
    }
}

#[test]
fn leases_of_host_local_are_adopted_with_no_address_changed() {
    harness::require_root!();
    let world = world();
    let node = world.node(1);
    let dir = lease_dir(node);
    fs::create_dir_all(&dir).expect("a directory");
    let files = [
        ("10.244.1.2", "old1-container\r\neth0"),
        ("10.244.1.3", "old2-container\r\neth0"),
        ("10.244.1.7", "old3-container\r\neth0"),
        ("fd00:244:1::2", "old1-container\r\neth0"),
        ("fd00:244:1::3", "old2-container\r\neth0"),
        ("last_reserved_ip.0", "10.244.1.3"),
        ("last_reserved_ip.1", "fd00:244:1::3"),
        ("lock", ""),
    ];
    for (name, contents) in files {
        fs::write(dir.join(name), contents).expect("a lease");
    }
    let mut agent = started(node);
    let adopted = [
        lease("10.244.1.2", "old1-container", "used"),
        lease("10.244.1.3", "old2-container", "used"),
        lease("10.244.1.7", "old3-container", "used"),
        lease("fd00:244:1::2", "old1-container", "used"),
        lease("fd00:244:1::3", "old2-container", "used"),
    ];
    eventually("the leases are adopted", SOON, || {
        fs::read_dir(dir.join("millrace")).is_ok_and(|notes| notes.count() == 3)
    });
    assert_eq!(leases(&agent), adopted);
    let checked = agent.cli(&["ipam", "check"]);
    assert_eq!(checked["problems"], json!([]));

    // New pods get the addresses after host-local's last one, beside the adopted leases.
    let pods = ["a", "b", "c", "d"].map(|name| node.add_pod(name));
    let given: Vec<_> = pods.iter().map(|pod| pod.ip().to_string()).collect();
    assert_eq!(given, ["10.244.1.4", "10.244.1.5", "10.244.1.6", "10.244.1.8"]);
    assert_eq!(pods[0].ip6().to_string(), "fd00:244:1::4");
    for (name, contents) in &files[..5] {
        assert_eq!(fs::read_to_string(dir.join(name)).expect("a lease"), *contents);
    }
    agent.restart();
    agent.wait_ready(SOON * 3);
    assert_eq!(
        leases(&agent)
            .iter()
            .filter(|lease| adopted.contains(lease))
            .count(),
        adopted.len()
    );

    // Containers with adopted leases are deleted by DEL as usual.
    let called = cni::call(node, "DEL", &former("old1-container"), None).expect("a call");
    assert!(called.success, "{}", called.document);
    let left = leases(&agent);
    assert!(
        !left.iter().any(|(_, container, _)| container == "old1-container"),
        "{left:?}"
    );

    // An operator can also release a lease by hand.
    let refused = node.run(&["ipam", "release", "10.244.1.3"]).expect("a call");
    fails_with(&refused, "10.244.1.3 is in use by container old2-container");
    let released = agent.cli(&["ipam", "release", "10.244.1.3", "--force"]);
    let released: Vec<_> = released["released"].as_array().expect("a list").iter().collect();
    assert_eq!(released.len(), 2, "{released:?}");
    fails_with(
        &node.run(&["ipam", "release", "10.244.1.3"]).expect("a call"),
        "10.244.1.3 has no lease",
    );
}

#[test]
fn leases_of_a_lost_del_are_freed() {
    harness::require_root!();
    let world = world();
    let node = world.node(1);
    let mut agent = started(node);
    let stays = node.add_pod("stays");
    let lost = Attachment {
        spec: PodSpec::new("lost").asking(
            "portMappings",
            json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]),
        ),
        netns: node.add_namespace("lost"),
    };
    let result = cni::call(node, "ADD", &lost, None)
        .expect("a call")
        .done()
        .expect("an ADD");
    let host_interface = result["interfaces"][0]["name"]
        .as_str()
        .expect("a name")
        .to_owned();
    assert_eq!(agent.cli(&["ipam", "check"])["problems"], json!([]));
    assert_eq!(leases(&agent).len(), 4);
    node.remove_namespace("lost");
    eventually("its interface is gone", SOON, || {
        !fs::read_to_string(format!("/proc/{}/net/dev", agent.pid()))
            .expect("interfaces")
            .contains(&host_interface)
    });
    // A runtime has a minute to clean up after itself.
    agent.restart();
    agent.wait_ready(SOON * 3);
    assert_eq!(leases(&agent).len(), 4);
    age_note(node, &host_interface);
    let leaked: Vec<_> = leases(&agent)
        .into_iter()
        .filter(|(_, _, state)| state == "leaked")
        .map(|(_, container, _)| container)
        .collect();
    assert_eq!(leaked, ["lost-container", "lost-container"]);
    let checked = node.run(&["ipam", "check"]).expect("a call");
    assert!(
        !checked.status.success(),
        "{}",
        String::from_utf8_lossy(&checked.stdout)
    );

    agent.stop(SOON);
    let dir = lease_dir(node).display().to_string();
    let without_agent = node.cli(&["ipam", "list", "--data-dir", &dir]).expect("a list");
    assert_eq!(without_agent.as_array().map(Vec::len), Some(4));
    agent.start_again();
    agent.wait_ready(SOON * 3);
    eventually("it is freed", SOON, || leases(&agent).len() == 2);
    assert!(
        agent.log().contains("freed addresses of pods that are gone"),
        "it is logged"
    );
    let checked = agent.cli(&["ipam", "check"]);
    assert_eq!(checked["problems"], json!([]));
    for (map, left) in [
        ("PODS", node.table::<16, 24>("PODS").len()),
        ("POD_LINKS", node.table::<4, 16>("POD_LINKS").len() + 1),
        ("HOST_PORTS", node.table::<20, 28>("HOST_PORTS").len() + 2),
        ("POD_NETNS", node.table::<8, 4>("POD_NETNS").len() + 1),
    ] {
        assert_eq!(left, 2, "{map}");
    }
    stays.delete();
    assert_eq!(leases(&agent), []);
}

#[test]
fn an_address_in_use_is_released_by_force_with_its_interface() {
    harness::require_root!();
    let world = world();
    let node = world.node(1);
    let agent = started(node);
    let pod = node.add_pod("web");
    let address = pod.ip().to_string();
    let refused = node.run(&["ipam", "release", &address]).expect("a call");
    fails_with(&refused, &format!("{address} is in use by default/web"));
    let released = agent.cli(&["ipam", "release", &address, "--force"]);
    assert_eq!(
        released["released"].as_array().map(Vec::len),
        Some(2),
        "{released}"
    );
    assert_eq!(leases(&agent), []);
    assert_eq!(agent.cli(&["pod", "list"]), json!([]));
    assert_eq!(agent.cli(&["ipam", "check"])["problems"], json!([]));
    // The DEL for the pod succeeds although nothing is left to remove.
    pod.delete();
}

/// A pod's object, as its node's kubelet reports it.
fn object(name: &str, annotations: &Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "annotations": annotations},
        "spec": {"nodeName": "n1"},
        "status": {"phase": "Running"},
    })
}

/// The limits of the only pod, in bits per second.
fn limits(agent: &Agent) -> [Option<u64>; 2] {
    let pods = agent.cli(&["pod", "list"]);
    assert_eq!(pods.as_array().map(Vec::len), Some(1), "{pods}");
    ["ingressBandwidth", "egressBandwidth"].map(|key| pods[0][key].as_u64())
}

#[test]
fn limits_follow_annotations_while_a_pod_runs() {
    harness::require_root!();
    let world = world();
    let node = world.node(1);
    let agent = started(node);
    let runtimes = json!({"ingressRate": 30_000_000, "ingressBurst": 1_000_000});
    let pod = node.add_pod_by_plugin(&PodSpec::new("web").asking("bandwidth", runtimes));
    assert_eq!(limits(&agent), [Some(30_000_000), None]);
    let annotate = |ingress: Option<&str>, egress: Option<&str>| {
        let mut annotations = json!({});
        for (key, value) in [("ingress", ingress), ("egress", egress)] {
            if let Some(value) = value {
                annotations[format!("kubernetes.io/{key}-bandwidth")] = json!(value);
            }
        }
        world.apply(&object("web", &annotations));
    };
    for (ingress, egress, expected) in [
        (Some("10M"), None, [Some(10_000_000), None]),
        (Some("20M"), Some("5M"), [Some(20_000_000), Some(5_000_000)]),
        (Some("20M"), Some("6M"), [Some(20_000_000), Some(6_000_000)]),
        (None, Some("1G"), [Some(30_000_000), Some(1_000_000_000)]),
        // An annotation lowers the runtime's limit, and never raises it.
        (Some("900M"), Some("2M"), [Some(30_000_000), Some(2_000_000)]),
        // An invalid value counts as absent.
        (Some("fast"), None, [Some(30_000_000), None]),
    ] {
        annotate(ingress, egress);
        wait_for("limits to follow", SOON, || {
            let found = limits(&agent);
            if found == expected {
                Ok(())
            } else {
                Err(format!("{found:?} and not {expected:?}"))
            }
        });
        assert_eq!(agent.cli(&["ipam", "check"])["problems"], json!([]));
        let links = node.command("ip").args(["-o", "link", "show"]).output();
        let links = String::from_utf8_lossy(&links.expect("ip").stdout).into_owned();
        let limiters = links.lines().filter(|line| line.contains(": ml")).count();
        assert_eq!(limiters, usize::from(expected[1].is_some()));
    }
    pod.delete();
    assert_eq!(agent.cli(&["pod", "list"]), json!([]));
}
