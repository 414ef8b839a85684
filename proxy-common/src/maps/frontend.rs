//! Frontends and slots: from the address that a client sends to, to the backends of its service.
//!
//! A frontend points to a contiguous *slice* of `SLOTS`. The agent never edits a slice while a frontend
//! points to it. It writes a new slice and then exchanges [`SlotRange`], one aligned word that a reader loads
//! once. A consistent-hash (Maglev) table is another way to fill a slice, so it needs no map and no look-up
//! of its own.
//!
//! The kernel reuses a freed hash element at once, and a reader may be preempted between look-up and use. Two
//! marks show that to the reader: the value repeats the key in [`Frontend::check`], and every slot contains
//! the service id of its slice. If either differs, the reader looks the frontend up again, once.

use crate::{Ip, Port};

/// The clients that an entry is for. One entry is for all clients unless clients from outside get other
/// backends.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// All clients. If there is a second entry for clients from outside: pods of this node and the node
    /// itself.
    Any = 0,
    /// Clients from outside, where `externalTrafficPolicy: Local` gives them another set of backends.
    Outside = 1,
}

/// The key of `FRONTENDS`: the address, port and protocol that a client sends to.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct FrontendKey {
    /// The virtual address.
    pub address: Ip,
    /// The port, in network order.
    pub port: Port,
    /// IP protocol number.
    pub protocol: u8,
    /// [`Scope`] as a number.
    pub scope: u8,
}

impl FrontendKey {
    /// The key of the entry for all clients.
    #[inline(always)]
    pub const fn new(address: Ip, port: Port, protocol: u8) -> Self {
        Self {
            address,
            port,
            protocol,
            scope: Scope::Any as u8,
        }
    }

    /// The key folded to a word, without collisions for IPv4. See the second paragraph of the module's
    /// documentation.
    #[inline(always)]
    pub const fn check(&self) -> u64 {
        let [a, b, c, d] = self.address.v6_words();
        let folded = (a ^ b.rotate_left(11) ^ c.rotate_left(23)) as u64;
        let tail = (self.port.raw() as u64) << 16 | (self.protocol as u64) << 8 | self.scope as u64;
        (d as u64 | tail << 32) ^ (folded << 24).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}

/// A slice of `SLOTS`: start in the high half, count in the low half, so that a reader loads both at once.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SlotRange(pub u64);

impl SlotRange {
    /// `count` slots from `start`.
    pub const fn new(start: u32, count: u32) -> Self {
        Self((start as u64) << 32 | count as u64)
    }

    /// Index of the first slot.
    #[inline(always)]
    pub const fn start(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Number of slots; 0 means that the service has no usable endpoint.
    #[inline(always)]
    pub const fn count(self) -> u32 {
        self.0 as u32
    }
}

/// The kind of a frontend's address.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub enum FrontendKind {
    /// A cluster IP.
    ClusterIp = 0,
    /// A port of a node's address.
    NodePort = 1,
    /// An address of a load balancer.
    LoadBalancer = 2,
    /// An address that the operator routes to the nodes.
    ExternalIp = 3,
}

/// Bits of [`Frontend::flags`]. The agent keeps the number of draining slots in the high half, which the
/// programs do not read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FrontendFlags(pub u32);

impl FrontendFlags {
    /// Endpoints exist, but the policy Local leaves none on this node: the programs drop a packet and send no
    /// error.
    pub const LOCAL_ONLY: u32 = 1;
    /// Clients from outside keep their address: `externalTrafficPolicy: Local`.
    pub const KEEP_SOURCE: u32 = 2;
    /// The entry with [`Scope::Outside`] is for clients from outside.
    pub const OUTSIDE_DIFFERS: u32 = 4;
    /// A client stays with its backend for [`Frontend::affinity`].
    pub const AFFINITY: u32 = 8;
    /// Only clients in `SOURCE_RANGES` may use the frontend.
    pub const SOURCE_RANGES: u32 = 16;
    /// Connections to removed backends are reset.
    pub const RESET_REMOVED: u32 = 32;
    /// The position of the number of a [`FrontendKind`].
    const KIND_SHIFT: u32 = 8;

    /// The flags for a kind.
    pub const fn of_kind(kind: FrontendKind) -> u32 {
        (kind as u32) << Self::KIND_SHIFT
    }

    /// The kind.
    #[inline(always)]
    pub const fn kind(self) -> FrontendKind {
        match self.0 >> Self::KIND_SHIFT & 3 {
            1 => FrontendKind::NodePort,
            2 => FrontendKind::LoadBalancer,
            3 => FrontendKind::ExternalIp,
            _ => FrontendKind::ClusterIp,
        }
    }

    /// Whether the frontend is meant for clients from outside.
    #[inline(always)]
    pub const fn is_external(self) -> bool {
        self.0 >> Self::KIND_SHIFT & 3 != 0
    }

    /// Whether a flag is set.
    #[inline(always)]
    pub const fn has(self, flag: u32) -> bool {
        self.0 & flag != 0
    }
}

/// The value of `FRONTENDS`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frontend {
    /// [`FrontendKey::check`] of the key. It is first in memory and loaded last, because the kernel
    /// overwrites a reused element from its start.
    pub check: u64,
    /// [`SlotRange`] as a number.
    pub slots: u64,
    /// The service port (in one family) that the slice belongs to.
    pub service: u32,
    /// [`FrontendFlags`].
    pub flags: u32,
    /// The number of seconds after its last connection for which a client stays with its backend; 0 without
    /// affinity.
    pub affinity: u32,
    /// Zero.
    pub reserved: u32,
}

impl Frontend {
    /// The flags.
    #[inline(always)]
    pub const fn flags(&self) -> FrontendFlags {
        FrontendFlags(self.flags)
    }
}

const _: () = assert!(size_of::<FrontendKey>() == 20);
const _: () = assert!(size_of::<Frontend>() == 32);

/// One element of a slice: a backend id in the low half, the owning service id in the high half.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Slot(pub u64);

impl Slot {
    /// A slot of `service` that leads to `backend`.
    pub const fn new(service: u32, backend: u32) -> Self {
        Self((service as u64) << 32 | backend as u64)
    }

    /// The index into `BACKENDS`.
    #[inline(always)]
    pub const fn backend(self) -> u32 {
        self.0 as u32
    }

    /// The service id the slice was written for.
    #[inline(always)]
    pub const fn service(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_is_the_key_itself_for_ipv4() {
        let key =
            |a: u32, port, protocol| FrontendKey::new(Ip::from_v4_word(a), Port::new(port), protocol).check();
        let mut seen = std::collections::HashSet::new();
        for a in 0..100 {
            for port in 0..100 {
                assert!(seen.insert(key(a, port, 6)) && seen.insert(key(a, port, 17)));
            }
        }
    }

    #[test]
    fn ranges_and_slots_hold_both_halves() {
        let range = SlotRange::new(0xdead_beef, 7);
        assert_eq!((range.start(), range.count()), (0xdead_beef, 7));
        let slot = Slot::new(5, u32::MAX);
        assert_eq!((slot.service(), slot.backend()), (5, u32::MAX));
    }
}
