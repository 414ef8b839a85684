//! What millrace-cni enters about this node's pods: who has which address, and which ports of the node lead to one.
//!
//! The plugin alone makes entries, so that it needs no agent and shares no allocator with one; the agent lists them,
//! changes what they say of limits, and removes what a lost DEL left behind. Most nodes have no host ports at all, and a node beside another CNI
//! plugin has no pods of ours: `IN_USE` says so at the price of an array look-up.

use crate::{Ip, Port};

/// Value of `PODS`: the pod that has an address.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Pod {
    /// Cookie of its network namespace; 0 where the kernel does not tell it.
    pub netns: u64,
    /// The interface on the node's side.
    pub interface: u32,
    /// [`PodFlags`].
    pub flags: u32,
    /// Hardware address of the pod's side.
    pub mac: [u8; 6],
    /// Zero.
    pub reserved: [u8; 2],
}

const _: () = assert!(size_of::<Pod>() == 24);

impl Pod {
    /// No pod.
    pub const EMPTY: Self = Self {
        netns: 0,
        interface: 0,
        flags: 0,
        mac: [0; 6],
        reserved: [0; 2],
    };
}

/// Bits of [`Pod::flags`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PodFlags(pub u32);

impl PodFlags {
    /// What the pod receives is limited by a queue on the node's side, which a packet must not be led past.
    pub const LIMITED_INGRESS: u32 = 1;
    /// What the pod sends is limited, by the device of [`PodLink::limiter`].
    pub const LIMITED_EGRESS: u32 = 2;
}

/// Value of `POD_LINKS`, whose key is the index of an interface on the node's side: what a pod may send by it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PodLink {
    /// Hardware address of the pod's side.
    pub mac: [u8; 6],
    /// Zero.
    pub reserved: [u8; 2],
    /// [`PodLinkFlags`].
    pub flags: u32,
    /// The device through which packets go whose rate is limited, see [`PodLinkFlags::LIMITED_FIRST`]; 0 if it is not.
    pub limiter: u32,
}

const _: () = assert!(size_of::<PodLink>() == 16);

/// Bits of [`PodLink::flags`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PodLinkFlags(pub u32);

impl PodLinkFlags {
    /// The pod may send from addresses that are not its own: a router, or a host of virtual machines.
    pub const ANY_SOURCE: u32 = 1;
    /// What the pod sends goes through the device of [`PodLink::limiter`] before anything is decided about it. Without this a
    /// filter of an older plugin leads it there, behind the programs.
    pub const LIMITED_FIRST: u32 = 2;
}

/// The mark of a packet that comes back from its pod's limiter. Every packet leaves a pod without any mark, see
/// [`crate::decide::limit`].
pub const LIMITED_MARK: u32 = 0x6d6c_6d6b;

/// Key of `HOST_PORTS`: a port of the node's that leads to a pod.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct HostPortKey {
    /// The address of the node's that it is a port of; unspecified (`0.0.0.0` or `::`) for all of that family.
    pub address: Ip,
    /// The port.
    pub port: Port,
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub reserved: u8,
}

const _: () = assert!(size_of::<HostPortKey>() == 20);

/// Value of `HOST_PORTS`: where such a port leads to.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostPort {
    /// The pod's address.
    pub pod: Ip,
    /// The pod's port.
    pub port: Port,
    /// Zero.
    pub reserved: [u8; 2],
    /// The interface on the node's side.
    pub interface: u32,
    /// Which entry this is: another pod that gets the same port later, and perhaps the same address, has another number.
    pub generation: u32,
}

const _: () = assert!(size_of::<HostPort>() == 28);

impl HostPort {
    /// How many host ports one pod may have: with an entry for each family an eighth of the table, which all
    /// pods of the node share. More than that no server listens at.
    pub const SHARE: u32 = 8192;
}

/// Indices of `IN_USE`: which of the plugin's tables have ever held something. The value is 1 then.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InUse;

impl InUse {
    /// `PODS` and `POD_LINKS`.
    pub const PODS: u32 = 0;
    /// `HOST_PORTS`.
    pub const HOST_PORTS: u32 = 1;
    /// How many there are.
    pub const COUNT: u32 = 2;
}
