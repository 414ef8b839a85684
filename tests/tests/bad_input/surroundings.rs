//! Surroundings that lack something, or that hold objects of other programs.
//!
//! An agent that cannot start reports what it lacks and changes nothing: the entries of an earlier agent go
//! on serving.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use aya::programs::SchedClassifier;
use harness::config::DEFAULTS;
use harness::{
    Agent, AgentBuilder, Endpoint, Node, NodeSpec, Place, Probe, Service, World, address, wait_for,
};

use crate::fixture::{Fixture, SECOND, errors, started};

/// Starts an agent that programs everything, and ends it. Then starts another one that has to give up, and
/// returns its last messages.
#[track_caller]
fn last_error(fixture: &Fixture, change: impl FnOnce(AgentBuilder) -> AgentBuilder) -> String {
    let mut first = started(fixture.node().agent());
    assert!(first.stop(5 * SECOND).success());
    let reported = first.log().len();
    let pinned = fixture.node().pinned();
    let mut agent = change(fixture.node().agent()).start();
    let status = agent.wait_ended(10 * SECOND);
    let log = agent.log().split_off(reported);
    assert_eq!(status.code(), Some(1), "{log}");
    assert_eq!(pinned.alive(), pinned, "nothing was touched");
    fixture.assert_served();
    let last = log.lines().rfind(|line| line.contains("error:"));
    let last = last
        .unwrap_or_else(|| panic!("no error in the log:\n{log}"))
        .to_owned();
    let mut next = started(fixture.node().agent());
    fixture.assert_served();
    assert_eq!(errors(fixture.node()), []);
    next.stop(5 * SECOND);
    last
}

#[track_caller]
fn assert_has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
}

#[test]
fn a_field_that_is_not_known_in_our_configuration_is_refused() {
    harness::require_root!();
    let fixture = Fixture::open();
    let reported = last_error(&fixture, |agent| {
        agent.config(&format!("---\n# first\n---\n{DEFAULTS}socketLb: all\n"))
    });
    let file = fixture.node().dir().join("config-0.yaml");
    let place = format!(
        "{}:6: document 2: socketLb: unknown field `socketLb`",
        file.display()
    );
    assert_has(
        &reported,
        &[
            "reading --config",
            &place,
            "expected one of apiVersion, kind, socketLB",
        ],
    );
    let reported = last_error(&fixture, |agent| {
        agent.config(&format!("{DEFAULTS}maps: {{frontends: {{max: 0}}}}\n"))
    });
    assert_has(&reported, &["document 1: maps.frontends.max: ", "outside 1-"]);
}

#[test]
fn a_bpf_root_that_is_on_no_bpffs_is_refused() {
    harness::require_root!();
    let fixture = Fixture::open();
    let elsewhere = fixture.world.dir().join("elsewhere");
    fs::create_dir(&elsewhere).expect("to make a directory");
    for root in [elsewhere.join("millrace"), elsewhere.clone()] {
        let reported = last_error(&fixture, |agent| agent.bpf_root(&root));
        let elsewhere = elsewhere.display().to_string();
        assert_has(
            &reported,
            &[
                &elsewhere,
                "not on a bpf file system",
                "mount -t bpf",
                "--bpf-root",
            ],
        );
    }
    assert!(
        fs::read_dir(&elsewhere).expect("to list it").next().is_none(),
        "nothing was made there"
    );
    let missing = elsewhere.join("missing/millrace");
    let reported = last_error(&fixture, |agent| agent.bpf_root(&missing));
    let parent = elsewhere.join("missing").display().to_string();
    assert_has(&reported, &[&parent, "No such file or directory", "mount -t bpf"]);
}

#[test]
fn an_agent_without_its_capabilities_names_the_missing_ones() {
    harness::require_root!();
    let fixture = Fixture::open();
    for (dropped, needed) in [
        ("--bounding-set=-bpf,-sys_admin", "CAP_BPF"),
        ("--bounding-set=-net_admin,-sys_admin", "CAP_NET_ADMIN"),
        ("--bounding-set=-perfmon,-sys_admin", "CAP_PERFMON"),
    ] {
        let root = fixture.node().bpf_root().with_file_name("fresh");
        let reported = last_error(&fixture, |agent| {
            agent.bpf_root(&root).under(&["setpriv", dropped, "--"])
        });
        assert_has(
            &reported,
            &["loading ", &format!("needs {needed}, which this process lacks")],
        );
    }
}

#[test]
fn an_agent_that_lost_its_capabilities_goes_on_with_what_is_pinned() {
    harness::require_root!();
    let fixture = Fixture::open();
    started(fixture.node().agent()).stop(5 * SECOND);
    let without = ["setpriv", "--bounding-set=-bpf,-perfmon,-sys_admin", "--"];
    let _agent = started(fixture.node().agent().under(&without));
    fixture.wait_errors(&[("capabilities", "CAP_PERFMON, CAP_BPF missing")]);
    fixture.serve("later", (1, 1), &[&fixture.a]);
    fixture.wait_reply("10.96.1.1:80", "a");
    fixture.assert_served();
}

#[test]
fn three_capabilities_are_enough() {
    harness::require_root!();
    let fixture = Fixture::open();
    let least = ["setpriv", "--bounding-set=-all,+bpf,+perfmon,+net_admin", "--"];
    let mut agent = started(fixture.node().agent().under(&least));
    assert_eq!(errors(fixture.node()), []);
    fixture.assert_served();
    fixture.serve("later", (1, 1), &[&fixture.a]);
    fixture.wait_reply("10.96.1.1:80", "a");
    agent.restart();
    agent.wait_ready(10 * SECOND);
    assert_eq!(errors(fixture.node()), []);
    fixture.assert_served();
}

/// The capabilities of the manifest: the node's pods are Millrace's, and node ports lead to them.
#[test]
fn three_capabilities_are_enough_for_a_pod_network() {
    const PORT: u16 = 30_080;
    harness::require_root!();
    let spec = NodeSpec::millrace;
    let world = World::builder().node(spec()).node(spec()).build();
    let outside = world.add_remote_client("outside");
    let least = ["setpriv", "--bounding-set=-all,+bpf,+perfmon,+net_admin", "--"];
    let start = |node: &Node| started(node.agent().under(&least));
    let mut agents: Vec<_> = world.nodes().iter().map(start).collect();
    let pods = [1, 2].map(|number| world.node(number).add_pod(&format!("pod-{number}")));
    let _servers = pods.each_ref().map(|pod| pod.serve_tcp(8080));
    let _outer = outside.serve_tcp(8080);
    let service = Service::web().node_port("http", PORT);
    world.apply(&service);
    world.apply_all(service.slices([Endpoint::of(&pods[0])]));
    for when in ["at first", "after a restart"] {
        let far: &Place = &pods[1];
        let paths: [(&Place, IpAddr, u16); 4] = [
            (far, pods[0].ip().into(), 8080),
            (far, pods[0].ip6().into(), 8080),
            (far, outside.ip().into(), 8080),
            (&outside, world.node(2).ip().into(), PORT),
        ];
        for (from, to, port) in paths {
            wait_for(
                &format!("{} to reach {to}, {when}", from.name()),
                5 * SECOND,
                || from.ask_within(Probe::Tcp, SocketAddr::new(to, port), SECOND),
            );
        }
        for agent in &mut agents {
            wait_for(&format!("nothing to be wrong, {when}"), 5 * SECOND, || {
                let status = agent.cli(&["status"]);
                let errors = status["errors"].as_array().expect("a list").iter();
                // Older kernels list the namespaces of pods only to a process that may enter them.
                let mut others = errors.filter(|error| error["code"] != "PodNamespacesUnknown");
                others.next().map_or(Ok(()), |error| Err(error.to_string()))
            });
            agent.restart();
            agent.wait_ready(10 * SECOND);
        }
    }
}

/// An agent without a cgroup for its socket hooks is not ready, and serves packet by packet.
#[track_caller]
fn assert_serves_without_hooks(fixture: &Fixture, agent: AgentBuilder, message: &[&str]) {
    let agent = agent.start();
    harness::eventually("the tables to be programmed", 10 * SECOND, || {
        fixture
            .node()
            .cli(&["status"])
            .is_ok_and(|status| status["services"] == 1)
            && fixture
                .client
                .ask_within(Probe::Tcp, address("10.96.0.10:80"), SECOND / 4)
                .is_ok()
    });
    fixture.assert_served();
    assert_waits(&agent, message);
}

#[track_caller]
fn assert_waits(agent: &Agent, message: &[&str]) {
    let status = agent.cli(&["status"]);
    assert_eq!(status["ready"], false, "{status}");
    assert_has(
        &status["waitingFor"].to_string(),
        &["programs to be attached (see errors)"],
    );
    let errors = errors(agent.node());
    let [(object, reported)] = &errors[..] else {
        panic!("{errors:?}")
    };
    assert_eq!(object, "socket hooks");
    assert_has(reported, message);
}

#[test]
fn a_cgroup_that_is_none_is_named() {
    harness::require_root!();
    let fixture = Fixture::open();
    let dir = fixture.world.dir();
    let named = dir.display().to_string();
    let agent = fixture.node().agent().cgroup(Some(&dir));
    assert_serves_without_hooks(
        &fixture,
        agent,
        &[&named, "not on a cgroup2 file system", "--cgroup"],
    );
    let missing = dir.join("missing");
    let named = missing.display().to_string();
    let agent = fixture.node().agent().cgroup(Some(&missing));
    assert_serves_without_hooks(
        &fixture,
        agent,
        &[&named, "No such file or directory", "--cgroup"],
    );
    // With the right cgroup the error is gone.
    let _agent = started(fixture.node().agent());
    assert_eq!(errors(fixture.node()), []);
    fixture.assert_served();
}

#[test]
fn a_missing_cgroup2_is_reported_with_the_mount_command() {
    harness::require_root!();
    let fixture = Fixture::open();
    let unmount = "awk '/ - cgroup2 / {print $5}' /proc/self/mountinfo | while read place; do umount -l \"$place\"; done; exec \"$@\"";
    let alone = ["unshare", "--mount", "sh", "-c", unmount, "sh"];
    let agent = fixture.node().agent().cgroup(None).under(&alone);
    let advice = [
        "no cgroup v2 hierarchy is mounted",
        "mount -t cgroup2",
        "--cgroup",
        "socketLB: off",
    ];
    assert_serves_without_hooks(&fixture, agent, &advice);
}

#[test]
fn foreign_pins_are_left_alone_and_reported() {
    harness::require_root!();
    let fixture = Fixture::open();
    let mut agent = started(fixture.node().agent());
    assert_eq!(errors(fixture.node()), []);
    let pin = |path: &Path| {
        let program = fixture.node().bpf_root().join("current/programs/to_pod");
        let mut program = SchedClassifier::from_pin(program).expect("a program");
        program.pin(path).expect("pinning it");
    };
    let foreign = [
        fixture.node().bpf_root().join("foreign"),
        fixture.node().bpf_root().join("links/foreign"),
    ];
    for path in &foreign {
        pin(path);
    }
    let reported = foreign.each_ref().map(|path| path.display().to_string());
    let reported = reported
        .each_ref()
        .map(|path| (path.as_str(), "not made by Millrace"));
    fixture.wait_errors(&reported);
    agent.restart();
    agent.wait_ready(10 * SECOND);
    fixture.wait_errors(&reported);
    fixture.serve("later", (1, 1), &[&fixture.a]);
    fixture.wait_reply("10.96.1.1:80", "a");
    fixture.assert_served();
    for path in &foreign {
        fs::remove_file(path).expect("it is still there");
    }
    fixture.wait_errors(&[]);
}

#[test]
fn a_foreign_pin_in_our_place_is_refused() {
    harness::require_root!();
    let fixture = Fixture::open();
    for name in ["current", "links"] {
        let root = fixture.node().bpf_root().with_file_name(format!("taken-{name}"));
        let reported = last_error(&fixture, |agent| {
            fs::create_dir(&root).expect("to make a directory");
            let program = fixture.node().bpf_root().join("current/programs/to_pod");
            let mut program = SchedClassifier::from_pin(program).expect("a program");
            program.pin(root.join(name)).expect("pinning it");
            agent.bpf_root(&root)
        });
        let place = root.join(name).display().to_string();
        assert_has(
            &reported,
            &[&place, "not made by Millrace", "choose another --bpf-root"],
        );
        fs::remove_file(root.join(name)).expect("it is still there");
        for ours in ["agent", "links"] {
            let _ = fs::remove_dir(root.join(ours));
        }
        fs::remove_dir(&root).expect("nothing else is there");
    }
}

#[test]
fn a_foreign_device_in_our_place_is_left_alone() {
    harness::require_root!();
    let fixture = Fixture::open();
    let ip = |arguments: &[&str]| {
        let status = fixture.node().command("ip").args(arguments).status();
        assert!(status.expect("to run ip").success());
    };
    ip(&["link", "add", "millrace0", "type", "bridge"]);
    let agent = fixture.node().agent().start();
    harness::eventually("the tables to be programmed", 10 * SECOND, || {
        errors(fixture.node())
            .iter()
            .any(|(object, _)| object == "device millrace0")
    });
    let status = agent.cli(&["status"]);
    assert_eq!(status["ready"], false, "{status}");
    let advice = "interface millrace0 is not ours (a bridge without a peer millrace1): rename or remove it";
    fixture.wait_errors(&[("device millrace0", advice)]);
    // Only datagrams of the node's connected sockets need the device: no hook translates them.
    for to in ["10.96.0.10:80", "[fd00:96::10]:80"] {
        for probe in Probe::ALL {
            fixture
                .client
                .ask(probe, address(to))
                .unwrap_or_else(|error| panic!("{to} {probe:?}: {error}"));
        }
        for probe in [Probe::Tcp, Probe::Udp] {
            fixture
                .node()
                .ask(probe, address(to))
                .unwrap_or_else(|error| panic!("{to} {probe:?}: {error}"));
        }
    }
    ip(&["link", "delete", "millrace0"]);
    fixture.wait_errors(&[]);
    fixture.assert_served();
    assert_eq!(agent.cli(&["status"])["ready"], true);
}

#[test]
fn more_service_ranges_than_there_is_room_for_are_named() {
    harness::require_root!();
    let fixture = Fixture::open();
    let _agent = started(fixture.node().agent());
    let ranges = ["10.200.0.0/24", "10.201.0.0/24", "10.202.0.0/24", "10.203.0.0/24"];
    let object = serde_json::json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": {"name": "more"},
        "spec": {"cidrs": ranges},
    });
    fixture.world.apply(&object);
    fixture.wait_errors(&[("service ranges", "there is room for 4: in ")]);
    fixture.assert_served();
    fixture.world.delete(&object);
    fixture.wait_errors(&[]);
}

#[test]
fn overlapping_port_ranges_are_reported_until_they_are_disjoint() {
    harness::require_root!();
    let fixture = Fixture::open();
    let agent = started(fixture.node().agent());
    assert_eq!(errors(fixture.node()), []);
    fixture
        .node()
        .sysctl("net/ipv4/ip_local_port_range", "1024 65535");
    let overlap = "1024-65535 has ports of masqueradePorts in it (10000-29999)";
    let message = wait_for("the overlap to be reported", 3 * SECOND, || {
        let errors = errors(fixture.node());
        let is_it = |(object, message): &&(String, String)| {
            object == "net.ipv4.ip_local_port_range" && message.starts_with(overlap)
        };
        let message = errors.iter().find(is_it).map(|(_, message)| message.clone());
        message.ok_or(format!("{errors:?}"))
    });
    assert_eq!(agent.cli(&["status"])["ready"], true);
    wait_for("the overlap to be logged", 30 * SECOND, || {
        agent.log().contains(overlap).then_some(()).ok_or("it is not")
    });
    let commands: Vec<_> = message.split('`').skip(1).step_by(2).collect();
    let setting = "net.ipv4.ip_local_reserved_ports";
    assert_eq!(
        commands,
        [format!("sysctl -w {setting}=10000-29999")],
        "{message}"
    );
    // The machine may lack `sysctl`, so the harness writes the setting of the command.
    fixture.node().sysctl(&setting.replace('.', "/"), "10000-29999");
    wait_for("no error to be reported", 3 * SECOND, || {
        let errors = errors(fixture.node());
        if errors.is_empty() {
            Ok(())
        } else {
            Err(format!("{errors:?}"))
        }
    });
}
