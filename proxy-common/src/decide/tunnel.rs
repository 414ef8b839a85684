//! The nodes' tunnel: the hosts that may send to its port, and the packets that they may send inside.
//!
//! VXLAN trusts each sender (RFC 7348 §7). So the uplink program checks a packet for the tunnel's port. Its
//! source has to be an address of another node. The source of the inner packet has to be a pod of that same
//! node. The inner destination has to be a pod of this node or this node's end of the tunnel. No pod may send
//! to that port of any node. No service may lead there, since the node would lend its address to the clients
//! of that service.
//!
//! Fragments are refused: the first one need not contain the inner headers, and RFC 7348 §4.3 forbids
//! fragments.
//!
//! The kernel's socket takes more packets than those that an uplink sees: broadcasts, and packets by other
//! interfaces. So the uplink program sets a note on an admitted packet (its priority). The program at the
//! tunnel's device checks the note and removes it. This works where programs watch all interfaces by which
//! other hosts can send ([`ConfigFlags::TUNNEL_SEALED`]).

use super::admission::is_local_by_route;
use super::decision::Entry;
use super::{PacketContext, Tables};
use crate::Ip;
use crate::maps::{Config, ConfigFlags, RangeFlags, Reason};
use crate::packet::{Headers, Ipv4Header, Ipv6Header, Packet, ether_type, is_extension};
use crate::{Port, protocol};

const UDP_HEADER: u32 = 8;
/// The VXLAN header: flags, network identifier and reserved bytes (RFC 7348 §5).
const VXLAN_HEADER: u32 = 8;
/// Offset of the `EtherType` in the inner frame.
const ETHER_TYPE: u32 = 12;
const ETHERNET_LEN: u32 = 14;

/// The note (`skb->priority`) on a packet that an uplink has admitted for the tunnel. It differs from real
/// priorities: those of VLANs are at most 7, and classes have a handle in the upper half.
pub const ADMITTED: u32 = 0x6d72;

/// Whether the packet goes to the port of the nodes' tunnels, at any address.
#[inline(always)]
pub const fn is_for_port(config: &Config, headers: &Headers) -> bool {
    headers.protocol == protocol::UDP && headers.has_ports && is_port(config, headers.dport)
}

/// Whether a UDP port is that of the nodes' tunnels.
#[inline(always)]
pub const fn is_port(config: &Config, port: Port) -> bool {
    config.tunnel_port.raw() != 0 && port.raw() == config.tunnel_port.raw()
}

/// Whether an address belongs to this node or another one.
#[inline(always)]
fn is_node<T: Tables>(tables: &T, config: &Config, address: &Ip) -> bool {
    if config.is_node_address(address) {
        return true;
    }
    let known = tables.address(address);
    known.is_node() || known.is_peer()
}

/// Whether a node's socket for the tunnel listens at an address. It listens at a node's addresses, its end of
/// the tunnel, addresses that are local by a route, and all addresses that several hosts share.
#[inline(always)]
pub fn is_listening<T: Tables>(tables: &T, config: &Config, address: &Ip) -> bool {
    is_node(tables, config, address) || is_shared(tables, config, address)
}

#[inline(always)]
fn is_shared<T: Tables>(tables: &T, config: &Config, address: &Ip) -> bool {
    config.is_tunnel_address(address)
        || !address.is_one_host()
        || (!address.is_v4() && address.is_link_local())
        || config.is_broadcast(address)
        || is_local_by_route(tables, config, address)
}

/// Whether a flow's address and port may be those of a node's tunnel, where no pod and no service may send.
/// Another node's tunnel listens at each address of that node, and the Node object need not have them all. So
/// each address that is not a pod's counts.
#[inline(always)]
pub fn is_end<T: Tables>(tables: &T, config: &Config, address: &Ip, port: Port, protocol: u8) -> bool {
    protocol == protocol::UDP
        && is_port(config, port)
        && (is_listening(tables, config, address) || !tables.range(address).has(RangeFlags::PODS))
}

/// The verdict on a packet for the port of the tunnels; `None` if this module does not decide it.
#[inline(always)]
pub fn admit<T: Tables, P: Packet + ?Sized>(
    tables: &T,
    config: &Config,
    packet: &P,
    headers: &Headers,
    entry: Entry,
) -> Option<Reason> {
    match entry {
        Entry::Pod if is_open(tables, config, &headers.dst) => None,
        Entry::Pod => Some(Reason::TunnelPort),
        Entry::Uplink if is_for_node(tables, config, headers) => {
            // Other nodes send to the node's addresses. A packet to the node's end of the tunnel came through
            // a service, whose node lent its address to it.
            let is_peers = !config.is_tunnel_address(&headers.dst);
            Some(if is_peers && may_carry(tables, config, packet, headers) {
                Reason::NotOurs
            } else {
                Reason::TunnelSource
            })
        }
        _ => None,
    }
}

/// Whether a pod may send to the port of the tunnels at an address. It may send to a pod or to a service,
/// either of which may use this port too.
#[inline(always)]
fn is_open<T: Tables>(tables: &T, config: &Config, address: &Ip) -> bool {
    config.is_service_address(address)
        || tables.address(address).is_virtual_only()
        || (tables.range(address).has(RangeFlags::PODS) && !is_listening(tables, config, address))
}

/// Whether a packet that came by an uplink, for the port of the tunnels, is for this node.
#[inline(always)]
fn is_for_node<T: Tables>(tables: &T, config: &Config, headers: &Headers) -> bool {
    config.is_node_address(&headers.dst)
        || (config.has(ConfigFlags::MORE_NODE_ADDRESSES) && tables.address(&headers.dst).is_node())
        || is_shared(tables, config, &headers.dst)
}

/// Whether an ICMP error that came by an uplink is, or may be, about a packet of this node's tunnel to
/// another node. The kernel would lower the path MTU of all pods' traffic to that node and fragment the
/// packets, which no tunnel takes. The MTU of pods follows from that of the uplinks, so such an error has no
/// use.
///
/// The kernel also reads behind extension headers, and reads the port of a fragment.
#[inline(always)]
pub fn is_error<T: Tables>(tables: &T, config: &Config, ctx: &PacketContext) -> bool {
    let (headers, embedded) = (&ctx.headers, &ctx.embedded);
    if config.tunnel_port.raw() == 0 {
        return false;
    }
    if headers.is_fragment {
        return is_listening(tables, config, &headers.dst);
    }
    let is_to_port = if embedded.has_ports {
        embedded.protocol == protocol::UDP && is_port(config, embedded.dport)
    } else {
        embedded.protocol == protocol::UDP || (!headers.src.is_v4() && is_extension(embedded.protocol))
    };
    is_to_port && is_node(tables, config, &embedded.src) && tables.address(&embedded.dst).is_peer()
}

/// Whether an uplink has admitted a packet that comes out of the tunnel's device. `note` is the packet's
/// priority.
#[inline(always)]
pub fn was_admitted(config: &Config, interface: u32, note: u32) -> bool {
    !config.has(ConfigFlags::TUNNEL_SEALED)
        || config.tunnel_device == 0
        || interface != config.tunnel_device
        || note == ADMITTED
}

/// Whether `IPsec` of another node protects a packet, which may contain one for the tunnel: ESP and AH (RFC
/// 4303, RFC 4302), also in UDP (RFC 3948). The stack decrypts it behind the programs.
#[inline(always)]
pub fn is_protected<T: Tables>(tables: &T, headers: &Headers) -> bool {
    const ESP: u8 = 50;
    const AH: u8 = 51;
    const IN_UDP: Port = Port::new(4500);
    let is_ipsec = matches!(headers.protocol, ESP | AH)
        || (headers.protocol == protocol::UDP && headers.has_ports && headers.dport.raw() == IN_UDP.raw());
    is_ipsec && tables.address(&headers.src).is_peer()
}

/// Whether a packet for this node's tunnel comes from another node and carries a packet that this node may
/// send.
// The kernel gets this as a function of its own, as in `packet`.
#[cfg_attr(target_arch = "bpf", inline(never))]
#[cfg_attr(not(target_arch = "bpf"), inline(always))]
fn may_carry<T: Tables, P: Packet + ?Sized>(
    tables: &T,
    config: &Config,
    packet: &P,
    headers: &Headers,
) -> bool {
    let peer = tables.address(&headers.src);
    if !peer.is_peer() || headers.is_fragment {
        return false;
    }
    let frame = headers.l4 + UDP_HEADER + VXLAN_HEADER;
    let Some(kind) = packet.load::<u16>(frame + ETHER_TYPE) else {
        return false;
    };
    let (source, destination) = match u16::from_be(kind) {
        ether_type::IPV4 => match packet.load::<Ipv4Header>(frame + ETHERNET_LEN) {
            Some(ip) => (Ip::from_v4_word(ip.src), Ip::from_v4_word(ip.dst)),
            None => return false,
        },
        ether_type::IPV6 => match packet.load::<Ipv6Header>(frame + ETHERNET_LEN) {
            Some(ip) => (Ip::from_v6_words(ip.src), Ip::from_v6_words(ip.dst)),
            None => return false,
        },
        // Neighbour entries are permanent, so no node sends ARP through the tunnel.
        _ => return false,
    };
    // The end of the tunnel has the first address of the range, so it is in the range too.
    if !config.is_own_pod_address(&destination) {
        return false;
    }
    let range = tables.range(&source);
    range.has(RangeFlags::PODS) && range.node_number().is_some() && range.node_number() == peer.node_number()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::testing::{Fake, ip, packet};
    use crate::maps::{AddressFlags, NodeNumber};

    fn node() -> Fake {
        let mut fake = Fake::node();
        fake.config.tunnel_port = Port::new(8472);
        (fake.config.own_range[0], fake.config.own_mask[0]) =
            (ip("10.244.1.0"), ip("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ff00"));
        (fake.config.own_range[1], fake.config.own_mask[1]) = (ip("fd00:1::"), ip("ffff:ffff:ffff:ffff::"));
        for (address, number) in [("192.168.50.12", 2), ("192.168.50.13", 3)] {
            fake.addresses
                .insert(ip(address), AddressFlags::of_peer(NodeNumber(number)));
        }
        for (pod, number) in [
            ("10.244.2.2", 2),
            ("10.244.3.2", 3),
            ("10.244.1.2", 0),
            ("fd00:2::2", 2),
        ] {
            let flags = RangeFlags::PODS | number << NodeNumber::SHIFT;
            fake.ranges.insert(ip(pod), RangeFlags(flags));
        }
        fake
    }

    fn ip_of(text: &str) -> [u8; 16] {
        text.parse::<core::net::Ipv6Addr>().expect("an address").octets()
    }

    /// An outer datagram around a packet from this source to a pod of this node.
    fn around(inner: &str, kind: u16) -> Vec<u8> {
        let mut frame = vec![0; 14 + 20 + 8 + 8 + 12];
        frame.extend(kind.to_be_bytes());
        match inner.parse().expect("an address") {
            core::net::IpAddr::V4(ip) => {
                frame.extend([0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0]);
                frame.extend(ip.octets());
                frame.extend([10, 244, 1, 2]);
            }
            core::net::IpAddr::V6(ip) => {
                frame.extend([0x60, 0, 0, 0, 0, 0, 17, 64]);
                frame.extend(ip.octets());
                frame.extend(ip_of("fd00:1::2"));
            }
        }
        frame
    }

    #[test]
    fn the_tunnel_takes_what_a_node_sends_of_its_own_pods() {
        let fake = node();
        let taken = |from, inner, kind, is_fragment| {
            let mut headers = packet(protocol::UDP, (from, 1), ("192.168.50.11", 8472));
            headers.is_fragment = is_fragment;
            assert!(is_for_port(&fake.config, &headers) && is_for_node(&fake, &fake.config, &headers));
            may_carry(&fake, &fake.config, &around(inner, kind)[..], &headers)
        };
        assert!(taken("192.168.50.12", "10.244.2.2", ether_type::IPV4, false));
        assert!(taken("192.168.50.12", "fd00:2::2", ether_type::IPV6, false));
        for (from, inner, kind, what) in [
            ("172.31.0.5", "10.244.2.2", ether_type::IPV4, "a stranger"),
            ("10.244.2.2", "10.244.2.2", ether_type::IPV4, "a pod"),
            ("192.168.50.11", "10.244.1.2", ether_type::IPV4, "the node itself"),
            (
                "192.168.50.12",
                "10.244.3.2",
                ether_type::IPV4,
                "another node's pod",
            ),
            (
                "192.168.50.12",
                "10.244.1.2",
                ether_type::IPV4,
                "a pod of this node",
            ),
            ("192.168.50.12", "192.168.50.12", ether_type::IPV4, "a node"),
            ("192.168.50.12", "172.31.0.5", ether_type::IPV4, "an outsider"),
            ("192.168.50.12", "10.244.2.2", ether_type::ARP, "ARP"),
            ("192.168.50.12", "10.244.2.2", ether_type::VLAN, "a tag"),
        ] {
            assert!(!taken(from, inner, kind, false), "{what}");
        }
        assert!(
            !taken("192.168.50.12", "10.244.2.2", ether_type::IPV4, true),
            "a fragment"
        );
        let headers = packet(protocol::UDP, ("192.168.50.12", 1), ("192.168.50.11", 8472));
        let short = around("10.244.2.2", ether_type::IPV4);
        for len in 0..short.len() {
            assert!(
                !may_carry(&fake, &fake.config, &short[..len], &headers),
                "{len} bytes"
            );
        }
    }

    #[test]
    fn ends_of_tunnels_are_the_port_at_a_node_and_nothing_else() {
        let mut fake = node();
        let end = |fake: &Fake, address, port, protocol| {
            is_end(fake, &fake.config, &ip(address), Port::new(port), protocol)
        };
        for address in ["192.168.50.11", "192.168.50.12"] {
            assert!(end(&fake, address, 8472, protocol::UDP));
            assert!(!end(&fake, address, 8473, protocol::UDP) && !end(&fake, address, 8472, protocol::TCP));
        }
        // Nodes have addresses that their Node objects lack.
        assert!(end(&fake, "192.168.50.212", 8472, protocol::UDP));
        assert!(!end(&fake, "10.244.2.2", 8472, protocol::UDP), "a pod's");
        fake.config.tunnel_port = Port::default();
        assert!(
            !end(&fake, "192.168.50.12", 8472, protocol::UDP),
            "without a pod network"
        );
    }
}
