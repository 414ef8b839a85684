//! The harness itself, without any agent. The places of a world reach each other as hosts of a real network
//! would, and sockets belong to the place where they were made.

mod socket_cgroup;

use std::fs;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use harness::{
    ConnectStream, LongFlows, NodeSpec, Place, Probe, World, eventually, mapped, require_root, spread,
};

const PORT: u16 = 8080;

/// Asserts that every address of `server` answers `client` by TCP and UDP, and sees the client's address.
#[track_caller]
fn assert_reaches(client: &Place, server: &Place) {
    let _tcp = server.serve_tcp(PORT);
    let _udp = server.serve_udp(PORT);
    for (&own, &ip) in client.addresses().iter().zip(server.addresses()) {
        for probe in Probe::ALL {
            let what = format!("{} to {} at {ip} by {probe:?}", client.name(), server.name());
            match client.ask(probe, SocketAddr::new(ip, PORT)) {
                Ok(reply) => assert_eq!(
                    (reply.backend.as_str(), reply.peer.ip()),
                    (server.name(), own),
                    "{what}"
                ),
                Err(error) => panic!("{what}: {error}"),
            }
        }
        if let Err(error) = client.ping(ip, Duration::from_secs(2)) {
            panic!("{} pinging {ip}: {error}", client.name());
        }
    }
}

#[test]
fn pods_and_nodes_reach_pods_on_every_node() {
    require_root!();
    let world = World::with_nodes(2);
    let (one, two) = (world.node(1), world.node(2));
    let (near, also_near, far) = (one.add_pod("near"), one.add_pod("also-near"), two.add_pod("far"));
    assert_reaches(&near, &also_near);
    assert_reaches(&near, &far);
    assert_reaches(&far, &near);
    assert_reaches(one, &near);
    assert_reaches(two, &near);
    assert_reaches(&near, two);
}

#[test]
fn bridged_pods_reach_routed_ones_under_strict_rp_filter() {
    require_root!();
    let world = World::builder()
        .node(NodeSpec::bridged().strict_rp_filter())
        .node(NodeSpec::routed().strict_rp_filter())
        .build();
    let (one, two) = (world.node(1), world.node(2));
    let (left, right, far) = (one.add_pod("left"), one.add_pod("right"), two.add_pod("far"));
    assert_reaches(&left, &right);
    assert_reaches(&left, &far);
    assert_reaches(&far, &right);
    assert_reaches(two, &far);
    // The node's own address towards its bridge is the gateway address.
    let _server = left.serve_tcp(PORT);
    let reply = one.ask(Probe::Tcp, (left.ip(), PORT).into()).expect("a reply");
    assert_eq!(reply.peer.ip().to_string(), "10.244.1.1");
}

#[test]
fn clients_reach_nodes_and_by_a_route_their_pods() {
    require_root!();
    let world = World::with_nodes(1);
    let node = world.node(1);
    let (neighbour, remote) = (world.add_client("c1"), world.add_remote_client("c2"));
    assert_reaches(&neighbour, node);
    assert_reaches(&remote, node);
    let pod = node.add_pod("web");
    for client in [&neighbour, &remote] {
        for cidr in node.pod_cidrs() {
            client.route_via(cidr, node);
        }
        assert_reaches(client, &pod);
    }
}

#[test]
fn sockets_carry_the_namespace_and_cgroup_of_their_place() {
    require_root!();
    let world = World::with_nodes(1);
    let node = world.node(1);
    let pod = node.add_pod("web");
    // Only the pod has its address, and only a socket of its namespace can bind it.
    assert!(pod.udp_bind((pod.ip(), 0).into()).is_ok());
    assert!(node.udp_bind((pod.ip(), 0).into()).is_err());

    let _server = pod.tcp_listen(PORT).expect("a listening socket");
    let wanted = fs::metadata(pod.cgroup()).expect("the pod's cgroup").ino();
    assert_eq!(pod.enter(|| socket_cgroup::of_listener(PORT)), Some(wanted));
    assert!(
        pod.cgroup().starts_with(node.cgroup()),
        "hooks on the node's cgroup see the pod's sockets"
    );
}

#[test]
fn mapped_addresses_use_ipv6_sockets_for_ipv4() {
    require_root!();
    let world = World::with_nodes(1);
    let (web, client) = (world.node(1).add_pod("web"), world.node(1).add_pod("client"));
    let _server = web.serve_tcp(PORT);
    let stream = client
        .tcp_connect(mapped((web.ip(), PORT).into()))
        .expect("a connection");
    assert!(stream.local_addr().expect("an address").is_ipv6());
}

#[test]
fn servers_drain_and_reset() {
    require_root!();
    let world = World::with_nodes(1);
    let (web, client) = (world.node(1).add_pod("web"), world.node(1).add_pod("client"));
    let server = web.serve_tcp(PORT);
    let to = SocketAddr::from((web.ip(), PORT));
    let mut stream = client.tcp_connect(to).expect("a connection");
    let mut buffer = [0; 128];
    assert!(
        stream
            .read(&mut buffer)
            .is_ok_and(|n| buffer[..n].starts_with(b"web 10.244.1.3:"))
    );
    server.drain();
    eventually("new connections to be refused", Duration::from_secs(2), || {
        client.tcp_connect(to).is_err()
    });
    stream.write_all(b"still there?\n").expect("to send");
    let n = stream.read(&mut buffer).expect("an echo");
    assert_eq!(&buffer[..n], b"web still there?\n");
    server.reset();
    let error = stream.read(&mut buffer).expect_err("a reset");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[test]
fn flows_and_streams_count_what_happens() {
    require_root!();
    let world = World::with_nodes(1);
    let (web, client) = (world.node(1).add_pod("web"), world.node(1).add_pod("client"));
    let server = web.serve_tcp(PORT);
    let to = SocketAddr::from((web.ip(), PORT));
    let flows = LongFlows::start(&client, to, 50, Duration::from_millis(10)).expect("flows");
    let stream = ConnectStream::start(&client, Probe::Tcp, to, Duration::ZERO);
    assert_eq!(flows.backends().get("web"), Some(&50));
    flows.wait_progress(Duration::from_secs(5));
    stream.wait_more(100, Duration::from_secs(5));
    assert!(flows.report().interruptions.is_empty() && stream.report().failures.is_empty());
    server.reset();
    eventually("the flows to break", Duration::from_secs(5), || {
        flows.report().interruptions.len() == 50
    });
    eventually("a failure", Duration::from_secs(5), || {
        !stream.report().failures.is_empty()
    });
    let (flows, stream) = (flows.stop(), stream.stop());
    assert!(flows.exchanges >= 100, "{flows:?}");
    assert_eq!(stream.asked, stream.failures.len() + stream.replies["web"]);
}

#[test]
fn a_server_apart_lives_in_its_pod() {
    require_root!();
    let world = World::with_nodes(1);
    let (web, client) = (world.node(1).add_pod("web"), world.node(1).add_pod("client"));
    let server = web.serve_apart(PORT);
    for probe in [Probe::Tcp, Probe::Udp] {
        assert_eq!(
            client
                .ask(probe, (web.ip6(), PORT).into())
                .expect("a reply")
                .backend,
            "web"
        );
    }
    server.kill();
    assert!(client.ask(Probe::Tcp, (web.ip(), PORT).into()).is_err());
}

#[test]
fn captures_see_frames_and_pods_can_be_deleted() {
    require_root!();
    let world = World::with_nodes(1);
    let node = world.node(1);
    let (web, client) = (node.add_pod("web"), node.add_pod("client"));
    let capture = node.packet_socket(client.host_interface()).expect("a capture");
    client
        .ping(web.ip().into(), Duration::from_secs(2))
        .expect("a reply");
    let is_reply =
        |frame: &harness::Frame| frame.outgoing && frame.bytes.get(26..30) == Some(&web.ip().octets()[..]);
    assert!(
        capture
            .find(Duration::from_secs(2), is_reply)
            .expect("to read")
            .is_some()
    );
    let (ip, netns) = (web.ip(), web.netns_path().to_owned());
    web.delete();
    assert!(!netns.exists());
    assert!(client.ping(ip.into(), Duration::from_millis(200)).is_err());
    assert_eq!(node.add_pod("again").host_interface(), "veth4");
}

#[test]
fn manifests_lie_in_every_nodes_directory() {
    require_root!();
    let world = World::with_nodes(2);
    for node in world.nodes() {
        let mut files: Vec<_> = fs::read_dir(node.source().path())
            .expect("the directory")
            .map(|entry| {
                entry
                    .expect("an entry")
                    .file_name()
                    .into_string()
                    .expect("a name")
            })
            .collect();
        files.sort();
        assert_eq!(
            files,
            ["node.n1.yaml", "node.n2.yaml", "servicecidr.kubernetes.yaml"]
        );
    }
}

#[test]
fn many_requests_are_spread_in_little_time() {
    require_root!();
    let world = World::with_nodes(2);
    let (web, client) = (world.node(2).add_pod("web"), world.node(1).add_pod("client"));
    let _servers = (web.serve_tcp(PORT), web.serve_udp(PORT));
    for probe in [Probe::Tcp, Probe::Udp] {
        let started = Instant::now();
        let spread = spread(&client, probe, (web.ip(), PORT).into(), 10_000);
        println!("10 000 × {probe:?}: {:?}", started.elapsed());
        spread.assert_uniform(&["web"]);
    }
}
