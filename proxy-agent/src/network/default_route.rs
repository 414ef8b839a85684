//! Default routes, as netlink messages describe them.

use std::net::IpAddr;

use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteType};

use super::netlink;

/// A default route of any table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct DefaultRoute {
    pub table: u32,
    pub ipv6: bool,
    pub interface: u32,
    pub metric: u32,
    pub gateway: Option<IpAddr>,
}

impl DefaultRoute {
    /// The default routes that a message describes: one for each next hop.
    pub fn read(message: &RouteMessage) -> Vec<Self> {
        if message.header.kind != RouteType::Unicast {
            return Vec::new();
        }
        let table = netlink::table(message);
        let ipv6 = message.header.address_family == AddressFamily::Inet6;
        let metric = netlink::metric(message);
        let gateway = |attributes: &[RouteAttribute]| {
            attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Gateway(address) => netlink::ip(address),
                _ => None,
            })
        };
        let mut routes = Vec::new();
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Oif(interface) => {
                    let gateway = gateway(&message.attributes);
                    routes.push(Self {
                        table,
                        ipv6,
                        interface: *interface,
                        metric,
                        gateway,
                    });
                }
                RouteAttribute::MultiPath(hops) => routes.extend(hops.iter().map(|hop| {
                    let gateway = gateway(&hop.attributes);
                    Self {
                        table,
                        ipv6,
                        interface: hop.interface_index,
                        metric,
                        gateway,
                    }
                })),
                _ => {}
            }
        }
        routes
    }
}
