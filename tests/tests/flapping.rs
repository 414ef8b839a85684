//! An endpoint that comes and goes twenty times a second. No client's connection is disturbed, and the agent
//! writes only the entries that change.
//!
//! The variable `MILLRACE_FLAPS` sets how often it goes.

use std::thread;
use std::time::Duration;

use harness::config::{DEFAULTS, HOOKS_OFF};
use harness::{ConnectStream, Endpoint, LongFlows, Place, Probe, Service, World, address, eventually};

const SECOND: Duration = Duration::from_secs(1);
/// The default number of times that the endpoint goes and comes again.
const FLAPS: u64 = 20;
/// The time that the endpoint stays away, or stays.
const PACE: Duration = Duration::from_millis(50);
/// The most writes of a change: a backend that comes, a slice of two slots, a frontend.
const WRITES: u64 = 4;
/// The number of services beside the one that changes.
const OTHERS: u8 = 50;

#[test]
fn an_endpoint_that_comes_and_goes_disturbs_no_socket() {
    harness::require_root!();
    assert_undisturbed(DEFAULTS);
}

#[test]
fn an_endpoint_that_comes_and_goes_costs_no_translated_packet() {
    harness::require_root!();
    assert_undisturbed(HOOKS_OFF);
}

#[track_caller]
fn assert_undisturbed(config: &str) {
    let flaps = std::env::var("MILLRACE_FLAPS").map_or(FLAPS, |count| count.parse().expect("a number"));
    let world = World::with_nodes(1);
    let node = world.node(1);
    let [client, steady, flapping] = ["client", "steady", "flapping"].map(|name| node.add_pod(name));
    let _servers = [&steady, &flapping].map(|pod| pod.serve(8080));
    for number in 1..=OTHERS {
        let other = Service::new(&format!("other-{number}"))
            .cluster_ip(&format!("10.96.1.{number}"))
            .tcp("http", 80, 8080)
            .udp("dns", 80, 8080);
        world.apply_all(other.slices([&steady, &flapping].map(Endpoint::of)));
        world.apply(&other);
    }
    let service = Service::new("web").cluster_ip("10.96.0.10").tcp("http", 80, 8080);
    let endpoint = |is_ready: bool| {
        let other = Endpoint::of(&flapping).conditions(is_ready, is_ready, false);
        world.apply_all(service.slices([Endpoint::of(&steady), other]));
    };
    endpoint(true);
    world.apply(&service);
    let agents = world.start_agents_with(config);

    let (web, other) = (address("10.96.0.10:80"), address("10.96.1.1:80"));
    let places = [&client as &Place, node];
    let start = |(place, to)| LongFlows::start(place, to, 10, PACE / 5).expect("flows");
    let held: Vec<_> = places
        .into_iter()
        .flat_map(|place| [(place, web), (place, other)])
        .map(start)
        .collect();
    let paths = [
        (Probe::Tcp, web),
        (Probe::Tcp, other),
        (Probe::UdpConnected, other),
    ];
    let streams: Vec<_> = places
        .into_iter()
        .flat_map(|place| paths.map(|(probe, to)| ConnectStream::start(place, probe, to, PACE / 20)))
        .collect();
    let written = || {
        let status = agents[0].cli(&["status"]);
        status["writes"]["sinceStart"].as_u64().expect("a number")
    };
    let before = written();
    for _ in 0..flaps {
        for is_ready in [false, true] {
            endpoint(is_ready);
            // The pause has to pass in real time.
            thread::sleep(PACE);
        }
    }
    eventually("the endpoint to be used again", SECOND, || {
        client
            .ask(Probe::Tcp, web)
            .is_ok_and(|reply| reply.backend == "flapping")
    });
    let (changes, writes) = (2 * flaps, written() - before);
    println!("{changes} changes, {writes} writes");
    // The agent may see changes as one if they come while it is busy.
    assert!(
        (changes / 4..=WRITES * changes).contains(&writes),
        "{changes} changes are {writes} writes"
    );
    for flows in &held {
        flows.wait_progress(5 * SECOND);
    }
    for stream in &streams {
        stream.wait_more(20, 5 * SECOND);
    }
    for flows in held {
        flows.stop().assert_unnoticed(SECOND);
    }
    for stream in streams {
        stream.stop().assert_unnoticed(SECOND);
    }
}
