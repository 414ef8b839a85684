//! What the programs know of addresses and ranges: `ADDRESSES` and `POD_RANGES`.

use crate::Ip;

/// Which node: a number that follows from its name, the same in all maps of an agent. 0 is no other node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NodeNumber(pub u32);

impl NodeNumber {
    /// Where it stands in values of `ADDRESSES` and `POD_RANGES`; the bits below are flags.
    pub const SHIFT: u32 = 8;
    /// The largest.
    pub const MAX: u32 = u32::MAX >> Self::SHIFT;

    /// Whether there is such a node.
    #[inline(always)]
    pub const fn is_some(self) -> bool {
        self.0 != 0
    }
}

/// Bits of the value of `ADDRESSES`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct AddressFlags(pub u32);

impl AddressFlags {
    /// A virtual address with at least one frontend.
    pub const VIRTUAL: u32 = 1;
    /// An address that the node itself holds.
    pub const NODE: u32 = 2;
    /// An address of another node, whose number stands in the upper bits.
    pub const PEER: u32 = 4;
    /// The broadcast or network address of a subnet of this node's (RFC 1122 §3.3.6): no host's.
    pub const BROADCAST: u32 = 8;

    /// Whether it is an address of no host.
    #[inline(always)]
    pub const fn is_broadcast(self) -> bool {
        self.0 & Self::BROADCAST != 0
    }

    /// The flags of an address of another node.
    pub const fn of_peer(number: NodeNumber) -> Self {
        Self(Self::PEER | number.0 << NodeNumber::SHIFT)
    }

    /// The node that holds the address, if it is another one.
    #[inline(always)]
    pub const fn node_number(self) -> NodeNumber {
        NodeNumber(self.0 >> NodeNumber::SHIFT)
    }

    /// Whether another node holds the address.
    #[inline(always)]
    pub const fn is_peer(self) -> bool {
        self.0 & Self::PEER != 0
    }

    /// Whether the node itself holds the address.
    #[inline(always)]
    pub const fn is_node(self) -> bool {
        self.0 & Self::NODE != 0
    }

    /// Whether the address is a virtual one, and not also the node's.
    #[inline(always)]
    pub const fn is_virtual_only(self) -> bool {
        self.0 & (Self::NODE | Self::VIRTUAL) == Self::VIRTUAL
    }
}

/// Key of `POD_RANGES`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct RangeKey {
    /// How many bits of the address count; IPv4 prefixes are 96 longer than they are written.
    pub prefix_len: u32,
    /// The network's address.
    pub address: Ip,
}

const _: () = assert!(size_of::<RangeKey>() == 20);

/// Bits of the value of `POD_RANGES`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RangeFlags(pub u32);

impl RangeFlags {
    /// Addresses of pods.
    pub const PODS: u32 = 1;
    /// What pods send there keeps their address, though no pods need be there.
    pub const NO_MASQUERADE: u32 = 2;
    /// Packets to there go through the tunnel.
    pub const TUNNEL: u32 = 4;
    /// Addresses that are the node's own by a route of the kernel's table `local`.
    pub const LOCAL: u32 = 8;

    /// The node whose pods have these addresses; none for this node's own.
    #[inline(always)]
    pub const fn node_number(self) -> NodeNumber {
        NodeNumber(self.0 >> NodeNumber::SHIFT)
    }

    /// Whether a flag is set.
    #[inline(always)]
    pub const fn has(self, flag: u32) -> bool {
        self.0 & flag != 0
    }
}
