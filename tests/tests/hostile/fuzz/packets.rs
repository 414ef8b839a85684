//! Packets that the fuzz sends: whole ones, fragments, and packets with options or extension headers. All
//! lengths and checksums that a receiver checks are right, so that only addresses are a reason to drop a
//! packet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use fastrand::Rng;
use harness::forge::packet;

const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
/// The most bytes of options in an IPv4 header.
const OPTIONS: usize = 40;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
/// Mobility (RFC 6275), and two for experiments (RFC 3692 §2.1).
const UNKNOWN: [u8; 3] = [135, 253, 254];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Udp,
    Tcp,
    Echo,
}

impl Transport {
    const ALL: [Self; 3] = [Self::Udp, Self::Tcp, Self::Echo];

    pub fn any(rng: &mut Rng) -> Self {
        pick(rng, &Self::ALL)
    }
}

pub fn pick<T: Copy>(rng: &mut Rng, all: &[T]) -> T {
    all[rng.usize(..all.len())]
}

/// A packet in one piece.
pub fn whole(
    rng: &mut Rng,
    transport: Transport,
    from: SocketAddr,
    to: SocketAddr,
    payload: &[u8],
) -> Vec<u8> {
    const FLAGS: [u8; 5] = [
        packet::SYN,
        packet::SYN,
        packet::ACK,
        packet::SYN | packet::ACK,
        packet::RST,
    ];
    match transport {
        Transport::Udp => packet::udp(from, to, payload),
        Transport::Tcp => {
            let flags = pick(rng, &FLAGS);
            packet::tcp(from, to, flags, rng.u32(..), payload)
        }
        Transport::Echo => {
            let is_request = rng.u8(..4) != 0;
            packet::echo(from.ip(), to.ip(), is_request, from.port(), payload)
        }
    }
}

/// An ICMP error about a packet: destination unreachable, packet too big, or time exceeded.
pub fn error(rng: &mut Rng, from: IpAddr, to: IpAddr, about: &[u8]) -> Vec<u8> {
    let kinds: &[(u8, u8)] = if from.is_ipv4() {
        &[(3, 0), (3, 1), (3, 3), (3, 4), (3, 13), (11, 0), (11, 1), (12, 0)]
    } else {
        &[(1, 0), (1, 1), (1, 4), (2, 0), (3, 0), (3, 1), (4, 1)]
    };
    let (kind, code) = pick(rng, kinds);
    let [high, low] = rng.u16(..1500).to_be_bytes();
    packet::icmp(from, to, &[&[kind, code, 0, 0, 0, 0, high, low], about].concat())
}

/// A packet with at most eight bytes after the IP header, followed by this payload.
pub fn shortened(about: &[u8], payload: &[u8]) -> Vec<u8> {
    let (header, rest) = about.split_at(header_of(about));
    [header, &rest[..8], payload].concat()
}

fn header_of(packet: &[u8]) -> usize {
    if packet[0] >> 4 == 4 {
        IPV4_HEADER
    } else {
        IPV6_HEADER
    }
}

/// A fragment of a datagram: the first one with all of a packet, or a later one with the payload only. Few
/// identifications are in use, so that the receiver reassembles some of them. The second value tells whether
/// it is the first fragment.
pub fn fragment(rng: &mut Rng, whole: &[u8], payload: &[u8]) -> (Vec<u8>, bool) {
    let (header, content) = whole.split_at(header_of(whole));
    // The offset is in units of eight bytes. The longest first fragment has nine.
    let (units, has_more) = match rng.u8(..3) {
        0 => (0, true),
        1 => (rng.u16(1..12), true),
        _ => (rng.u16(1..12), false),
    };
    let mut content = if units == 0 { content } else { payload }.to_vec();
    content.resize(content.len().next_multiple_of(8), 0);
    let id = rng.u16(1..8);
    let mut packet = header.to_vec();
    if header.len() == IPV4_HEADER {
        packet[4..6].copy_from_slice(&id.to_be_bytes());
        let place = units | u16::from(has_more) << 13;
        packet[6..8].copy_from_slice(&place.to_be_bytes());
    } else {
        let [high, low] = (units << 3 | u16::from(has_more)).to_be_bytes();
        let [a, b] = id.to_be_bytes();
        packet.extend([header[6], 0, high, low, 0, 0, a, b]);
        packet[6] = FRAGMENT;
    }
    packet.extend(content);
    set_length(&mut packet);
    (packet, units == 0)
}

/// The same packet with IPv4 options before its content: known ones, source routes through `via`, and random
/// bytes.
pub fn with_options(rng: &mut Rng, whole: &[u8], via: Ipv4Addr) -> Vec<u8> {
    let [a, b, c, d] = via.octets();
    let mut options = Vec::new();
    for _ in 0..rng.usize(1..4) {
        let option: &[u8] = match rng.u8(..8) {
            0 => &[1],
            1 => &[7, 7, 4, 0, 0, 0, 0],
            2 => &[68, 12, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            3 => &[131, 7, 4, a, b, c, d],
            4 => &[137, 7, 4, a, b, c, d],
            5 => &[148, 4, 0, 0],
            6 => &[0],
            _ => &[rng.u8(..), rng.u8(..12), rng.u8(..), rng.u8(..)],
        };
        options.extend(option);
    }
    options.resize(options.len().next_multiple_of(4).min(OPTIONS), 0);
    let (header, content) = whole.split_at(IPV4_HEADER);
    let mut packet = [header, &options, content].concat();
    packet[0] = 0x40 | (5 + options.len() / 4) as u8;
    set_length(&mut packet);
    packet
}

/// The same packet with IPv6 extension headers before its content. The second value counts the headers at the
/// beginning that the programs walk. The third one tells whether all are of such kinds. A routing header
/// leads through `via`.
pub fn with_extensions(rng: &mut Rng, whole: &[u8], via: Ipv6Addr) -> (Vec<u8>, usize, bool) {
    const WALKED: [u8; 5] = [HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION_OPTIONS];
    let count = rng.usize(1..9);
    let kinds: Vec<u8> = (0..count)
        .map(|place| match rng.u8(..8) {
            // Anywhere else it is an error (RFC 8200 §4.1).
            0 if place == 0 => HOP_BY_HOP,
            0 => pick(rng, &WALKED),
            1 => ROUTING,
            2 => FRAGMENT,
            3 => AUTHENTICATION,
            4 => pick(rng, &UNKNOWN),
            _ => DESTINATION_OPTIONS,
        })
        .collect();
    let walked = kinds.iter().take_while(|kind| WALKED.contains(kind)).count();
    let (header, content) = whole.split_at(IPV6_HEADER);
    let mut packet = header.to_vec();
    packet[6] = kinds[0];
    for (place, kind) in kinds.iter().enumerate() {
        let next = kinds.get(place + 1).copied().unwrap_or(header[6]);
        match *kind {
            ROUTING => {
                let (kind, left) = (pick(rng, &[0, 2, 3, 4]), rng.u8(..2));
                packet.extend([next, 2, kind, left, 0, 0, 0, 0]);
                packet.extend(via.octets());
            }
            // A datagram in one fragment (RFC 6946).
            FRAGMENT => packet.extend([next, 0, 0, 0, 0, 0, 0, rng.u8(..)]),
            AUTHENTICATION => {
                packet.extend([next, 4]);
                packet.extend([0; 22]);
            }
            // An options header with padding only.
            _ => packet.extend([next, 0, 1, 4, 0, 0, 0, 0]),
        }
    }
    packet.extend(content);
    set_length(&mut packet);
    (packet, walked, walked == count)
}

/// Sets the flag for more fragments in the header of an IPv4 packet.
pub fn as_first_fragment(packet: &mut [u8]) {
    packet[6] |= 0x20;
    set_length(packet);
}

/// Fills in the length, and the checksum that covers it.
fn set_length(packet: &mut [u8]) {
    let length = |bytes: usize| (bytes as u16).to_be_bytes();
    if packet[0] >> 4 == 4 {
        let header = usize::from(packet[0] & 0xf) * 4;
        let all = length(packet.len());
        packet[2..4].copy_from_slice(&all);
        packet::set_header_sum(&mut packet[..header]);
    } else {
        let payload = length(packet.len() - IPV6_HEADER);
        packet[4..6].copy_from_slice(&payload);
    }
}
