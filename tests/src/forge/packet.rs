//! IP packets with right lengths and checksums: UDP, TCP, ICMP echo, any other protocol, and fragments.

use std::net::{IpAddr, SocketAddr};

/// `EtherType` of IPv4.
pub const IPV4: u16 = 0x0800;
/// `EtherType` of IPv6.
pub const IPV6: u16 = 0x86dd;

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;

/// TCP's flag FIN.
pub const FIN: u8 = 0x01;
/// TCP's flag SYN.
pub const SYN: u8 = 0x02;
/// TCP's flag RST.
pub const RST: u8 = 0x04;
/// TCP's flag ACK.
pub const ACK: u8 = 0x10;

/// A UDP datagram.
#[must_use]
#[track_caller]
pub fn udp(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let length = length_of(8 + payload.len());
    let mut datagram = [ports(from, to).as_slice(), &length, &[0, 0], payload].concat();
    fill_in(&mut datagram, 6, from.ip(), to.ip(), UDP);
    ip(from.ip(), to.ip(), UDP, &datagram)
}

/// A segment without options. Its acknowledgement number is zero.
#[must_use]
#[track_caller]
pub fn tcp(from: SocketAddr, to: SocketAddr, flags: u8, sequence: u32, payload: &[u8]) -> Vec<u8> {
    let mut segment = ports(from, to).to_vec();
    segment.extend(sequence.to_be_bytes());
    // Acknowledgement, length of the header, flags, window, checksum, urgent pointer.
    segment.extend([0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend(payload);
    fill_in(&mut segment, 16, from.ip(), to.ip(), TCP);
    ip(from.ip(), to.ip(), TCP, &segment)
}

/// An ICMP echo request, or the reply to one.
#[must_use]
#[track_caller]
pub fn echo(from: IpAddr, to: IpAddr, is_request: bool, id: u16, payload: &[u8]) -> Vec<u8> {
    let kind = match (from, is_request) {
        (IpAddr::V4(_), true) => 8,
        (IpAddr::V4(_), false) => 0,
        (IpAddr::V6(_), true) => 128,
        (IpAddr::V6(_), false) => 129,
    };
    let [high, low] = id.to_be_bytes();
    icmp(from, to, &[&[kind, 0, 0, 0, high, low, 0, 1], payload].concat())
}

/// An ICMP message of either family, whose checksum is filled in.
#[must_use]
#[track_caller]
pub fn icmp(from: IpAddr, to: IpAddr, message: &[u8]) -> Vec<u8> {
    let mut message = message.to_vec();
    if from.is_ipv4() {
        let sum = !sum(&message, 0);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        return ip(from, to, ICMP, &message);
    }
    fill_in(&mut message, 2, from, to, ICMPV6);
    ip(from, to, ICMPV6, &message)
}

/// A packet of any protocol. Its hop limit is 255, as neighbour discovery requires.
#[must_use]
#[track_caller]
pub fn ip(from: IpAddr, to: IpAddr, protocol: u8, content: &[u8]) -> Vec<u8> {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut header = vec![0x45, 0];
            header.extend(length_of(IPV4_HEADER + content.len()));
            header.extend([0, 1, 0, 0, 255, protocol, 0, 0]);
            header.extend(from.octets());
            header.extend(to.octets());
            set_header_sum(&mut header);
            [header.as_slice(), content].concat()
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let mut packet = vec![0x60, 0, 0, 0];
            packet.extend(length_of(content.len()));
            packet.extend([protocol, 255]);
            packet.extend(from.octets());
            packet.extend(to.octets());
            packet.extend(content);
            packet
        }
        _ => panic!("{from} and {to} are of different families"),
    }
}

/// An IPv4 packet in fragments of `size` bytes, a multiple of eight.
#[must_use]
pub fn fragments(packet: &[u8], size: usize) -> Vec<Vec<u8>> {
    const MORE: u16 = 0x2000;
    let (header, content) = packet.split_at(IPV4_HEADER);
    let last = content.len().div_ceil(size) - 1;
    let fragment = |(number, piece): (usize, &[u8])| {
        let mut header = header.to_vec();
        header[2..4].copy_from_slice(&length_of(IPV4_HEADER + piece.len()));
        let offset = (number * size / 8) as u16 | if number < last { MORE } else { 0 };
        header[6..8].copy_from_slice(&offset.to_be_bytes());
        set_header_sum(&mut header);
        [header.as_slice(), piece].concat()
    };
    content.chunks(size).enumerate().map(fragment).collect()
}

/// An IPv6 packet in fragments of `size` bytes, a multiple of eight. Destination options follow the fragment
/// header, so the next header of each fragment is those options (RFC 8200 §4.5).
#[must_use]
pub fn fragments_with_options(packet: &[u8], id: u32, size: usize) -> Vec<Vec<u8>> {
    const FRAGMENT: u8 = 44;
    const DESTINATION_OPTIONS: u8 = 60;
    let (header, content) = packet.split_at(IPV6_HEADER);
    // Padding of four bytes.
    let content = [&[header[6], 0, 1, 4, 0, 0, 0, 0], content].concat();
    let last = content.len().div_ceil(size) - 1;
    let fragment = |(number, piece): (usize, &[u8])| {
        let mut header = header.to_vec();
        header[4..6].copy_from_slice(&length_of(8 + piece.len()));
        header[6] = FRAGMENT;
        let offset = (number * size) as u16 | u16::from(number < last);
        header.extend([DESTINATION_OPTIONS, 0]);
        header.extend(offset.to_be_bytes());
        header.extend(id.to_be_bytes());
        [header.as_slice(), piece].concat()
    };
    content.chunks(size).enumerate().map(fragment).collect()
}

/// Fills in the checksum of an IPv4 header.
pub fn set_header_sum(header: &mut [u8]) {
    header[10..12].fill(0);
    let sum = !sum(header, 0);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
}

fn ports(from: SocketAddr, to: SocketAddr) -> [u8; 4] {
    let ([a, b], [c, d]) = (from.port().to_be_bytes(), to.port().to_be_bytes());
    [a, b, c, d]
}

#[track_caller]
fn length_of(bytes: usize) -> [u8; 2] {
    let length = u16::try_from(bytes).expect("no more bytes than a packet has room for");
    length.to_be_bytes()
}

/// Fills in a checksum that covers the addresses too.
fn fill_in(message: &mut [u8], at: usize, from: IpAddr, to: IpAddr, protocol: u8) {
    let addresses = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => [from.octets(), to.octets()].concat(),
        (IpAddr::V6(from), IpAddr::V6(to)) => [from.octets(), to.octets()].concat(),
        _ => panic!("{from} and {to} are of different families"),
    };
    let start = u64::from(sum(&addresses, 0)) + u64::from(protocol) + message.len() as u64;
    let sum = !sum(message, start);
    message[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

/// The Internet checksum (RFC 1071).
fn sum(bytes: &[u8], start: u64) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0)));
    let mut sum = words.fold(start, |sum, word| sum + word);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
