//! IPv4 routes whose next hops are on several interfaces.
//!
//! Strict reverse-path filtering of the kernel accepts a packet by each of these interfaces
//! (`fib_info_nh_uses_dev` in `net/ipv4/fib_frontend.c`). A program's look-up returns one next hop only, so
//! the programs cannot repeat the check where such a route exists.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteType};

use super::netlink;

/// The interfaces of each route, by table, prefix and metric.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct MultipathRoutes(BTreeMap<(u32, IpNet, u32), BTreeSet<u32>>);

impl MultipathRoutes {
    /// Applies a message. A route with one next hop replaces one with several that has the same key.
    pub fn take(&mut self, message: &RouteMessage, present: bool) {
        let is_v4 = message.header.address_family == AddressFamily::Inet;
        let prefix = netlink::prefix(message).filter(|_| is_v4 && message.header.kind == RouteType::Unicast);
        let Some(prefix) = prefix else {
            return;
        };
        let key = (netlink::table(message), prefix, netlink::metric(message));
        let hops = message.attributes.iter().filter_map(|attribute| match attribute {
            RouteAttribute::MultiPath(hops) => Some(hops.iter().map(|hop| hop.interface_index)),
            _ => None,
        });
        let interfaces: BTreeSet<u32> = hops.flatten().collect();
        if present && interfaces.len() > 1 {
            self.0.insert(key, interfaces);
        } else {
            self.0.remove(&key);
        }
    }

    /// Removes an interface from all routes. The kernel sends no message about these routes.
    pub fn forget(&mut self, interface: u32) {
        self.0.retain(|_, interfaces| {
            interfaces.remove(&interface);
            interfaces.len() > 1
        });
    }

    /// Whether there is such a route in any table.
    pub fn exist(&self) -> bool {
        !self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::route::RouteNextHop;

    use super::*;

    fn route(table: u8, interfaces: &[u32]) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.destination_prefix_length = 8;
        message.header.kind = RouteType::Unicast;
        message.header.table = table;
        let destination =
            RouteAttribute::Destination("10.0.0.0".parse::<std::net::Ipv4Addr>().unwrap().into());
        let hops = interfaces.iter().map(|interface| {
            let mut hop = RouteNextHop::default();
            hop.interface_index = *interface;
            hop
        });
        let to = match interfaces {
            [interface] => RouteAttribute::Oif(*interface),
            _ => RouteAttribute::MultiPath(hops.collect()),
        };
        message.attributes = vec![destination, to];
        message
    }

    #[test]
    fn routes_of_any_table_over_several_interfaces_are_known_until_they_go() {
        let mut routes = MultipathRoutes::default();
        for table in [254, 100] {
            routes.take(&route(table, &[2, 2]), true);
            assert!(!routes.exist(), "two gateways on one interface");
            routes.take(&route(table, &[2, 3]), true);
            assert!(routes.exist());
            routes.take(&route(table, &[2]), true);
            assert!(!routes.exist(), "a replaced route");
            routes.take(&route(table, &[2, 3]), true);
            routes.take(&route(table, &[2, 3]), false);
            assert!(!routes.exist(), "a removed route");
        }
    }

    #[test]
    fn a_removed_interface_takes_its_next_hops_with_it() {
        let mut routes = MultipathRoutes::default();
        routes.take(&route(254, &[2, 3, 4]), true);
        routes.forget(2);
        assert!(routes.exist());
        routes.forget(3);
        assert!(!routes.exist());
    }
}
