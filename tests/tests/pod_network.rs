//! The pod network between nodes: every pod reaches every pod with its own address, directly or through the
//! tunnel. The routes follow the Node objects. `millrace-cni` makes the pods from the description that the
//! agent wrote.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use harness::manifest::Family;
use harness::{
    Agent, Node, NodeSpec, PATIENCE, Place, Pod, Probe, Server, World, cni, eventually, slowness, wait_for,
};
use serde_json::{Value, json};

const SECOND: Duration = Duration::from_secs(1);

/// Two nodes that share a link, and one behind a router.
fn mixed() -> World {
    World::builder()
        .node(NodeSpec::millrace())
        .node(NodeSpec::millrace().strict_rp_filter())
        .node(NodeSpec::millrace().behind_router())
        .build()
}

fn modes(node: &Node) -> BTreeMap<String, Option<String>> {
    let nodes = node.cli(&["node", "list"]).expect("a list");
    let nodes = nodes.as_array().expect("a list").iter();
    let text = |value: &Value| value.as_str().map(str::to_owned);
    nodes
        .map(|node| (text(&node["name"]).expect("a name"), text(&node["mode"])))
        .collect()
}

/// The output of `ip`, as lines.
fn shown(node: &Node, what: &str) -> Vec<String> {
    let output = node
        .command("ip")
        .args(what.split(' '))
        .output()
        .expect("running ip");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {what}: {error}");
    let text = String::from_utf8(output.stdout).expect("text");
    text.lines().map(|line| line.trim_end().to_owned()).collect()
}

/// Millrace's routes to pods.
fn routes(node: &Node) -> Vec<String> {
    let mut routes = shown(node, "-4 route show proto 158");
    routes.extend(shown(node, "-6 route show proto 158"));
    routes
}

fn problems(agent: &Agent) -> Vec<String> {
    let status = agent.cli(&["status"]);
    let errors = status["errors"].as_array().expect("a list").iter();
    errors
        .map(|error| format!("{}: {}", error["object"], error["message"]))
        .collect()
}

/// Makes pods with servers, whose answers contain the client's address.
fn populate(world: &World) -> (Vec<Pod>, Vec<Server>) {
    let mut pods = Vec::new();
    for node in world.nodes() {
        let count = if node.name() == "n1" { 2 } else { 1 };
        for number in 1..=count {
            pods.push(node.add_pod(&format!("{}-pod{number}", node.name())));
        }
    }
    let servers = pods
        .iter()
        .flat_map(|pod| [pod.serve_tcp(8080), pod.serve_udp(8080)]);
    let servers = servers.collect();
    (pods, servers)
}

#[track_caller]
fn assert_reaches(client: &Place, from: IpAddr, server: &Pod, to: IpAddr) {
    for probe in [Probe::Tcp, Probe::Udp] {
        let reply = client.ask(probe, SocketAddr::new(to, 8080));
        let reply = reply.unwrap_or_else(|error| panic!("{} to {to} by {probe:?}: {error}", client.name()));
        assert_eq!(reply.backend, server.name());
        assert_eq!(reply.peer.ip(), from, "{} to {to} by {probe:?}", client.name());
    }
}

/// Asserts that every pod reaches every pod, in every family that both have.
fn assert_all_pods_reach_each_other(pods: &[Pod]) {
    for (client, server) in pods
        .iter()
        .flat_map(|client| pods.iter().map(move |server| (client, server)))
    {
        let mut asked = 0;
        for from in client.addresses() {
            let to = server
                .addresses()
                .iter()
                .find(|to| to.is_ipv4() == from.is_ipv4());
            if let Some(to) = to {
                assert_reaches(client, *from, server, *to);
                asked += 1;
            }
        }
        assert!(
            asked > 0,
            "{} and {} have a family in common",
            client.name(),
            server.name()
        );
    }
}

/// Writes another MTU to the plugin's note of a pod. Otherwise the agent would restore the MTU in the note.
fn note_mtu(pod: &Pod, mtu: u16) {
    let description = cni::conflist(pod.node()).expect("a description");
    let leases = description["plugins"][0]["ipam"]["dataDir"]
        .as_str()
        .expect("a directory");
    let path = Path::new(leases).join("millrace").join(pod.host_interface());
    let text = fs::read(&path).expect("a note");
    let mut note: Value = serde_json::from_slice(&text).expect("a document");
    note["mtu"] = json!(mtu);
    // The agent may read the note at any time.
    let new = pod.node().dir().join("note");
    fs::write(&new, note.to_string()).expect("to write");
    fs::rename(&new, &path).expect("to exchange the note");
}

/// Asserts that the largest possible datagram arrives whole, and that the sender of a larger one gets an
/// error.
fn assert_packets_fit(client: &Pod, server: &Pod, mtu: u16) {
    let own = client.node();
    // As if the pod had been made before the tunnel was needed: its MTU is too large.
    note_mtu(client, 1500);
    client.run_ip("link set eth0 mtu 1500");
    own.run_ip(&format!("link set {} mtu 1500", client.host_interface()));
    for to in server.addresses() {
        let to = SocketAddr::new(*to, 8080);
        let headers = if to.is_ipv4() { 20 + 8 } else { 40 + 8 };
        let socket = client.udp_socket_for(to).expect("a socket");
        socket.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        socket.connect(to).expect("an address");
        let ask = |size: u16| -> std::io::Result<usize> {
            socket.send(&vec![b'?'; usize::from(size - headers)])?;
            socket.recv(&mut [0; 512])
        };
        ask(mtu).unwrap_or_else(|error| panic!("{mtu} bytes to {to}: {error}"));
        let error = ask(mtu + 1).expect_err("too large");
        assert_eq!(
            error.raw_os_error(),
            Some(nix::libc::EMSGSIZE),
            "to {to}: {error}"
        );
        ask(mtu + 1).unwrap_or_else(|error| panic!("in fragments, to {to}: {error}"));
    }
}

#[test]
fn every_pod_reaches_every_pod_with_its_own_address() {
    harness::require_root!();
    let world = mixed();
    let _agents = world.start_agents();
    let expected_mode = |text: &str| Some(text.to_owned());
    let expected = |n1, n2, n3| -> BTreeMap<String, Option<String>> {
        [("n1", n1), ("n2", n2), ("n3", n3)]
            .map(|(name, mode)| (name.to_owned(), expected_mode(mode)))
            .into()
    };
    assert_eq!(modes(world.node(1)), expected("self", "direct", "vxlan"));
    assert_eq!(modes(world.node(3)), expected("vxlan", "vxlan", "self"));
    let (pods, _servers) = populate(&world);
    assert_all_pods_reach_each_other(&pods);
    // Nodes reach pods, and pods reach nodes.
    for node in world.nodes() {
        for pod in &pods {
            for to in pod.addresses() {
                let reply = node.ask(Probe::Tcp, SocketAddr::new(*to, 8080));
                reply.unwrap_or_else(|error| panic!("{} to {}: {error}", node.name(), pod.name()));
                let home = pod.node().address_like(*to);
                pod.ping(home, PATIENCE)
                    .unwrap_or_else(|error| panic!("{} to {home}: {error}", pod.name()));
                node.ping(*to, PATIENCE)
                    .unwrap_or_else(|error| panic!("{} to {to}: {error}", node.name()));
            }
        }
    }
    assert_packets_fit(&pods[0], &pods[3], 1450);
}

#[test]
fn one_family_alone_is_enough() {
    harness::require_root!();
    for (family, room) in [(Family::V4, 1450), (Family::V6, 1430)] {
        let world = World::builder()
            .node(NodeSpec::millrace().only(family))
            .node(NodeSpec::millrace().only(family))
            .node(NodeSpec::millrace().only(family).behind_router())
            .build();
        let _agents = world.start_agents();
        let list = cni::conflist(world.node(1)).expect("a description");
        assert_eq!(list["plugins"][0]["mtu"], json!(room));
        let (pods, _servers) = populate(&world);
        assert!(pods.iter().all(|pod| pod.addresses().len() == 1));
        assert_all_pods_reach_each_other(&pods);
        assert_packets_fit(&pods[0], &pods[3], room);
    }
}

/// The object of a node that does not exist.
fn node_object(address: Option<[&str; 2]>) -> Value {
    let addresses = address.into_iter().flatten();
    let addresses = addresses.map(|ip| json!({"type": "InternalIP", "address": ip}));
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "n9"},
        "spec": {"podCIDR": "10.244.9.0/24", "podCIDRs": ["10.244.9.0/24", "fd00:244:9::/64"]},
        "status": {"addresses": addresses.collect::<Vec<_>>()},
    })
}

#[test]
fn routes_follow_the_nodes_within_a_second() {
    harness::require_root!();
    let world = World::builder().node(NodeSpec::millrace()).build();
    let node = world.node(1);
    let mut agent = node.agent().start();
    agent.wait_ready(10 * SECOND);
    let own = ["unreachable 10.244.1.0/24", "unreachable fd00:244:1::/64"];
    let foreign_routes = || -> Vec<String> {
        let routes = routes(node).into_iter();
        routes
            .filter(|route| !own.iter().any(|own| route.starts_with(own)))
            .collect()
    };
    assert_eq!(
        (routes(node).len(), foreign_routes().len()),
        (2, 0),
        "{:?}",
        routes(node)
    );

    // A node is added on the link, gets another address there, moves behind a router, gets another address
    // there, moves back, and is removed.
    let direct = |v4: &str, v6: &str| {
        [
            format!("{v4} dev eth0 onlink"),
            format!("{v6} dev eth0 metric 1024 onlink"),
        ]
    };
    let tunnel = [
        "10.244.9.0 dev millrace-vxlan onlink".to_owned(),
        "fd00:244:9:: dev millrace-vxlan metric 1024 onlink".to_owned(),
    ];
    let steps = [
        (Some(["192.168.50.99", "fd00:50::99"]), false),
        (Some(["192.168.50.98", "fd00:50::98"]), false),
        (Some(["198.51.100.9", "2001:db8::9"]), true),
        (Some(["198.51.100.8", "2001:db8::8"]), true),
        (Some(["192.168.50.99", "fd00:50::99"]), false),
        (None, false),
    ];
    // A step may take longer on a busy machine, so the median of five rounds counts.
    let mut took: [Vec<Duration>; 6] = Default::default();
    for _ in 0..5 {
        for ((address, tunnelled), took) in steps.into_iter().zip(&mut took) {
            let started = Instant::now();
            match address {
                Some(_) => world.apply(&node_object(address)),
                None => world.delete(&node_object(address)),
            }
            let next_hops = match address {
                None => Vec::new(),
                Some(_) if tunnelled => tunnel.to_vec(),
                Some([v4, v6]) => direct(v4, v6).to_vec(),
            };
            let ranges = ["10.244.9.0/24", "fd00:244:9::/64"];
            let expected: Vec<_> = next_hops
                .iter()
                .zip(ranges)
                .map(|(next_hop, range)| format!("{range} via {next_hop}"))
                .collect();
            wait_for(&format!("the routes to {address:?}"), 5 * SECOND, || {
                let found: Vec<_> = foreign_routes()
                    .iter()
                    .map(|route| route.replace("proto 158 ", "").replace(" pref medium", ""))
                    .collect();
                let fdb = if tunnelled { forwarding(node) } else { Vec::new() };
                let end = address.map(|[v4, _]| format!("dst {v4} "));
                let ends = !tunnelled || (fdb.len() == 1 && end.is_some_and(|end| fdb[0].contains(&end)));
                if found == expected && ends {
                    Ok(())
                } else {
                    Err(format!("{found:?} {fdb:?}, and not {expected:?}"))
                }
            });
            took.push(started.elapsed());
            // The tunnel device is removed after the routes, and the kernel takes some time for a device. It
            // exists as long as the other node, which may send through it even if this node sends directly.
            eventually("the tunnel to be there as long as the node", 5 * SECOND, || {
                let links = shown(node, "link");
                links.iter().any(|line| line.contains("millrace-vxlan")) == address.is_some()
            });
        }
    }
    for (step, took) in steps.into_iter().zip(&mut took) {
        took.sort_unstable();
        assert!(took[2] < SECOND * slowness(), "{step:?} took {took:?}");
    }

    // The agent keeps and reports a route that another program made.
    let foreign = "10.244.9.0/24 via 192.168.50.1";
    node.run_ip(&format!("route add {foreign} dev eth0 metric 7"));
    world.apply(&node_object(Some(["192.168.50.99", "fd00:50::99"])));
    eventually("the foreign route to be reported", 5 * SECOND, || {
        problems(&agent)
            .iter()
            .any(|problem| problem.contains("route 10.244.9.0/24"))
    });
    assert_eq!(foreign_routes().len(), 1, "the one in IPv6");
    assert!(
        shown(node, "route")
            .iter()
            .any(|route| route.starts_with(foreign))
    );
    node.run_ip(&format!("route del {foreign} dev eth0 metric 7"));
    eventually("our route", 5 * SECOND, || foreign_routes().len() == 2);
    // The agent restores its route when another program removes it.
    node.run_ip("route del 10.244.9.0/24");
    eventually("our route", 5 * SECOND, || foreign_routes().len() == 2);
}

/// The tunnel's forwarding entries.
fn forwarding(node: &Node) -> Vec<String> {
    let output = node
        .command("bridge")
        .args(["fdb", "show", "dev", "millrace-vxlan"])
        .output();
    let output = output.expect("running bridge");
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(str::to_owned)
        .collect()
}

#[test]
fn a_restart_writes_nothing_and_an_uninstall_leaves_nothing() {
    harness::require_root!();
    let world = mixed();
    let mut agents = world.start_agents();
    let node = world.node(1);
    let (pods, servers) = populate(&world);
    assert_all_pods_reach_each_other(&pods);
    let conflist = cni::conf_dir(node).join("10-millrace.conflist");
    let plugin = cni::bin_dir(node).join("millrace-cni");
    assert!(fs::read(&plugin).expect("the plugin") == fs::read(harness::millrace_cni()).expect("the plugin"));
    let written = || {
        fs::metadata(&conflist)
            .expect("a file")
            .modified()
            .expect("a time")
    };
    let (before, was_written) = (routes(node), written());

    let mut monitor = node
        .command("ip")
        .args(["monitor", "route", "link", "address", "neigh"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("running ip");
    // `ip monitor` is ready once it shows a change that is made now.
    node.run_ip("neigh replace 192.168.50.200 lladdr 02:00:00:00:02:00 dev eth0 nud permanent");
    let mut output = monitor.stdout.take().expect("its output");
    let mut seen = vec![0; 1 << 16];
    let length = output.read(&mut seen).expect("something");
    assert!(length > 0);
    agents[0].stop(5 * SECOND);
    agents[0].start_again();
    agents[0].wait_ready(10 * SECOND);
    monitor.kill().expect("ending ip");
    monitor.wait().expect("ending ip");
    let mut text = String::new();
    output.read_to_string(&mut text).expect("text");
    for line in text.lines() {
        let of_ours = ["proto 158", "proto 157", "millrace"];
        assert!(
            !of_ours.iter().any(|ours| line.contains(ours)),
            "written anew: {line}"
        );
    }
    assert_eq!((routes(node), written()), (before, was_written));
    assert_all_pods_reach_each_other(&pods);

    // Neither traffic nor the removal of pods needs an agent.
    for agent in &mut agents {
        agent.stop(5 * SECOND);
    }
    assert_all_pods_reach_each_other(&pods);
    assert!(conflist.exists());
    drop(servers);
    pods.into_iter().for_each(Pod::delete);
    let state_dir = node.dir().join("state");
    let output = node
        .run(&["uninstall", "--state-dir", &state_dir.display().to_string()])
        .expect("to run it");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let reply: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(reply["left"], json!([]), "{reply}");
    assert_eq!(routes(node), [""; 0]);
    let links = shown(node, "-o link");
    assert!(!links.iter().any(|link| link.contains("millrace")), "{links:?}");
    for path in [&conflist, &plugin, &state_dir] {
        assert!(!path.exists(), "{} is left", path.display());
    }
}
