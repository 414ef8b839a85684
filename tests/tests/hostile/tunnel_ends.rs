//! Services, which tenants write, neither lead into a node's tunnel nor take it over. Neither an endpoint at
//! the end of the tunnel does that, nor an external address of a node with the tunnel's port.

use std::net::{IpAddr, SocketAddr};

use harness::{Endpoint, Node, Place, Probe, Service, eventually, wait_for};
use proxy_common::maps::Reason;
use serde_json::json;

use crate::topology::{SECOND, SOON, assert_nothing_came, came_before, captured, counted, datagram, honest};
use crate::tunnel_topology::{FORGED, PORT, Topology, carried};

const NODE_PORT: u16 = 30_053;
/// Another port of the same service at a node's address, which is allowed.
const OTHER_PORT: u16 = 7;
const SECRET: &[u8] = b"secret";
/// The reasons for which nodes refuse packets that a service leads to a tunnel.
const REFUSED: &[Reason] = &[Reason::TunnelPort, Reason::TunnelSource, Reason::ForgedSource];

#[test]
fn a_tunnel_endpoint_within_a_range_of_pods_is_no_backend() {
    harness::require_root!();
    assert_no_tunnel_endpoint_is_a_backend(&Topology::build());
}

/// Routes to the pods lead to the end of the tunnel as well.
#[test]
fn a_tunnel_endpoint_without_traffic_is_no_backend() {
    harness::require_root!();
    assert_no_tunnel_endpoint_is_a_backend(&Topology::routed());
}

#[test]
fn a_tunnel_endpoint_over_ipv6_is_no_backend() {
    harness::require_root!();
    assert_no_tunnel_endpoint_is_a_backend(&Topology::over_ipv6());
}

/// The node of a node port masquerades its clients, and the other node trusts that node's address.
#[track_caller]
fn assert_no_tunnel_endpoint_is_a_backend(topology: &Topology) {
    let [n1, n2] = [1, 2].map(|number| topology.world.node(number));
    let [near, victim, far] = [1, 2, 3].map(|number| topology.pod(number));
    let service = topology.round().0.node_port("vxlan", NODE_PORT);
    let end = topology.end_port(2).ip();
    topology.world.apply(&service);
    topology.world.apply_all(service.slices([Endpoint::at(&[end])]));
    let capture = captured(victim);
    let node_port = SocketAddr::new(topology.ip(n1), NODE_PORT);
    let free = if topology.over_v4 {
        "10.244.1.99"
    } else {
        "fd00:244:1::99"
    };
    let free: IpAddr = free.parse().expect("an address");
    let refused = || {
        (1..=3)
            .map(|n| counted(topology.world.node(n), REFUSED))
            .sum::<u64>()
    };
    let paths: [(&Place, IpAddr); 3] = [
        (&topology.outside, topology.ip(near)),
        (&topology.outside, free),
        (far, topology.ip(near)),
    ];
    for (place, source) in paths {
        let what = format!("from {} as {source} by a service at {end}", place.name());
        let socket = place.udp_socket_for(node_port).expect("a socket");
        let inner = datagram((source, 999), topology.discard(victim), FORGED);
        let content = carried(n2, &inner);
        let before = refused();
        // The service is refused only after it is programmed.
        eventually(&format!("{what}: to be refused"), 2 * SOON, || {
            let _ = socket.send_to(&content, node_port);
            refused() > before
        });
        assert_nothing_came(&capture, FORGED, &what, honest(near, topology.discard(victim)));
    }
}

#[test]
fn an_external_ip_does_not_capture_the_tunnel() {
    harness::require_root!();
    assert_no_service_captures_the_tunnel(&Topology::build());
}

#[test]
fn an_external_ip_does_not_capture_the_tunnel_over_ipv6() {
    harness::require_root!();
    assert_no_service_captures_the_tunnel(&Topology::over_ipv6());
}

/// The outer packet of a tunnel is a datagram to another node's address, like that of a client of a service
/// there.
#[track_caller]
fn assert_no_service_captures_the_tunnel(topology: &Topology) {
    let (n1, near, far) = (topology.world.node(1), topology.pod(1), topology.pod(2));
    let attacker = n1.add_pod("thief");
    let _servers = [far.serve(8080), attacker.serve(8080)];
    let address = topology.tunnel_port(2).ip();
    let cluster_ip = if topology.over_v4 {
        "10.96.0.66"
    } else {
        "fd00:96::66"
    };
    let service = |name: &str| {
        let service = Service::new(name).cluster_ip(cluster_ip);
        service.udp("vxlan", PORT, PORT).udp("other", OTHER_PORT, 8080)
    };
    for service in [
        service("external").set("externalIPs", json!([address.to_string()])),
        service("balancer").load_balancer_ip(&address.to_string()),
    ] {
        let what = format!("a service with the tunnel's port, {}", service.name());
        topology
            .world
            .apply_all(service.slices([Endpoint::of(&attacker)]));
        topology.world.apply(&service);
        // The service's other port at this address takes the node's datagrams.
        let other = SocketAddr::new(address, OTHER_PORT);
        wait_for(&format!("the other port of {what}"), 2 * SOON, || {
            let reply = near.ask_within(Probe::Udp, other, SECOND);
            match reply {
                Ok(reply) if reply.backend == attacker.name() => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
        wait_named(n1, service.name());
        let [at_attacker, at_far] = [&attacker, far].map(|pod| captured(pod));
        let mut send = honest(near, topology.discard(far));
        for _ in 0..10 {
            send(SECRET);
        }
        let came = came_before(&at_far, &what, &mut send);
        let secrets = came.iter().filter(|frame| frame.carries(SECRET)).count();
        assert_eq!(secrets, 10, "{what}: all go through the tunnel");
        for _ in 0..5 {
            let reply = near.ask_within(Probe::Tcp, SocketAddr::new(topology.ip(far), 8080), SECOND);
            assert!(reply.is_ok(), "{what}: {reply:?}");
        }
        assert_nothing_came(
            &at_attacker,
            SECRET,
            &what,
            honest(near, topology.discard(&attacker)),
        );
        topology.world.delete(&service);
    }
}

/// Waits until a node's `status` shows that a service's address is refused, with the reason.
#[track_caller]
fn wait_named(node: &Node, service: &str) {
    wait_for(&format!("{service} to be named"), SOON, || {
        let errors = node.cli(&["status"]).expect("a status")["errors"].take();
        let is_reported = errors.as_array().expect("a list").iter().any(|error| {
            let text = |key: &str| error[key].as_str().unwrap_or_default();
            text("code") == "AddressRefused"
                && text("object").contains(service)
                && text("message").contains("the nodes' tunnels")
        });
        if is_reported { Ok(()) } else { Err(errors) }
    });
}
