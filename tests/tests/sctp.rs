//! SCTP by real sockets. Many kernels lack its module, so this test mostly runs in guests of `cargo xtask
//! vm`. `proxy-agent/tests/packets.rs` tests SCTP everywhere, with forged packets.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use harness::manifest::Protocol;
use harness::{Endpoint, PATIENCE, Place, Service, World};
use socket2::{Domain, Socket, Type};

/// The port of Diameter, which is also the target port: Millrace cannot serve another target port yet.
const PORT: u16 = 3868;
const VIP: &str = "10.96.0.10";

fn socket(place: &Place) -> Socket {
    let socket = place.socket(Domain::IPV4, Type::STREAM, Some(socket2::Protocol::SCTP));
    let socket = socket.expect("a socket");
    socket.set_read_timeout(Some(PATIENCE)).expect("a deadline");
    socket
}

#[test]
fn an_association_reaches_a_backend_and_back() {
    harness::require_root!();
    harness::skip_if!(harness::skip::no_sctp());
    let world = World::with_nodes(2);
    let (client, pod) = (world.node(2).add_pod("client"), world.node(1).add_pod("diameter"));
    let service = Service::new("diameter")
        .cluster_ip(VIP)
        .port("diameter", Protocol::Sctp, PORT, PORT);
    world.apply_all(service.slices([Endpoint::of(&pod)]));
    world.apply(&service);
    let _agents = world.start_agents();

    let listener = socket(&pod);
    let everywhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT));
    listener.bind(&everywhere.into()).expect("bound");
    listener.listen(8).expect("listening");

    let vip = SocketAddr::new(VIP.parse().expect("an address"), PORT);
    let mut asking = socket(&client);
    asking
        .connect_timeout(&vip.into(), Duration::from_secs(10))
        .expect("an association");
    let (mut replying, peer) = listener.accept().expect("an association");
    assert_eq!(peer.as_socket().map(|peer| peer.ip()), Some(client.ip().into()));
    let mut received = [0; 4];
    asking.write_all(b"ping").expect("sent");
    replying.read_exact(&mut received).expect("arrived");
    assert_eq!(&received, b"ping");
    replying.write_all(b"pong").expect("sent");
    asking.read_exact(&mut received).expect("arrived");
    assert_eq!(&received, b"pong");
    let peer = asking.peer_addr().expect("a peer");
    assert_eq!(peer.as_socket(), Some(vip));
}
