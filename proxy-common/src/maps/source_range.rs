//! `loadBalancerSourceRanges`: whose packets a load balancer's address lets through.
//!
//! All services share one trie: the service id stands in front of the address, so that it is part of every prefix.

use crate::Ip;

/// Key of `SOURCE_RANGES`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct SourceRangeKey {
    /// How many bits of `service` and `address` count: 32 more than the prefix in the address's IPv6 form has.
    pub prefix_len: u32,
    /// The service port.
    pub service: u32,
    /// The network's address.
    pub address: Ip,
}

const _: () = assert!(size_of::<SourceRangeKey>() == 24);
