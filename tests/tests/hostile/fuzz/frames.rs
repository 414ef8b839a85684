//! The grammar: frames of each kind, and where the table of entries lets arrive what they carry.
//!
//! A frame is a pure function of seed and number. A third of all have nothing that is forged, so that enough
//! of each kind arrives.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use fastrand::Rng;
use harness::Forge;
use harness::forge::{Ethernet, SERVICE_VLAN, Tag, VLAN, link, packet};

use super::packets::{self, Transport, pick};
use super::tunnels::Tunnel;

/// Stands before what tells of a frame: where it may arrive, its kind and its number.
pub const MAGIC: &[u8] = b"millrace fuzz ";
pub const TUNNEL_PORT: u16 = 8472;
/// The programs walk so many IPv6 extension headers, and a pod sends no more.
const EXTENSIONS: usize = 6;
const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
const ALL_HOSTS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

pub type Mac = [u8; 6];

/// Places where what a frame carries may arrive: none, or a sum of those below.
pub type Reach = u8;
pub const NOWHERE: Reach = 0;
/// A pod, or a host outside.
pub const BEYOND: Reach = 1;
/// A socket of the node.
pub const NODE: Reach = 2;
/// The socket of the node's tunnel, with all that is around what it carries.
pub const TUNNEL: Reach = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// UDP and TCP.
    Plain,
    Echo,
    Error,
    Fragment,
    /// With IPv4 options, or IPv6 extension headers.
    Extended,
    /// VXLAN.
    Tunnel,
    /// ARP and neighbour discovery.
    Neighbour,
}

impl Kind {
    pub const ALL: [Self; 7] = [
        Self::Plain,
        Self::Echo,
        Self::Error,
        Self::Fragment,
        Self::Extended,
        Self::Tunnel,
        Self::Neighbour,
    ];
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// The node's link to the outside.
    Link,
    /// A pod's interface.
    Pod,
}

/// Who sends, and what the table of entries says of what that one sends. Lists have IPv4 first.
pub struct Sender {
    pub forge: Forge,
    pub entry: Entry,
    /// Hardware addresses that are neither the sender's nor that of the receiver that frames of one host go
    /// to.
    pub macs: Vec<Mac>,
    /// Sources that the entry admits.
    pub honest: [Vec<IpAddr>; 2],
    pub forged: [Vec<IpAddr>; 2],
    /// What the sender's hardware address gives, for neighbour discovery.
    pub link_local: Ipv6Addr,
    pub targets: [Vec<SocketAddr>; 2],
    /// Addresses of the node itself, and of another one.
    pub nodes: [[IpAddr; 2]; 2],
    pub tunnel: Tunnel,
}

/// A frame, and where what it carries may arrive.
pub struct Made {
    pub kind: Kind,
    pub reach: Reach,
    pub bytes: Vec<u8>,
}

/// What frames of all kinds have.
pub(super) struct Draw {
    pub(super) family: usize,
    /// Whether nothing shall be forged.
    pub(super) is_honest: bool,
    pub(super) is_honest_source: bool,
    pub(super) source: IpAddr,
    pub(super) target: SocketAddr,
    pub(super) ethernet: Ethernet,
}

impl Draw {
    pub(super) fn from(&self, rng: &mut Rng) -> SocketAddr {
        SocketAddr::new(self.source, rng.u16(1024..))
    }
}

/// What tells of a frame.
#[derive(Clone, Copy)]
pub(super) struct Mark {
    kind: Kind,
    number: u64,
}

impl Mark {
    pub(super) fn of(self, reach: Reach) -> Vec<u8> {
        [MAGIC, &[reach, self.kind as u8], &self.number.to_be_bytes()].concat()
    }
}

/// What marks tell, of all that stand in these bytes: where their frames may arrive, their kind and their
/// number.
pub fn told(bytes: &[u8]) -> impl Iterator<Item = (Reach, Kind, u64)> {
    let places = bytes
        .windows(MAGIC.len())
        .enumerate()
        .filter(|(_, window)| *window == MAGIC);
    places.filter_map(|(place, _)| {
        let rest = bytes.get(place + MAGIC.len()..place + MAGIC.len() + 10)?;
        let kind = *Kind::ALL.get(usize::from(rest[1]))?;
        Some((rest[0], kind, u64::from_be_bytes(rest[2..].try_into().ok()?)))
    })
}

/// The numbers that a frame is made of, so that a single one can be made again.
fn generator(seed: u64, number: u64) -> Rng {
    Rng::with_seed(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

pub(super) fn tags(rng: &mut Rng) -> Vec<Tag> {
    let kind = |rng: &mut Rng| if rng.bool() { VLAN } else { SERVICE_VLAN };
    let number = |rng: &mut Rng| if rng.bool() { 0 } else { rng.u16(1..4095) };
    let count = match rng.u8(..8) {
        0 | 1 => 1,
        2 => 2,
        3 => 3,
        _ => 0,
    };
    (0..count).map(|_| (kind(rng), number(rng))).collect()
}

/// Whether an address is that of a group, or of all.
fn is_group(address: IpAddr) -> bool {
    address.is_multicast() || address == IpAddr::from(Ipv4Addr::BROADCAST)
}

impl Sender {
    /// The frame of a number.
    pub fn frame(&self, seed: u64, number: u64) -> Made {
        let rng = &mut generator(seed, number);
        let kind = pick(rng, &Kind::ALL);
        let mark = Mark { kind, number };
        let mut draw = self.draw(rng);
        if kind == Kind::Neighbour {
            let (reach, ether_type, content) = self.neighbour(rng, &mut draw, mark);
            let bytes = draw.ethernet.of(ether_type, &content);
            return Made { kind, reach, bytes };
        }
        let (reach, packet) = match kind {
            Kind::Error => self.error(rng, &draw, mark),
            Kind::Tunnel if self.entry == Entry::Link => self.to_tunnel(rng, &draw, mark),
            Kind::Tunnel => self.to_tunnel_of_pod(rng, &draw, mark),
            _ => self.packet(rng, &draw, mark),
        };
        let bytes = draw.ethernet.of_packet(&packet);
        Made { kind, reach, bytes }
    }

    fn draw(&self, rng: &mut Rng) -> Draw {
        let family = rng.usize(..2);
        let is_honest = rng.u8(..3) == 0;
        let is_honest_source = is_honest || rng.u8(..4) == 0;
        let sources = if is_honest_source {
            &self.honest
        } else {
            &self.forged
        };
        let mut ethernet = self.forge.ethernet();
        if !is_honest {
            if rng.bool() {
                ethernet.to = pick(rng, &self.macs);
            }
            if rng.u8(..4) == 0 {
                ethernet.from = pick(rng, &self.macs);
            }
            ethernet.tags = tags(rng);
        }
        Draw {
            family,
            is_honest,
            is_honest_source,
            source: pick(rng, &sources[family]),
            target: pick(rng, &self.targets[family]),
            ethernet,
        }
    }

    /// Where a frame with this header may arrive if it carries what the entry admits.
    pub(super) fn reach_of(&self, ethernet: &Ethernet) -> Reach {
        let own = self.forge.ethernet();
        let is_bare = match (self.entry, ethernet.tags.as_slice()) {
            // A priority tag is taken off.
            (_, []) | (Entry::Link, [(_, 0)]) => true,
            _ => false,
        };
        // The link vouches for no sender's address; a pod has one.
        if !is_bare || (self.entry == Entry::Pod && ethernet.from != own.from) {
            NOWHERE
        } else if ethernet.to == own.to {
            BEYOND | NODE
        } else if ethernet.to[0] & 1 == 1 {
            // Never translated nor forwarded.
            NODE
        } else {
            NOWHERE
        }
    }

    /// Where a packet may arrive that goes to this place.
    pub(super) fn reach(&self, draw: &Draw, to: SocketAddr, transport: Option<Transport>) -> Reach {
        let is_to_group = draw.ethernet.to[0] & 1 == 1 && is_group(to.ip());
        // As DHCP does.
        let is_admitted = draw.is_honest_source
            || (self.entry == Entry::Link && is_to_group && draw.source.is_unspecified());
        let is_to_tunnel = self.entry == Entry::Pod
            && transport == Some(Transport::Udp)
            && to.port() == TUNNEL_PORT
            && !self.tunnel.pods.contains(&to.ip());
        if !is_admitted || to.ip().is_loopback() || is_to_tunnel {
            return NOWHERE;
        }
        self.reach_of(&draw.ethernet)
    }

    /// UDP, TCP and echo requests, whole, in fragments or with more headers.
    fn packet(&self, rng: &mut Rng, draw: &Draw, mark: Mark) -> (Reach, Vec<u8>) {
        let transport = match mark.kind {
            Kind::Echo => Transport::Echo,
            Kind::Plain => pick(rng, &[Transport::Udp, Transport::Tcp]),
            _ => Transport::any(rng),
        };
        let (from, to) = (draw.from(rng), draw.target);
        let reach = self.reach(draw, to, Some(transport));
        let state = rng.clone();
        let make = |reach: Reach| packets::whole(&mut state.clone(), transport, from, to, &mark.of(reach));
        let whole = make(reach);
        let via = pick(rng, &self.targets[draw.family]).ip();
        match (mark.kind, via) {
            (Kind::Fragment, _) => {
                let state = rng.clone();
                let cut = |reach| packets::fragment(&mut state.clone(), &make(reach), &mark.of(reach));
                let (first, is_first) = cut(reach);
                if is_first {
                    return (reach, first);
                }
                // A later one has no port.
                let reach = self.reach(draw, to, None);
                (reach, cut(reach).0)
            }
            (Kind::Extended, IpAddr::V4(via)) => (reach, packets::with_options(rng, &whole, via)),
            (Kind::Extended, IpAddr::V6(via)) => {
                let state = rng.clone();
                let extend = |whole: &[u8]| packets::with_extensions(&mut state.clone(), whole, via);
                let (extended, walked, is_read) = extend(&whole);
                let reach = match self.entry {
                    Entry::Pod if walked > EXTENSIONS => NOWHERE,
                    // What stands behind a header that no stack knows is no datagram for a port.
                    _ if !is_read => self.reach(draw, to, None),
                    _ => return (reach, extended),
                };
                (reach, extend(&make(reach)).0)
            }
            _ => (reach, whole),
        }
    }

    fn error(&self, rng: &mut Rng, draw: &Draw, mark: Mark) -> (Reach, Vec<u8>) {
        const PORTS: [u16; 6] = [80, 8080, 30_080, 30_081, TUNNEL_PORT, 9];
        let family = draw.family;
        let mut known = [self.honest[family].as_slice(), &self.forged[family]].concat();
        known.extend(self.targets[family].iter().map(SocketAddr::ip));
        known.extend(self.nodes.map(|node| node[family]));
        let end = |rng: &mut Rng| {
            let port = if rng.bool() {
                pick(rng, &PORTS)
            } else {
                rng.u16(1..)
            };
            SocketAddr::new(pick(rng, &known), port)
        };
        let (from, mut to) = (end(rng), end(rng));
        if self.entry == Entry::Pod && (draw.is_honest || rng.bool()) {
            to.set_ip(draw.source);
        }
        let transport = Transport::any(rng);
        let peers = self.nodes[1];
        let is_about_tunnel = transport == Transport::Udp
            && to.port() == TUNNEL_PORT
            && peers.contains(&to.ip())
            && self.nodes.concat().contains(&from.ip());
        let may_tell = match self.entry {
            Entry::Link => !is_about_tunnel,
            // Of packets to itself only.
            Entry::Pod => to.ip() == draw.source,
        };
        let reach = if may_tell {
            self.reach(draw, draw.target, None)
        } else {
            NOWHERE
        };
        let payload = mark.of(reach);
        let mut about = packets::whole(rng, transport, from, to, &payload);
        if rng.bool() {
            about = packets::shortened(&about, &payload);
        }
        (reach, packets::error(rng, draw.source, draw.target.ip(), &about))
    }

    /// ARP, with the mark behind it, and neighbour discovery with the mark in an option.
    fn neighbour(&self, rng: &mut Rng, draw: &mut Draw, mark: Mark) -> (Reach, u16, Vec<u8>) {
        let mac = if draw.is_honest || rng.bool() {
            self.forge.ethernet().from
        } else {
            pick(rng, &self.macs)
        };
        match (draw.source, draw.target.ip()) {
            (IpAddr::V4(sender), IpAddr::V4(target)) => {
                let target = if rng.bool() { GATEWAY } else { target };
                let is_request = rng.bool();
                if rng.bool() {
                    draw.ethernet.to = link::BROADCAST;
                }
                // No interface hands it on, and no socket of the node is for it.
                let message = link::arp(is_request, (mac, sender), ([0; 6], target));
                (NOWHERE, link::ARP, [message, mark.of(NOWHERE)].concat())
            }
            (IpAddr::V6(sender), IpAddr::V6(target)) => {
                let to = pick(rng, &[target, GATEWAY6, ALL_HOSTS]);
                let is_own = rng.u8(..8) == 0;
                let sender = if is_own { self.link_local } else { sender };
                draw.source = sender.into();
                let mut reach = self.reach(draw, SocketAddr::new(to.into(), 0), None);
                let is_for_link = is_own || (self.entry == Entry::Pod && sender.is_unspecified());
                if is_for_link && !to.is_loopback() {
                    // No router takes it anywhere.
                    reach = self.reach_of(&draw.ethernet) & NODE;
                }
                (
                    reach,
                    packet::IPV6,
                    discovery(rng, (mac, sender), to, &mark.of(reach)),
                )
            }
            _ => unreachable!("a draw has one family"),
        }
    }
}

/// A solicitation of a router or a neighbour, or an advertisement of a neighbour.
fn discovery(rng: &mut Rng, (mac, sender): (Mac, Ipv6Addr), to: Ipv6Addr, mark: &[u8]) -> Vec<u8> {
    let kind = pick(rng, &[133, 135, 136]);
    let flags = if kind == 136 { 0x60 } else { 0 };
    let mut message = vec![kind, 0, 0, 0, flags, 0, 0, 0];
    if kind != 133 {
        let target = if kind == 136 && rng.bool() { sender } else { to };
        message.extend(target.octets());
    }
    message.extend([if kind == 136 { 2 } else { 1 }, 1]);
    message.extend(mac);
    // A nonce (RFC 3971 §5.3.2) of four times eight bytes.
    message.extend([14, 4]);
    message.extend(mark);
    message.resize(message.len().next_multiple_of(8), 0);
    packet::icmp(sender.into(), to.into(), &message)
}
