//! Fragments: the ports that only the first fragment of a datagram carries.

use crate::{Ip, Port};

/// Key of `FRAGMENTS`: what all fragments of a datagram have in common (RFC 791 §3.2; RFC 8200 §4.5).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FragmentKey {
    /// Source address.
    pub src: Ip,
    /// Destination address.
    pub dst: Ip,
    /// Identification, as it stands in the header.
    pub id: u32,
    /// IP protocol number of an IPv4 packet; 0 for IPv6, whose fragments are told by the rest (RFC 8200 §4.5).
    pub protocol: u8,
    /// Zero; as in [`super::FlowKey`].
    pub reserved: u8,
    /// Zero.
    pub reserved2: u16,
}

/// Value of `FRAGMENTS`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FragmentPorts {
    /// Source port.
    pub sport: Port,
    /// Destination port.
    pub dport: Port,
    /// IP protocol number: further extension headers may stand between the fragment header and the ports.
    pub protocol: u8,
    /// Zero.
    pub reserved: u8,
    /// Zero.
    pub reserved2: u16,
}

const _: () = assert!(size_of::<FragmentKey>() == 40);
const _: () = assert!(size_of::<FragmentPorts>() == 8);
