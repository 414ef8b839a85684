//! A dry run leaves no state behind, and no packet on the wire can pretend to be one.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use harness::config::{DEFAULTS, HOOKS_OFF};
use harness::{Place, Probe, Reply, address, eventually};
use proxy_common::maps::{Config, Reason};

use crate::topology::{SECOND, SILENCE, Topology, own_address};

#[test]
fn nothing_is_left_behind() {
    harness::require_root!();
    for config in [DEFAULTS, HOOKS_OFF] {
        let topology = Topology::build(config);
        let node = topology.node();
        // The traces match this flow, and must not change its entry.
        let met = topology.client.ask_from(
            Probe::Udp,
            SocketAddr::new(topology.client.ip().into(), 40_000),
            address("10.96.0.10:80"),
            SECOND,
        );
        met.expect("a reply");
        let flows = || {
            (
                node.table::<40, 64>("FLOWS"),
                node.table::<40, 64>("STREAMS"),
                node.table::<40, 64>("NEW_FLOWS"),
            )
        };
        let affinity = || node.table::<24, 16>("AFFINITY");
        let peers = || node.table::<32, 28>("SOCKET_PEERS");
        let facts = || node.element::<{ size_of::<Config>() }>("CONFIG");
        // Counters from the fourth on count packets of services. Kernels send multicast frames by themselves,
        // so these are left out.
        let counters = || {
            let mut counters = node.counters();
            counters[Reason::OtherHost as usize] = 0;
            counters.split_off(4)
        };
        let before = (flows(), affinity(), peers(), facts(), counters());
        assert_eq!(before.0.2.len(), 2, "one entry each way");
        let links = ["eth0", topology.client.host_interface(), "millrace0"];
        let captures = links.map(|link| node.packet_socket(link).expect("a capture"));
        let unknown_senders: [(&str, &str); 5] = [
            ("10.244.1.10", "pod"),
            ("10.244.1.222", "pod"),
            ("192.168.50.11", "node"),
            ("203.0.113.7", "uplink"),
            // A pod of another node: with a real packet, pods would reply to it.
            ("10.244.2.9", "uplink"),
        ];
        for (from, entry) in unknown_senders {
            for to in [
                "10.96.0.10:80",
                "10.96.0.20:80",
                "10.96.0.10:81",
                "10.96.77.77:80",
            ] {
                for probe in [Probe::Tcp, Probe::Udp] {
                    let from = from.parse().expect("an address");
                    topology.trace(from, address(to), probe, &["--entry", entry, "--samples", "200"]);
                }
            }
        }
        for to in ["[fd00:96::10]:80", "[fd00:96::7777]:80"] {
            for (from, entry) in [
                ("fd00:244:1::de", "pod"),
                ("fd00:50::11", "node"),
                ("2001:db8::7", "uplink"),
            ] {
                let from = from.parse().expect("an address");
                topology.trace(
                    from,
                    address(to),
                    Probe::Udp,
                    &["--entry", entry, "--samples", "200"],
                );
            }
        }
        assert_eq!(flows(), before.0);
        assert_eq!(affinity(), before.1);
        assert_eq!(peers(), before.2);
        assert_eq!(facts(), before.3);
        assert_eq!(counters(), before.4);
        assert_eq!(node.element::<8>("TRACE"), [0; 8], "the cell is disarmed");
        let status = node.cli(&["status"]).expect("a status");
        assert_eq!(status["maps"]["newFlows"]["entries"], 2);
        for (link, capture) in links.iter().zip(captures) {
            let is_trace = |frame: &harness::Frame| {
                let service: [&[u8]; 2] = [&[10, 96], &[0xfd, 0, 0, 0x96]];
                let mut places = frame.bytes.windows(4);
                places.any(|bytes| service.iter().any(|range| bytes.starts_with(range)))
            };
            let sent = capture.find(SILENCE, is_trace).expect("to read");
            assert_eq!(sent, None, "on {link}");
        }
    }
}

#[test]
fn traffic_goes_on_as_usual_while_traces_run() {
    harness::require_root!();
    for config in [DEFAULTS, HOOKS_OFF] {
        let topology = Topology::build(config);
        let to = address("10.96.0.10:80");
        // The first packets wait for neighbour resolution.
        for (place, entry) in topology.senders() {
            eventually(entry, 5 * SECOND, || ask_marked(place, 0, to).is_ok());
        }
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let tracer = scope.spawn(|| {
                let mut rounds = 0;
                while !done.load(Ordering::Relaxed) {
                    for (place, _) in topology.senders() {
                        let trace =
                            topology.trace(own_address(place, to), to, Probe::Udp, &["--samples", "2000"]);
                        assert_eq!(trace.verdict, "forward");
                    }
                    rounds += 1;
                }
                rounds
            });
            // Dropping it ends the tracer even after a failed assertion, since the scope waits for the
            // tracer.
            let ends = Ends(&done);
            // A program could compare the mark or the payload, so the packets try every kind of value that a
            // sender can choose.
            for mark in 0..200_u32 {
                let mark = mark.wrapping_mul(0x9e37_79b9);
                for (place, entry) in topology.senders() {
                    let reply = ask_marked(place, mark, to);
                    let reply = reply.unwrap_or_else(|error| panic!("{entry} with mark {mark:#x}: {error}"));
                    assert_ne!(reply.backend, "none");
                }
            }
            drop(ends);
            let rounds = tracer.join().expect("every trace has a reply");
            assert!(rounds > 0, "traces went on meanwhile");
        });
    }
}

/// Sets the flag when it is dropped.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Sends a datagram with a firewall mark, which needs root, and waits for the reply.
fn ask_marked(place: &Place, mark: u32, to: SocketAddr) -> std::io::Result<Reply> {
    let socket = place.udp_socket_for(to)?;
    socket2::SockRef::from(&socket).set_mark(mark)?;
    socket.send_to(&mark.to_ne_bytes().repeat(16), to)?;
    let mut buffer = [0; 256];
    let (length, from) = socket.recv_from(&mut buffer)?;
    assert_eq!(from, to, "the reply comes from the virtual address");
    Reply::parse(&String::from_utf8_lossy(&buffer[..length]))
}
