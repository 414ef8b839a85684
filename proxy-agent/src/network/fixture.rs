//! Links, addresses and routes for unit tests.

use ipnet::{IpNet, Ipv4Net};
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::LinkFlags;

use super::{Address, Change, Link, Links};

/// A link that is up.
pub fn link(index: u32, name: &str, kind: &str) -> Link {
    Link {
        index,
        name: name.into(),
        kind: kind.into(),
        mac: Some([2, 0, 0, 0, 0, 7]),
        mtu: 1500,
        flags: LinkFlags::Up | LinkFlags::LowerUp,
        ..Link::default()
    }
}

/// A usable address without demerits.
pub fn address(text: &str) -> Address {
    let net: IpNet = text.parse().expect("an address with a prefix length");
    Address {
        ip: net.addr(),
        prefix_len: net.prefix_len(),
        broadcast: None,
        global: true,
        usable: true,
        demerit: 0,
    }
}

/// The netlink message of a default route.
pub fn default_route(interface: u32) -> RouteNetlinkMessage {
    let any = Ipv4Net::default();
    let route =
        RouteMessageBuilder::<std::net::Ipv4Addr>::new().destination_prefix(any.addr(), any.prefix_len());
    RouteNetlinkMessage::NewRoute(route.output_interface(interface).build())
}

/// A network namespace that a test builds.
#[derive(Default)]
pub struct World(pub Links);

impl World {
    /// A namespace with a loopback device.
    pub fn new() -> Self {
        Self::default()
            .add(Link {
                flags: LinkFlags::Up | LinkFlags::LowerUp | LinkFlags::Loopback,
                ..link(1, "lo", "")
            })
            .holding(1, &["127.0.0.1/8"])
    }

    /// Adds a link.
    pub fn add(mut self, link: Link) -> Self {
        self.0.set_link(link, &mut Change::default());
        self
    }

    /// Adds the host side of a pod's veth.
    pub fn pod(self, index: u32, name: &str, master: Option<u32>) -> Self {
        self.add(Link {
            peer: Some(2),
            peer_namespace: Some(0),
            master,
            ..link(index, name, "veth")
        })
    }

    /// Gives a link addresses.
    pub fn holding(mut self, index: u32, addresses: &[&str]) -> Self {
        for text in addresses {
            self.0.set_address(index, address(text), &mut Change::default());
        }
        self
    }

    /// Adds a default route.
    pub fn default_route(mut self, interface: u32) -> Self {
        self.0.take(&default_route(interface), &mut Change::default());
        self
    }

    /// Adds an IPv4 route without a gateway.
    pub fn link_route(mut self, interface: u32, prefix: &str) -> Self {
        let prefix: Ipv4Net = prefix.parse().expect("a prefix");
        let route = RouteMessageBuilder::<std::net::Ipv4Addr>::new()
            .destination_prefix(prefix.addr(), prefix.prefix_len())
            .output_interface(interface);
        let message = RouteNetlinkMessage::NewRoute(route.build());
        self.0.take(&message, &mut Change::default());
        self
    }
}
