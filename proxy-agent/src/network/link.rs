//! One link and its addresses, reduced from netlink messages to the facts that decisions here use.
//!
//! The facts serve for comparison: a message that changes none of them (counters, queue lengths) is no
//! change.

use std::net::{IpAddr, Ipv4Addr};

use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage};

/// A link of the namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Link {
    /// The interface index.
    pub index: u32,
    /// The name of the interface.
    pub name: String,
    /// The kind of a virtual device (`veth`, `bridge`, `vxlan`), empty for others.
    pub kind: String,
    /// The Ethernet address, if the link has one.
    pub mac: Option<[u8; 6]>,
    /// Whether its packets begin with the IP header, as on `WireGuard`, tun and PPP.
    pub is_headerless: bool,
    /// The MTU in bytes.
    pub mtu: u32,
    /// The state of the link: those of its flags that are in [`Link::FLAGS`].
    pub flags: LinkFlags,
    /// The index of the bridge, bond or VRF that the link is a port of.
    pub master: Option<u32>,
    /// The index of the peer of a veth, or of the link below. It is an index of the namespace
    /// [`Self::peer_namespace`] if that is set.
    pub peer: Option<u32>,
    /// The namespace of the peer if it is another one, as this namespace's id of it (`IFLA_LINK_NETNSID`).
    pub peer_namespace: Option<i32>,
}

impl Link {
    /// The flags that are kept: switched on, has a carrier, is the loopback device, resolves no neighbours,
    /// sends multicast.
    pub const FLAGS: LinkFlags = LinkFlags::Up
        .union(LinkFlags::LowerUp)
        .union(LinkFlags::Loopback)
        .union(LinkFlags::Noarp)
        .union(LinkFlags::Multicast);

    /// Parses a message of the link. Returns `None` for a message about the link in another role, such as a
    /// port of a bridge.
    pub fn read(message: &LinkMessage) -> Option<Self> {
        let header = &message.header;
        if header.interface_family != AddressFamily::Unspec {
            return None;
        }
        let mut link = Self {
            index: header.index,
            flags: header.flags.intersection(Self::FLAGS),
            is_headerless: matches!(
                header.link_layer_type,
                LinkLayerType::None | LinkLayerType::Ppp | LinkLayerType::Rawip
            ),
            ..Self::default()
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::Address(bytes) => link.mac = bytes.as_slice().try_into().ok(),
                LinkAttribute::Controller(index) => link.master = Some(*index),
                LinkAttribute::Link(index) => link.peer = Some(*index),
                LinkAttribute::LinkNetNsId(id) => link.peer_namespace = Some(*id),
                LinkAttribute::LinkInfo(infos) => {
                    let kind = infos.iter().find_map(|info| match info {
                        LinkInfo::Kind(kind) => Some(kind.to_string()),
                        _ => None,
                    });
                    link.kind = kind.unwrap_or_default();
                }
                _ => {}
            }
        }
        // After IPsec the kernel leaves the Ethernet header of the outer packet in front of the inner one.
        link.is_headerless &= link.kind != "xfrm";
        Some(link)
    }

    /// Whether the administrator switched the link on.
    pub fn is_up(&self) -> bool {
        self.flags.contains(LinkFlags::Up)
    }

    /// Whether the link can carry packets now.
    pub fn has_carrier(&self) -> bool {
        self.flags.contains(LinkFlags::LowerUp)
    }

    /// Whether the programs can read its packets: they begin with an Ethernet header, or with the IP header.
    pub fn is_readable(&self) -> bool {
        self.mac.is_some() || self.is_headerless
    }

    /// Whether the link is the loopback device.
    pub fn is_loopback(&self) -> bool {
        self.flags.contains(LinkFlags::Loopback)
    }

    /// Whether the link is a veth whose peer is in another namespace, as for pods, containers and virtual
    /// nodes.
    pub fn connects_to_another_namespace(&self) -> bool {
        self.kind == "veth" && self.peer_namespace.is_some()
    }
}

/// An address of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The address itself, without its prefix length.
    pub ip: IpAddr,
    /// The length of the prefix that is on the link.
    pub prefix_len: u8,
    /// The IPv4 broadcast address that the operator configured.
    pub broadcast: Option<Ipv4Addr>,
    /// Whether the address can be the source of packets to other links (scope `global` or `site`).
    pub global: bool,
    /// Whether the address can be used now. An IPv6 address cannot while duplicate detection runs, or after
    /// it failed.
    pub usable: bool,
    /// The reasons against the address as a source (secondary, deprecated, temporary), as a count; 0 is best.
    pub demerit: u8,
}

impl Address {
    /// Parses a message; also returns the link's index.
    pub fn read(message: &AddressMessage) -> Option<(u32, Self)> {
        let (mut local, mut address, mut broadcast, mut flags) = (None, None, None, None);
        for attribute in &message.attributes {
            match attribute {
                AddressAttribute::Local(ip) => local = Some(*ip),
                // On a point-to-point link this is the peer's address.
                AddressAttribute::Address(ip) => address = Some(*ip),
                AddressAttribute::Broadcast(ip) => broadcast = Some(*ip),
                AddressAttribute::Flags(all) => flags = Some(*all),
                _ => {}
            }
        }
        let ip = local.or(address)?;
        let flags = flags.unwrap_or_else(|| first_byte(message.header.flags));
        let waiting = flags.contains(AddressFlags::Tentative) && !flags.contains(AddressFlags::Optimistic);
        Some((
            message.header.index,
            Self {
                ip,
                prefix_len: message.header.prefix_len,
                broadcast,
                global: matches!(message.header.scope, AddressScope::Universe | AddressScope::Site),
                usable: !waiting && !flags.contains(AddressFlags::Dadfailed),
                demerit: 2 * u8::from(flags.contains(AddressFlags::Deprecated))
                    // `IFA_F_TEMPORARY`, for the privacy addresses of IPv6, is the same bit.
                    + u8::from(flags.contains(AddressFlags::Secondary)),
            },
        ))
    }

    /// Whether the address has a network on the link. A lone address, such as a floating one, has none.
    pub fn has_network(&self) -> bool {
        self.prefix_len < if self.ip.is_ipv4() { 32 } else { 128 }
    }

    /// Whether other machines may know the node by this address.
    pub fn is_public(&self) -> bool {
        let local = match self.ip {
            IpAddr::V4(ip) => ip.is_loopback() || ip.is_link_local() || ip.is_unspecified(),
            IpAddr::V6(ip) => ip.is_loopback() || ip.is_unicast_link_local() || ip.is_unspecified(),
        };
        self.global && !local
    }
}

fn first_byte(flags: AddressHeaderFlags) -> AddressFlags {
    AddressFlags::from_bits_retain(u32::from(flags.bits()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rtnetlink::packet_route::link::InfoKind;

    #[test]
    fn a_bridge_port_message_says_nothing_about_the_link() {
        let mut message = LinkMessage::default();
        message.header.index = 7;
        assert!(Link::read(&message).is_some());
        message.header.interface_family = AddressFamily::Bridge;
        assert_eq!(Link::read(&message), None);
    }

    #[test]
    fn a_veth_into_a_pod_is_known_by_its_peers_namespace() {
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName("veth1".into()),
            LinkAttribute::Link(2),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth)]),
        ];
        assert!(!Link::read(&message).is_some_and(|link| link.connects_to_another_namespace()));
        message.attributes.push(LinkAttribute::LinkNetNsId(0));
        assert!(Link::read(&message).is_some_and(|link| link.connects_to_another_namespace()));
    }

    #[test]
    fn an_address_under_duplicate_detection_cannot_be_used() {
        let mut message = AddressMessage::default();
        message.header.prefix_len = 64;
        message.attributes = vec![AddressAttribute::Address("fd00::1".parse().expect("address"))];
        let read = |message: &AddressMessage| Address::read(message).expect("an address").1;
        assert!(read(&message).usable);
        message
            .attributes
            .push(AddressAttribute::Flags(AddressFlags::Tentative));
        assert!(!read(&message).usable);
        message.attributes.pop();
        message.attributes.push(AddressAttribute::Flags(
            AddressFlags::Deprecated | AddressFlags::Secondary,
        ));
        assert_eq!(read(&message).demerit, 3);
    }
}
