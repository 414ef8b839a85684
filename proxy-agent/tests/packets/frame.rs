//! Makes and checks frames byte by byte. It uses no code under test except the parser.

use std::net::{IpAddr, SocketAddr};

use proxy_common::packet::{ETHERNET_LEN, Headers, parse};
use proxy_common::{Ip, Port, protocol};

/// Makes a frame with correct checksums.
pub fn frame(from: &str, to: &str, protocol: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
    let mut l4 = Vec::new();
    l4.extend(from.port().to_be_bytes());
    l4.extend(to.port().to_be_bytes());
    let checksum_at = match protocol {
        protocol::TCP => {
            l4.extend(SEQUENCE.to_be_bytes());
            l4.extend([0, 0, 0, 0, 0x60, flags, 0xff, 0xff, 0, 0, 0, 0, 2, 4, 5, 0xb4]);
            16
        }
        protocol::UDP => {
            l4.extend((8 + payload.len() as u16).to_be_bytes());
            l4.extend([0, 0]);
            6
        }
        _ => {
            // The checksum is set below; the first chunk shows the kind of the packet.
            l4.extend([0; 8]);
            l4.extend([flags, 0, 0, 4]);
            0
        }
    };
    l4.extend(payload);
    if protocol == protocol::SCTP {
        let crc = crc32c(&l4);
        l4[8..12].copy_from_slice(&crc.to_le_bytes());
    }
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    ip_header(&mut frame, from.ip(), to.ip(), protocol, l4.len());
    let l4_at = frame.len();
    frame.extend(&l4);
    if checksum_at > 0 {
        let sum = !transport_sum(&frame, l4_at, protocol);
        frame[l4_at + checksum_at..l4_at + checksum_at + 2].copy_from_slice(&sum.to_be_bytes());
    }
    frame
}

/// The sequence number of the first TCP byte in each of these frames.
pub const SEQUENCE: u32 = 7;

/// Makes a TCP frame acknowledge a SYN of [`SEQUENCE`], with a correct checksum.
pub fn acknowledging(mut frame: Vec<u8>) -> Vec<u8> {
    let l4 = if frame[14] >> 4 == 4 { 34 } else { 54 };
    let number = (SEQUENCE + 1).to_be_bytes();
    frame[l4 + 8..l4 + 12].copy_from_slice(&number);
    let before = u16::from_be_bytes([frame[l4 + 16], frame[l4 + 17]]);
    // The acknowledgement number was 0 before.
    let sum = !sum(&number, u32::from(!before));
    frame[l4 + 16..l4 + 18].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// The checksum of RFC 1071, over bytes.
pub fn sum(bytes: &[u8], start: u32) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum = words.fold(u64::from(start), |sum, word| sum + u64::from(word));
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn transport_sum(frame: &[u8], l4: usize, protocol: u8) -> u16 {
    let addresses = if frame[14] >> 4 == 4 {
        &frame[26..34]
    } else {
        &frame[22..54]
    };
    let len = (frame.len() - l4) as u32;
    sum(
        &frame[l4..],
        u32::from(sum(addresses, 0)) + u32::from(protocol) + len,
    )
}

pub fn ether_type(frame: &[u8]) -> u16 {
    u16::from_be_bytes([frame[12], frame[13]])
}

/// Parses the output and checks every checksum in it.
#[track_caller]
pub fn checked(frame: &[u8]) -> Headers {
    let headers = parse(frame, ether_type(frame), ETHERNET_LEN).expect("a packet");
    if headers.src.is_v4() {
        assert_eq!(sum(&frame[14..34], 0), 0xffff, "IPv4 header checksum");
        assert_eq!(
            u16::from_be_bytes([frame[16], frame[17]]) as usize,
            frame.len() - 14,
            "IPv4 length"
        );
    } else {
        assert_eq!(
            u16::from_be_bytes([frame[18], frame[19]]) as usize,
            frame.len() - 54,
            "IPv6 length"
        );
    }
    let l4 = headers.l4 as usize;
    match headers.protocol {
        protocol::ICMP => assert_eq!(sum(&frame[l4..], 0), 0xffff, "ICMP checksum"),
        protocol::TCP | protocol::UDP | protocol::ICMPV6 => {
            assert_eq!(
                transport_sum(frame, l4, headers.protocol),
                0xffff,
                "transport checksum"
            );
        }
        protocol::SCTP => {
            let mut packet = frame[l4..].to_vec();
            let found: [u8; 4] = std::array::from_fn(|byte| packet[8 + byte]);
            packet[8..12].fill(0);
            assert_eq!(u32::from_le_bytes(found), crc32c(&packet), "SCTP checksum");
        }
        _ => {}
    }
    headers
}

/// The CRC of RFC 9260 appendix A, bit by bit.
pub fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
        }
    }
    !crc
}

pub fn ends(headers: &Headers) -> (SocketAddr, SocketAddr) {
    let end = |ip: Ip, port: Port| SocketAddr::new(ip.into(), port.number());
    (end(headers.src, headers.sport), end(headers.dst, headers.dport))
}

pub fn socket(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// Makes an ICMP error with these first eight bytes about a packet that starts with its IP header, with
/// correct checksums.
pub fn icmp_error(from: IpAddr, to: IpAddr, head: [u8; 8], about: &[u8]) -> Vec<u8> {
    let l4 = [&head[..], &about[..about.len().min(64)]].concat();
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    let protocol = if from.is_ipv4() {
        protocol::ICMP
    } else {
        protocol::ICMPV6
    };
    ip_header(&mut frame, from, to, protocol, l4.len());
    let l4_at = frame.len();
    frame.extend(&l4);
    let sum = if from.is_ipv4() {
        !sum(&frame[l4_at..], 0)
    } else {
        !transport_sum(&frame, l4_at, protocol)
    };
    frame[l4_at + 2..l4_at + 4].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// Adds the `EtherType` and the IP header to a frame.
fn ip_header(frame: &mut Vec<u8>, from: IpAddr, to: IpAddr, protocol: u8, len: usize) {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            frame.extend([8, 0, 0x45, 0]);
            frame.extend((20 + len as u16).to_be_bytes());
            frame.extend([0, 1, 0x40, 0, 64, protocol, 0, 0]);
            frame.extend(from.octets());
            frame.extend(to.octets());
            let sum = sum(&frame[14..34], 0);
            frame[24..26].copy_from_slice(&(!sum).to_be_bytes());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend((len as u16).to_be_bytes());
            frame.extend([protocol, 64]);
            frame.extend(from.octets());
            frame.extend(to.octets());
        }
        _ => panic!("one family"),
    }
}
