//! Limits: the objects that make them, their effect in both directions and for TCP and UDP, and their
//! complete removal.
//!
//! The tests count the same bytes as the token bucket: bytes on the wire with Ethernet headers. For datagrams
//! the count is exact. For TCP it follows from the size of segments, which are full while a flow has more to
//! send than may pass. Only ratios are checked. A busy machine may slow a flow, so a slow flow is tried
//! again. No flow may be faster than its limit.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests, which panic with what went wrong"
)]
#![expect(clippy::cast_precision_loss, reason = "rates and sizes are far below 2^52")]

#[expect(dead_code, reason = "this file needs a part of it")]
mod support;

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use cni_plugin::netlink::{NetlinkSocket, link};
use nix::sys::socket::{setsockopt, sockopt};
use proxy_common::maps::{PodFlags, PodLinkFlags};
use serde_json::{Value, json};
use support::{NODE_V4, World, interfaces, on_a_node, with};

const MTU: f64 = 1450.0;
const ETHERNET: f64 = 14.0;
const RATES: [u64; 4] = [1_000_000, 10_000_000, 100_000_000, 1_000_000_000];
const TOLERANCE: f64 = 0.05;
const ATTEMPTS: usize = 4;

fn limited(world: &World, bandwidth: &Value) -> Value {
    with(
        world.config(),
        &json!({"runtimeConfig": {"bandwidth": bandwidth}}),
    )
}

#[test]
fn egress_of_a_pod_passes_its_own_limiter() {
    on_a_node(|world| {
        let before = world.traces();
        let pod = world.pod("pod");
        let both = limited(
            world,
            &json!({"ingressRate": 10_000_000, "egressRate": 20_000_000, "egressBurst": 4_294_967_296_u64}),
        );
        let result = World::call("ADD", "c1", Some(&pod), &both).done();
        let limiter = interfaces()
            .into_iter()
            .find(|name| name.starts_with("ml"))
            .unwrap();
        let index = |name: &str| {
            let found = link::find(&mut NetlinkSocket::open().unwrap(), name).unwrap();
            found.unwrap().index
        };
        let links = world.pod_links();
        let host = result["interfaces"][0]["name"].as_str().unwrap();
        assert_eq!((links[0].0, links[0].1.limiter), (index(host), index(&limiter)));
        assert_eq!(links[0].1.flags, PodLinkFlags::LIMITED_FIRST);
        let end = limiter.replacen("ml", "mk", 1);
        assert!(interfaces().contains(&end), "{end}");
        for (_, entry) in world.pods() {
            assert_eq!(entry.flags, PodFlags::LIMITED_INGRESS | PodFlags::LIMITED_EGRESS);
        }
        let check = with(both.clone(), &json!({"prevResult": result}));
        World::call("CHECK", "c1", Some(&pod), &check).done();
        // The pod ended without DEL: the device stays, and DEL removes it.
        World::end_pod(&pod);
        support::wait_until("the pod's interface is gone", || {
            !interfaces().iter().any(|name| name.starts_with("mr"))
        });
        assert!(interfaces().contains(&limiter));
        world.del("c1", None).done();
        assert_eq!(world.traces(), before);
    });
}

#[test]
fn gc_removes_a_device_that_is_left() {
    on_a_node(|world| {
        let before = world.traces();
        let pod = world.pod("pod");
        World::call(
            "ADD",
            "c1",
            Some(&pod),
            &limited(world, &json!({"egressRate": 20_000_000})),
        )
        .done();
        World::end_pod(&pod);
        let no_attachments = with(world.config(), &json!({"cni.dev/valid-attachments": []}));
        World::call("GC", "", None, &no_attachments).done();
        assert_eq!(world.traces(), before);
    });
}

/// The direction of the limited traffic.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Direction {
    ToPod,
    FromPod,
}

#[test]
fn ingress_of_a_pod_has_its_rate() {
    on_a_node(|world| hold_to_rates(world, Direction::ToPod));
}

#[test]
fn egress_of_a_pod_has_its_rate() {
    on_a_node(|world| hold_to_rates(world, Direction::FromPod));
}

fn hold_to_rates(world: &World, direction: Direction) {
    for rate in RATES {
        let key = match direction {
            Direction::ToPod => "ingressRate",
            Direction::FromPod => "egressRate",
        };
        let name = format!("pod{rate}");
        let pod = world.pod(&name);
        World::call("ADD", &name, Some(&pod), &limited(world, &json!({key: rate}))).done();
        hold("TCP", rate, || tcp(&pod, direction, rate));
        hold("UDP", rate, || udp(&pod, direction, rate));
        world.del(&name, None).done();
    }
}

fn hold(what: &str, rate: u64, measure: impl Fn() -> f64) {
    let mut ratios = Vec::new();
    for _ in 0..ATTEMPTS {
        let ratio = measure() / rate as f64;
        ratios.push(ratio);
        println!("{what} at {rate} bit/s: {ratio:.3} of it");
        assert!(ratio < 1.0 + TOLERANCE, "{what} at {rate} bit/s: {ratios:?}");
        if ratio > 1.0 - TOLERANCE {
            return;
        }
    }
    panic!("{what} at {rate} bit/s stays behind: {ratios:?}");
}

/// Reads for a while and returns the bits per second after the burst.
fn rate_of(limit: u64, mut read: impl FnMut() -> usize) -> f64 {
    let begin = Instant::now();
    // The bytes that fill buffers and buckets at first do not count. The window is long, so that single
    // packets do not matter. The same holds for packets that wait behind a lost one and are read together.
    let (warm_up, window) = match limit {
        ..5_000_000 => (Duration::from_secs(2), Duration::from_secs(15)),
        5_000_000..50_000_000 => (Duration::from_secs(1), Duration::from_secs(8)),
        _ => (Duration::from_millis(500), Duration::from_millis(1500)),
    };
    while begin.elapsed() < warm_up {
        read();
    }
    let (from, mut bytes) = (Instant::now(), 0);
    loop {
        bytes += read();
        let elapsed = from.elapsed();
        if elapsed > window {
            return bytes as f64 * 8.0 / elapsed.as_secs_f64();
        }
    }
}

/// The rate of one TCP flow.
fn tcp(pod: &Path, direction: Direction, limit: u64) -> f64 {
    let listener = TcpListener::bind((NODE_V4, 0)).unwrap();
    let to = listener.local_addr().unwrap();
    let inner = World::inside(pod, || TcpStream::connect(to).unwrap());
    let (outer, _) = listener.accept().unwrap();
    let (sender, receiver) = match direction {
        Direction::ToPod => (outer, inner),
        Direction::FromPod => (inner, outer),
    };
    let segment = f64::from(nix::sys::socket::getsockopt(&sender, sockopt::TcpMaxSeg).unwrap());
    thread::scope(|scope| {
        scope.spawn(|| {
            let full = vec![0; 65536];
            // The loop ends when the receiver closes the connection.
            while (&sender).write_all(&full).is_ok() {}
        });
        let mut buffer = vec![0; 65536];
        let payload = rate_of(limit, || (&receiver).read(&mut buffer).unwrap());
        receiver.shutdown(std::net::Shutdown::Both).unwrap();
        drop(receiver);
        payload * (MTU + ETHERNET) / segment
    })
}

/// The rate of datagrams whose sender ignores the limit.
fn udp(pod: &Path, direction: Direction, limit: u64) -> f64 {
    const HEADERS: usize = 14 + 20 + 8;
    // At low rates datagrams are small, so that the count is fine enough. At high rates one system call sends
    // many (udp(7)).
    let (size, at_once): (u16, u16) = match limit {
        0..50_000_000 => (500, 1),
        50_000_000..500_000_000 => (1400, 1),
        _ => (1400, 40),
    };
    let (segment, size) = (i32::from(size), usize::from(size));
    let outer = UdpSocket::bind((NODE_V4, 0)).unwrap();
    let inner = World::inside(pod, || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect(outer.local_addr().unwrap()).unwrap();
        socket.send(b"here").unwrap();
        socket
    });
    let (_, from) = outer.recv_from(&mut [0; 16]).unwrap();
    outer.connect(from).unwrap();
    let (sender, receiver) = match direction {
        Direction::ToPod => (outer, inner),
        Direction::FromPod => (inner, outer),
    };
    setsockopt(&receiver, sockopt::RcvBufForce, &(8 << 20)).unwrap();
    if at_once > 1 {
        setsockopt(&sender, sockopt::UdpGsoSegment, &segment).unwrap();
        setsockopt(&receiver, sockopt::UdpGroSegment, &true).unwrap();
    }
    receiver.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let datagrams = vec![0; size * usize::from(at_once)];
            // Sends twice as fast as the limit, in bursts, since a sleeping thread wakes up late.
            let begin = Instant::now();
            let per_second = limit as f64 / 4.0 / (size + HEADERS) as f64;
            let mut sent = 0.0;
            while !done.load(Ordering::Relaxed) {
                let due = begin.elapsed().as_secs_f64() * per_second;
                while sent < due {
                    // The kernel returns ENOBUFS when the queue is full.
                    let _ = sender.send(&datagrams);
                    sent += f64::from(at_once);
                }
                thread::sleep(Duration::from_micros(500));
            }
        });
        let mut buffer = vec![0; 1 << 16];
        let rate = rate_of(limit, || {
            let payload = receiver.recv(&mut buffer).unwrap();
            payload + payload / size * HEADERS
        });
        done.store(true, Ordering::Relaxed);
        rate
    })
}
