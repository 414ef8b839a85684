//! `loadBalancerSourceRanges`: the clients that may use a load balancer's address.
//!
//! All services share one trie. The service id stands in front of the address, so that it is part of every
//! prefix.

use crate::Ip;

/// Key of `SOURCE_RANGES`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct SourceRangeKey {
    /// The number of significant bits of `service` and `address`: 32 more than the prefix of the address in
    /// its IPv6 form.
    pub prefix_len: u32,
    /// The service port.
    pub service: u32,
    /// The network's address.
    pub address: Ip,
}

const _: () = assert!(size_of::<SourceRangeKey>() == 24);
