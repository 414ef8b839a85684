//! What stays without an answer costs others a moment at the most: half-open handshakes of a silent client,
//! and datagrams of a pod to where other pods ask.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use harness::cni::PodSpec;
use harness::forge::packet;
use harness::{Place, Probe};
use serde_json::json;

use crate::town::{BALANCER, LOCAL_BALANCER, NODE_PORT, SOON, Town, at, of_family};

const HANDSHAKES: u16 = 30_000;
const DATAGRAMS: u16 = 60_000;
/// Others who try.
const OTHERS: usize = 100;

/// Tries until it succeeds or the time is over.
fn succeeds(within: Duration, attempt: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + within;
    loop {
        if attempt() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
    }
}

/// How many of a hundred others get an answer within the time that each has. Where the first ten all fail,
/// the rest would.
#[track_caller]
fn assert_others_are_served(client: &Place, probe: Probe, to: SocketAddr, what: &str) {
    let attempt = || client.ask_within(probe, to, SOON / 5).is_ok();
    let (mut served, mut tried) = (0, 0);
    while tried < OTHERS && (tried < 3 || served > 0) {
        served += usize::from(succeeds(SOON, attempt));
        tried += 1;
    }
    assert!(
        served * 100 >= tried * 99,
        "{what}: {served} of {tried} were served at {to} by {probe:?}"
    );
}

#[test]
fn handshakes_of_a_silent_client_do_not_close_a_service() {
    harness::require_root!();
    let town = Town::build();
    let forge = town.forge();
    for (silent, v4) in [("192.168.50.222", true), ("fd00:50::222", false)] {
        let silent: IpAddr = silent.parse().expect("an address");
        for to in [
            SocketAddr::new(of_family(town.node(), v4), NODE_PORT),
            at(BALANCER[usize::from(!v4)], 80),
        ] {
            for number in 0..HANDSHAKES {
                let from = SocketAddr::new(silent, 1024 + number);
                forge.send(&packet::tcp(from, to, packet::SYN, 1, b""));
            }
            assert_others_are_served(
                &town.outside,
                Probe::Tcp,
                to,
                "after a silent client's handshakes",
            );
        }
    }
}

/// Many silent clients, from as many addresses.
#[test]
fn handshakes_of_many_silent_clients_do_not_close_a_service() {
    harness::require_root!();
    let town = Town::build();
    let (forge, to) = (town.forge(), SocketAddr::new(town.node().ip().into(), NODE_PORT));
    for number in 0..HANDSHAKES {
        let [high, low] = number.to_be_bytes();
        let from = SocketAddr::from(([172, 31, high, low], 40_000));
        forge.send(&packet::tcp(from, to, packet::SYN, 1, b""));
    }
    assert_others_are_served(&town.outside, Probe::Tcp, to, "after handshakes of many");
    let local = at(LOCAL_BALANCER[0], 80);
    assert_others_are_served(&town.outside, Probe::Tcp, local, "after handshakes of many");
}

/// Datagrams that are answered by errors or not at all do not close a service either.
#[test]
fn datagrams_of_a_silent_client_do_not_close_a_service() {
    harness::require_root!();
    let town = Town::build();
    let (forge, to) = (town.forge(), SocketAddr::new(town.node().ip().into(), NODE_PORT));
    let silent: IpAddr = "192.168.50.222".parse().expect("an address");
    for number in 0..DATAGRAMS {
        forge.send(&packet::udp(SocketAddr::new(silent, 1024 + number), to, b"?"));
    }
    assert_others_are_served(&town.outside, Probe::Udp, to, "after a silent client's datagrams");
}

#[test]
fn handshakes_to_a_host_port_do_not_close_it() {
    harness::require_root!();
    let town = Town::build();
    let ports = json!([{"hostPort": 8081, "containerPort": 8080, "protocol": "tcp"}]);
    let pod = town
        .node()
        .add_pod_by_plugin(&PodSpec::new("host-port").asking("portMappings", ports));
    let _server = pod.serve_tcp(8080);
    let (forge, to) = (town.forge(), SocketAddr::new(town.node().ip().into(), 8081));
    for number in 0..HANDSHAKES {
        let from = SocketAddr::from(([192, 168, 50, 222], 1024 + number));
        forge.send(&packet::tcp(from, to, packet::SYN, 1, b""));
    }
    assert_others_are_served(
        &town.outside,
        Probe::Tcp,
        to,
        "after a silent client's handshakes",
    );
}

/// A resolver outside that answers questions, and nothing else that comes.
struct Resolver {
    end: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Resolver {
    fn start(place: &Place, port: u16) -> Self {
        let end = Arc::new(AtomicBool::new(false));
        let threads = place.addresses().iter().map(|address| {
            let socket = place.udp_bind(SocketAddr::new(*address, port)).expect("a socket");
            socket.set_read_timeout(Some(SOON / 50)).expect("a deadline");
            let end = Arc::clone(&end);
            std::thread::spawn(move || {
                let mut buffer = [0; 64];
                while !end.load(Ordering::Relaxed) {
                    if let Ok((1, from)) = socket.recv_from(&mut buffer)
                        && buffer[0] == b'?'
                    {
                        let _ = socket.send_to(format!("resolver {from}\n").as_bytes(), from);
                    }
                }
            })
        });
        let threads = threads.collect();
        Self { end, threads }
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // Its panic has been printed.
            let _ = thread.join();
        }
    }
}

#[test]
fn datagrams_of_one_pod_do_not_close_a_destination_to_others() {
    harness::require_root!();
    let town = Town::build();
    let _resolver = Resolver::start(&town.outside, 5300);
    let forge = town.pod.forge_out();
    for v4 in [true, false] {
        let to = SocketAddr::new(of_family(&town.outside, v4), 5300);
        let from = of_family(&town.pod, v4);
        for number in 0..DATAGRAMS {
            forge.send(&packet::udp(
                SocketAddr::new(from, 1024 + number),
                to,
                b"not a question",
            ));
        }
        assert_others_are_served(&town.web, Probe::Udp, to, "after another pod's datagrams");
        assert_others_are_served(
            &town.web,
            Probe::UdpConnected,
            to,
            "after another pod's datagrams",
        );
    }
}

/// The same by handshakes, which the pod gives up as soon as they are answered, and by echo requests.
#[test]
fn other_packets_of_one_pod_do_not_close_a_destination_to_others() {
    harness::require_root!();
    let town = Town::build();
    let _server = town.outside.serve_tcp(8080);
    let (forge, from, to) = (
        town.pod.forge_out(),
        town.pod.ip().into(),
        SocketAddr::new(town.outside.ip().into(), 8080),
    );
    for number in 0..DATAGRAMS {
        let source = SocketAddr::new(from, 1024 + number);
        forge.send(&packet::tcp(source, to, packet::SYN, 1, b""));
        forge.send(&packet::echo(from, to.ip(), true, 1024 + number, b"?"));
    }
    assert_others_are_served(&town.web, Probe::Tcp, to, "after another pod's handshakes");
    town.web
        .ping(to.ip(), SOON)
        .expect("an echo reply, after another pod's echo requests");
}
