//! The offsets of a frame's headers, by the stated rules for odd packets and without the parser under test.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use proxy_common::maps::Reason;
use proxy_common::protocol;

use crate::frame::{ether_type, sum};

/// The offset of the IP header, behind the Ethernet header.
pub const L3: usize = 14;
const EXTENSIONS: usize = 6;

pub fn is_extension(protocol: u8) -> bool {
    matches!(protocol, 0 | 43 | 44 | 51 | 60)
}

#[derive(Clone, Copy, Debug)]
pub struct Layout {
    pub is_v4: bool,
    pub protocol: u8,
    /// The offset of the transport header; later fragments have none.
    pub l4: Option<usize>,
    pub is_fragment: bool,
}

impl Layout {
    /// The layout of a whole frame, or the reason for which the programs leave it to the kernel.
    pub fn of(frame: &[u8]) -> Result<Self, Reason> {
        match ether_type(frame) {
            0x0800 => Self::v4(frame, L3)?.with_transport(frame),
            0x86dd => Self::v6(frame)?.with_transport(frame),
            _ => Err(Reason::NotBalanced),
        }
    }

    /// Whether an IPv6 frame has more extension headers than the programs walk.
    pub fn is_unwalked(frame: &[u8]) -> bool {
        Self::v6(frame).is_ok_and(|layout| layout.l4.is_some() && is_extension(layout.protocol))
    }

    fn v4(frame: &[u8], l3: usize) -> Result<Self, Reason> {
        let header = frame.get(l3..l3 + 20).ok_or(Reason::Malformed)?;
        let len = usize::from(header[0] & 15) * 4;
        if header[0] >> 4 != 4 || len < 20 {
            return Err(Reason::Malformed);
        }
        let more_and_offset = u16::from_be_bytes([header[6], header[7]]) & 0x3fff;
        Ok(Self {
            is_v4: true,
            protocol: header[9],
            l4: matches!(more_and_offset, 0 | 0x2000).then_some(l3 + len),
            is_fragment: more_and_offset != 0,
        })
    }

    fn v6(frame: &[u8]) -> Result<Self, Reason> {
        let header = frame.get(L3..L3 + 40).ok_or(Reason::Malformed)?;
        let is_mapped = |at: usize| header[at..at + 12] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
        if header[0] >> 4 != 6 {
            return Err(Reason::Malformed);
        }
        if is_mapped(8) || is_mapped(24) {
            return Err(Reason::MappedAddress);
        }
        let (mut protocol, mut l4, mut is_fragment) = (header[6], L3 + 40, false);
        for _ in 0..EXTENSIONS {
            if !is_extension(protocol) {
                break;
            }
            let start = frame.get(l4..l4 + 4).ok_or(Reason::Malformed)?;
            let units = usize::from(start[1]);
            let next = l4
                + match protocol {
                    44 => 8,
                    51 => units * 4 + 8,
                    _ => units * 8 + 8,
                };
            if protocol == 44 {
                is_fragment = true;
                frame.get(l4..next).ok_or(Reason::Malformed)?;
                if u16::from_be_bytes([start[2], start[3]]) & 0xfff8 != 0 {
                    return Ok(Self {
                        is_v4: false,
                        protocol: start[0],
                        l4: None,
                        is_fragment,
                    });
                }
            }
            (protocol, l4) = (start[0], next);
        }
        Ok(Self {
            is_v4: false,
            protocol,
            l4: Some(l4),
            is_fragment,
        })
    }

    fn with_transport(self, frame: &[u8]) -> Result<Self, Reason> {
        let Some(l4) = self.l4 else {
            return Ok(self);
        };
        let least = match self.protocol {
            protocol::TCP => 16,
            // An echo has an identifier instead of ports.
            protocol::ICMP if self.is_v4 && matches!(frame.get(l4), Some(0 | 8)) => 6,
            protocol::ICMPV6 if !self.is_v4 && matches!(frame.get(l4), Some(128 | 129)) => 6,
            protocol::UDP | protocol::SCTP | protocol::ICMP | protocol::ICMPV6 => 4,
            _ => return Err(Reason::NotBalanced),
        };
        frame.get(l4..l4 + least).ok_or(Reason::Malformed)?;
        Ok(self)
    }

    /// The offset and the layout of the packet in an ICMP error at `l4`.
    pub fn carried(frame: &[u8], is_v4: bool, l4: usize) -> Option<(usize, Self)> {
        let l3 = l4 + 8;
        if is_v4 {
            return Self::v4(frame, l3).ok().map(|carried| (l3, carried));
        }
        let (mut protocol, mut next) = (frame.get(l3..l3 + 40)?[6], l3 + 40);
        if protocol == 44 {
            let header = frame.get(next..next + 4)?;
            if u16::from_be_bytes([header[2], header[3]]) & 0xfff8 != 0 {
                return None;
            }
            (protocol, next) = (header[0], next + 8);
        }
        let carried = Self {
            is_v4,
            protocol,
            l4: Some(next),
            is_fragment: false,
        };
        Some((l3, carried))
    }

    /// Whether this is an ICMP error whose first bytes are in the frame.
    pub fn is_error(self, frame: &[u8]) -> bool {
        let kind = self.l4.and_then(|l4| frame.get(l4));
        match (self.protocol, self.is_v4) {
            (protocol::ICMP, true) => matches!(kind, Some(3 | 11 | 12)),
            (protocol::ICMPV6, false) => matches!(kind, Some(1..=4)),
            _ => false,
        }
    }

    /// The protocol of the packet in an ICMP error. If that packet starts with a fragment header, it is the
    /// protocol behind it.
    pub fn carried_protocol(self, frame: &[u8]) -> Option<u8> {
        let l3 = self.l4? + 8;
        if self.is_v4 {
            return frame.get(l3 + 9).copied();
        }
        match *frame.get(l3 + 6)? {
            44 => frame.get(l3 + 40).copied(),
            protocol => Some(protocol),
        }
    }

    /// The source and the destination of the packet in an ICMP error, even if its ports cannot be read.
    pub fn carried_ends(self, frame: &[u8]) -> Option<[IpAddr; 2]> {
        let l3 = self.l4? + 8;
        if self.is_v4 {
            let header = frame.get(l3..l3 + 20)?;
            // The kernel does not check the version.
            return (header[0] & 15 >= 5).then(|| self.ends(frame, l3));
        }
        let header = frame.get(l3..l3 + 40)?;
        let is_whole = header[6] != 44 || frame.len() >= l3 + 44;
        is_whole.then(|| self.ends(frame, l3))
    }

    /// As [`Self::has_ports`], and also true for a later fragment that names an extension header in place of
    /// the protocol.
    pub fn may_have_ports(&self) -> bool {
        self.has_ports() || (!self.is_v4 && self.l4.is_none() && is_extension(self.protocol))
    }

    pub fn has_ports(self) -> bool {
        matches!(self.protocol, protocol::TCP | protocol::UDP | protocol::SCTP)
    }

    pub fn is_icmp(self) -> bool {
        matches!(self.protocol, protocol::ICMP | protocol::ICMPV6)
    }

    /// The range of the ports in the transport header, or of the identifier of an echo.
    pub fn ports_at(self) -> std::ops::Range<usize> {
        if self.is_icmp() { 4..6 } else { 0..4 }
    }

    /// The range of the addresses, from the start of the IP header.
    pub fn addresses_at(self) -> std::ops::Range<usize> {
        if self.is_v4 { 12..20 } else { 8..40 }
    }

    /// The offset of the transport checksum from the transport header, and its length, in bytes.
    pub fn checksum_at(self) -> (usize, usize) {
        match self.protocol {
            protocol::TCP => (16, 2),
            protocol::UDP => (6, 2),
            protocol::SCTP => (8, 4),
            _ => (2, 2),
        }
    }

    /// The source and the destination address.
    pub fn ends(self, frame: &[u8], l3: usize) -> [IpAddr; 2] {
        let bytes = &frame[l3..][self.addresses_at()];
        let half = bytes.len() / 2;
        [&bytes[..half], &bytes[half..]].map(|bytes| match bytes.try_into() {
            Ok(bytes) => IpAddr::V4(Ipv4Addr::from_octets(bytes)),
            Err(_) => IpAddr::V6(Ipv6Addr::from_octets(bytes.try_into().unwrap())),
        })
    }

    /// The source and the destination with their ports; 0 without ports.
    pub fn sockets(self, frame: &[u8], l3: usize) -> [SocketAddr; 2] {
        let [src, dst] = self.ends(frame, l3);
        let port = |at: usize| match self.l4 {
            Some(l4) if self.has_ports() => u16::from_be_bytes([frame[l4 + at], frame[l4 + at + 1]]),
            _ => 0,
        };
        [SocketAddr::new(src, port(0)), SocketAddr::new(dst, port(2))]
    }

    /// Whether this is an echo request of either family.
    pub fn is_echo(self, frame: &[u8]) -> bool {
        let echo = if self.is_v4 {
            (protocol::ICMP, 8)
        } else {
            (protocol::ICMPV6, 128)
        };
        self.l4.is_some_and(|l4| (self.protocol, frame[l4]) == echo)
    }

    /// Whether the sender of this packet may get a reply. The source must be one host, and no error is sent
    /// about an error (RFC 1122 §3.2.2, RFC 4443 §2.4).
    pub fn may_get_error(self, frame: &[u8]) -> bool {
        let [source, _] = self.ends(frame, L3);
        let is_host = match source {
            IpAddr::V4(source) => matches!(source.octets()[0], 1..=223),
            IpAddr::V6(source) => !source.is_multicast() && !source.is_unspecified(),
        };
        let kind = self.l4.map_or(0, |l4| frame[l4]);
        is_host
            && match self.protocol {
                protocol::ICMP => !matches!(kind, 3..=5 | 11 | 12),
                protocol::ICMPV6 => kind >= 128,
                _ => true,
            }
    }

    /// The difference of the header checksum from the right one, modulo 65535; IPv6 has none.
    pub fn header_error(self, frame: &[u8], l3: usize) -> u32 {
        if !self.is_v4 {
            return 0;
        }
        let len = usize::from(frame[l3] & 15) * 4;
        let end = frame.len().min(l3 + len);
        u32::from(sum(&frame[l3..end], 0)) % 0xffff
    }

    /// The difference of a TCP, UDP or ICMP checksum from the right one. It omits lengths and protocol, which
    /// do not change. (SCTP has another checksum.)
    pub fn transport_error(self, frame: &[u8]) -> u32 {
        let Some(l4) = self.l4 else {
            return 0;
        };
        let without_pseudo_header = self.is_v4 && !self.has_ports();
        let addresses = if without_pseudo_header {
            0
        } else {
            sum(&frame[L3..][self.addresses_at()], 0)
        };
        u32::from(sum(&frame[l4..], u32::from(addresses))) % 0xffff
    }

    /// The bytes that SCTP's checksum covers, if the frame has all of them.
    pub fn sctp(self, frame: &[u8]) -> Option<&[u8]> {
        let field = |at: usize| usize::from(u16::from_be_bytes([frame[at], frame[at + 1]]));
        let end = if self.is_v4 {
            L3 + field(L3 + 2)
        } else {
            L3 + 40 + field(L3 + 4)
        };
        frame.get(self.l4?..end).filter(|packet| packet.len() >= 12)
    }
}
