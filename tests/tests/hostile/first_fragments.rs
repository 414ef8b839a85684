//! First fragments without later ones do not disturb other clients.

use std::net::SocketAddr;

use harness::forge::packet;
use proxy_common::maps::Reason;

use crate::topology::{BALANCER, CLUSTER_IP, Topology, at, came_before, captured, counted, of_family};

/// Both fragments of a datagram, which carry the mark.
fn in_fragments(from: SocketAddr, to: SocketAddr, id: u16, mark: &[u8]) -> Vec<Vec<u8>> {
    /// A multiple of eight.
    const SIZE: usize = 400;
    let mut packet = packet::udp(from, to, &[mark, &[b'?'; SIZE], mark].concat());
    if from.is_ipv6() {
        return packet::fragments_with_options(&packet, id.into(), SIZE);
    }
    packet[4..6].copy_from_slice(&id.to_be_bytes());
    packet::fragments(&packet, SIZE)
}

/// A host outside has sent only the first fragments of its datagrams when a pod sends first fragments to the
/// same service.
#[test]
fn first_fragments_of_one_pod_do_not_cost_others_their_later_ones() {
    /// More than the number of entries in the table.
    const FIRSTS: u16 = 20_000;
    const FRAGMENTED: u16 = 32;
    const TRANSLATED: [Reason; 2] = [Reason::NewFlow, Reason::Established];
    harness::require_root!();
    let topology = Topology::build();
    let (client, attacker) = (topology.forge(), topology.pod.forge_out());
    for v4 in [true, false] {
        let n = usize::from(!v4);
        let from = SocketAddr::new(of_family(&topology.outside, v4), 4000);
        let to = at(BALANCER[n], 80);
        let send = |id: u16, number: usize, mark: &[u8]| {
            let fragments = in_fragments(from, to, id, mark);
            client.send(&fragments[number]);
        };
        let capture = captured(&topology.web);
        for id in 0..FRAGMENTED {
            let what = format!("the first fragment of datagram {id} to {to}");
            came_before(&capture, &what, &mut |mark| send(id, 0, mark));
        }
        drop(capture);
        let before = counted(topology.node(), &TRANSLATED);
        let pod = SocketAddr::new(of_family(&topology.pod, v4), 4000);
        for id in 0..FIRSTS {
            attacker.send(&in_fragments(pod, at(CLUSTER_IP[n], 80), id, b"")[0]);
        }
        let translated = counted(topology.node(), &TRANSLATED) - before;
        assert!(
            translated * 100 >= u64::from(FIRSTS) * 95,
            "{translated} of {FIRSTS} first fragments of {pod} were translated"
        );
        let capture = captured(&topology.web);
        for id in 0..FRAGMENTED {
            let what = format!("the later fragment of datagram {id} to {to}");
            came_before(&capture, &what, &mut |mark| send(id, 1, mark));
        }
    }
}
