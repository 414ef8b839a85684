//! `millrace uninstall` removes everything of Millrace and nothing else: the node is as it was before the
//! first agent.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

use aya::programs::tc::{NlOptions, TcAttachOptions, qdisc_add_clsact};
use aya::programs::{
    CgroupAttachMode, CgroupSockAddr, CgroupSockAddrAttachType, LinkOrder, SchedClassifier, TcAttachType,
};
use harness::{Agent, Endpoint, Node, NodeSpec, Pod, Probe, Server, Service, World, eventually};
use serde_json::Value;

const SECOND: Duration = Duration::from_secs(1);
const WEB: [&str; 2] = ["10.96.0.10:80", "[fd00:96::10]:80"];

/// Gives a node work for an agent: pods, a service inside the service ranges, and one outside of them.
fn add_workload(node: &Node) -> (Pod, Pod, [Server; 2]) {
    let (client, pod) = (node.add_pod("client"), node.add_pod("web"));
    let servers = pod.serve(8080);
    let service = |name: &str, v4: &str, v6: &str| {
        Service::new(name)
            .cluster_ip(v4)
            .cluster_ip(v6)
            .tcp("http", 80, 8080)
            .udp("dns", 80, 8080)
    };
    for service in [
        service("web", "10.96.0.10", "fd00:96::10"),
        service("unrelated", "10.99.0.10", "fd00:99::10"),
    ] {
        node.source().apply(&service);
        for slice in service.slices([Endpoint::of(&pod)]) {
            node.source().apply(&slice);
        }
    }
    (client, pod, servers)
}

fn started(node: &Node) -> Agent {
    let mut agent = node.agent().start();
    agent.wait_ready(10 * SECOND);
    agent
}

fn uninstall(node: &Node) -> Value {
    let state_dir = node.dir().join("state").display().to_string();
    let output = node
        .run(&["uninstall", "--state-dir", &state_dir])
        .expect("to run it");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// The output of `ip` and `tc` in a namespace, its kernel settings, and the programs on its links.
fn network_state(node: &Node) -> BTreeMap<String, String> {
    let mut state = BTreeMap::new();
    let commands: [(&str, &[&str]); 9] = [
        ("ip", &["-d", "link"]),
        ("ip", &["address"]),
        ("ip", &["-4", "route", "show", "table", "all"]),
        ("ip", &["-6", "route", "show", "table", "all"]),
        ("ip", &["-4", "rule"]),
        ("ip", &["-6", "rule"]),
        ("ip", &["maddress"]),
        ("ip", &["neighbour", "show", "nud", "permanent"]),
        ("tc", &["qdisc"]),
    ];
    for (program, arguments) in commands {
        let output = node.command(program).args(arguments).output().expect("to run it");
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{program} {arguments:?}: {errors}");
        let text = without_timers(&String::from_utf8_lossy(&output.stdout));
        state.insert(format!("{program} {}", arguments.join(" ")), text);
    }
    node.enter(|| {
        settings(Path::new("/proc/sys/net"), &mut state);
        for link in &nix::net::if_::if_nameindex().expect("the links") {
            let link = link.name().to_string_lossy();
            for (side, name) in [
                (TcAttachType::Ingress, "ingress"),
                (TcAttachType::Egress, "egress"),
            ] {
                let programs = SchedClassifier::query_tcx(&link, side).map(|(_, programs)| programs);
                let ids: Vec<_> = programs
                    .iter()
                    .flatten()
                    .map(aya::programs::ProgramInfo::id)
                    .collect();
                state.insert(format!("programs on {link} {name}"), format!("{ids:?}"));
            }
        }
    });
    state
}

/// Whether programs are attached to interfaces by links. If they are filters, `tc` shows their qdisc.
fn has_tcx(node: &Node) -> bool {
    node.enter(|| SchedClassifier::query_tcx("lo", TcAttachType::Ingress).is_ok())
}

/// Removes the remaining times of bridges' timers from a text.
fn without_timers(text: &str) -> String {
    let mut words = text.split(' ').filter(|word| !word.is_empty());
    let mut kept = Vec::new();
    while let Some(word) = words.next() {
        kept.push(word);
        if word.ends_with("_timer") {
            words.next();
        }
    }
    kept.join(" ")
}

/// Kernel settings, without those that cannot be read.
fn settings(directory: &Path, state: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(directory).expect("a directory of settings") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            settings(&path, state);
        } else if let Ok(value) = fs::read_to_string(&path) {
            state.insert(path.display().to_string(), value);
        }
    }
}

#[track_caller]
fn assert_same(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) {
    let keys = before.keys().chain(after.keys());
    for key in keys {
        assert_eq!(before.get(key), after.get(key), "{key}");
    }
}

#[test]
fn a_node_is_as_it_was_before_the_first_agent() {
    harness::require_root!();
    let specs: [fn() -> NodeSpec; 2] = [|| NodeSpec::routed().strict_rp_filter(), NodeSpec::bridged];
    for spec in specs {
        let world = World::builder().node(spec()).build();
        let node = world.node(1);
        let (client, pod, _servers) = add_workload(node);
        // The first packets have been sent by then, so neighbours are resolved.
        node.ask(Probe::Tcp, (pod.ip(), 8080).into()).expect("a reply");
        client.ask(Probe::Tcp, (pod.ip6(), 8080).into()).expect("a reply");
        let before = network_state(node);

        let mut agent = started(node);
        for to in WEB {
            for probe in Probe::ALL {
                client
                    .ask(probe, to.parse().expect("an address"))
                    .expect("a reply");
                node.ask(probe, to.parse().expect("an address")).expect("a reply");
            }
        }
        assert_ne!(
            network_state(node),
            before,
            "the agent did something to take away"
        );
        let pinned = node.pinned();
        assert_eq!((pinned.programs.len(), pinned.maps.len()), (17, 26));
        let on_interfaces = if has_tcx(node) { 2 * 2 + 2 + 1 } else { 0 };
        assert_eq!(
            pinned.links.len(),
            10 + on_interfaces,
            "hooks, two pods, the uplink, our device"
        );

        assert!(agent.stop(5 * SECOND).success());
        assert_eq!(pinned.alive(), pinned, "stopping takes nothing away");
        let reply = uninstall(node);
        for (kind, name) in [
            ("link", "cgroup-connect4"),
            ("program", "from_pod"),
            ("map", "FLOWS"),
            ("device", "millrace0"),
        ] {
            let removed = reply["removed"].as_array().expect("a list");
            assert!(
                removed
                    .iter()
                    .any(|removed| removed["kind"] == kind && removed["name"] == name),
                "{kind} {name} is not among {removed:?}"
            );
        }
        assert_same(&before, &network_state(node));
        eventually("the kernel to free everything", 5 * SECOND, || {
            pinned.alive() == harness::KernelObjects::default()
        });
        for path in [
            node.bpf_root(),
            &node.dir().join("run"),
            &node.dir().join("state"),
        ] {
            assert!(!path.exists(), "{} is left", path.display());
        }
        assert_eq!(
            uninstall(node)["removed"],
            serde_json::json!([]),
            "a second run finds nothing"
        );
        // The directory of manifests belongs to the operator.
        assert!(node.source().path().exists());
        agent.start_again();
        agent.wait_ready(10 * SECOND);
        client
            .ask(Probe::Tcp, WEB[0].parse().expect("an address"))
            .expect("a reply");
    }
}

/// Other programs may rely on kernel settings by then, so the changed settings stay.
#[test]
fn of_a_pod_network_and_node_ports_only_settings_stay() {
    const PORT: u16 = 30_080;
    const STAYS: [&str; 3] = [
        "/proc/sys/net/ipv4/conf/lo/accept_local",
        "/proc/sys/net/ipv4/conf/lo/forwarding",
        "/proc/sys/net/ipv6/conf/lo/forwarding",
    ];
    harness::require_root!();
    let world = World::builder().node(NodeSpec::millrace()).build();
    let node = world.node(1);
    // Forwarding changes other state, such as multicast groups of routers. So it is enabled before the first
    // snapshot.
    node.sysctl("net/ipv4/ip_forward", "1");
    node.sysctl("net/ipv6/conf/all/forwarding", "1");
    for address in world.fabric().addresses() {
        node.ping(*address, SECOND).expect("an echo reply");
    }
    let before = network_state(node);
    let mut agent = started(node);
    let pod = node.add_pod("web");
    let server = pod.serve_tcp(8080);
    let service = Service::web().node_port("http", PORT);
    world.apply(&service);
    world.apply_all(service.slices([Endpoint::of(&pod)]));
    for address in node.addresses() {
        let to = (*address, PORT).into();
        eventually("the node port", 5 * SECOND, || node.ask(Probe::Tcp, to).is_ok());
    }
    drop(server);
    pod.delete();
    assert!(agent.stop(5 * SECOND).success());
    let reply = uninstall(node);
    assert_eq!(reply["left"], serde_json::json!([]), "{reply}");
    let after = network_state(node);
    let keys = before.keys().chain(after.keys());
    let changed: BTreeSet<&String> = keys.filter(|key| before.get(*key) != after.get(*key)).collect();
    let others: Vec<_> = changed
        .iter()
        .filter(|key| !STAYS.contains(&key.as_str()))
        .map(|key| (*key, before.get(*key), after.get(*key)))
        .collect();
    assert!(others.is_empty(), "{others:#?}");
    assert!(!changed.is_empty(), "node ports take settings of the loopback");
}

#[test]
fn remains_of_a_killed_agent_are_removed() {
    harness::require_root!();
    let world = World::with_nodes(1);
    let node = world.node(1);
    let _workload = add_workload(node);
    let before = network_state(node);
    let mut agent = started(node);
    agent.kill();
    assert!(node.dir().join("run/agent.sock").exists());
    uninstall(node);
    assert_same(&before, &network_state(node));
    assert!(!node.dir().join("run").exists());
}

#[test]
fn foreign_things_stay() {
    harness::require_root!();
    let world = World::with_nodes(2);
    let (node, other) = (world.node(1), world.node(2));
    let (client, _pod, _servers) = add_workload(node);
    // Programs of another node's agent stand for those of another project; they do not belong to this node.
    let _other_agent = started(other);
    let programs = other.bpf_root().join("current/programs");

    let mut filter = SchedClassifier::from_pin(programs.join("to_pod")).expect("a program");
    let by_link = has_tcx(node);
    let _filters: Vec<_> = node.enter(|| {
        let attach = |(link, side)| {
            let options = if by_link {
                TcAttachOptions::TcxOrder(LinkOrder::default())
            } else {
                qdisc_add_clsact(link).expect("a qdisc");
                TcAttachOptions::Netlink(NlOptions::default())
            };
            let id = filter
                .attach_with_options(link, side, options)
                .expect("attaching it");
            filter.take_link(id).expect("the link")
        };
        let sides = [
            ("eth0", TcAttachType::Ingress),
            (client.host_interface(), TcAttachType::Egress),
        ];
        sides.map(attach).into()
    });
    let kind = CgroupSockAddrAttachType::Connect4;
    let mut hook = CgroupSockAddr::from_pin(programs.join("connect4"), kind).expect("a program");
    let group = fs::File::open(node.cgroup()).expect("the node's cgroup");
    let hook_link = hook
        .attach(group, CgroupAttachMode::Single)
        .expect("attaching it");
    let hook_link = hook.take_link(hook_link).expect("the link");
    let hook_link: aya::programs::links::FdLink = hook_link.try_into().expect("a link of bpf_link_create");
    let hook_pin = other.bpf_root().parent().expect("the bpffs").join("foreign-hook");
    let hook_link = hook_link.pin(&hook_pin).expect("pinning it");
    node.add_route("198.51.100.0/24".parse().expect("a range"), None, "eth0");
    node.add_route("2001:db8::/32".parse().expect("a range"), None, "eth0");
    let before = network_state(node);

    let mut agent = started(node);
    let foreign_pins = [
        node.bpf_root().join("foreign"),
        node.bpf_root().join("links/foreign"),
    ];
    for path in &foreign_pins {
        let mut program = SchedClassifier::from_pin(programs.join("to_pod")).expect("a program");
        program.pin(path).expect("pinning it");
    }
    fs::write(node.dir().join("state/notes.txt"), "the operator's").expect("to write");
    client
        .ask(Probe::Tcp, WEB[0].parse().expect("an address"))
        .expect("a reply");
    agent.restart();
    agent.wait_ready(10 * SECOND);
    agent.stop(5 * SECOND);

    let reply = uninstall(node);
    assert_same(&before, &network_state(node));
    let left = reply["left"].to_string();
    for path in foreign_pins.iter().chain([&node.dir().join("state/notes.txt")]) {
        assert!(path.exists(), "{} is gone", path.display());
        assert!(
            left.contains(&path.display().to_string()),
            "{} is not mentioned: {left}",
            path.display()
        );
    }
    let id = aya::programs::links::FdLink::from(hook_link)
        .info()
        .expect("its state")
        .id();
    let links = aya::programs::loaded_links().flatten();
    assert!(
        links.map(|link| link.id()).any(|found| found == id),
        "the foreign hook is attached"
    );
    assert!(!node.bpf_root().join("current").exists());
    assert_eq!(
        uninstall(node)["removed"],
        serde_json::json!([]),
        "a second run finds nothing of ours"
    );
}

#[test]
fn while_an_agent_runs_nothing_is_removed() {
    harness::require_root!();
    let world = World::with_nodes(1);
    let node = world.node(1);
    let (client, _pod, _servers) = add_workload(node);
    let mut agent = started(node);
    let (before, pinned) = (network_state(node), node.pinned());
    let output = node.run(&["uninstall"]).expect("to run it");
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && output.stdout.is_empty(), "{message}");
    assert!(
        message.contains("an agent is running with --run-dir"),
        "{message}"
    );
    // An uninstall with another run directory finds the running agent by the bpf root.
    let output = node
        .command(harness::millrace())
        .args(["uninstall", "--run-dir"])
        .arg(node.dir().join("another-run"))
        .arg("--bpf-root")
        .arg(node.bpf_root())
        .arg("--state-dir")
        .arg(node.dir().join("state"))
        .output()
        .expect("to run it");
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && output.stdout.is_empty(), "{message}");
    for expected in [
        "an agent (process ",
        "is running with --bpf-root",
        "stop it first",
    ] {
        assert!(message.contains(expected), "{message}");
    }
    assert_same(&before, &network_state(node));
    assert_eq!(pinned.alive(), pinned);
    assert!(agent.is_running());
    client
        .ask(Probe::Tcp, WEB[0].parse().expect("an address"))
        .expect("a reply");
}
