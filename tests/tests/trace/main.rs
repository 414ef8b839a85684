//! `millrace trace` agrees with the paths of real packets.
//!
//! Each case traces a packet, sends it by a real socket, and compares. Verdict, service, kind and
//! masquerading must be the same, and the real backend must be among those of the trace. If the packet path
//! decides and the source port is given, the trace names exactly the real backend.

use std::io::ErrorKind;
use std::net::SocketAddr;

use harness::config::{DEFAULTS, HOOKS_OFF};
use harness::{Place, Probe, Reply, World, address};

mod dry_runs;
mod own_pods;
mod topology;

use topology::{Backend, SECOND, SILENCE, Topology, Trace, own_address};

/// The outcome of a real packet, in the words of a trace.
fn outcome(reply: &std::io::Result<Reply>) -> &'static str {
    match reply {
        Ok(_) => "replied",
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => "reject",
        Err(error) if matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock) => "drop",
        Err(error) => panic!("neither replied, refused nor dropped: {error}"),
    }
}

fn verdicts_agree(config: &str) {
    let topology = Topology::build(config);
    let far = topology.world.node(2);
    let foreign = [
        SocketAddr::new(far.ip().into(), 9000),
        SocketAddr::new(far.ip6().into(), 9000),
    ];
    for (place, entry) in topology.senders() {
        for probe in [Probe::Tcp, Probe::UdpConnected] {
            let cases = [
                (
                    "10.96.0.10:80",
                    "[fd00:96::10]:80",
                    "forward",
                    Some("default/web"),
                ),
                (
                    "10.96.0.20:80",
                    "[fd00:96::20]:80",
                    "reject",
                    Some("default/empty"),
                ),
                ("10.96.0.10:81", "[fd00:96::10]:81", "reject", None),
                ("10.96.77.77:80", "[fd00:96::7777]:80", "drop", None),
            ];
            for (v4, v6, verdict, service) in cases {
                for to in [address(v4), address(v6)] {
                    let trace = topology.trace(own_address(place, to), to, probe, &["--samples", "64"]);
                    let what = format!("{entry} {probe:?} {to}: {trace:?}");
                    assert_eq!(trace.verdict, verdict, "{what}");
                    let port = if probe == Probe::Tcp { "http" } else { "dns" };
                    assert_eq!(
                        trace.service,
                        service.map(|name| format!("{name}:{port}")),
                        "{what}"
                    );
                    assert_eq!(trace.kind.as_deref(), service.map(|_| "ClusterIP"), "{what}");
                    compare(&topology, place, probe, to, &trace, &what);
                }
            }
            for to in foreign {
                let trace = topology.trace(own_address(place, to), to, probe, &[]);
                assert_eq!(
                    (trace.verdict.as_str(), &trace.service),
                    ("pass", &None),
                    "{entry} {to}"
                );
                let reply = place
                    .ask(probe, to)
                    .unwrap_or_else(|error| panic!("{entry} {to}: {error}"));
                assert_eq!(reply.backend, "n2");
            }
        }
    }
}

/// Sends the traced packet, and compares the outcome with the trace.
fn compare(topology: &Topology, place: &Place, probe: Probe, to: SocketAddr, trace: &Trace, what: &str) {
    let patience = if trace.verdict == "drop" {
        SILENCE
    } else {
        3 * SECOND
    };
    let reply = place.ask_within(probe, to, patience);
    let expected = if trace.verdict == "forward" {
        "replied"
    } else {
        trace.verdict.as_str()
    };
    assert_eq!(outcome(&reply), expected, "{what}: {reply:?}");
    let Ok(reply) = reply else {
        assert_eq!(trace.backends, [], "{what}");
        return;
    };
    assert_eq!(
        trace.backends.iter().map(|backend| backend.samples).sum::<u64>(),
        64,
        "{what}"
    );
    let real = trace
        .backends
        .iter()
        .find(|backend| topology.name_of(backend.address) == reply.backend);
    let real = real.unwrap_or_else(|| panic!("{what}: the real backend is {reply:?}"));
    let kept = reply.peer.ip() == own_address(place, to);
    assert_eq!(real.masquerade, !kept, "{what}: {reply:?}");
    assert_eq!(
        real.node.as_deref(),
        Some(if reply.backend == "a" { "n1" } else { "n2" }),
        "{what}"
    );
}

#[test]
fn verdicts_agree_with_socket_hooks() {
    harness::require_root!();
    verdicts_agree(DEFAULTS);
}

#[test]
fn verdicts_agree_without_socket_hooks() {
    harness::require_root!();
    verdicts_agree(HOOKS_OFF);
}

/// Traces a flow, sends it, and traces it again.
fn same_backend(topology: &Topology, (place, entry): (&Place, &str), probe: Probe, to: SocketAddr) {
    let from = own_address(place, to);
    for sport in 20_000..20_025_u16 {
        let port = sport.to_string();
        let before = topology.trace(from, to, probe, &["--sport", &port]);
        let what = format!("{entry} {probe:?} {from} port {sport} to {to}: {before:?}");
        let reply = place.ask_from(probe, SocketAddr::new(from, sport), to, 3 * SECOND);
        let reply = reply.unwrap_or_else(|error| panic!("{what}: {error}"));
        let [backend] = &before.backends[..] else {
            panic!("{what}")
        };
        assert_eq!(topology.name_of(backend.address), reply.backend, "{what}");
        assert_eq!(backend.masquerade, reply.peer.ip() != from, "{what}: {reply:?}");
        let after = topology.trace(from, to, probe, &["--sport", &port]);
        assert_eq!(
            after.backends, before.backends,
            "{what}: the flow has an entry now"
        );
    }
}

#[test]
fn a_given_source_port_selects_the_same_backend_with_socket_hooks() {
    harness::require_root!();
    let topology = Topology::build(DEFAULTS);
    let [pod, _, uplink] = topology.senders();
    for to in [address("10.96.0.10:80"), address("[fd00:96::10]:80")] {
        // With socket hooks, these probes are translated packet by packet.
        for (sender, probe) in [(pod, Probe::Udp), (uplink, Probe::Tcp), (uplink, Probe::Udp)] {
            same_backend(&topology, sender, probe, to);
        }
    }
}

#[test]
fn a_given_source_port_selects_the_same_backend_without_socket_hooks() {
    harness::require_root!();
    let topology = Topology::build(HOOKS_OFF);
    for to in [address("10.96.0.10:80"), address("[fd00:96::10]:80")] {
        for sender in topology.senders() {
            for probe in [Probe::Tcp, Probe::Udp] {
                same_backend(&topology, sender, probe, to);
            }
        }
    }
}

#[test]
fn a_pod_that_reaches_itself_is_masqueraded() {
    harness::require_root!();
    for (config, probes) in [
        (DEFAULTS, &[Probe::Udp, Probe::UdpConnected][..]),
        (HOOKS_OFF, &Probe::ALL),
    ] {
        let topology = Topology::build(config);
        for to in [address("10.96.0.30:80"), address("[fd00:96::30]:80")] {
            for probe in probes {
                let from = own_address(&topology.client, to);
                let trace = topology.trace(from, to, *probe, &[]);
                let reply = topology.client.ask(*probe, to).expect("a reply");
                assert_eq!(
                    reply.peer.ip(),
                    topology.node().address_like(from),
                    "{probe:?} {to}"
                );
                let backend = Backend {
                    address: SocketAddr::new(from, 8080),
                    node: Some("n1".into()),
                    samples: 1,
                    masquerade: true,
                };
                assert_eq!(trace.backends, [backend], "{probe:?} {to}");
            }
        }
    }
}

#[test]
fn an_invalid_trace_is_refused_with_a_reason() {
    harness::require_root!();
    let world = World::with_nodes(1);
    let node = world.node(1);
    let trace = ["trace", "--proto", "tcp", "--from", "10.244.1.5", "--to"];
    let run = |to: &str| {
        let output = node.run(&[&trace[..], &[to]].concat()).expect("to run it");
        (
            output.status.success(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let (succeeded, message) = run("10.96.0.10:80");
    assert!(
        !succeeded && message.contains("start `millrace agent`"),
        "{message}"
    );
    let _agents = world.start_agents();
    let (succeeded, message) = run("[fd00:96::10]:80");
    assert!(
        !succeeded && message.contains("different address families"),
        "{message}"
    );
}
