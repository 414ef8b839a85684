//! The grammar of the fuzz: frames of each kind, and the places where the table of entries lets their content
//! arrive.
//!
//! A frame is a pure function of seed and number. A third of all frames have no forged part, so that enough
//! of each kind arrives.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use fastrand::Rng;
use harness::Forge;
use harness::forge::{Ethernet, SERVICE_VLAN, Tag, VLAN, link, packet};

use super::packets::{self, Transport, pick};
use super::tunnels::Tunnel;

/// The start of a mark. After it follow the places where the frame may arrive, its kind and its number.
pub const MAGIC: &[u8] = b"millrace fuzz ";
pub const TUNNEL_PORT: u16 = 8472;
/// The number of IPv6 extension headers that the programs walk. A pod may not send more.
const EXTENSIONS: usize = 6;
const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
const ALL_HOSTS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

pub type Mac = [u8; 6];

/// The places where a frame's content may arrive: none, or a sum of the constants below.
pub type Reach = u8;
pub const NOWHERE: Reach = 0;
/// A pod, or a host outside.
pub const BEYOND: Reach = 1;
/// A socket of the node.
pub const NODE: Reach = 2;
/// The socket of the node's tunnel, which gets the outer packet as well.
pub const TUNNEL: Reach = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// UDP and TCP.
    Plain,
    Echo,
    Error,
    Fragment,
    /// A packet with IPv4 options, or with IPv6 extension headers.
    Extended,
    /// A VXLAN datagram to a tunnel.
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

/// A sender, and the rules of the table of entries for its frames. Lists have IPv4 first.
pub struct Sender {
    pub forge: Forge,
    pub entry: Entry,
    /// Hardware addresses other than the sender's own and that of its usual receiver.
    pub macs: Vec<Mac>,
    /// Sources that the entry admits.
    pub honest: [Vec<IpAddr>; 2],
    pub forged: [Vec<IpAddr>; 2],
    /// The link-local address that follows from the sender's hardware address, for neighbour discovery.
    pub link_local: Ipv6Addr,
    pub targets: [Vec<SocketAddr>; 2],
    /// Addresses of the node itself, and of another node.
    pub nodes: [[IpAddr; 2]; 2],
    pub tunnel: Tunnel,
}

/// A frame, and the places where its content may arrive.
pub struct Made {
    pub kind: Kind,
    pub reach: Reach,
    pub bytes: Vec<u8>,
}

/// The parts that frames of all kinds have.
pub(super) struct Draw {
    pub(super) family: usize,
    /// Whether no part of the frame is forged.
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

/// The identification of a frame, which is a part of its content.
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

/// The marks in these bytes: for each, the places where its frame may arrive, its kind and its number.
pub fn marks(bytes: &[u8]) -> impl Iterator<Item = (Reach, Kind, u64)> {
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

/// The random numbers that a frame is made of. They depend on seed and number, so that a single frame can be
/// made again.
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

/// Whether an address is a multicast or broadcast address.
fn is_group(address: IpAddr) -> bool {
    address.is_multicast() || address == IpAddr::from(Ipv4Addr::BROADCAST)
}

impl Sender {
    /// The frame with this number.
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

    /// The places where a frame with this header may arrive if the entry admits its content.
    pub(super) fn reach_of(&self, ethernet: &Ethernet) -> Reach {
        let own = self.forge.ethernet();
        let is_bare = match (self.entry, ethernet.tags.as_slice()) {
            // The kernel removes a priority tag.
            (_, []) | (Entry::Link, [(_, 0)]) => true,
            _ => false,
        };
        // On the link any sender's address is possible; a pod has one address.
        if !is_bare || (self.entry == Entry::Pod && ethernet.from != own.from) {
            NOWHERE
        } else if ethernet.to == own.to {
            BEYOND | NODE
        } else if ethernet.to[0] & 1 == 1 {
            // Such a frame is never translated nor forwarded.
            NODE
        } else {
            NOWHERE
        }
    }

    /// The places where a packet to this destination may arrive.
    pub(super) fn reach(&self, draw: &Draw, to: SocketAddr, transport: Option<Transport>) -> Reach {
        let is_to_group = draw.ethernet.to[0] & 1 == 1 && is_group(to.ip());
        // As in DHCP, where a host has no address yet.
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
                // A later fragment has no port.
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
                    // Behind a header that the receiver does not know, the content is no datagram for a port.
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
        let may_arrive = match self.entry {
            Entry::Link => !is_about_tunnel,
            // Only errors about packets to the pod itself.
            Entry::Pod => to.ip() == draw.source,
        };
        let reach = if may_arrive {
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
                // ARP is not forwarded, and no socket of the node receives it.
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
                    // No router forwards it.
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
