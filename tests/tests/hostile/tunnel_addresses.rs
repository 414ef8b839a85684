//! Addresses that no Node object has are unknown hosts to the tunnel, and packets of another node's pods come
//! by the tunnel only.

use std::net::{IpAddr, SocketAddr};

use harness::{Endpoint, Place, Service};

use crate::topology::{Refusals, assert_nothing_came, at, captured, datagram, honest};
use crate::tunnel_topology::{FOREIGN_SOURCE, FORGED, PORT, Topology, carried, send_until_refused};

const NODE_PORT: u16 = 30_053;

/// An address of n2 that its Node object lacks. For n1 it is the address of an unknown host, and n1 would
/// masquerade with its own address.
#[test]
fn vxlan_reaches_no_node_by_an_address_that_its_object_lacks() {
    const UNLISTED: &str = "192.168.50.212";
    harness::require_root!();
    let topology = Topology::build();
    let (n1, n2) = (topology.world.node(1), topology.world.node(2));
    n2.run_ip(&format!("addr add {UNLISTED}/24 dev eth0"));
    let service = Service::new("round")
        .cluster_ip("10.96.0.20")
        .udp("vxlan", 53, PORT)
        .node_port("vxlan", NODE_PORT);
    topology.world.apply(&service);
    let endpoint: IpAddr = UNLISTED.parse().expect("an address");
    topology
        .world
        .apply_all(service.slices([Endpoint::at(&[endpoint])]));
    let (attacker, victim) = (topology.pod(1), topology.pod(2));
    let capture = captured(victim);
    let to = SocketAddr::new(victim.ip().into(), 9);
    let paths: [(&Place, SocketAddr); 3] = [
        (attacker, at(UNLISTED, PORT)),
        (attacker, at("10.96.0.20", 53)),
        (&topology.outside, SocketAddr::new(n1.ip().into(), NODE_PORT)),
    ];
    for (place, entrance) in paths {
        let socket = place.udp_socket_for(entrance).expect("a socket");
        let inner = datagram(("10.244.1.99".parse().expect("an address"), 999), to, FORGED);
        let what = format!("from {} to {entrance}", place.name());
        let frame = carried(n2, &inner);
        send_until_refused(n1, &what, || drop(socket.send_to(&frame, entrance)));
        assert_nothing_came(&capture, FORGED, &what, honest(attacker, to));
    }
}

/// With `routingMode: vxlan` packets of another node's pods come through the tunnel only.
#[test]
fn a_host_on_the_link_sends_as_no_pod_of_another_node() {
    harness::require_root!();
    let topology = Topology::build();
    let (n1, victim, named) = (topology.world.node(1), topology.pod(1), topology.pod(2));
    let capture = captured(victim);
    let forge = topology.outside.forge_to(n1);
    let to = SocketAddr::new(victim.ip().into(), 9);
    let refused = Refusals::of(n1, FOREIGN_SOURCE);
    forge.send(&datagram((named.ip().into(), 999), to, FORGED));
    assert_nothing_came(&capture, FORGED, "without the tunnel", honest(named, to));
    refused.assert_rose_by(1, "without the tunnel");
}
