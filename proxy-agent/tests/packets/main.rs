//! Tests of the packet programs on the live kernel: packet in, verdict and packet out.
//!
//! The tests check every output packet for complete, correct checksums, which they compute independently.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests, which panic with what went wrong"
)]

mod capacity;
mod errors;
mod fragments;
mod frame;
mod halves;
mod live;
mod mutated;
mod node;
mod pod_links;
mod pods;
#[path = "../support/mod.rs"]
mod support;
mod verdicts;

use std::net::{IpAddr, SocketAddr};

use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use millrace::bpf::Datapath;
use millrace::bpf::object::MapSizes;
use proxy_common::maps::{
    AddressFlags, Backend, BackendState, Config, Frontend, FrontendKey, Reason, Slot, SlotRange,
};
use proxy_common::{Ip, Port, protocol};

use frame::{checked, ends, frame, socket};
use support::Sandbox;

const SIZES: MapSizes = MapSizes {
    frontends: 64,
    slots: 128,
    backends: 64,
    addresses: 64,
    flows: 1024,
    affinity: 64,
    socket_peers: 64,
    pod_netns: 16,
};

/// `TC_ACT_UNSPEC`: the packet continues to the next program and to the kernel's stack.
const PASS: u32 = u32::MAX;
const SHOT: u32 = 2;
const REDIRECT: u32 = 7;

struct Bench {
    datapath: Datapath,
    _sandbox: Sandbox,
}

fn ip(text: &str) -> Ip {
    text.parse::<IpAddr>().unwrap().into()
}

impl Bench {
    fn new() -> Self {
        let sandbox = Sandbox::enter();
        let datapath = Datapath::open(&sandbox.bpf_root(), &SIZES).unwrap();
        let mut config = Config {
            node_v4: ip("192.168.50.11"),
            node_v6: ip("fd00:50::11"),
            host_device: 1,
            masquerade_first: 61_000,
            masquerade_count: 1000,
            connection_share: 100,
            stream_share: 100,
            unreplied_share: 1000,
            neighbour_share: 1000,
            ..Config::default()
        };
        config.service_range[0] = ip("10.96.0.0");
        config.service_mask[0] = ip("ffff:ffff:ffff:ffff:ffff:ffff:ffff:0");
        config.service_range[1] = ip("fd00:96::");
        config.service_mask[1] = ip("ffff:ffff:ffff:ffff:ffff:ffff:ffff:0");
        datapath.config.set(0, &config);
        for node in ["192.168.50.11", "fd00:50::11"] {
            datapath.addresses.set(&ip(node), &AddressFlags::NODE).unwrap();
        }
        let bench = Self {
            datapath,
            _sandbox: sandbox,
        };
        let mut number = 0;
        for protocol in [protocol::TCP, protocol::UDP, protocol::SCTP] {
            for (vip, backend) in [
                ("10.96.0.10", "10.244.2.2:8080"),
                ("fd00:96::10", "[fd00:244:2::2]:8080"),
            ] {
                number += 1;
                let target = if protocol == protocol::SCTP {
                    backend.replace("8080", "80")
                } else {
                    backend.into()
                };
                bench.service(number, vip, 80, protocol, Some(target.parse().unwrap()));
                number += 1;
                bench.service(number, vip, 81, protocol, None);
            }
        }
        bench
    }

    fn service(&self, number: u32, vip: &str, port: u16, protocol: u8, backend: Option<SocketAddr>) {
        let key = FrontendKey::new(ip(vip), Port::new(port), protocol);
        if let Some(backend) = backend {
            let backend = Backend {
                address: backend.ip().into(),
                port: Port::new(backend.port()),
                state: BackendState::Active as u8,
                generation: 1,
                service: number,
                ..Backend::default()
            };
            self.datapath.backends.set(number, &backend);
            self.datapath.slots.set(number, &Slot::new(number, number));
        }
        let slots = SlotRange::new(number, u32::from(backend.is_some())).0;
        let frontend = Frontend {
            check: key.check(),
            slots,
            service: number,
            flags: 0,
            affinity: 0,
            reserved: 0,
        };
        self.datapath.frontends.set(&key, &frontend).unwrap();
        self.datapath
            .addresses
            .set(&ip(vip), &AddressFlags::VIRTUAL)
            .unwrap();
    }

    fn run(&self, program: &str, frame: &[u8]) -> (u32, Vec<u8>) {
        let program = SchedClassifier::from_pin(self.datapath.program_pin(program)).unwrap();
        let mut out = vec![0_u8; frame.len() + 256];
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.data_out = Some(&mut out);
        let result = program.test_run(options).unwrap();
        let len = result.data_size_out as usize;
        out.truncate(len);
        (result.return_value, out)
    }

    fn count(&self, reason: Reason) -> u64 {
        self.datapath.counter(reason).unwrap().packets
    }
}

const FAMILIES: [(&str, &str, &str); 2] = [
    ("10.244.1.5:40000", "10.96.0.10:80", "10.244.2.2:8080"),
    (
        "[fd00:244:1::5]:40000",
        "[fd00:96::10]:80",
        "[fd00:244:2::2]:8080",
    ),
];

#[test]
fn requests_and_replies_are_translated() {
    let bench = Bench::new();
    for (client, vip, backend) in FAMILIES {
        for protocol in [protocol::TCP, protocol::UDP] {
            let (verdict, out) = bench.run("from_pod", &frame(client, vip, protocol, 0x02, b"hello"));
            assert_eq!(verdict, PASS);
            assert_eq!(ends(&checked(&out)), (socket(client), socket(backend)));
            let (verdict, out) = bench.run("to_pod", &frame(backend, client, protocol, 0x12, b"hi"));
            assert_eq!(verdict, PASS);
            assert_eq!(ends(&checked(&out)), (socket(vip), socket(client)));
        }
    }
    assert_eq!((bench.count(Reason::NewFlow), bench.count(Reason::Reply)), (4, 4));
}

#[test]
fn odd_lengths_and_empty_payloads_keep_their_checksums() {
    let bench = Bench::new();
    for (client, vip, _) in FAMILIES {
        for len in [0, 1, 2, 3, 7, 100, 1301] {
            for protocol in [protocol::TCP, protocol::UDP] {
                let (_, out) = bench.run("from_pod", &frame(client, vip, protocol, 0x10, &vec![0xab; len]));
                checked(&out);
            }
        }
    }
}

#[test]
fn a_datagram_without_checksum_stays_without() {
    let bench = Bench::new();
    let mut request = frame(FAMILIES[0].0, FAMILIES[0].1, protocol::UDP, 0, b"x");
    request[40..42].fill(0);
    let (_, out) = bench.run("from_pod", &request);
    assert_eq!(out[40..42], [0, 0]);
}

#[test]
fn sctp_is_translated_where_the_port_stays() {
    let bench = Bench::new();
    for (client, vip, backend) in FAMILIES {
        let (verdict, out) = bench.run("from_pod", &frame(client, vip, protocol::SCTP, 0, b""));
        assert_eq!(verdict, PASS);
        assert_eq!(ends(&checked(&out)).1, socket(&backend.replace("8080", "80")));
    }
}

#[test]
fn a_pod_that_reaches_itself_gets_its_packet_back() {
    let bench = Bench::new();
    for (pod, vip) in [
        ("10.244.2.2:40000", "10.96.0.10:80"),
        ("[fd00:244:2::2]:40000", "[fd00:96::10]:80"),
    ] {
        let request = frame(pod, vip, protocol::TCP, 0x02, b"");
        let (verdict, out) = bench.run("from_pod", &request);
        assert_eq!(verdict, REDIRECT);
        let headers = checked(&out);
        assert_eq!(headers.dst, ip(&socket(pod).ip().to_string()));
        assert_ne!(headers.src, headers.dst);
        assert_eq!(
            (&out[..6], &out[6..12]),
            (&request[6..12], &request[..6]),
            "the frame goes back"
        );
        let (from, to) = ends(&headers);
        let reply = frame(&to.to_string(), &from.to_string(), protocol::TCP, 0x12, b"");
        let (verdict, out) = bench.run("from_pod", &reply);
        assert_eq!(verdict, REDIRECT);
        assert_eq!(ends(&checked(&out)), (socket(vip), socket(pod)));
    }
}

#[test]
fn a_syn_to_a_service_without_endpoints_is_reset() {
    let bench = Bench::new();
    for (client, vip) in [
        ("10.244.1.5:40000", "10.96.0.10:81"),
        ("[fd00:244:1::5]:40000", "[fd00:96::10]:81"),
    ] {
        for vip in [vip.to_owned(), vip.replace(":81", ":9")] {
            let (verdict, out) = bench.run("from_pod", &frame(client, &vip, protocol::TCP, 0x02, b""));
            assert_eq!(verdict, REDIRECT);
            let headers = checked(&out);
            assert_eq!(ends(&headers), (socket(&vip), socket(client)));
            let l4 = headers.l4 as usize;
            assert_eq!(out[l4 + 13], 0x14, "RST and ACK");
            assert_eq!(
                out[l4 + 4..l4 + 12],
                [0, 0, 0, 0, 0, 0, 0, 8],
                "SEQ=0, ACK=SEG.SEQ+1"
            );
            let (verdict, out) = bench.run("from_pod", &frame(client, &vip, protocol::TCP, 0x10, b"data"));
            assert_eq!(verdict, REDIRECT);
            assert_eq!(ends(&checked(&out)), (socket(&vip), socket(client)));
            assert_eq!(out[l4 + 13], 0x04, "RST alone");
            assert_eq!(out[l4 + 4..l4 + 8], [0; 4], "SEQ=SEG.ACK");
            let (verdict, _) = bench.run("from_pod", &frame(client, &vip, protocol::TCP, 0x04, b""));
            assert_eq!(verdict, SHOT, "a RST gets no reply");
        }
    }
}

#[test]
fn a_datagram_to_a_service_without_endpoints_is_unreachable() {
    let bench = Bench::new();
    for (client, vip) in [
        ("10.244.1.5:40000", "10.96.0.10:81"),
        ("[fd00:244:1::5]:40000", "[fd00:96::10]:81"),
    ] {
        for protocol in [protocol::UDP, protocol::SCTP] {
            let request = frame(
                client,
                vip,
                protocol,
                0,
                b"a payload that the error does not carry",
            );
            let (verdict, out) = bench.run("from_pod", &request);
            assert_eq!(verdict, REDIRECT);
            let headers = checked(&out);
            let (src, dst) = (
                ip(&socket(vip).ip().to_string()),
                ip(&socket(client).ip().to_string()),
            );
            assert_eq!((headers.src, headers.dst), (src, dst));
            let l4 = headers.l4 as usize;
            let expected = if src.is_v4() { [3, 3] } else { [1, 4] };
            assert_eq!(out[l4..l4 + 2], expected, "port unreachable");
            let carried = &out[l4 + 8..];
            assert_eq!(
                carried,
                &request[14..14 + carried.len()],
                "the error carries the refused packet"
            );
            assert_eq!(carried.len(), if src.is_v4() { 28 } else { 48 });
        }
    }
}

#[test]
fn unallocated_addresses_and_foreign_ones() {
    let bench = Bench::new();
    let run = |to: &str| bench.run("from_pod", &frame("10.244.1.5:40000", to, protocol::UDP, 0, b"x"));
    assert_eq!(run("10.96.99.99:80").0, SHOT);
    let foreign = frame("10.244.1.5:40000", "10.244.2.7:80", protocol::UDP, 0, b"x");
    assert_eq!(bench.run("from_pod", &foreign), (PASS, foreign));
    assert_eq!(bench.count(Reason::NoSuchService), 1);
}

#[test]
fn malformed_packets_are_left_to_the_kernel() {
    let bench = Bench::new();
    let whole = frame(FAMILIES[0].0, FAMILIES[0].1, protocol::TCP, 0x02, b"");
    for len in 34..48 {
        let (verdict, out) = bench.run("from_pod", &whole[..len]);
        assert_eq!((verdict, &out[..]), (PASS, &whole[..len]), "{len} bytes");
    }
    assert_eq!(bench.count(Reason::Malformed), 14);
}
