//! Crafted packets: the first packet that a client would send.

use std::net::{IpAddr, SocketAddr};

use crate::control::Protocol;

const MAC: [u8; 12] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];

/// An Ethernet frame with a TCP SYN, an empty datagram, or an SCTP INIT.
pub fn frame(from: IpAddr, to: SocketAddr, sport: u16, protocol: Protocol) -> Vec<u8> {
    packet(from, to, sport, protocol, &[])
}

/// The same with a payload for a datagram.
pub fn packet(from: IpAddr, to: SocketAddr, sport: u16, protocol: Protocol, payload: &[u8]) -> Vec<u8> {
    let transport = transport(sport, to.port(), protocol, payload);
    let mut frame = MAC.to_vec();
    match (from, to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            frame.extend(0x0800_u16.to_be_bytes());
            frame.extend([0x45, 0]);
            frame.extend((20 + transport.len() as u16).to_be_bytes());
            frame.extend([0, 0, 0x40, 0, 64, protocol.number(), 0, 0]);
            frame.extend(from.octets());
            frame.extend(to.octets());
        }
        (from, to) => {
            let v6 = |address: IpAddr| match address {
                IpAddr::V4(address) => address.to_ipv6_mapped(),
                IpAddr::V6(address) => address,
            };
            frame.extend(0x86dd_u16.to_be_bytes());
            frame.extend([0x60, 0, 0, 0]);
            frame.extend((transport.len() as u16).to_be_bytes());
            frame.extend([protocol.number(), 64]);
            frame.extend(v6(from).octets());
            frame.extend(v6(to).octets());
        }
    }
    frame.extend(transport);
    frame
}

/// The payload of a datagram that carries a frame through a tunnel: the VXLAN header and the frame (RFC 7348
/// §5).
pub fn vxlan(id: u32, frame: &[u8]) -> Vec<u8> {
    const HAS_ID: u8 = 0x08;
    let mut payload = vec![HAS_ID, 0, 0, 0];
    payload.extend((id << 8).to_be_bytes());
    payload.extend(frame);
    payload
}

fn transport(sport: u16, dport: u16, protocol: Protocol, payload: &[u8]) -> Vec<u8> {
    let mut header = Vec::with_capacity(32);
    header.extend(sport.to_be_bytes());
    header.extend(dport.to_be_bytes());
    match protocol {
        // Sequence and acknowledgement numbers, 5 words, SYN, window, checksum, urgent pointer.
        Protocol::Tcp => header.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]),
        Protocol::Udp => {
            header.extend((8 + payload.len() as u16).to_be_bytes());
            header.extend([0, 0]);
            header.extend(payload);
        }
        // Verification tag, checksum, an INIT chunk's header.
        Protocol::Sctp => header.extend([0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 20]),
    }
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use proxy_common::packet::{ETHERNET_LEN, ether_type, parse};

    #[test]
    fn a_tunnelled_frame_stands_behind_both_headers() {
        let to = "10.244.1.2:9".parse().unwrap();
        let inner = frame("10.244.2.1".parse().unwrap(), to, 9, Protocol::Udp);
        let payload = vxlan(0x01_0203, &inner);
        assert_eq!(payload[..8], [8, 0, 0, 0, 1, 2, 3, 0]);
        let to = "192.168.50.11:8472".parse().unwrap();
        let outer = packet(
            "192.168.50.12".parse().unwrap(),
            to,
            40_000,
            Protocol::Udp,
            &payload,
        );
        let headers = parse(&outer[..], ether_type::IPV4, ETHERNET_LEN).unwrap();
        assert_eq!(
            outer[headers.l4 as usize + 4..][..2],
            (8 + payload.len() as u16).to_be_bytes()
        );
        assert_eq!(outer[headers.l4 as usize + 16..], inner);
    }

    #[test]
    fn crafted_packets_are_what_the_parser_expects() {
        for (from, to, kind) in [
            ("10.244.1.5", "10.96.0.1:80", ether_type::IPV4),
            ("fd00:244::5", "[fd00:96::1]:80", ether_type::IPV6),
        ] {
            for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
                let frame = frame(from.parse().unwrap(), to.parse().unwrap(), 40_000, protocol);
                let headers = parse(&frame[..], kind, ETHERNET_LEN).unwrap();
                assert_eq!((headers.sport.number(), headers.dport.number()), (40_000, 80));
                assert_eq!(IpAddr::from(headers.src), from.parse::<IpAddr>().unwrap());
                assert_eq!(headers.is_opening(), protocol != Protocol::Udp);
            }
        }
    }
}
