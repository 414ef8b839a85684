//! A pod's socket sets a mark or a priority beside a packet. Such metadata must not show on the wire or at
//! other pods, on any path that the packet takes.

use std::net::{SocketAddr, UdpSocket};

use harness::{NodeSpec, PacketSocket, Place};
use nix::sys::socket::{setsockopt, sockopt};
use proxy_common::decide::tunnel;
use socket2::SockRef;

use crate::topology::{CLUSTER_IP, LOCAL_BALANCER, NODE_PORT, SOON, Topology, at, captured, of_family};

/// The content of the pod's packets.
const BESIDE: &[u8] = b"with something beside it";

fn topology(routing: &str) -> Topology {
    let config = format!("hostRouting: {routing}\nsocketLB: \"off\"\n");
    Topology::with(NodeSpec::millrace(), &config)
}

/// Has the pod send to each kind of receiver, by a socket with this setting; returns once all packets have
/// come.
#[track_caller]
fn send_everywhere(topology: &Topology, set: impl Fn(&UdpSocket)) {
    let node = topology.node();
    for v4 in [true, false] {
        let n = usize::from(!v4);
        let _listener = topology
            .outside
            .udp_bind(SocketAddr::new(of_family(&topology.outside, v4), 9300))
            .expect("a socket");
        let (at_web, at_outside) = (captured(&topology.web), captured(&topology.outside));
        for (to, capture) in [
            (SocketAddr::new(of_family(&topology.web, v4), 8080), &at_web),
            (at(CLUSTER_IP[n], 80), &at_web),
            (at(LOCAL_BALANCER[n], 80), &at_web),
            (SocketAddr::new(of_family(node, v4), NODE_PORT), &at_web),
            (
                SocketAddr::new(of_family(&topology.outside, v4), 9300),
                &at_outside,
            ),
        ] {
            let socket = topology.pod.udp_socket_for(to).expect("a socket");
            set(&socket);
            socket.send_to(BESIDE, to).expect("to send");
            let came = capture.find(SOON, |frame| !frame.outgoing && frame.carries(BESIDE));
            assert!(came.expect("to read").is_some(), "{to}");
        }
    }
}

/// Asserts that a capture, which has only frames with a mark or a priority, has none of the pod.
#[track_caller]
fn assert_none(capture: &PacketSocket, what: &str) {
    let came = capture.so_far().expect("to read");
    // The kernel sets marks and priorities of its own, for instance on multicast listener reports.
    let frames: Vec<_> = came
        .iter()
        .filter(|frame| frame.carries(BESIDE))
        .map(|frame| format!("outgoing {}: {:02x?}", frame.outgoing, frame.bytes))
        .collect();
    assert!(frames.is_empty(), "{what}: {} frames: {frames:#?}", frames.len());
}

/// Has a place send to an address by a socket with this setting, and waits until the capture has the packet.
#[track_caller]
fn assert_seen(place: &Place, to: SocketAddr, capture: &PacketSocket, set: impl Fn(&UdpSocket)) {
    let control = format!("control {:016x}", fastrand::u64(..));
    let socket = place.udp_socket_for(to).expect("a socket");
    set(&socket);
    socket.send_to(control.as_bytes(), to).expect("to send");
    let seen = capture.find(SOON, |frame| frame.carries(control.as_bytes()));
    assert!(seen.expect("to read").is_some(), "{to}: the capture sees it");
}

#[test]
fn a_mark_of_a_pods_socket_ends_at_its_interface() {
    harness::require_root!();
    for routing in ["stack", "redirect"] {
        let topology = topology(routing);
        let places: [&Place; 3] = [topology.node(), &topology.web, &topology.outside];
        let marked = places.map(|place| place.marked_socket("eth0").expect("a capture"));
        // The capture sees a mark of the node's own socket, so the absence of a pod's mark is meaningful.
        let to = SocketAddr::new(topology.outside.ip().into(), 9200);
        let mark = |socket: &UdpSocket| {
            SockRef::from(socket).set_mark(0x0400_0815).expect("to mark");
        };
        assert_seen(topology.node(), to, &marked[0], mark);
        send_everywhere(&topology, mark);
        for (place, capture) in places.iter().zip(&marked) {
            assert_none(capture, &format!("{routing}: marks at {}", place.name()));
        }
    }
}

/// A priority selects a class of an interface's queue. In addition the tunnel's device reads one priority as
/// a note of the uplink's program.
#[test]
fn a_priority_of_a_pods_socket_ends_at_its_interface() {
    harness::require_root!();
    for routing in ["stack", "redirect"] {
        let topology = topology(routing);
        let (node, web, pod) = (topology.node(), &topology.web, &topology.pod);
        let bpffs = node.bpf_root().parent().expect("a bpffs");
        let prioritised = |place: &Place, link: &str| {
            let capture = place.prioritised_socket(link, bpffs);
            (format!("{link} of {}", place.name()), capture.expect("a capture"))
        };
        let captures = [
            prioritised(node, "eth0"),
            prioritised(node, web.host_interface()),
            prioritised(node, pod.host_interface()),
            prioritised(web, "eth0"),
            prioritised(&topology.outside, "eth0"),
        ];
        // Captures show priorities where packets leave, and where they come in from the same namespace.
        let (_, at_pod) = prioritised(pod, "eth0");
        let (_, at_loopback) = prioritised(web, "lo");
        for priority in [6_u32, tunnel::ADMITTED] {
            let set = |socket: &UdpSocket| {
                setsockopt(socket, sockopt::Priority, &priority.cast_signed()).expect("a priority");
            };
            let outside = SocketAddr::new(topology.outside.ip().into(), 9200);
            assert_seen(node, outside, &captures[0].1, set);
            assert_seen(pod, outside, &at_pod, set);
            let itself = SocketAddr::new(web.ip().into(), 9200);
            assert_seen(web, itself, &at_loopback, set);
            send_everywhere(&topology, set);
            for (place, capture) in &captures {
                assert_none(capture, &format!("{routing}: priority {priority:#x} at {place}"));
            }
        }
    }
}
