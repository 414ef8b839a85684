//! The plugin beside a real agent: each of them accepts the attachments that the other one made.
//!
//! The agent is `MILLRACE_BIN`, or the one that was built beside the plugin.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests, which panic with what went wrong"
)]

#[expect(dead_code, reason = "this file needs a part of it")]
mod support;

use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proxy_bpf::traffic_control::{Direction, Filter, TrafficControl};
use serde_json::Value;
use support::{World, names, on_a_bare_node, skip};

const SERVICE: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: echo, namespace: default}
spec: {clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10], ports: [{port: 7, targetPort: 7000, protocol: UDP}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: echo-1, namespace: default, labels: {kubernetes.io/service-name: echo}}
addressType: IPv4
endpoints: [{addresses: [10.244.1.2], conditions: {ready: true}}]
ports: [{name: "", port: 7000, protocol: UDP}]
"#;

fn binary() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_BIN_EXE_millrace-cni")).with_file_name("millrace");
    let named = std::env::var_os("MILLRACE_BIN").map(PathBuf::from);
    named.or(Some(beside)).filter(|path| path.exists())
}

struct Agent(Child);

impl Agent {
    fn start(world: &World, binary: &Path) -> Self {
        let option = |name: &str, path: PathBuf| [name.into(), path.into_os_string()];
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(world.path("agent.log"))
            .unwrap();
        let child = Command::new(binary)
            .args(["agent", "--node-name", "n1", "--socket-lb", "off"])
            .args([
                "--metrics-address",
                "127.0.0.1:0",
                "--health-address",
                "127.0.0.1:0",
            ])
            .arg("--source")
            .arg(format!("dir:{}", world.path("objects").display()))
            .args(option("--run-dir", world.path("run")))
            .args(option("--state-dir", world.path("state")))
            .args(option("--bpf-root", world.bpf_root.clone()))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("starting the agent");
        Self(child)
    }

    fn stop(mut self) {
        kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGTERM).unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[track_caller]
fn wait_for(world: &World, what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_mins(2);
    while !condition() {
        let log = fs::read_to_string(world.path("agent.log")).unwrap_or_default();
        assert!(
            Instant::now() < deadline,
            "waiting until {what}; the agent's log: {log}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The interfaces to which `from_own_pod` is attached, according to the agent.
fn attached(world: &World, binary: &Path) -> Vec<String> {
    let output = Command::new(binary)
        .args(["status", "-o", "json", "--run-dir"])
        .arg(world.path("run"))
        .arg("--bpf-root")
        .arg(&world.bpf_root)
        .output()
        .expect("asking the agent");
    let status: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let interfaces = status["programs"]["from_own_pod"]["attachedTo"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    interfaces
        .iter()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect()
}

/// The filters of pods' interfaces, each with its interface, and the number of pinned links.
fn attached_filters(world: &World, interfaces: &[&str]) -> (Vec<(String, Filter)>, usize) {
    let mut control = TrafficControl::open().unwrap();
    let mut filters = Vec::new();
    for interface in interfaces {
        let index = nix::net::if_::if_nametoindex(*interface).unwrap();
        for direction in Direction::ALL {
            let found = control.filters(index, direction).unwrap().into_iter();
            filters.extend(found.map(|filter| ((*interface).to_owned(), filter)));
        }
    }
    let pins = names(&world.bpf_root.join("links"));
    let links = pins.iter().filter(|name| name.ends_with("_pod")).count();
    (filters, links)
}

#[test]
fn an_agent_and_the_plugin_adopt_what_the_other_attached() {
    let Some(binary) = binary() else {
        return skip("no agent beside the plugin: build proxy-agent, or name one with MILLRACE_BIN");
    };
    on_a_bare_node(|world| {
        fs::create_dir(world.path("objects")).unwrap();
        fs::write(world.path("objects/echo.yaml"), SERVICE).unwrap();
        let agent = Agent::start(world, &binary);
        wait_for(world, "there are pins", || {
            world.bpf_root.join("current").exists()
        });
        let server = world.pod("server");
        let host_name = |result: &Value| result["interfaces"][0]["name"].as_str().unwrap().to_owned();
        let first = host_name(&world.add("server", &server).done());
        wait_for(world, "the agent has seen the first pod", || {
            attached(world, &binary).contains(&first)
        });
        agent.stop();
        // ADD works without an agent too.
        let client = world.pod("client");
        let second = host_name(&world.add("client", &client).done());
        let before = attached_filters(world, &[&first, &second]);
        assert_eq!((before.0.len(), before.1), (4, 0), "{before:?}");
        let qdiscs = [&first, &second].map(|interface| {
            let index = nix::net::if_::if_nametoindex(interface.as_str()).unwrap();
            world.bpf_root.join("qdiscs").join(index.to_string())
        });
        assert!(qdiscs.iter().all(|qdisc| qdisc.exists()), "{qdiscs:?}");
        through_the_service(&server, &client);
        let agent = Agent::start(world, &binary);
        wait_for(world, "the agent has found both", || {
            let attached = attached(world, &binary);
            attached.contains(&first) && attached.contains(&second)
        });
        assert_eq!(
            attached_filters(world, &[&first, &second]),
            before,
            "the agent has attached nothing anew"
        );
        through_the_service(&server, &client);
        let log = fs::read_to_string(world.path("agent.log")).unwrap();
        assert!(!log.contains("ERROR"), "{log}");
        for container in ["server", "client"] {
            world.del(container, None).done();
        }
        wait_for(world, "nothing is left", || {
            // The agent's own interfaces may keep some qdiscs: before tcx they need them too.
            !qdiscs.iter().any(|qdisc| qdisc.exists()) && world.namespaces().is_empty()
        });
        agent.stop();
    });
}

/// Sends a request from one pod to the server in another by the service's address.
fn through_the_service(server: &Path, client: &Path) {
    let timeout = Some(Duration::from_secs(5));
    let open = |port| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
        socket.set_read_timeout(timeout).unwrap();
        socket
    };
    let server = World::inside(server, || open(7000));
    let client = World::inside(client, || open(0));
    client.send_to(b"hello", "10.96.0.10:7").unwrap();
    let (_, from) = server.recv_from(&mut [0; 16]).expect("the request arrives");
    server.send_to(b"hello", from).unwrap();
    let (_, from) = client.recv_from(&mut [0; 16]).expect("the reply arrives");
    assert_eq!(from.to_string(), "10.96.0.10:7");
}
