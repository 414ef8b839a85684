//! Real container runtimes run the plugin, by the description that the agent wrote.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::process::Stdio;
use std::time::Duration;

use harness::cni;
use harness::containers::{Containerd, IMAGE, PROGRAM};
use harness::{Agent, Endpoint, NodeSpec, Probe, Service, World, eventually, wait_for};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(20);

fn started(world: &World) -> Vec<Agent> {
    let mut agents: Vec<_> = world.nodes().iter().map(|node| node.agent().start()).collect();
    for agent in &mut agents {
        agent.wait_ready(SOON * 3);
    }
    for node in world.nodes() {
        eventually("the network is described", SOON, || cni::conflist(node).is_ok());
    }
    agents
}

fn socket(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address, port)
}

/// Asserts that no state of a pod is left on its node.
#[track_caller]
fn nothing_is_left(agent: &Agent) {
    assert_eq!(agent.cli(&["pod", "list"]), json!([]));
    assert_eq!(agent.cli(&["ipam", "list"]), json!([]));
    assert_eq!(agent.cli(&["ipam", "check"])["problems"], json!([]));
    let node = agent.node();
    let links = node.command("ip").args(["-o", "link"]).output().expect("ip");
    let links = String::from_utf8_lossy(&links.stdout).into_owned();
    assert!(!links.contains(": mr") && !links.contains(": ml"), "{links}");
    for (map, entries) in [
        ("PODS", node.table::<16, 24>("PODS").len()),
        ("POD_LINKS", node.table::<4, 16>("POD_LINKS").len()),
        ("HOST_PORTS", node.table::<20, 28>("HOST_PORTS").len()),
    ] {
        assert_eq!(entries, 0, "{map}");
    }
}

fn only_pod(agent: &Agent) -> Value {
    let pods = agent.cli(&["pod", "list"]);
    assert_eq!(pods.as_array().map(Vec::len), Some(1), "{pods}");
    pods[0].clone()
}

#[test]
fn containerd_runs_pods_by_the_cri() {
    harness::require_root!();
    let programs = harness::require_container_runtime!();
    let world = World::builder()
        .node(NodeSpec::millrace())
        .node(NodeSpec::millrace())
        .build();
    let agents = started(&world);
    let far = world.node(2).add_pod("far");
    let _far_server = far.serve_tcp(8080);
    let outside = world.add_client("outside");
    let runtime = Containerd::start(world.node(1), &programs);

    let web = runtime.run_pod(
        "web",
        8080,
        &json!({
            "portMappings": [{"protocol": "TCP", "containerPort": 8080, "hostPort": 80}],
            "annotations": {"kubernetes.io/ingress-bandwidth": "80M", "kubernetes.io/egress-bandwidth": "40M"},
        }),
    );
    let pod = only_pod(&agents[0]);
    assert_eq!(
        (&pod["namespace"], &pod["name"]),
        (&json!("default"), &json!("web"))
    );
    assert_eq!(
        (&pod["ingressBandwidth"], &pod["egressBandwidth"]),
        (&json!(80_000_000), &json!(40_000_000))
    );
    let port = json!([{"hostIP": null, "hostPort": 80, "containerPort": 8080, "protocol": "TCP"}]);
    assert_eq!(pod["hostPorts"], port);
    let client = runtime.run_pod("client", 8080, &json!({}));
    let of = |sandbox| runtime.addresses(sandbox).expect("addresses of a pod");
    let (webs, clients) = (of(&web), of(&client));
    assert_eq!((webs.len(), clients.len()), (2, 2), "one of each family");

    // Another pod on this node, and one on another node, each with its own address.
    for (address, own) in webs.iter().zip(&clients) {
        let reply = wait_for("the other pod to reply", SOON, || {
            runtime.ask(&client, socket(*address, 8080))
        });
        assert_eq!((reply.backend.as_str(), reply.peer.ip()), ("web", *own));
    }
    for (address, own) in far.addresses().iter().zip(&clients) {
        let reply = wait_for("the other node's pod to reply", SOON, || {
            runtime.ask(&client, socket(*address, 8080))
        });
        assert_eq!((reply.backend.as_str(), reply.peer.ip()), ("far", *own));
    }
    let back = far.ask(Probe::Tcp, socket(clients[0], 8080)).expect("a reply");
    assert_eq!(
        (back.backend.as_str(), back.peer.ip()),
        ("client", far.addresses()[0])
    );

    // A Service with a node port.
    let service = Service::new("web").cluster_ip("10.96.0.10").tcp("http", 80, 8080);
    world.apply(&service);
    world.apply_all(service.slices([Endpoint::at(&webs).on_node(world.node(1).name())]));
    let reply = wait_for("the service to reply", SOON, || {
        runtime.ask(&client, "10.96.0.10:80".parse().expect("an address"))
    });
    assert_eq!(reply.backend, "web");
    let reply = wait_for("the host port to reply", SOON, || {
        outside.ask(Probe::Tcp, socket(world.node(1).ip().into(), 80))
    });
    assert_eq!(
        (reply.backend.as_str(), reply.peer.ip()),
        ("web", outside.ip().into())
    );

    for sandbox in [&web, &client] {
        runtime.remove_pod(sandbox);
    }
    nothing_is_left(&agents[0]);
    assert!(
        outside
            .ask(Probe::Tcp, socket(world.node(1).ip().into(), 80))
            .is_err()
    );
}

#[test]
fn ctr_runs_a_container_with_a_network() {
    harness::require_root!();
    let programs = harness::require_container_runtime!();
    let world = World::builder().node(NodeSpec::millrace()).build();
    let agents = started(&world);
    let pod = world.node(1).add_pod("web");
    let server = pod.serve_tcp(8080);
    let runtime = Containerd::start(world.node(1), &programs);
    let to = socket(pod.ip().into(), 8080).to_string();
    let printed = runtime.ctr(&["run", "--rm", "--cni", IMAGE, "short", PROGRAM, "ask", &to]);
    let reply = harness::Reply::parse(&printed.expect("a container that ran")).expect("a reply");
    assert_eq!(reply.backend, "web");
    let range = world.node(1).pod_cidrs()[0];
    assert!(
        range.contains(&reply.peer.ip()) && reply.peer.ip() != pod.ip(),
        "{reply:?}"
    );
    drop(server);
    pod.delete();
    nothing_is_left(&agents[0]);
}

#[test]
fn cnitool_adds_checks_and_deletes() {
    harness::require_root!();
    let programs = harness::require_container_runtime!();
    let world = World::builder().node(NodeSpec::millrace()).build();
    let agents = started(&world);
    let node = world.node(1);
    let netns = node.add_namespace("tool");
    // libcni stores results below /var/lib/cni. The mount keeps those of other programs out.
    let script = r#"
        set -e
        mount -t tmpfs tmpfs /var/lib
        tool() { "$TOOL" "$1" millrace "$NETNS" > /dev/null; echo "$1"; }
        tool add; read; tool check; read; tool del; read; tool del
    "#;
    let capabilities = json!({
        "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}],
        "bandwidth": {"ingressRate": 10_000_000, "ingressBurst": 1_000_000},
    });
    let mut tool = node
        .command("unshare")
        .args(["--mount", "--propagation=private", "bash", "-c", script])
        .env("TOOL", programs.path("cnitool").expect("cnitool"))
        .env("NETNS", &netns)
        .env("NETCONFPATH", cni::conf_dir(node))
        .env("CNI_PATH", cni::bin_dir(node))
        .env(
            "CNI_ARGS",
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=tool",
        )
        .env("CAP_ARGS", capabilities.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("starting cnitool");
    let mut input = tool.stdin.take().expect("a pipe");
    let mut printed = BufReader::new(tool.stdout.take().expect("a pipe")).lines();
    let mut expect = |verb: &str| {
        let line = printed.next().and_then(Result::ok);
        assert_eq!(
            line.as_deref(),
            Some(verb),
            "cnitool failed; its messages are above"
        );
    };
    expect("add");
    let pod = only_pod(&agents[0]);
    assert_eq!(
        (&pod["name"], &pod["ingressBandwidth"]),
        (&json!("tool"), &json!(10_000_000))
    );
    assert_eq!(pod["hostPorts"][0]["hostPort"], 8080);
    for verb in ["check", "del", "del"] {
        writeln!(input).expect("going on");
        expect(verb);
    }
    assert!(tool.wait().expect("waiting for cnitool").success());
    nothing_is_left(&agents[0]);
    node.remove_namespace("tool");
}
