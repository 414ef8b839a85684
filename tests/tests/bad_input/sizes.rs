//! Large numbers: large services, full tables, growing tables.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener};
use std::time::Duration;

use harness::config::{DEFAULTS, HOOKS_OFF};
use harness::manifest::Family;
use harness::{
    ConnectStream, Endpoint, EndpointSlice, LongFlows, PATIENCE, Place, Pod, Probe, Service, address,
    eventually,
};
use proxy_common::maps::Reason;
use socket2::SockRef;

use crate::fixture::{Fixture, SECOND, errors, started};

/// A server on every address of 10.245.0.0/16. Its answer contains the address that was asked.
struct ManyAddresses {
    listener: TcpListener,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl ManyAddresses {
    fn start(pod: &Pod) -> Self {
        let range = "10.245.0.0/16";
        let mut local = pod.command("ip");
        local.args(["route", "add", "local", range, "dev", "lo"]);
        assert!(local.status().expect("to run ip").success());
        let range = range.parse().expect("a range");
        pod.node()
            .add_route(range, Some(pod.ip().into()), pod.host_interface());
        let listener = pod.tcp_listen(8080).expect("to listen");
        let served = listener.try_clone().expect("another descriptor");
        let serve = move || {
            while let Ok((mut stream, peer)) = served.accept() {
                let ip = stream.local_addr().expect("an address").ip().to_canonical();
                // The client may have closed its connection.
                let _ = writeln!(stream, "{ip} {peer}");
            }
        };
        Self {
            listener,
            thread: Some(std::thread::spawn(serve)),
        }
    }
}

impl Drop for ManyAddresses {
    fn drop(&mut self) {
        // The shutdown wakes the thread.
        let _ = SockRef::from(&self.listener).shutdown(Shutdown::Both);
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

fn address_of(number: u16) -> IpAddr {
    let [high, low] = number.to_be_bytes();
    Ipv4Addr::new(10, 245, high, low).into()
}

/// The number of backends that answer so many connections, each from a port of its own. Ports that the kernel
/// chooses would repeat, and without socket hooks the same port leads to the same backend. The agent listens
/// at ports slightly above 10 000.
fn backends_met(place: &Place, to: SocketAddr, connections: u16) -> usize {
    let from = |port| SocketAddr::new(place.ip().into(), port);
    let ask = |port| place.ask_from(Probe::Tcp, from(port), to, PATIENCE);
    let replies = (11_000..11_000 + connections).map(|port| match ask(port) {
        Ok(reply) => reply.backend,
        Err(error) => panic!("{} asks {to} from port {port}: {error}", place.name()),
    });
    replies.collect::<BTreeSet<_>>().len()
}

#[test]
fn five_thousand_endpoints_are_all_used() {
    harness::require_root!();
    let fixture = Fixture::open();
    let pod = fixture.node().add_pod("crowd");
    let _server = ManyAddresses::start(&pod);
    let service = Service::new("crowd")
        .cluster_ip("10.96.2.1")
        .tcp("http", 80, 8080);
    // An endpoint controller puts at most a thousand endpoints in a slice.
    let slice = |number: u16, members: &[u16]| {
        let endpoints = members.iter().map(|member| Endpoint::at(&[address_of(*member)]));
        let slice = EndpointSlice::of(&service, Family::V4).named(&format!("crowd-{number}"));
        fixture.world.apply(&slice.endpoints(endpoints));
    };
    let members = |number: u16| -> Vec<u16> { (number * 1000 + 1..=number * 1000 + 1000).collect() };
    (0..5).for_each(|number| slice(number, &members(number)));
    fixture.world.apply(&service);
    for config in [DEFAULTS, HOOKS_OFF] {
        let _agent = started(fixture.node().agent().config(config));
        for place in [&fixture.client as &Place, fixture.node()] {
            let met = backends_met(place, address("10.96.2.1:80"), 10_000);
            // With 10 000 draws from 5 000 backends, the expected number of backends met is 4 323, with a
            // deviation of 26.
            assert!(
                (4_190..=5_000).contains(&met),
                "{} met {met} of 5000",
                place.name()
            );
        }
        // One endpoint is replaced by another one.
        let changed = |without: u16, with: u16| -> Vec<u16> {
            let rest = members(4).into_iter().filter(|member| *member != without);
            rest.chain([with]).collect()
        };
        let addresses = || -> BTreeSet<String> {
            let list = fixture.node().cli(&["service", "list"]).expect("a list");
            let entry = list
                .as_array()
                .expect("a list")
                .iter()
                .find(|entry| entry["name"] == "crowd");
            let backends = entry.expect("the service")["backends"]
                .as_array()
                .expect("a list")
                .iter();
            backends
                .map(|backend| backend["address"].as_str().expect("text").to_owned())
                .collect()
        };
        slice(4, &changed(5000, 6000));
        eventually("the change to show", SECOND, || {
            let found = addresses();
            found.len() == 5000
                && found.contains("10.245.23.112:8080")
                && !found.contains("10.245.19.136:8080")
        });
        slice(4, &members(4));
        eventually("the change to be taken back", SECOND, || {
            addresses().contains("10.245.19.136:8080")
        });
        fixture.assert_served();
        assert_eq!(errors(fixture.node()), []);
    }
}

#[test]
fn each_of_two_hundred_ports_is_served() {
    harness::require_root!();
    let fixture = Fixture::open();
    let mut service = Service::new("ports")
        .cluster_ip("10.96.2.2")
        .cluster_ip("fd00:96::202");
    for port in 1..=100_u16 {
        service = service.tcp(&format!("tcp-{port}"), 1000 + port, 8080).udp(
            &format!("udp-{port}"),
            1000 + port,
            8080,
        );
    }
    fixture
        .world
        .apply_all(service.slices([Endpoint::of(&fixture.a)]));
    fixture.world.apply(&service);
    let _agent = started(fixture.node().agent());
    for place in [&fixture.client as &Place, fixture.node()] {
        for port in 1001..=1100_u16 {
            for to in [format!("10.96.2.2:{port}"), format!("[fd00:96::202]:{port}")] {
                for probe in [Probe::Tcp, Probe::Udp] {
                    let reply = place.ask(probe, address(&to));
                    assert_eq!(
                        reply.map(|reply| reply.backend).ok().as_deref(),
                        Some("a"),
                        "{to} {probe:?}"
                    );
                }
            }
        }
    }
    assert_eq!(errors(fixture.node()), []);
    fixture.assert_served();
}

#[test]
fn source_ranges_beyond_a_share_close_the_load_balancers_address_and_nothing_else() {
    harness::require_root!();
    let fixture = Fixture::open();
    let agent = started(fixture.node().agent());
    let (own, balancer) = ("10.96.5.1:80", "203.0.113.9:80");
    let client = format!("{}/32", fixture.client.ip());
    let with = |count: u32| {
        let even = |number: u32| format!("{}/32", Ipv4Addr::from((11 << 24) + number * 2));
        let ranges: Vec<_> = (0..count).map(even).chain([client.clone()]).collect();
        let service = fixture.serve("many", (5, 1), &[&fixture.a]);
        let service = service.load_balancer_ip("203.0.113.9");
        fixture
            .world
            .apply(&service.set("loadBalancerSourceRanges", serde_json::json!(ranges)));
    };
    with(1000);
    fixture.wait_reply(balancer, "a");
    with(70_000);
    fixture.wait_errors(&[(
        "Service default/many",
        "70001 entries for all ports together, where a service has 65536 at the most",
    )]);
    fixture.wait_unserved(balancer, &[]);
    fixture.wait_reply(own, "a");
    fixture.assert_served();
    assert_eq!(agent.cli(&["status"])["ready"], true);
    with(1000);
    fixture.wait_reply(balancer, "a");
    fixture.wait_errors(&[]);
}

/// Fills a table with services until one does not fit, and then frees entries.
#[track_caller]
fn full_at(table: &str, max: u32, fitting: u8) {
    let fixture = Fixture::open();
    let config = format!("{DEFAULTS}maps:\n  {table}: {{max: {max}}}\n");
    let mut agent = started(fixture.node().agent().config(&config));
    let at = |number: u8| format!("10.96.3.{number}:80");
    let services: Vec<_> = (1..=fitting)
        .map(|number| fixture.serve(&format!("s{number}"), (3, number), &[&fixture.a]))
        .collect();
    for number in 1..=fitting {
        fixture.wait_reply(&at(number), "a");
    }
    let warning = format!("{max} of at most {max} entries are in use: raise maps.{table}");
    let gauge = (format!("map {table}"), warning);
    let gauge = (gauge.0.as_str(), gauge.1.as_str());
    fixture.wait_errors(&[gauge]);
    let status = agent.cli(&["status"]);
    assert_eq!(status["maps"][table]["capacity"], max, "{status}");

    let last = fixture.serve("late", (3, 100), &[&fixture.b]);
    let message = format!("no room left: the table of {table} holds {max} at the most; raise maps.{table}");
    let expected = [gauge, ("Service default/late", message.as_str())];
    fixture.wait_errors(&expected);
    assert_eq!(agent.cli(&["status"])["ready"], true);
    let assert_rest_is_served = || {
        fixture.assert_served();
        (1..=fitting).for_each(|number| fixture.wait_reply(&at(number), "a"));
        fixture.wait_unserved(&at(100), &[Reason::NoSuchService]);
    };
    assert_rest_is_served();
    agent.restart();
    agent.wait_ready(10 * SECOND);
    fixture.wait_errors(&expected);
    assert_rest_is_served();

    // The agent uses the entries that a deleted service frees.
    fixture.world.delete(&services[0]);
    fixture.wait_reply(&at(100), "b");
    fixture.wait_unserved(&at(1), &[Reason::NoSuchService]);
    fixture.wait_errors(&[gauge]);
    fixture.world.apply(&services[0]);
    fixture.wait_errors(&[gauge, ("Service default/s1", "no room left")]);
    // The agent also uses the entries that a higher limit adds.
    fixture.world.delete(&last);
    fixture.wait_reply(&at(1), "a");
    fixture.world.apply(&last);
    fixture.wait_errors(&expected);
    agent.stop(5 * SECOND);
    let config = format!("{DEFAULTS}maps:\n  {table}: {{max: {}}}\n", max * 2);
    let _agent = started(fixture.node().agent().config(&config));
    fixture.wait_reply(&at(100), "b");
    fixture.wait_errors(&[]);
    fixture.assert_served();
}

#[test]
fn a_full_table_of_frontends_leaves_services_as_they_are() {
    harness::require_root!();
    // `good` has four frontends.
    full_at("frontends", 6, 2);
}

#[test]
fn a_full_table_of_slots_leaves_services_as_they_are() {
    harness::require_root!();
    // `good` has eight slots, two for each frontend.
    full_at("slots", 10, 2);
}

#[test]
fn a_full_table_of_backends_leaves_services_as_they_are() {
    harness::require_root!();
    full_at("backends", 10, 2);
}

#[test]
fn a_full_table_of_addresses_leaves_services_as_they_are() {
    harness::require_root!();
    // `good` has two addresses, and so has the node. The node's IPv4 subnet has two more that belong to no
    // host.
    full_at("addresses", 8, 2);
}

#[test]
fn tables_grow_while_traffic_goes_on() {
    harness::require_root!();
    for hooks in ["all", "off"] {
        let fixture = Fixture::open();
        let sizes = "{frontends: 16, slots: 32, backends: 32, addresses: 16}";
        let config = format!("{DEFAULTS}socketLB: \"{hooks}\"\nmaps: {sizes}\n");
        let mut agent = started(fixture.node().agent().config(&config));
        let every = Duration::from_millis(5);
        let flows: Vec<_> = [&fixture.client as &Place, fixture.node()]
            .map(|place| LongFlows::start(place, address("10.96.0.10:80"), 20, every).expect("flows"))
            .into();
        let probes = Probe::ALL;
        let streams: Vec<_> = [&fixture.client as &Place, fixture.node()]
            .into_iter()
            .flat_map(|place| probes.map(|probe| (place, probe)))
            .map(|(place, probe)| {
                ConnectStream::start(place, probe, address("10.96.0.10:80"), Duration::from_millis(1))
            })
            .collect();
        let capacities = |agent: &harness::Agent| {
            let maps = agent.cli(&["status"])["maps"].clone();
            ["frontends", "slots", "backends", "addresses"].map(|name| maps[name]["capacity"].as_u64())
        };
        let before = capacities(&agent);
        for number in 1..=120 {
            fixture.serve(&format!("s{number}"), (4, number), &[&fixture.a, &fixture.b]);
        }
        let last = address("10.96.4.120:80");
        eventually("all to be served", 60 * SECOND, || {
            let status = agent.cli(&["status"]);
            status["services"] == 121 && fixture.client.ask_within(Probe::Tcp, last, SECOND / 4).is_ok()
        });
        for number in 1..=120 {
            let to = address(&format!("10.96.4.{number}:80"));
            fixture
                .client
                .ask(Probe::Tcp, to)
                .unwrap_or_else(|error| panic!("{to}: {error}"));
        }
        assert_eq!(errors(fixture.node()), []);
        let after = capacities(&agent);
        assert!(
            before.iter().zip(&after).all(|(before, after)| before < after),
            "{before:?} {after:?}"
        );
        for stream in &streams {
            stream.wait_more(50, 10 * SECOND);
        }
        agent.restart();
        agent.wait_ready(10 * SECOND);
        assert_eq!(agent.cli(&["status"])["writes"]["sinceStart"], 0);
        assert_eq!(capacities(&agent), after, "a restart finds them as they are");
        for flows in &flows {
            flows.wait_progress(5 * SECOND);
        }
        for flows in flows {
            flows.stop().assert_unnoticed(2 * SECOND);
        }
        for stream in streams {
            let report = stream.stop();
            assert!(report.failures.is_empty(), "{report:?}");
        }
    }
}
