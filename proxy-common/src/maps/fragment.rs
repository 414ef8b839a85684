//! Fragments: the ports that only the first fragment of a datagram carries.
//!
//! The table is divided by source. A source has a fixed number of places, so its datagrams overwrite only
//! each other.

use crate::{Ip, Port};

/// Key of `FRAGMENTS`: a place of a source, which holds the newest datagram that maps to it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FragmentKey {
    /// Source address as shares are counted: a host with an IPv6 address that is not a pod of this node
    /// counts with its /64.
    pub source: Ip,
    /// Number of the place, below twice [`Self::PLACES`]; in host order.
    pub place: u32,
    /// Zero.
    pub reserved: u32,
}

impl FragmentKey {
    /// The number of places of a source for datagrams that enter, and again for those that leave.
    pub const PLACES: u32 = 64;

    /// A key with no source.
    pub const EMPTY: Self = Self {
        source: Ip::UNSPECIFIED,
        place: 0,
        reserved: 0,
    };

    /// The place of a datagram. `number` is its identification in host order. Sequential identifications have
    /// different places.
    #[inline(always)]
    pub const fn place(number: u32, is_leaving: bool) -> u32 {
        let first = if is_leaving { Self::PLACES } else { 0 };
        first + number % Self::PLACES
    }
}

/// The fields that all fragments of a datagram have in common (RFC 791 §3.2; RFC 8200 §4.5).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Datagram {
    /// Source address.
    pub src: Ip,
    /// Destination address.
    pub dst: Ip,
    /// Identification, as it stands in the header.
    pub id: u32,
    /// IP protocol number of an IPv4 packet. 0 for IPv6, where the other fields identify the datagram (RFC
    /// 8200 §4.5).
    pub protocol: u8,
    /// Zero. There are two fields, as in [`super::FlowKey`].
    pub reserved: u8,
    /// Zero.
    pub reserved2: u16,
}

/// The ports of a datagram.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FragmentPorts {
    /// Source port.
    pub sport: Port,
    /// Destination port.
    pub dport: Port,
    /// IP protocol number of the transport header. Further extension headers may stand between the fragment
    /// header and the ports.
    pub protocol: u8,
    /// Zero.
    pub reserved: u8,
    /// Zero.
    pub reserved2: u16,
}

/// Value of `FRAGMENTS`: the data of a first fragment that the later ones need.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FirstFragment {
    /// The datagram. It is first in memory and read last, so that a reader notices an element that is being
    /// overwritten.
    pub datagram: Datagram,
    /// The ports that the first fragment carries.
    pub ports: FragmentPorts,
}

impl FirstFragment {
    /// An entry of no datagram.
    pub const EMPTY: Self = Self {
        datagram: Datagram {
            src: Ip::UNSPECIFIED,
            dst: Ip::UNSPECIFIED,
            id: 0,
            protocol: 0,
            reserved: 0,
            reserved2: 0,
        },
        ports: FragmentPorts {
            sport: Port::new(0),
            dport: Port::new(0),
            protocol: 0,
            reserved: 0,
            reserved2: 0,
        },
    };
}

const _: () = assert!(size_of::<FragmentKey>() == 24);
const _: () = assert!(size_of::<Datagram>() == 40);
const _: () = assert!(size_of::<FragmentPorts>() == 8);
const _: () = assert!(size_of::<FirstFragment>() == 48);
