//! Tests conntrack at several times its capacity: a million flows through tables for a quarter of that.
//!
//! Half of the flows get no reply and stay in `NEW_FLOWS`; the others get one and fill `FLOWS`. Active flows
//! keep their backend, new ones are never refused, and the gauges show the usage of the tables.
//!
//! The kernel's LRU evicts by a bit that a look-up sets (`kernel/bpf/bpf_lru_list.c`), so it skips an entry
//! that was looked up since the last round. But in one round it looks at no more than 128 entries, and then
//! evicts one regardless.

use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, OwnedFd};

use millrace::bpf::sys;
use proxy_common::maps::{FlowKey, Reason};
use proxy_common::protocol;
use serde_json::json;

use super::PASS;
use super::frame::{SEQUENCE, frame};
use super::live::{Counters, Program, open_map};
use super::node::Node;

/// The capacity of `FLOWS`, where each flow has two entries; `NEW_FLOWS` has half as many.
const CAPACITY: u32 = 250_000;
const FLOWS: u32 = 1_000_000;
/// The numbers of new flows after which a quarter of the flows that speak in turn send again, and after which
/// all silent ones do.
const LIVE: u32 = 1000;
const SILENCE: u32 = 20_000;
const BACKENDS: [[u8; 4]; 2] = [[10, 244, 1, 2], [10, 244, 2, 2]];

/// Offsets in a frame without options, in bytes.
const SOURCE: usize = 26;
const DESTINATION: usize = 30;
const PORTS: usize = 34;
const ACKNOWLEDGED: std::ops::Range<usize> = 42..46;
const TCP_FLAGS: usize = 47;
const SYN: u8 = 2;
const ACK: u8 = 16;

struct Traffic {
    node: Node,
    from_pod: Program,
    to_pod: Program,
    counters: Counters,
    templates: [Vec<u8>; 2],
}

impl Traffic {
    fn new() -> Self {
        let mut node = Node::with_flows(CAPACITY);
        let both = |kind| json!({"name": kind, "protocol": kind, "port": 8080});
        let port = |kind| json!({"name": kind, "protocol": kind, "port": 80});
        let endpoint = |address: [u8; 4]| json!({"addresses": [IpAddr::from(address)], "nodeName": "n2"});
        node.program(&[
            json!({
                "kind": "Service",
                "metadata": {"namespace": "default", "name": "web"},
                "spec": {"clusterIPs": ["10.96.0.1"], "ports": [port("TCP"), port("UDP")]},
            }),
            json!({
                "kind": "EndpointSlice",
                "metadata": {
                    "namespace": "default", "name": "web",
                    "labels": {"kubernetes.io/service-name": "web"},
                },
                "addressType": "IPv4",
                "ports": [both("TCP"), both("UDP")],
                "endpoints": BACKENDS.map(endpoint),
            }),
        ]);
        let datapath = node.programmer.store();
        let template = |protocol| frame("10.244.1.5:1024", "10.96.0.1:80", protocol, SYN, b"hello");
        Self {
            from_pod: Program::open(datapath, "from_pod", node.uplink),
            to_pod: Program::open(datapath, "to_pod", node.uplink),
            counters: Counters::open(datapath),
            templates: [template(protocol::TCP), template(protocol::UDP)],
            node,
        }
    }

    /// The client's packet of flow `n`. (The programs do not check the checksum.)
    fn request(&self, n: u32, is_tcp: bool, flags: u8) -> Vec<u8> {
        let mut request = self.templates[usize::from(!is_tcp)].clone();
        let (host, port) = ((n / 60_000) as u8, 1024 + (n % 60_000) as u16);
        request[SOURCE + 3] = 10 + host;
        request[PORTS..PORTS + 2].copy_from_slice(&port.to_be_bytes());
        if is_tcp {
            request[TCP_FLAGS] = flags;
            // Only the receiver of the SYN,ACK knows its number.
            let number = if flags == ACK { SEQUENCE + 1 } else { 0 };
            request[ACKNOWLEDGED].copy_from_slice(&number.to_be_bytes());
        }
        request
    }

    /// Sends a request, and returns the packet that the backend gets.
    #[track_caller]
    fn send(&mut self, request: &[u8]) -> Vec<u8> {
        let (verdict, sent) = self.from_pod.run(request).expect("a run");
        assert_eq!(verdict, PASS);
        assert!(
            BACKENDS
                .iter()
                .any(|backend| sent[DESTINATION..DESTINATION + 4] == *backend),
            "to {:?}",
            &sent[DESTINATION..DESTINATION + 4]
        );
        sent.to_vec()
    }

    /// Sends the backend's reply to a packet, and returns the packet that the client gets.
    #[track_caller]
    fn reply(&mut self, sent: &[u8], flags: u8) -> Vec<u8> {
        let mut reply = sent.to_vec();
        reply[SOURCE..SOURCE + 8].rotate_left(4);
        reply[PORTS..PORTS + 4].rotate_left(2);
        if sent[23] == protocol::TCP {
            reply[TCP_FLAGS] = flags;
        }
        let (verdict, received) = self.to_pod.run(&reply).expect("a run");
        assert_eq!(verdict, PASS);
        assert_eq!(
            received[SOURCE..SOURCE + 4],
            [10, 96, 0, 1],
            "the reply of a lost flow"
        );
        received.to_vec()
    }

    /// Begins flow `n`, of one of four kinds: UDP and TCP, with and without a reply.
    fn begin(&mut self, n: u32) {
        let is_tcp = n & 1 == 0;
        let sent = self.send(&self.request(n, is_tcp, SYN));
        if n & 2 == 0 {
            self.reply(&sent, SYN | ACK);
            if is_tcp {
                self.send(&self.request(n, is_tcp, ACK));
            }
        }
    }

    /// Sends a packet in each direction, and returns the packets that both sides get.
    fn exchange(&mut self, n: u32) -> (Vec<u8>, Vec<u8>) {
        let sent = self.send(&self.request(n, n & 1 == 0, ACK));
        let received = self.reply(&sent, ACK);
        (sent, received)
    }

    /// The gauge and the true number of entries, for `FLOWS` and `NEW_FLOWS`.
    fn entries(&self) -> [(u64, u64); 2] {
        let datapath = self.node.programmer.store();
        let gauges = [&datapath.flows, &datapath.new_flows].map(|map| map.count().expect("a count"));
        let maps = ["FLOWS", "NEW_FLOWS"].map(|name| open_map(datapath, name));
        [(gauges[0], walk(&maps[0])), (gauges[1], walk(&maps[1]))]
    }
}

/// Counts entries one by one.
fn walk(map: &OwnedFd) -> u64 {
    let (mut key, mut next) = (None, vec![0; size_of::<FlowKey>()]);
    let mut count = 0;
    while sys::map_next_key(map.as_fd(), key.as_deref(), &mut next).expect("a key") {
        count += 1;
        key = Some(next.clone());
    }
    count
}

/// The active flows: those that all send at the end of their idle time, and those that send in turn.
struct ActiveFlows {
    at_once: Vec<u32>,
    round_robin: Vec<u32>,
    /// The packets that both sides of each flow got at first.
    first_packets: HashMap<u32, (Vec<u8>, Vec<u8>)>,
}

impl ActiveFlows {
    /// Begins all active flows at once, so that their entries are adjacent in the kernel's lists.
    fn begin(traffic: &mut Traffic, first: u32) -> Self {
        let mut replied = (first..).filter(|n| n & 2 == 0);
        let at_once: Vec<_> = replied.by_ref().take(LIVE as usize).collect();
        let round_robin: Vec<_> = replied.take(LIVE as usize).collect();
        let mut first_packets = HashMap::new();
        for n in at_once.iter().chain(&round_robin) {
            traffic.begin(*n);
            first_packets.insert(*n, traffic.exchange(*n));
        }
        Self {
            at_once,
            round_robin,
            first_packets,
        }
    }

    /// Sends on the flows that are due after `n` new flows; returns their number.
    fn exchange(&self, traffic: &mut Traffic, n: u32) -> u64 {
        let at_once = if n % SILENCE == SILENCE - 1 {
            &self.at_once[..]
        } else {
            &[]
        };
        let every = SILENCE / LIVE;
        let round_robin = self.round_robin.iter().skip((n / every % LIVE) as usize);
        let round_robin = round_robin.take(usize::from(n.is_multiple_of(every)));
        let mut exchanged = 0;
        for live in at_once.iter().chain(round_robin) {
            assert_eq!(
                traffic.exchange(*live),
                self.first_packets[live],
                "after {n} flows"
            );
            exchanged += 1;
        }
        exchanged
    }
}

#[test]
fn active_flows_outlive_a_million_others_that_never_fail() {
    let mut traffic = Traffic::new();
    let before = traffic.counters.read();
    // These connections have completed their handshake, and are silent until the end.
    let silent: Vec<_> = (FLOWS + 8 * LIVE..).step_by(4).take(LIVE as usize).collect();
    let mut first_packets = Vec::new();
    for n in &silent {
        traffic.begin(*n);
        first_packets.push(traffic.exchange(*n));
    }
    let mut live = vec![ActiveFlows::begin(&mut traffic, FLOWS)];
    let mut exchanged = 0;
    for n in 0..FLOWS {
        if n == FLOWS / 2 {
            live.push(ActiveFlows::begin(&mut traffic, FLOWS + 4 * LIVE));
        }
        traffic.begin(n);
        for live in &live {
            exchanged += live.exchange(&mut traffic, n);
        }
        if n == FLOWS / 100 || n == FLOWS - 1 {
            let entries = traffic.entries();
            println!("after {n} flows, gauges and entries: {entries:?}");
            for (gauge, entries) in entries {
                assert!(entries > 0, "what is not there is not counted");
                assert!(gauge.abs_diff(entries) * 100 <= entries, "{gauge} for {entries}");
            }
        }
    }
    for (n, first_packets) in silent.iter().zip(first_packets) {
        assert_eq!(traffic.exchange(*n), first_packets, "the silent connection {n}");
    }
    let counts = traffic.counters.read().since(&before);
    let counted: Vec<_> = counts
        .reasons()
        .map(|(reason, count)| (reason, count.packets))
        .collect();
    // Each flow was new once, and the rest of its packets belonged to it.
    let (live, silent) = (u64::from(4 * LIVE), u64::from(LIVE));
    let (replied, handshakes) = (u64::from(FLOWS / 2) + live, u64::from(FLOWS / 4) + live / 2);
    assert_eq!(
        counted,
        [
            (Reason::NewFlow, u64::from(FLOWS) + live + silent),
            (Reason::Established, handshakes + live + exchanged + 3 * silent),
            (Reason::Reply, replied + live + exchanged + 3 * silent),
        ]
    );
}
