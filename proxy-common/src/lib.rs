//! The code that the kernel programs and user space share: the map types and the packet decisions.
//!
//! A service proxy decides where a packet goes, and which peer a socket gets. These decisions are written
//! once, here, without I/O and without `std`, against the trait [`Tables`]. The kernel programs implement
//! that trait over their maps. The agent implements it over the same maps from user space (for `millrace
//! trace`), and tests over plain hash maps. So the code that is fuzzed and unit-tested is the code that runs.
//!
//! Invariants: no code here allocates, loops without a bound, or panics on any input. Every type in a map is
//! `repr(C)` and has no implicit padding, and a const assertion beside it fixes its size.

#![cfg_attr(not(any(test, feature = "testing")), no_std)]
#![deny(unsafe_code)]

pub mod addr;
pub mod decide;
pub mod flow_hash;
pub mod maps;
pub mod packet;
mod plain;

pub use addr::{Ip, Port};
pub use decide::Tables;
pub use plain::Plain;

/// IP protocol numbers that decisions know (RFC 5237). Services exist for TCP, UDP and SCTP.
pub mod protocol {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

/// The version of the state that outlives a process: map names, layouts of keys and values, and their
/// meaning.
///
/// It is part of the pin path, so that an agent never reads maps of another layout.
pub const LAYOUT_VERSION: u32 = 7;
