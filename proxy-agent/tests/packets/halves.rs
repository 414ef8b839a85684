//! Tests the loss of one of a flow's two entries, as when the kernel evicts it or another process removes it.
//! The next packet of the other side writes it again, and so does the client's own. Both packets keep the
//! flow's translation and next hop.

use std::net::SocketAddr;

use millrace::bpf::Datapath;
use proxy_common::maps::{Flow, FlowKey};
use proxy_common::{Port, protocol};
use serde_json::{Value, json};

use super::frame::{acknowledging, checked, ends, frame, socket};
use super::live::Program;
use super::node::Node;
use super::pods::add_pod;

/// The number of removals, over all flows.
const TIMES: usize = 10_000;
const SYN: u8 = 2;
const ACK: u8 = 16;

/// A flow of one path and protocol. In each pair, the client's element comes first, then the backend's.
struct Pair {
    what: String,
    programs: [Program; 2],
    packets: [Vec<u8>; 2],
    keys: [FlowKey; 2],
    /// The expected verdict on each packet, and the expected packet.
    expected: [(u32, Vec<u8>); 2],
}

impl Pair {
    fn begin(node: &Node, programs: [&str; 2], from: &str, to: &str, protocol: u8) -> Self {
        let what = format!("{from} to {to}, protocol {protocol}");
        let datapath = node.programmer.store();
        let mut programs = programs.map(|name| Program::open(datapath, name, node.uplink));
        let (_, sent) = run(&mut programs[0], &frame(from, to, protocol, SYN, b"question"));
        let (source, target) = ends(&checked(&sent));
        let reply = |flags| {
            frame(
                &target.to_string(),
                &source.to_string(),
                protocol,
                flags,
                b"reply",
            )
        };
        run(&mut programs[1], &reply(SYN | ACK));
        let mut packets = [frame(from, to, protocol, ACK, b"question"), reply(ACK)];
        if protocol == protocol::TCP {
            packets = packets.map(acknowledging);
        }
        let expected = [0_usize, 1].map(|side| run(&mut programs[side], &packets[side]));
        let [forth, back] = expected.each_ref().map(|(_, out)| ends(&checked(out)));
        assert_eq!(
            (forth, back),
            ((source, target), (socket(to), socket(from))),
            "{what}"
        );
        Self {
            what,
            programs,
            packets,
            keys: [
                key(socket(from), socket(to), protocol),
                key(target, source, protocol),
            ],
            expected,
        }
    }

    /// Removes the entry of one side. The other entry becomes a tick older, since the programs write an entry
    /// once a tick.
    #[track_caller]
    fn lose(&self, datapath: &Datapath, side: usize) {
        let mut lost = 0;
        for table in [&datapath.flows, &datapath.streams, &datapath.new_flows] {
            let [gone, stays] = [side, 1 - side].map(|side| &self.keys[side]);
            if table.get(gone).expect("to look").is_some() {
                table.remove(gone).expect("to remove");
                lost += 1;
            }
            if let Some(flow) = table.get(stays).expect("to look") {
                let seen = flow.seen.wrapping_sub(1);
                table.set(stays, &Flow { seen, ..flow }).expect("to write");
            }
        }
        assert_eq!(lost, 1, "{}: there was an entry", self.what);
    }
}

fn key(from: SocketAddr, to: SocketAddr, protocol: u8) -> FlowKey {
    let [sport, dport] = [from, to].map(|end| Port::new(end.port()));
    FlowKey::new(from.ip().into(), to.ip().into(), sport, dport, protocol)
}

fn run(program: &mut Program, packet: &[u8]) -> (u32, Vec<u8>) {
    let (verdict, out) = program.run(packet).expect("a run");
    (verdict, out.to_vec())
}

/// A service with a node port and a backend on another node.
fn objects() -> Vec<Value> {
    let kinds = ["TCP", "UDP"];
    let port = |kind| json!({"name": kind, "protocol": kind, "port": 80, "nodePort": 30_080});
    let mut objects = vec![json!({
        "kind": "Service",
        "metadata": {"namespace": "default", "name": "web"},
        "spec": {
            "type": "NodePort",
            "clusterIPs": ["10.96.0.1", "fd00:96::1"],
            "ports": kinds.map(port),
        },
    })];
    for (family, address) in [("IPv4", "10.244.2.2"), ("IPv6", "fd00:244:2::2")] {
        let port = |kind| json!({"name": kind, "protocol": kind, "port": 8080});
        objects.push(json!({
            "kind": "EndpointSlice",
            "metadata": {
                "namespace": "default",
                "name": format!("web-{family}"),
                "labels": {"kubernetes.io/service-name": "web"},
            },
            "addressType": family,
            "ports": kinds.map(port),
            "endpoints": [{"addresses": [address], "nodeName": "n2"}],
        }));
    }
    objects
}

#[test]
fn a_half_that_goes_is_written_again_by_the_next_packet() {
    let mut node = Node::new();
    node.program(&objects());
    add_pod(&node, ["10.244.1.5", "fd00:244:1::5"]);
    let to_service = ["from_pod", "to_pod"];
    let to_node_port = ["from_uplink", "from_uplink"];
    let to_outside = ["to_uplink", "from_uplink"];
    let paths = [
        (to_service, "10.244.1.5:40000", "10.96.0.1:80"),
        (to_service, "[fd00:244:1::5]:40000", "[fd00:96::1]:80"),
        (to_node_port, "172.31.0.5:40000", "192.168.50.11:30080"),
        (to_node_port, "[2001:db8:31::5]:40000", "[fd00:50::11]:30080"),
        (to_outside, "10.244.1.5:41000", "172.31.0.5:80"),
        (to_outside, "[fd00:244:1::5]:41000", "[2001:db8:31::5]:80"),
    ];
    let begin = |(programs, from, to)| {
        let protocols = [protocol::TCP, protocol::UDP];
        protocols.map(|protocol| Pair::begin(&node, programs, from, to, protocol))
    };
    let mut pairs: Vec<Pair> = paths.into_iter().flat_map(begin).collect();
    let datapath = node.programmer.store();
    let count = pairs.len();
    for time in 0..TIMES {
        let pair = &mut pairs[time % count];
        // The side whose entry is removed, and the side whose packet is next.
        let (lost, next) = match time / count % 3 {
            0 => (1, 0),
            1 => (0, 1),
            _ => (0, 0),
        };
        pair.lose(datapath, lost);
        for side in [next, 1 - next] {
            let became = run(&mut pair.programs[side], &pair.packets[side]);
            let what = &pair.what;
            assert_eq!(
                became, pair.expected[side],
                "{what}: {lost} lost, {side} sent at time {time}"
            );
        }
    }
}
