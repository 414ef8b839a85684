//! Checksums that a pod leaves to the NIC. The kernel writes the bytes when the packet leaves the node, after
//! all programs.

use std::net::SocketAddr;

use proxy_common::maps::Reason;

use harness::eventually;
use harness::forge::packet;

use crate::topology::{Refusals, SECOND, Topology, counted};

/// Lengths of the Ethernet header, and of the IP header by family.
const ETHERNET: u16 = 14;
const IP: [u16; 2] = [20, 40];

/// Packets whose checksum goes to an unusual place leave by no interface, neither datagrams nor segments.
/// Packets with the usual place do.
#[test]
fn a_sum_is_written_over_no_header() {
    harness::require_root!();
    let topology = Topology::build();
    let forge = topology.pod.forge_out();
    for (n, header) in IP.into_iter().enumerate() {
        let (source, target) = (topology.pod.addresses()[n], topology.outside.addresses()[n]);
        let (from, to) = (SocketAddr::new(source, 4444), SocketAddr::new(target, 9999));
        let l4 = ETHERNET + header;
        // The start and the place of the checksum, counted from the transport header.
        for (start, place) in [(0, 0), (0, 2), (0, 4), (2, 2), (2, 4)] {
            let refusals = Refusals::of(topology.node(), &[Reason::OffloadedChecksum]);
            let forged = packet::udp(from, to, b"a sum over the ports");
            let capture = topology.outside.packet_socket("eth0").expect("a capture");
            forge.send_offloaded(&forged, l4 + start, l4 + place);
            let honest = packet::udp(from, to, b"a sum in its field");
            forge.send_offloaded(&honest, l4, l4 + 6);
            let mut came = Vec::new();
            let has_come = capture.receive_until(b"a sum in its field", SECOND, &mut came);
            assert!(has_come.expect("to read"), "nothing is proven");
            let is_forged = |frame: &harness::Frame| frame.carries(b"a sum over the ports");
            assert!(!came.iter().any(is_forged), "{to}: {start} to {place}");
            refusals.assert_rose_by(1, "a sum over the ports");
        }
        // The sum would go over the flags, or over the sequence number of a segment.
        for place in [4, 12] {
            let count = || counted(topology.node(), &[Reason::OffloadedChecksum]);
            let before = count();
            let forged = packet::tcp(from, to, packet::SYN, 1, b"");
            forge.send_offloaded(&forged, l4, l4 + place);
            eventually("the refusal", SECOND, || count() > before);
        }
        // The checksum of an inner header, as a tunnel of the pod's own has it.
        let capture = topology.outside.packet_socket("eth0").expect("a capture");
        let around = packet::udp(from, to, &[b"a sum inside".as_slice(), &[0; 64]].concat());
        forge.send_offloaded(&around, l4 + 8 + 16, l4 + 8 + 16 + 20);
        let mut came = Vec::new();
        let has_come = capture.receive_until(b"a sum inside", SECOND, &mut came);
        assert!(has_come.expect("to read"), "{to}: the sum of a header inside");
    }
}
