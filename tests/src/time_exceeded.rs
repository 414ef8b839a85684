//! ICMP errors that say that a packet's time to live ended (RFC 792, RFC 4443 §3.3), as a capture has them.

use std::net::IpAddr;

use crate::capture::Frame;

const ETHERNET: usize = 14;

/// An ICMP error about a packet whose time to live ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimeExceeded {
    /// The sender of the error.
    pub from: IpAddr,
    /// The destination of the packet.
    pub to: IpAddr,
    /// The four bytes after the packet's IP header: its ports.
    pub ports: [u8; 4],
}

impl TimeExceeded {
    /// Reads a received frame. `None` if it is another packet.
    pub fn read(frame: &Frame) -> Option<Self> {
        let packet = frame.bytes.get(ETHERNET..).filter(|_| !frame.outgoing)?;
        let v4 = |at: usize| Some(IpAddr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?));
        let v6 = |at: usize| Some(IpAddr::from(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?));
        let ports = |at: usize| packet.get(at..at + 4)?.try_into().ok();
        match (packet.first()? >> 4, packet.get(9)?, packet.get(6)?) {
            (4, 1, _) if packet.get(20..22)? == [11, 0] => Some(Self {
                from: v4(12)?,
                to: v4(28 + 16)?,
                ports: ports(48)?,
            }),
            (6, _, 58) if packet.get(40..42)? == [3, 0] => Some(Self {
                from: v6(8)?,
                to: v6(48 + 24)?,
                ports: ports(88)?,
            }),
            _ => None,
        }
    }
}
