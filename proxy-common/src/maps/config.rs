//! What the programs know of the node, and the cell that arms a dry run.
//!
//! Both lie in one-element mmapped arrays: the agent changes them with a store, without a reload.

use crate::Ip;

/// How many service ranges the programs compare a destination with.
pub const MAX_SERVICE_RANGES: usize = 4;

/// Bits of [`Config::flags`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ConfigFlags(pub u32);

impl ConfigFlags {
    /// Socket hooks translate for the node's own sockets.
    pub const SOCKETS_OF_NODE: u32 = 1;
    /// Socket hooks translate for sockets of pods.
    pub const SOCKETS_OF_PODS: u32 = 2;
    /// The node holds more addresses than [`Config::node_v4`] and [`Config::node_v6`]; `ADDRESSES` has them all.
    pub const MORE_NODE_ADDRESSES: u32 = 4;
    /// Every flow to a service carries the node's address.
    pub const MASQUERADE_ALL: u32 = 8;
    /// Processes of the node cannot bind node ports.
    pub const PROTECT_NODE_PORTS: u32 = 16;
    /// Some virtual addresses lie outside of all service ranges.
    pub const STRAY_ADDRESSES: u32 = 32;
    /// What pods of this node send to the world outside carries the node's address.
    pub const MASQUERADE_PODS: u32 = 64;
    /// Packets between pods of this node go from one to the other without the node's stack.
    pub const REDIRECT_TO_PODS: u32 = 128;
}

/// What a flow is, as far as it matters for how long it is remembered: an index into [`Config::lifetimes`].
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lifetime {
    /// A connection within its handshake.
    Opening = 0,
    /// A connection.
    Open = 1,
    /// A connection that one side has closed.
    Closing = 2,
    /// A connection that is over.
    Closed = 3,
    /// Datagrams that were never answered.
    Datagram = 4,
    /// Datagrams that were.
    Stream = 5,
}

impl Lifetime {
    /// How many there are.
    pub const COUNT: usize = 6;
}

/// Value of `CONFIG`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Config {
    /// Cookie of the node's network namespace.
    pub node_netns: u64,
    /// [`ConfigFlags`].
    pub flags: u32,
    /// The device that holds the routes of virtual addresses.
    pub host_device: u32,
    /// Hardware address of that device.
    pub host_mac: [u8; 6],
    /// First port for masqueraded flows.
    pub masquerade_first: u16,
    /// How many ports there are for masqueraded flows.
    pub masquerade_count: u16,
    /// Zero.
    pub reserved: u16,
    /// Set by the uplink program when a flow was translated whose answers it will not see: programs at the pods
    /// then look for it. Written by the kernel side, as the next.
    pub pods_answer_outside: u32,
    /// The same for clients from outside that the node itself answers, at the uplink.
    pub node_answers_outside: u32,
    /// How long flows are remembered, by [`Lifetime`], in ticks of [`crate::Tables::now`].
    pub lifetimes: [u32; Lifetime::COUNT],
    /// Zero.
    pub reserved2: u32,
    /// The node's own IPv4 address for masquerading; unspecified where the node has none.
    pub node_v4: Ip,
    /// The node's own IPv6 address for masquerading.
    pub node_v6: Ip,
    /// The node's IPv4 address within the tunnel, for what is masqueraded and goes there; unspecified without a tunnel.
    pub tunnel_v4: Ip,
    /// The same for IPv6.
    pub tunnel_v6: Ip,
    /// Service ranges: network addresses.
    pub service_range: [Ip; MAX_SERVICE_RANGES],
    /// Service ranges: masks; an unspecified mask ends the list.
    pub service_mask: [Ip; MAX_SERVICE_RANGES],
}

const _: () = assert!(size_of::<Config>() == 256);

impl Config {
    /// Whether `address` lies in a service range.
    #[inline(always)]
    pub fn is_service_address(&self, address: &Ip) -> bool {
        let words = address.v6_words();
        let mut range = 0;
        while range < MAX_SERVICE_RANGES {
            let mask = self.service_mask[range].v6_words();
            if mask[0] == 0 {
                return false;
            }
            let network = self.service_range[range].v6_words();
            let differs = ((words[0] & mask[0]) ^ network[0])
                | ((words[1] & mask[1]) ^ network[1])
                | ((words[2] & mask[2]) ^ network[2])
                | ((words[3] & mask[3]) ^ network[3]);
            if differs == 0 {
                return true;
            }
            range += 1;
        }
        false
    }

    /// The node's own address of the family of `like`.
    #[inline(always)]
    pub const fn node_address(&self, like: &Ip) -> Ip {
        if like.is_v4() { self.node_v4 } else { self.node_v6 }
    }

    /// Whether an address is the node's own for masquerading. Compared in place: a copy would lie on the stack, of which
    /// a program and all it calls have 512 bytes.
    #[inline(always)]
    pub fn is_node_address(&self, address: &Ip) -> bool {
        if address.is_v4() {
            self.node_v4.same(address)
        } else {
            self.node_v6.same(address)
        }
    }

    /// Whether an address is the node's own within the tunnel.
    #[inline(always)]
    pub fn is_tunnel_address(&self, address: &Ip) -> bool {
        if address.is_v4() {
            self.tunnel_v4.same(address)
        } else {
            self.tunnel_v6.same(address)
        }
    }

    /// The node's address within the tunnel of the family of `like`; unspecified without a tunnel.
    #[inline(always)]
    pub const fn tunnel_address(&self, like: &Ip) -> Ip {
        if like.is_v4() {
            self.tunnel_v4
        } else {
            self.tunnel_v6
        }
    }

    /// Whether a flag is set.
    #[inline(always)]
    pub const fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
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

    /// Whether a flag is set.
    #[inline(always)]
    pub const fn has(self, flag: u32) -> bool {
        self.0 & flag != 0
    }
}

/// Value of `TRACE`: the nonce of the dry run under way, or zero.
///
/// A program is in a dry run only while this cell is armed *and* the packet's control block holds the same nonce,
/// which only `BPF_PROG_TEST_RUN` can put there on an interface's ingress.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TraceCell {
    /// Compared with `cb[0]` (low half) and `cb[1]` (high half).
    pub nonce: u64,
}

const _: () = assert!(size_of::<TraceCell>() == 8);

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::IpAddr;

    fn ip(text: &str) -> Ip {
        text.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn service_ranges_of_both_families() {
        let mut config = Config::default();
        config.service_range[0] = ip("::ffff:10.96.0.0");
        config.service_mask[0] = ip("ffff:ffff:ffff:ffff:ffff:ffff:ffff:0");
        config.service_range[1] = ip("fd00:96::");
        config.service_mask[1] = ip("ffff:ffff:ffff:ffff:ffff:ffff:ffff:0");
        assert!(config.is_service_address(&ip("10.96.255.1")));
        assert!(!config.is_service_address(&ip("10.97.0.1")));
        assert!(config.is_service_address(&ip("fd00:96::7")));
        assert!(!config.is_service_address(&ip("fd00:97::7")));
        assert!(!Config::default().is_service_address(&ip("10.96.0.1")));
    }
}
