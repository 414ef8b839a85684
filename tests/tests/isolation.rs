//! Agents are separate: each has its own node and its own run directory, and a stopped agent does not disturb
//! the data plane.

use std::fs::{self, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use harness::{
    Agent, ConnectStream, Endpoint, LongFlows, Node, NodeSpec, Place, Pod, Probe, Server, Service, World,
    address, spread, wait_for,
};

const SECOND: Duration = Duration::from_secs(1);
/// The longest wait of a line of a connection for its answer.
const UNNOTICED: Duration = Duration::from_secs(2);
const WEB: [&str; 2] = ["10.96.0.10:80", "[fd00:96::10]:80"];

/// A pod with servers.
fn backend(node: &Node, name: &str) -> (Pod, [Server; 2]) {
    let pod = node.add_pod(name);
    let servers = pod.serve(8080);
    (pod, servers)
}

fn ready(mut agent: Agent) -> Agent {
    agent.wait_ready(10 * SECOND);
    agent
}

/// Two nodes whose agents attach their hooks to one cgroup. The agents get different objects for one service:
/// `one` serves it on the first node and `two` on the second.
struct SharedCgroup {
    world: World,
    clients: [Pod; 2],
    _backends: [(Pod, [Server; 2]); 2],
}

impl SharedCgroup {
    fn build() -> Self {
        let world = World::with_nodes(2);
        let clients = [1, 2].map(|number| world.node(number).add_pod(&format!("client-{number}")));
        let backends = [backend(world.node(1), "one"), backend(world.node(2), "two")];
        for (node, (pod, _)) in world.nodes().iter().zip(&backends) {
            node.source().apply(&Service::web());
            Service::web()
                .slices([Endpoint::of(pod)])
                .iter()
                .for_each(|slice| node.source().apply(slice));
        }
        Self {
            world,
            clients,
            _backends: backends,
        }
    }

    /// An agent whose hooks apply to every socket of the world.
    fn agent(&self, number: usize) -> Agent {
        let parent_cgroup = self.world.fabric().cgroup().parent().expect("the world's cgroup");
        ready(
            self.world
                .node(number)
                .agent()
                .cgroup(Some(parent_cgroup))
                .start(),
        )
    }

    #[track_caller]
    fn assert_served(&self, number: usize) {
        let expected = ["one", "two"][number - 1];
        for place in [&self.clients[number - 1] as &Place, self.world.node(number)] {
            for to in WEB {
                for probe in Probe::ALL {
                    spread(place, probe, address(to), 50).assert_uniform(&[expected]);
                }
            }
        }
    }
}

#[test]
fn agents_of_one_machine_do_not_disturb_each_other() {
    harness::require_root!();
    let topology = SharedCgroup::build();
    let mut first = topology.agent(1);
    let second = topology.agent(2);
    topology.assert_served(1);
    topology.assert_served(2);

    // The first agent stops and starts again, and the second one is not disturbed.
    let vip = address(WEB[0]);
    let flows = LongFlows::start(&topology.clients[1], vip, 20, Duration::from_millis(10)).expect("flows");
    let stream = ConnectStream::start(&topology.clients[1], Probe::Tcp, vip, Duration::from_millis(1));
    let pinned = topology.world.node(2).pinned();
    assert!(first.stop(5 * SECOND).success());
    let state_dir = topology.world.node(1).dir().join("state").display().to_string();
    let removed = topology
        .world
        .node(1)
        .cli(&["uninstall", "--state-dir", &state_dir])
        .expect("a reply");
    assert!(
        removed["removed"]
            .as_array()
            .is_some_and(|removed| !removed.is_empty()),
        "{removed}"
    );
    assert_eq!(pinned.alive(), pinned);
    let error = topology.clients[0].ask_within(Probe::Udp, vip, SECOND / 4);
    assert!(error.is_err(), "nothing of the first agent is left");
    topology.assert_served(2);
    first.start_again();
    first.wait_ready(10 * SECOND);
    topology.assert_served(1);
    flows.wait_progress(5 * SECOND);
    stream.wait_more(50, 5 * SECOND);
    flows.stop().assert_unnoticed(UNNOTICED);
    stream.stop().assert_unnoticed(UNNOTICED);
    assert_eq!(
        second.cli(&["status"])["writes"]["lastSync"],
        second.cli(&["status"])["writes"]["sinceStart"]
    );
}

#[test]
fn sockets_of_foreign_namespaces_are_left_alone() {
    harness::require_root!();
    let topology = SharedCgroup::build();
    let _agents = [topology.agent(1), topology.agent(2)];
    // A separate machine that happens to have the same address, in the same part of the cgroup tree.
    let other_host = topology.world.add_client("stranger");
    for address in ["10.96.0.10/32", "fd00:96::10/128"] {
        other_host.add_address("lo", address.parse().expect("an address"));
    }
    let _server = other_host.serve_tcp(80);
    for to in WEB {
        // The kernel takes a moment to use an address, and longer on a busy machine.
        let reply = wait_for("a reply", 10 * SECOND, || other_host.ask(Probe::Tcp, address(to)));
        assert_eq!(reply.backend, "stranger", "{to}");
        let bound = SocketAddr::new(address(to).ip(), 5353);
        let (server, client) = (
            other_host.udp_bind(bound).expect("a socket"),
            other_host.udp_socket_for(bound),
        );
        let client = client.expect("a socket");
        client.send_to(b"to myself", bound).expect("to send");
        let mut buffer = [0; 16];
        let (_, from) = server.recv_from(&mut buffer).expect("to receive");
        server.send_to(b"and back", from).expect("to send");
        assert_eq!(client.recv_from(&mut buffer).expect("a reply").1, bound);
    }
    // The hooks also serve a pod and a node that come later.
    topology.assert_served(1);
    topology.assert_served(2);
}

#[test]
fn a_stopped_agent_leaves_the_data_plane_serving() {
    harness::require_root!();
    let world = World::with_nodes(2);
    let client = world.node(1).add_pod("client");
    let backends = [backend(world.node(1), "one"), backend(world.node(2), "two")];
    world.apply(&Service::web());
    world.apply_all(Service::web().slices(backends.iter().map(|(pod, _)| Endpoint::of(pod))));
    let mut agent = ready(world.node(1).agent().start());
    let vip = address(WEB[0]);
    let flows = LongFlows::start(&client, vip, 50, Duration::from_millis(10)).expect("flows");
    let streams = Probe::ALL.map(|probe| ConnectStream::start(&client, probe, vip, Duration::from_millis(1)));
    // The agent has work to do and clients ask.
    let churn: Vec<_> = (0..500)
        .map(|n| {
            web_at(
                &format!("more-{n}"),
                &format!("10.96.{}.{}", 1 + n / 250, n % 250),
            )
        })
        .collect();
    world.apply_all(churn);
    let started = Instant::now();
    let status = agent.stop(5 * SECOND);
    println!("stopped within {:?}", started.elapsed());
    assert!(status.success(), "{status}");
    for stream in &streams {
        stream.wait_more(200, 10 * SECOND);
    }
    flows.wait_progress(5 * SECOND);
    for to in WEB {
        for place in [&client as &Place, world.node(1)] {
            for probe in Probe::ALL {
                let spread = spread(place, probe, address(to), 200);
                assert_eq!(spread.failures, [].into());
                assert_eq!(
                    spread.backends(),
                    ["one", "two"],
                    "{} {probe:?} {to}",
                    place.name()
                );
            }
        }
    }
    agent.start_again();
    agent.wait_ready(10 * SECOND);
    flows.wait_progress(5 * SECOND);
    flows.stop().assert_unnoticed(UNNOTICED);
    for stream in streams {
        stream.stop().assert_unnoticed(UNNOTICED);
    }
}

fn web_at(name: &str, ip: &str) -> Service {
    Service::new(name).cluster_ip(ip).tcp("http", 80, 8080)
}

#[test]
fn a_second_agent_with_the_same_run_directory_is_refused() {
    harness::require_root!();
    let world = World::with_nodes(1);
    let node = world.node(1);
    let (client, backend) = (node.add_pod("client"), backend(node, "one"));
    world.apply(&Service::web());
    world.apply_all(Service::web().slices([Endpoint::of(&backend.0)]));
    let first = ready(node.agent().start());
    let pinned = node.pinned();
    let mut second = node.agent().start();
    assert!(!second.wait_ended(5 * SECOND).success());
    let log = second.log();
    let run_dir = node.dir().join("run");
    let message = format!("another agent is running with --run-dir {}", run_dir.display());
    assert!(log.lines().any(|line| line.contains(&message)), "{log}");
    assert_eq!(first.cli(&["status"])["ready"], true, "the first one goes on");
    assert_eq!(pinned.alive(), pinned);
    assert_eq!(
        client.ask(Probe::Tcp, address(WEB[0])).expect("a reply").backend,
        "one"
    );
}

#[test]
fn a_second_agent_with_the_same_bpf_root_is_refused() {
    harness::require_root!();
    let world = World::with_nodes(1);
    let node = world.node(1);
    let mut first = ready(node.agent().start());
    let pinned = node.pinned();
    let objects = format!("dir:{}", node.source().path().display());
    // An agent that is let in would go on, so `timeout` ends it.
    let output = node
        .command("timeout")
        .arg("5")
        .arg(harness::millrace())
        .args([
            "agent",
            "--node-name",
            "n1",
            "--socket-lb",
            "off",
            "--source",
            &objects,
        ])
        .args(["--health-address", "0", "--metrics-address", "0"])
        .arg("--bpf-root")
        .arg(node.bpf_root())
        .arg("--run-dir")
        .arg(node.dir().join("another-run"))
        .arg("--state-dir")
        .arg(node.dir().join("another-state"))
        .output()
        .expect("to run it");
    assert!(!output.status.success(), "{output:?}");
    let message = format!(
        "another agent is running with --bpf-root {}",
        node.bpf_root().display()
    );
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(stderr.contains(&message), "{stderr}");
    assert_eq!(first.cli(&["status"])["ready"], true, "the first one goes on");
    assert_eq!(pinned.alive(), pinned);

    // A killed agent leaves no lock behind that would stop the next one.
    first.restart();
    first.wait_ready(10 * SECOND);
    assert!(first.stop(5 * SECOND).success());
    let state_dir = node.dir().join("state").display().to_string();
    let removed = node
        .cli(&["uninstall", "--state-dir", &state_dir])
        .expect("a reply");
    assert_eq!(removed["left"], serde_json::json!([]), "{removed}");
    assert!(!node.bpf_root().exists());
}

/// Permission bits of a file.
fn mode(path: &Path) -> u32 {
    let metadata = path.symlink_metadata();
    let metadata = metadata.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    metadata.permissions().mode() & 0o7777
}

/// All files and directories below a directory, without symbolic links.
fn below(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut found = Vec::new();
    for path in entries.map(|entry| entry.expect("an entry").path()) {
        if path.is_dir() && !path.is_symlink() {
            found.extend(below(&path));
        }
        if !path.is_symlink() {
            found.push(path);
        }
    }
    found
}

#[test]
fn files_of_an_agent_are_accessible_to_root_alone() {
    harness::require_root!();
    let world = World::builder().node(NodeSpec::millrace()).build();
    let node = world.node(1);
    let [run, state] = ["run", "state"].map(|name| node.dir().join(name));
    // The directories exist with wider permissions, as a container's volume or an older agent makes them.
    for dir in [&run, &state] {
        fs::create_dir_all(dir).expect("a directory");
        fs::set_permissions(dir, Permissions::from_mode(0o755)).expect("to set");
    }
    fs::write(state.join("installed.json"), "{}").expect("writing");
    let agent = ready(node.agent().start());
    let _pod = node.add_pod("pod");
    assert_eq!([mode(&run), mode(&state)], [0o700; 2]);
    assert_eq!(mode(&run.join("agent.sock")), 0o600);
    for path in below(node.bpf_root()) {
        let expected = if path.is_dir() { 0o700 } else { 0o600 };
        assert_eq!(mode(&path), expected, "{}", path.display());
    }
    drop(agent);
}

#[test]
fn without_an_agent_status_is_not_ready() {
    harness::require_root!();
    let world = World::with_nodes(1);
    let node = world.node(1);
    let assert_missing = |when: &str| {
        let output = node.run(&["status"]).expect("to run it");
        assert_eq!(output.status.code(), Some(1), "{when}");
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(status["ready"], false, "{when}: {status}");
        assert_eq!(
            status["waitingFor"],
            serde_json::json!(["agent"]),
            "{when}: {status}"
        );
        for key in ["node", "source", "version", "layoutVersion", "lastChange"] {
            assert!(status.get(key).is_some(), "{when}: {key} is missing in {status}");
        }
        let list = node.run(&["service", "list"]).expect("to run it");
        assert!(!list.status.success() && list.stdout.is_empty(), "{when}");
        let message = String::from_utf8_lossy(&list.stderr).into_owned();
        assert!(message.contains("start `millrace agent`"), "{when}: {message}");
    };
    assert_missing("before the first one");
    let mut agent = ready(node.agent().start());
    assert_eq!(node.run(&["status"]).expect("to run it").status.code(), Some(0));
    agent.kill();
    assert_missing("after it was killed");
    agent.start_again();
    agent.wait_ready(10 * SECOND);
    agent.stop(5 * SECOND);
    assert_missing("after it stopped");
}
