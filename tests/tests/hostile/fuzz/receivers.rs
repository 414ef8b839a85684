//! The receivers: pods and hosts, whose interfaces are captured, and the node, whose sockets receive after
//! all checks of its stack.
//!
//! A receiver that lost frames proves nothing, so each one reports its losses.

use std::fmt::Write as _;
use std::fs;
use std::io::{ErrorKind, Read as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use harness::{Frame, Node, PacketSocket, Place};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::RcvBufForce;
use socket2::{Domain, Protocol, Socket, Type};

use super::frames::{BEYOND, Kind, Mac, NODE, Reach, TUNNEL, TUNNEL_PORT, marks};
use crate::topology::captured;

/// A protocol number for experiments (RFC 3692 §2.1).
const EXPERIMENTAL: i32 = 253;
const ARP: [u8; 2] = [0x08, 0x06];
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];

pub struct Receivers<'a> {
    node: &'a Node,
    captures: Vec<Capture<'a>>,
    sockets: Vec<NodeSocket>,
    /// The marks that the tunnel's socket may receive. They include replies of the other node's pods, if a
    /// pod asks them.
    at_tunnel: Reach,
    /// Hardware addresses that only the sender has, or that no host has.
    foreign_macs: Vec<Mac>,
    /// The losses of the node's sockets before the test.
    lost_before: u64,
}

struct Capture<'a> {
    place: &'a Place,
    socket: PacketSocket,
    /// Whether no address of a pod may be seen there.
    is_outside: bool,
}

/// A socket that receives all packets of a protocol that the node's stack delivers to sockets.
struct NodeSocket {
    socket: Socket,
    is_v4: bool,
    protocol: i32,
}

/// The frames that came.
#[derive(Default)]
pub struct Outcome {
    /// The number of frames that rightly arrived, for each receiver (the node is the last one) and each kind.
    pub arrived: Vec<[u64; Kind::ALL.len()]>,
    /// Frames that arrived wrongly: the number, and the receiver and the kind.
    pub wrong: Vec<(u64, String)>,
    /// Other frames that no receiver may see.
    pub leaks: Vec<String>,
}

impl Outcome {
    pub fn of_kind(&self, kind: Kind) -> u64 {
        self.arrived.iter().map(|all| all[kind as usize]).sum()
    }
}

impl NodeSocket {
    fn open(node: &Node, is_v4: bool, protocol: i32) -> Self {
        let domain = if is_v4 { Domain::IPV4 } else { Domain::IPV6 };
        let socket = node.socket(domain, Type::RAW, Some(Protocol::from(protocol)));
        let socket = socket.expect("a raw socket");
        setsockopt(&socket, RcvBufForce, &(64 << 20)).expect("room");
        socket.set_nonblocking(true).expect("a socket that does not wait");
        Self {
            socket,
            is_v4,
            protocol,
        }
    }

    /// The next packet; IPv4 has its header.
    fn next<'a>(&self, buffer: &'a mut [u8]) -> Option<&'a [u8]> {
        match (&self.socket).read(buffer) {
            Ok(length) => Some(&buffer[..length]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => panic!("reading at the node: {error}"),
        }
    }

    /// Whether a packet is for the tunnel, whose own socket receives it.
    fn is_for_tunnel(&self, packet: &[u8]) -> bool {
        let header = self.header(packet);
        self.protocol == nix::libc::IPPROTO_UDP
            && packet.get(header + 2..header + 4) == Some(&TUNNEL_PORT.to_be_bytes())
    }

    /// Whether a packet is an echo reply. Other hosts of the link send echo replies to the node: a frame to a
    /// group may carry a request in the node's name.
    fn is_echo_reply(&self, packet: &[u8]) -> bool {
        let kind = packet.get(self.header(packet));
        (self.protocol == nix::libc::IPPROTO_ICMP && kind == Some(&0))
            || (self.protocol == nix::libc::IPPROTO_ICMPV6 && kind == Some(&129))
    }

    /// The length of the network header that comes with a packet.
    fn header(&self, packet: &[u8]) -> usize {
        if self.is_v4 {
            packet.first().map_or(0, |first| usize::from(first & 0xf) * 4)
        } else {
            0
        }
    }
}

impl<'a> Receivers<'a> {
    pub fn open(
        node: &'a Node,
        pods: &[&'a Place],
        outside: Option<&'a Place>,
        foreign_macs: Vec<Mac>,
    ) -> Self {
        let capture = |place, is_outside| Capture {
            place,
            socket: captured(place),
            is_outside,
        };
        let mut captures: Vec<_> = pods.iter().map(|pod| capture(*pod, false)).collect();
        captures.extend(outside.map(|place| capture(place, true)));
        let of_v4 = [
            nix::libc::IPPROTO_UDP,
            nix::libc::IPPROTO_TCP,
            nix::libc::IPPROTO_ICMP,
        ];
        let of_v6 = [
            nix::libc::IPPROTO_UDP,
            nix::libc::IPPROTO_TCP,
            nix::libc::IPPROTO_ICMPV6,
        ];
        let mut sockets = Vec::new();
        for (is_v4, protocols) in [(true, of_v4), (false, of_v6)] {
            for protocol in protocols.into_iter().chain([EXPERIMENTAL]) {
                sockets.push(NodeSocket::open(node, is_v4, protocol));
            }
        }
        Self {
            node,
            captures,
            sockets,
            at_tunnel: if outside.is_some() {
                TUNNEL | BEYOND
            } else {
                TUNNEL
            },
            foreign_macs,
            lost_before: lost_by_sockets(node),
        }
    }

    pub fn names(&self) -> Vec<&str> {
        let captures = self.captures.iter().map(|capture| capture.place.name());
        captures.chain([self.node.name()]).collect()
    }

    /// Reads the frames that have come so far.
    pub fn take(&self, outcome: &mut Outcome) {
        outcome
            .arrived
            .resize(self.captures.len() + 1, [0; Kind::ALL.len()]);
        for (index, capture) in self.captures.iter().enumerate() {
            let name = capture.place.name();
            for frame in capture.socket.so_far().expect("to read") {
                if frame.outgoing {
                    continue;
                }
                let is_marked = judge(outcome, index, name, BEYOND, &frame.bytes);
                if let Some(why) = self.leak_reason(&frame, capture.is_outside && is_marked) {
                    let shown = shown(&frame.bytes);
                    outcome.leaks.push(format!("{why} at {name}: {shown}"));
                }
            }
        }
        let mut buffer = vec![0; usize::from(u16::MAX)];
        for socket in &self.sockets {
            while let Some(packet) = socket.next(&mut buffer) {
                let (place, name) = if socket.is_for_tunnel(packet) {
                    (self.at_tunnel, "the tunnel")
                } else {
                    (NODE, "the node")
                };
                if socket.is_echo_reply(packet) {
                    continue;
                }
                judge(outcome, self.captures.len(), name, place, packet);
            }
        }
    }

    /// The reason why no receiver may see a frame, regardless of its marks.
    fn leak_reason(&self, frame: &Frame, hides_pods: bool) -> Option<&'static str> {
        let bytes = &frame.bytes;
        let is_foreign = |place: usize| {
            let mac = bytes.get(place..place + 6);
            self.foreign_macs
                .iter()
                .any(|foreign_macs| mac == Some(foreign_macs))
        };
        let address = |place: usize, is_v4: bool| -> Option<IpAddr> {
            if is_v4 {
                let octets: [u8; 4] = bytes.get(place..place + 4)?.try_into().ok()?;
                Some(Ipv4Addr::from(octets).into())
            } else {
                let octets: [u8; 16] = bytes.get(place..place + 16)?.try_into().ok()?;
                Some(Ipv6Addr::from(octets).into())
            }
        };
        let is_pods = |place, is_v4| address(place, is_v4).is_some_and(is_of_pods);
        let kind: [u8; 2] = bytes.get(12..14)?.try_into().ok()?;
        // A routed message has another hop limit, and every receiver drops it (RFC 4861 §7.1).
        let is_discovery = kind == IPV6
            && bytes.get(20..22) == Some(&[58, 255])
            && matches!(bytes.get(54), Some(133 | 135 | 136));
        match kind {
            ARP if is_foreign(6) || is_foreign(22) => Some("ARP of the sender"),
            ARP if is_pods(28, true) => Some("ARP in a pod's name"),
            IPV6 if is_discovery && is_foreign(6) => Some("neighbour discovery of the sender"),
            IPV6 if is_discovery && is_pods(22, false) => Some("neighbour discovery in a pod's name"),
            IPV4 if hides_pods && is_pods(26, true) => Some("a pod's address"),
            IPV6 if hides_pods && is_pods(22, false) => Some("a pod's address"),
            _ => None,
        }
    }

    /// The losses of the kernel's buffers; `None` if there were none.
    pub fn lost(&self) -> Option<String> {
        let mut lost = String::new();
        for capture in &self.captures {
            let count = capture.socket.lost().expect("statistics");
            if count > 0 {
                let _ = write!(lost, "{count} at {}, ", capture.place.name());
            }
        }
        let by_sockets = lost_by_sockets(self.node).saturating_sub(self.lost_before);
        if by_sockets > 0 {
            let _ = write!(lost, "{by_sockets} at sockets of the node");
        }
        (!lost.is_empty()).then_some(lost)
    }
}

/// Counts the marks in the bytes that came to a place. Returns whether there is a mark.
fn judge(outcome: &mut Outcome, receiver: usize, name: &str, place: Reach, bytes: &[u8]) -> bool {
    let mut is_marked = false;
    for (reach, kind, number) in marks(bytes) {
        is_marked = true;
        if reach & place != 0 {
            outcome.arrived[receiver][kind as usize] += 1;
        } else {
            let seen = format!("{kind:?} at {name}: {}", shown(bytes));
            outcome.wrong.push((number, seen));
        }
    }
    is_marked
}

fn shown(bytes: &[u8]) -> String {
    format!("{:02x?}", &bytes[..bytes.len().min(160)])
}

/// Whether an address is in the pod ranges of a world.
fn is_of_pods(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(ip) => ip.octets()[..2] == [10, 244],
        IpAddr::V6(ip) => ip.segments()[..2] == [0xfd00, 0x244],
    }
}

/// The number of packets that raw sockets of a node dropped: the last column (proc(5)). `ICMPv6` sockets also
/// count wrong checksums there, of datagrams that the stack reassembled from fragments of several senders.
/// The stack counts these too, so they are subtracted.
fn lost_by_sockets(node: &Node) -> u64 {
    let read = |table: &str| {
        let path = format!("/proc/thread-self/net/{table}");
        node.enter(|| fs::read_to_string(&path)).expect("a table")
    };
    let dropped = ["raw", "raw6"].map(|table| {
        let text = read(table);
        let lines = text.lines().skip(1);
        let drops = lines.filter_map(|line| line.split_whitespace().last()?.parse::<u64>().ok());
        drops.sum::<u64>()
    });
    let counters = read("snmp6");
    let wrong = counters
        .lines()
        .find_map(|line| line.strip_prefix("Icmp6InCsumErrors"));
    let wrong: u64 = wrong.map_or(0, |count| count.trim().parse().expect("a number"));
    dropped.iter().sum::<u64>().saturating_sub(wrong)
}
