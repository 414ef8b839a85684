//! The parser: from bytes to the header fields that a decision needs.
//!
//! The parser reads through [`Packet`], which the kernel programs implement over a socket buffer. All other
//! users implement it over a byte slice. The parser is total: any input results in [`Headers`] or a
//! [`Reason`].

pub mod crc32c;
mod embedded;
mod headers;
mod parse;

pub use embedded::{parse_embedded, parse_embedded_into};
pub use headers::{IcmpHead, Ipv4Header, Ipv6Extension, Ipv6Header, Ports, TcpHead};
pub use parse::{
    ECHO_ID, Headers, MAX_EXTENSIONS, SCTP_ABORT, SCTP_COOKIE_ACK, SCTP_INIT, SCTP_INIT_ACK,
    SCTP_SHUTDOWN_COMPLETE, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, is_extension, parse, parse_into,
};

use crate::Plain;
#[cfg(doc)]
use crate::maps::Reason;

/// Read access to a packet's bytes.
pub trait Packet {
    /// Reads a `T` at `offset` from the start of the link-layer header; `None` if the packet ends before.
    fn load<T: Plain>(&self, offset: u32) -> Option<T>;
}

impl Packet for [u8] {
    fn load<T: Plain>(&self, offset: u32) -> Option<T> {
        T::from_bytes(self.get(offset as usize..)?)
    }
}

/// `EtherType` numbers, in host order.
pub mod ether_type {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
    /// ARP.
    pub const ARP: u16 = 0x0806;
    /// A VLAN tag (IEEE 802.1Q).
    pub const VLAN: u16 = 0x8100;
    /// An outer VLAN tag (IEEE 802.1ad).
    pub const SERVICE_VLAN: u16 = 0x88a8;
}

/// Length of an Ethernet header.
pub const ETHERNET_LEN: u32 = 14;
