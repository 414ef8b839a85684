//! The entries of millrace-cni about this node's pods: their addresses, and the host ports that lead to them.
//!
//! The plugin creates entries and needs no agent for it. The agent lists them, updates the limits in them,
//! makes lost ones again, and removes entries that a lost DEL has left. Most nodes have no
//! host ports, and a node beside another CNI plugin has no pods of ours. `IN_USE` says so for the cost of an
//! array look-up.

use crate::{Ip, Port};

/// Value of `PODS`: the pod that has an address.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Pod {
    /// Cookie of its network namespace; 0 where the kernel does not report it.
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
    /// A queue on the node's side limits what the pod receives, and no packet may bypass that queue.
    pub const LIMITED_INGRESS: u32 = 1;
    /// The device of [`PodLink::limiter`] limits what the pod sends.
    pub const LIMITED_EGRESS: u32 = 2;
}

/// Value of `POD_LINKS`, whose key is the index of an interface on the node's side: the limits on what the
/// pod may send by it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PodLink {
    /// Hardware address of the pod's side.
    pub mac: [u8; 6],
    /// Zero.
    pub reserved: [u8; 2],
    /// [`PodLinkFlags`].
    pub flags: u32,
    /// The device that limits the rate of the pod's packets, see [`PodLinkFlags::LIMITED_FIRST`]; 0 if there
    /// is no limit.
    pub limiter: u32,
}

const _: () = assert!(size_of::<PodLink>() == 16);

/// Bits of [`PodLink::flags`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PodLinkFlags(pub u32);

impl PodLinkFlags {
    /// The pod may send from addresses that are not its own, as a router or a host of virtual machines does.
    pub const ANY_SOURCE: u32 = 1;
    /// The pod's packets go through the device of [`PodLink::limiter`] before any decision about them.
    /// Without this flag a filter of an older plugin redirects them there, behind the programs.
    pub const LIMITED_FIRST: u32 = 2;
}

/// The mark of a packet that comes back from its pod's limiter. A packet that leaves a pod has no mark, see
/// [`crate::decide::limit`].
pub const LIMITED_MARK: u32 = 0x6d6c_6d6b;

/// Key of `HOST_PORTS`: a port of the node that leads to a pod.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct HostPortKey {
    /// The address of the node that the port belongs to; unspecified (`0.0.0.0` or `::`) for all addresses of
    /// that family.
    pub address: Ip,
    /// The port.
    pub port: Port,
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub reserved: u8,
}

const _: () = assert!(size_of::<HostPortKey>() == 20);

/// Value of `HOST_PORTS`: the pod that such a port leads to.
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
    /// The number of the entry. Another pod that gets the same port later, and perhaps the same address, has
    /// another number.
    pub generation: u32,
}

const _: () = assert!(size_of::<HostPort>() == 28);

impl HostPort {
    /// The most host ports that one pod may have. With an entry for each family they take an eighth of the
    /// table, which all pods of the node share. No server listens at more ports than that.
    pub const SHARE: u32 = 8192;
}

/// Indices of `IN_USE`: which of the plugin's tables have ever held an entry. The value of such a table is 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InUse;

impl InUse {
    /// `PODS` and `POD_LINKS`.
    pub const PODS: u32 = 0;
    /// `HOST_PORTS`.
    pub const HOST_PORTS: u32 = 1;
    /// The number of indices.
    pub const COUNT: u32 = 2;
}
