//! What a pod's socket sets beside a packet is the pod's own affair: it is not seen on the
//! wire or by other pods, on any way that the packet takes.

use std::net::SocketAddr;

use harness::NodeSpec;

use crate::town::{CLUSTER_IP, LOCAL_BALANCER, NODE_PORT, SOON, Town, at, captured, of_family};

#[test]
fn a_mark_of_a_pods_socket_ends_at_its_interface() {
    harness::require_root!();
    for routing in ["stack", "redirect"] {
        let town = Town::with(
            NodeSpec::millrace(),
            &format!("hostRouting: {routing}\nsocketLB: \"off\"\n"),
        );
        let node = town.node();
        let marked = [
            node.marked_socket("eth0").expect("a capture"),
            town.web.marked_socket("eth0").expect("a capture"),
            town.outside.marked_socket("eth0").expect("a capture"),
        ];
        // What came before a capture had its filter.
        for capture in &marked {
            let _ = capture.so_far().expect("to read");
        }
        // A mark of the node's own socket is seen, so that none of a pod's means something.
        let to = SocketAddr::new(town.outside.ip().into(), 9200);
        let own = node.udp_socket_for(to).expect("a socket");
        socket2::SockRef::from(&own).set_mark(7).expect("to mark");
        own.send_to(b"control", to).expect("to send");
        let seen = marked[0].find(SOON, |frame| frame.carries(b"control"));
        assert!(seen.expect("to read").is_some(), "the capture sees marks");
        for v4 in [true, false] {
            let n = usize::from(!v4);
            let _listener = town
                .outside
                .udp_bind(SocketAddr::new(of_family(&town.outside, v4), 9300))
                .expect("a socket");
            let (at_web, at_outside) = (captured(&town.web), captured(&town.outside));
            for (to, capture) in [
                (SocketAddr::new(of_family(&town.web, v4), 8080), &at_web),
                (at(CLUSTER_IP[n], 80), &at_web),
                (at(LOCAL_BALANCER[n], 80), &at_web),
                (SocketAddr::new(of_family(node, v4), NODE_PORT), &at_web),
                (SocketAddr::new(of_family(&town.outside, v4), 9300), &at_outside),
            ] {
                let socket = town.pod.udp_socket_for(to).expect("a socket");
                let settings = socket2::SockRef::from(&socket);
                settings.set_mark(0x0400_0815).expect("to mark");
                socket.send_to(b"marked", to).expect("to send");
                let came = capture.find(SOON, |frame| !frame.outgoing && frame.carries(b"marked"));
                assert!(came.expect("to read").is_some(), "{to}");
            }
        }
        for (number, capture) in marked.iter().enumerate() {
            let came = capture.so_far().expect("to read");
            // The kernel marks its own reports of multicast listeners.
            let frames: Vec<_> = came
                .iter()
                .filter(|frame| frame.carries(b"marked"))
                .map(|frame| format!("outgoing {}: {:02x?}", frame.outgoing, frame.bytes))
                .collect();
            assert!(
                frames.is_empty(),
                "{routing}: capture {number} has {} packets with a mark: {frames:#?}",
                frames.len()
            );
        }
    }
}
