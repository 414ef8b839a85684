//! The marker for types that may be read from raw bytes, and the only unsafe code of this crate.
//!
//! A header in a packet and a value in a map are bytes that other code wrote. Reading them as a type is sound
//! only if every bit pattern is a value of that type and the type has no padding. The trait [`Plain`]
//! promises that.

#![expect(
    unsafe_code,
    reason = "the one module that turns bytes into types, and types into bytes"
)]

use core::{mem, slice};

/// A type for which every bit pattern is valid, without padding, references or interior mutability.
///
/// # Safety
/// The implementor is `repr(C)` or `repr(transparent)` and consists of `Plain` fields only. Its size is the
/// sum of their sizes, which the map types assert beside their definition.
pub unsafe trait Plain: Copy + 'static {
    /// The value's bytes in memory order.
    fn as_bytes(&self) -> &[u8] {
        // SAFETY: `self` is a live value without padding, so all of its bytes are initialised.
        unsafe { slice::from_raw_parts((&raw const *self).cast::<u8>(), mem::size_of::<Self>()) }
    }

    /// Reads a value from the start of `bytes`; `None` if they are too few. No alignment is required.
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < mem::size_of::<Self>() {
            return None;
        }
        // SAFETY: the length was checked, the read is unaligned, and any bit pattern is a valid `Self`.
        Some(unsafe { bytes.as_ptr().cast::<Self>().read_unaligned() })
    }
}

macro_rules! plain {
    ($($type:ty),+ $(,)?) => {
        $(
            // SAFETY: the types are integers, arrays of them, and repr(C) structs of them whose size is
            // asserted at their definition.
            unsafe impl $crate::Plain for $type {}
            // SAFETY: as above; aya's marker promises the same properties.
            #[cfg(feature = "user")]
            unsafe impl aya::Pod for $type {}
        )+
    };
}

macro_rules! plain_only {
    ($($type:ty),+ $(,)?) => {
        $(
            // SAFETY: integers and arrays of integers.
            unsafe impl $crate::Plain for $type {}
        )+
    };
}

// SAFETY: an array has no padding between its elements, and each of them is `Plain`.
unsafe impl<T: Plain, const N: usize> Plain for [T; N] {}

plain_only!(u8, u16, u32, u64);

plain!(
    crate::Ip,
    crate::Port,
    crate::maps::FrontendKey,
    crate::maps::Frontend,
    crate::maps::Slot,
    crate::maps::Backend,
    crate::maps::Config,
    crate::maps::FlowKey,
    crate::maps::Flow,
    crate::maps::Share,
    crate::maps::RecentCount,
    crate::maps::SocketKey,
    crate::maps::SocketPeer,
    crate::maps::Connected,
    crate::maps::TraceCell,
    crate::maps::RangeKey,
    crate::maps::Counter,
    crate::maps::AffinityKey,
    crate::maps::Affinity,
    crate::maps::Refusals,
    crate::maps::FragmentKey,
    crate::maps::Datagram,
    crate::maps::FragmentPorts,
    crate::maps::FirstFragment,
    crate::maps::SourceRangeKey,
    crate::maps::Pod,
    crate::maps::PodLink,
    crate::maps::HostPortKey,
    crate::maps::HostPort,
);

plain_only!(
    crate::packet::Ipv4Header,
    crate::packet::Ipv6Header,
    crate::packet::Ipv6Extension,
    crate::packet::Ports,
    crate::packet::TcpHead,
    crate::packet::IcmpHead,
    crate::decide::gateway::Arp,
    crate::decide::gateway::ArpReply,
);
