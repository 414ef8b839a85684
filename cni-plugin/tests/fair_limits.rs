//! Flows under one limit. A flow that sends little does not wait for flows that send at full speed, where the
//! kernel has a queue for each flow.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests, which panic with what went wrong"
)]

#[expect(dead_code, reason = "this file needs a part of it")]
mod support;

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use cni_plugin::netlink::{NetlinkSocket, Request};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcMessage};
use serde_json::json;
use support::{NODE_V4, World, on_a_node, skip, with};

const RATE: u64 = 20_000_000;
const BULK_FLOWS: usize = 32;
const QUESTIONS: usize = 200;
const PATIENCE: Duration = Duration::from_secs(1);
/// At most two full packets of other flows go first; the rest is for the scheduling of the machine.
const USUAL: Duration = Duration::from_millis(5);

/// Whether the flows under a limit have queues of their own.
fn is_shared_fairly() -> bool {
    let all = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default());
    let listed = NetlinkSocket::open()
        .unwrap()
        .ask(Request::list("listing queueing disciplines", all))
        .unwrap();
    listed.iter().any(|reply| {
        let RouteNetlinkMessage::NewQueueDiscipline(message) = reply else {
            return false;
        };
        let is_fair =
            |attribute: &TcAttribute| matches!(attribute, TcAttribute::Kind(kind) if kind == "fq_codel");
        message.attributes.iter().any(is_fair) && message.header.parent.major == 1
    })
}

#[test]
fn a_small_flow_does_not_wait_for_a_bulk_flow() {
    let mut is_fair = true;
    on_a_node(|world| {
        for key in ["ingressRate", "egressRate"] {
            let pod = world.pod(key);
            let limited = with(
                world.config(),
                &json!({"runtimeConfig": {"bandwidth": {key: RATE}}}),
            );
            World::call("ADD", key, Some(&pod), &limited).done();
            is_fair = is_shared_fairly();
            if !is_fair {
                return;
            }
            let idle = median(&round_trips(&pod));
            let busy = round_trips_beside_bulk(&pod, key == "ingressRate");
            println!(
                "{key}: {idle:?} alone, {:?} beside {BULK_FLOWS} flows",
                median(&busy)
            );
            assert!(median(&busy) < idle + USUAL, "{key}: {busy:?}");
            let late = busy.iter().filter(|time| **time >= PATIENCE).count();
            assert!(late <= QUESTIONS / 50, "{key}: {late} of {QUESTIONS} got lost");
            world.del(key, None).done();
        }
    });
    if !is_fair {
        skip("no fq_codel: the flows of a pod with a limit share one queue");
    }
}

fn median(times: &[Duration]) -> Duration {
    let mut times = times.to_vec();
    times.sort();
    times[times.len() / 2]
}

/// The times until the replies to small requests arrive. A lost request counts as `PATIENCE`. It may be lost
/// if its flow shares a queue with another one, or in a queue of the machine.
fn round_trips(pod: &Path) -> Vec<Duration> {
    let outer = UdpSocket::bind((NODE_V4, 0)).unwrap();
    let to = outer.local_addr().unwrap();
    let inner = World::inside(pod, || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect(to).unwrap();
        socket
    });
    for socket in [&inner, &outer] {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut question = [0; 16];
            // The loop ends when no more requests arrive.
            for _ in 0..QUESTIONS {
                let Ok((length, from)) = outer.recv_from(&mut question) else {
                    return;
                };
                outer.send_to(&question[..length], from).unwrap();
            }
        });
        let ask = |number: usize| {
            thread::sleep(Duration::from_millis(5));
            let begin = Instant::now();
            let question = number.to_ne_bytes();
            inner.send(&question).unwrap();
            let mut reply = [0; 8];
            // A late reply belongs to an earlier request.
            while reply != question && inner.recv(&mut reply).is_ok() {}
            begin.elapsed()
        };
        (0..QUESTIONS).map(ask).collect()
    })
}

/// Sets the flag when it is dropped, also when a test fails.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn round_trips_beside_bulk(pod: &Path, to_pod: bool) -> Vec<Duration> {
    let listener = TcpListener::bind((NODE_V4, 0)).unwrap();
    let to = listener.local_addr().unwrap();
    let pairs: Vec<_> = (0..BULK_FLOWS)
        .map(|_| {
            let inner = World::inside(pod, || TcpStream::connect(to).unwrap());
            let (outer, _) = listener.accept().unwrap();
            if to_pod { (outer, inner) } else { (inner, outer) }
        })
        .collect();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for (sender, receiver) in &pairs {
            let done = &done;
            scope.spawn(move || {
                let full = [0; 16_384];
                while { sender }.write_all(&full).is_ok() {}
            });
            scope.spawn(move || {
                let mut buffer = [0; 16_384];
                while !done.load(Ordering::Relaxed) {
                    let _ = { receiver }.read(&mut buffer).unwrap();
                }
                receiver.shutdown(std::net::Shutdown::Both).unwrap();
                let _ = sender.shutdown(std::net::Shutdown::Both);
            });
        }
        // Waits until the bulk flows have filled their queues.
        thread::sleep(Duration::from_secs(2));
        let _end = End(&done);
        round_trips(pod)
    })
}
