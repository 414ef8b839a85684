//! The flags of addresses and ranges: `ADDRESSES` and `POD_RANGES`.

use crate::Ip;

/// The number of a node. It follows from the node's name and is the same in all maps of an agent. 0 stands
/// for no other node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NodeNumber(pub u32);

impl NodeNumber {
    /// The position of the number in values of `ADDRESSES` and `POD_RANGES`; the bits below are flags.
    pub const SHIFT: u32 = 8;
    /// The largest number.
    pub const MAX: u32 = u32::MAX >> Self::SHIFT;

    /// Whether the number stands for a node.
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
    /// The broadcast or network address of a subnet of this node (RFC 1122 §3.3.6), which no host has.
    pub const BROADCAST: u32 = 8;

    /// Whether the address is the broadcast or network address of a subnet.
    #[inline(always)]
    pub const fn is_broadcast(self) -> bool {
        self.0 & Self::BROADCAST != 0
    }

    /// The flags of an address of another node.
    pub const fn of_peer(number: NodeNumber) -> Self {
        Self(Self::PEER | number.0 << NodeNumber::SHIFT)
    }

    /// The number of the other node that holds the address; 0 if there is none.
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

    /// Whether the address is virtual and the node itself does not hold it.
    #[inline(always)]
    pub const fn is_virtual_only(self) -> bool {
        self.0 & (Self::NODE | Self::VIRTUAL) == Self::VIRTUAL
    }
}

/// Key of `POD_RANGES`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct RangeKey {
    /// The number of significant bits of the address. An IPv4 prefix is 96 bits longer here than in its usual
    /// form.
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
    /// Packets of pods to these addresses are not masqueraded. The addresses need not be pods'.
    pub const NO_MASQUERADE: u32 = 2;
    /// Packets to these addresses go through the tunnel.
    pub const TUNNEL: u32 = 4;
    /// Addresses that a route in the kernel's table `local` makes the node's own.
    pub const LOCAL: u32 = 8;

    /// The number of the node whose pods have these addresses; 0 for this node's own.
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
