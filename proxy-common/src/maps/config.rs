//! The configuration of the node for the programs, and the cell that arms a dry run.
//!
//! Both are one-element mmapped arrays: the agent changes them with a store, without a reload of the
//! programs.

use crate::{Ip, Port, protocol};

/// The most service ranges that the programs compare a destination with.
pub const MAX_SERVICE_RANGES: usize = 4;
/// The most ranges of this node's pods.
pub const MAX_OWN_RANGES: usize = 4;
/// The most broadcast and network addresses.
pub const MAX_BROADCASTS: usize = 4;
/// The most on-link ranges.
pub const MAX_ON_LINK_RANGES: usize = 8;
/// The most interfaces with strict reverse-path filtering.
pub const MAX_STRICT_INTERFACES: usize = 8;

/// The most uplinks without an Ethernet header.
pub const MAX_HEADERLESS: usize = 8;

/// The most uplinks where the node has other addresses than its primary ones.
pub const MAX_UPLINKS: usize = 16;

/// Bits of [`Config::flags`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ConfigFlags(pub u32);

impl ConfigFlags {
    /// Socket hooks translate for sockets of the node itself.
    pub const SOCKETS_OF_NODE: u32 = 1;
    /// Socket hooks translate for sockets of pods.
    pub const SOCKETS_OF_PODS: u32 = 2;
    /// The node holds more addresses than [`Config::node_v4`] and [`Config::node_v6`]; `ADDRESSES` has them
    /// all.
    pub const MORE_NODE_ADDRESSES: u32 = 4;
    /// Every flow to a service carries the node's address.
    pub const MASQUERADE_ALL: u32 = 8;
    /// Processes of the node cannot bind node ports, see [`crate::decide::socket::may_bind`].
    pub const PROTECT_NODE_PORTS: u32 = 16;
    /// Some virtual addresses are outside of all service ranges.
    pub const VIPS_OUTSIDE_RANGES: u32 = 32;
    /// Packets of this node's pods to the world outside carry the node's address.
    pub const MASQUERADE_PODS: u32 = 64;
    /// Packets between pods of this node go straight into the other pod, past the node's stack.
    pub const REDIRECT_TO_PODS: u32 = 128;
    /// Some ranges are local to the node by a route, see [`RangeFlags::LOCAL`].
    pub const LOCAL_RANGES: u32 = 256;
    /// The kernel gives ports of the masquerade range to sockets of the node.
    pub const LOCAL_PORTS_OVERLAP: u32 = 512;
    /// Programs watch all interfaces by which other hosts can send to the node. So the tunnel's device takes
    /// only packets that the programs have admitted.
    pub const TUNNEL_SEALED: u32 = 1024;
    /// All nodes send to each other's pods by the tunnel, so an uplink takes no packet from a pod of another
    /// node.
    pub const TUNNEL_ONLY: u32 = 4096;
    /// Masqueraded flows may leave by uplinks with other addresses, see [`Config::uplinks`].
    pub const MORE_UPLINKS: u32 = 2048;
}

/// The node's addresses at one uplink, with which it masquerades flows that leave by it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct UplinkAddresses {
    /// The interface index; 0 ends a list.
    pub interface: u32,
    /// The IPv4 address as a header field; 0 if the uplink has none.
    pub v4: u32,
    /// The IPv6 address; unspecified if the uplink has none.
    pub v6: Ip,
}

const _: () = assert!(size_of::<UplinkAddresses>() == 24);

/// The kind of a flow that decides its lifetime: an index into [`Config::lifetimes`].
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lifetime {
    /// A connection within its handshake.
    Opening = 0,
    /// A connection past its handshake, or one that only a RST has closed.
    Open = 1,
    /// A connection that one side has closed.
    Closing = 2,
    /// A connection that is over.
    Closed = 3,
    /// Datagrams that are no stream yet.
    Datagram = 4,
    /// Datagrams in both directions that go on after a question and its reply.
    Stream = 5,
}

impl Lifetime {
    /// The number of lifetimes.
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
    /// The first port for masqueraded flows, in host order.
    pub masquerade_first: u16,
    /// The number of ports for masqueraded flows.
    pub masquerade_count: u16,
    /// The UDP port of the nodes' tunnels; 0 if there are none.
    pub tunnel_port: Port,
    /// The uplink program sets it when it translates a flow whose replies it will not see. From then on,
    /// programs at the pods look for these replies. The programs write this field and the next one.
    pub pods_reply_outside: u32,
    /// The same for clients from outside to which the node itself replies, at the uplink.
    pub node_replies_outside: u32,
    /// The lifetimes of idle flows, by [`Lifetime`], in ticks of [`crate::Tables::now`]; 0 has no end.
    pub lifetimes: [u32; Lifetime::COUNT],
    /// The most connections of one client that `FLOWS` protects.
    pub connection_share: u32,
    /// The node's own IPv4 address for masquerading; unspecified where the node has none.
    pub node_v4: Ip,
    /// The node's own IPv6 address for masquerading.
    pub node_v6: Ip,
    /// The node's IPv4 address within the tunnel, for masqueraded packets that go there; unspecified without
    /// a tunnel.
    pub tunnel_v4: Ip,
    /// The same for IPv6.
    pub tunnel_v6: Ip,
    /// Service ranges: network addresses.
    pub service_range: [Ip; MAX_SERVICE_RANGES],
    /// Service ranges: masks; an unspecified mask ends the list.
    pub service_mask: [Ip; MAX_SERVICE_RANGES],
    /// The ranges of this node's pods: network addresses.
    pub own_range: [Ip; MAX_OWN_RANGES],
    /// The same: masks; an unspecified mask ends the list.
    pub own_mask: [Ip; MAX_OWN_RANGES],
    /// For each family, a range that contains all pods of the cluster: network addresses. It may contain
    /// other hosts as well, so it only decides the order of look-ups.
    pub around_pods: [Ip; 2],
    /// The same: masks; an unspecified mask if there is no such range.
    pub around_pods_mask: [Ip; 2],
    /// Interfaces with strict reverse-path filtering; 0 ends the list.
    pub strict_interfaces: [u32; MAX_STRICT_INTERFACES],
    /// The most exchanges of datagrams of one client that `STREAMS` protects.
    pub stream_share: u32,
    /// The most flows of one client that may hold a source port of the node before they are proven, see
    /// [`super::RecentCount`].
    pub unreplied_share: u32,
    /// The device of the tunnel between nodes; 0 if there is none.
    pub tunnel_device: u32,
    /// The most packets of a pod, or to a service port, for which the node may lately have resolved a
    /// neighbour, see [`super::RecentCount`].
    pub neighbour_share: u32,
    /// Broadcast and network addresses of IPv4 subnets of uplinks, as header fields; 0 ends the list.
    pub broadcasts: [u32; MAX_BROADCASTS],
    /// Ranges whose hosts are on a link of the node: network addresses.
    pub on_link_range: [Ip; MAX_ON_LINK_RANGES],
    /// The same: masks; an unspecified mask ends the list.
    pub on_link_mask: [Ip; MAX_ON_LINK_RANGES],
    /// Uplinks where the node has other addresses than [`Self::node_v4`] and [`Self::node_v6`].
    pub uplinks: [UplinkAddresses; MAX_UPLINKS],
    /// Uplinks whose packets have no Ethernet header, such as `WireGuard`; 0 ends the list.
    pub headerless: [u32; MAX_HEADERLESS],
}

const _: () = assert!(size_of::<Config>() == 1184);

/// Whether `address` lies in one of the ranges; an unspecified mask ends the list.
#[inline(always)]
const fn is_in<const N: usize>(address: &Ip, ranges: &[Ip; N], masks: &[Ip; N]) -> bool {
    let mut range = 0;
    while range < N {
        if masks[range].v6_words()[0] == 0 {
            return false;
        }
        if covers(&ranges[range], &masks[range], address) {
            return true;
        }
        range += 1;
    }
    false
}

#[inline(always)]
const fn covers(network: &Ip, mask: &Ip, address: &Ip) -> bool {
    let (words, network, mask) = (address.v6_words(), network.v6_words(), mask.v6_words());
    ((words[0] & mask[0]) ^ network[0])
        | ((words[1] & mask[1]) ^ network[1])
        | ((words[2] & mask[2]) ^ network[2])
        | ((words[3] & mask[3]) ^ network[3])
        == 0
}

impl Config {
    /// Whether `address` lies in a service range.
    #[inline(always)]
    pub const fn is_service_address(&self, address: &Ip) -> bool {
        is_in(address, &self.service_range, &self.service_mask)
    }

    /// Whether `address` lies in a range of this node's pods.
    #[inline(always)]
    pub const fn is_own_pod_address(&self, address: &Ip) -> bool {
        is_in(address, &self.own_range, &self.own_mask)
    }

    /// Whether pods of this node are our plugin's, so that their ranges are known.
    #[inline(always)]
    pub const fn has_own_pods(&self) -> bool {
        self.own_mask[0].v6_words()[0] != 0
    }

    /// Whether the host at `address` is on a link of the node.
    #[inline(always)]
    pub const fn is_on_link(&self, address: &Ip) -> bool {
        is_in(address, &self.on_link_range, &self.on_link_mask)
    }

    /// Whether `address` lies in a range that contains all pods. Not every address there is a pod's.
    #[inline(always)]
    pub const fn may_be_pod(&self, address: &Ip) -> bool {
        let family = if address.is_v4() { 0 } else { 1 };
        let mask = &self.around_pods_mask[family];
        mask.v6_words()[0] != 0 && covers(&self.around_pods[family], mask, address)
    }

    /// Whether an IPv4 address is the broadcast or network address of a subnet here.
    #[inline(always)]
    pub const fn is_broadcast(&self, address: &Ip) -> bool {
        let word = address.v4_word();
        address.is_v4()
            && (self.broadcasts[0] == word
                || self.broadcasts[1] == word
                || self.broadcasts[2] == word
                || self.broadcasts[3] == word)
    }

    /// Whether packets on an interface have no Ethernet header.
    #[inline(always)]
    pub const fn is_headerless(&self, interface: u32) -> bool {
        let mut index = 0;
        while index < MAX_HEADERLESS && self.headerless[index] != 0 {
            if self.headerless[index] == interface {
                return true;
            }
            index += 1;
        }
        false
    }

    /// Whether an interface has strict reverse-path filtering.
    #[inline(always)]
    pub const fn is_strict(&self, interface: u32) -> bool {
        let mut index = 0;
        while index < MAX_STRICT_INTERFACES {
            if self.strict_interfaces[index] == interface {
                return interface != 0;
            }
            index += 1;
        }
        false
    }

    /// The node's own address of the family of `like`.
    #[inline(always)]
    pub const fn node_address(&self, like: &Ip) -> Ip {
        if like.is_v4() { self.node_v4 } else { self.node_v6 }
    }

    /// The node's address of the family of `like` for packets that leave by `interface`: the uplink's, or
    /// else the primary one.
    #[inline(always)]
    pub const fn address_at(&self, interface: u32, like: &Ip) -> Ip {
        let mut index = 0;
        while index < MAX_UPLINKS {
            let uplink = &self.uplinks[index];
            if uplink.interface == 0 {
                break;
            }
            if uplink.interface == interface {
                if like.is_v4() && uplink.v4 != 0 {
                    return Ip::from_v4_word(uplink.v4);
                }
                if !like.is_v4() && !uplink.v6.is_unspecified() {
                    return uplink.v6;
                }
                break;
            }
            index += 1;
        }
        self.node_address(like)
    }

    /// Whether an address is the node's own for masquerading. The comparison makes no copy, since a copy
    /// would be on the stack. A program and all functions that it calls have 512 bytes of stack.
    #[inline(always)]
    pub fn is_node_address(&self, address: &Ip) -> bool {
        if address.is_v4() {
            self.node_v4.same(address)
        } else {
            self.node_v6.same(address)
        }
    }

    /// Whether a port lies in the range of masqueraded flows. Other nodes usually have the same range.
    #[inline(always)]
    pub const fn is_masquerade_port(&self, port: Port) -> bool {
        port.number().wrapping_sub(self.masquerade_first) < self.masquerade_count
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

    /// Whether a client with `taken` flows in a table that evicts nothing may have one more. All clients
    /// together have `all` flows there.
    ///
    /// A client has at most a quarter of a table, and never more than is still free. So if `n` clients want
    /// as many flows as possible, each gets one part in `n + 1`, and one part stays free for others. Clients
    /// from outside leave the last quarter to pods of this node, since one host outside may have many
    /// addresses.
    #[inline(always)]
    pub const fn has_share(&self, protocol: u8, taken: u32, all: u32, is_own_pod: bool) -> bool {
        let share = match protocol {
            protocol::TCP | protocol::SCTP => self.connection_share,
            _ => self.stream_share,
        };
        let reach = if is_own_pod { 4 } else { 3 };
        let most = share.saturating_mul(reach);
        taken < share && taken < most.saturating_sub(all)
    }

    /// Whether a flag is set.
    #[inline(always)]
    pub const fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }
}

/// Value of `TRACE`: the nonce of the dry run under way, or zero.
///
/// A run of a program is a dry run only if this cell is armed *and* the packet's control block holds the same
/// nonce. Only `BPF_PROG_TEST_RUN` can write it there on an interface's ingress.
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
